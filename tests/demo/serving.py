"""A page that is served in this process, as long as a test needs it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from modeling_sit.demo.demonstration import Demonstration


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(demonstration: Demonstration) -> Iterator[str]:
    """Serve the page of a demonstration; gives its address."""
    from modeling_sit.demo.app import create_app, launch_settings

    app = create_app(demonstration)
    _, url, _ = app.launch(**launch_settings(demonstration), prevent_thread_lock=True)
    try:
        yield url
    finally:
        app.close()
