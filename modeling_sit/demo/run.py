"""The demo from arguments to a page that is served, or to a folder that serves it elsewhere."""

import importlib.util
import os
import socket
import warnings

import PIL.Image

from modeling_sit.data.opening import PIXEL_LIMIT
from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.demo.demonstration import Demonstration
from modeling_sit.demo.space import write_space
from modeling_sit.runtime.errors import SiTError


def run_demo(arguments: DemoArguments) -> None:
    """Serve the page until Ctrl-C, or write the Space that `export_space` asks for.

    Raises:
        [`SiTError`]: If gradio is not installed, the port is in use, or a checkpoint or the dataset cannot be used.
    """
    if arguments.export_space is not None:
        print(f"written to {write_space(arguments)}: a Space, for the Hub or for python app.py")
        return
    if importlib.util.find_spec("gradio") is None:
        raise SiTError("gradio is not installed", remedy='pip install "modeling-sit[demo]"')
    check_port(arguments.host, arguments.port)
    # Of this process, which is the demo alone. Readers take no larger image, and Pillow none of twice the size.
    PIL.Image.MAX_IMAGE_PIXELS = arguments.max_upload_pixels
    os.environ[PIXEL_LIMIT] = str(arguments.max_upload_pixels)
    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
    demonstration = Demonstration.load(arguments)
    from modeling_sit.demo.app import create_app, launch_settings

    app = create_app(demonstration)
    for line in demonstration.describe():
        print(line)
    print(f"open http://{arguments.host}:{arguments.port} in a browser; Ctrl-C ends the demo", flush=True)
    try:
        app.launch(**launch_settings(demonstration))
    except OSError as problem:  # another program took the port meanwhile
        raise SiTError(str(problem).splitlines()[0], argument="port") from problem


def check_port(host: str, port: int) -> None:
    """Raise a [`SiTError`] if nothing can be served at an address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as problem:
        raise SiTError(f"{host} is no address: {problem.strerror}", argument="host") from problem
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as problem:
            raise SiTError(
                f"{port} of {host} cannot be used: {problem.strerror}",
                argument="port",
                remedy="give another, or stop the program that uses it",
            ) from problem
