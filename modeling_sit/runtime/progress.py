"""How a run says where it is: bars and lines, on a terminal, in a log and in a notebook."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm.auto import tqdm
from transformers.utils import is_in_notebook, logging


def shows_bar(stream: TextIO) -> bool:
    """Whether a progress bar is shown: in a notebook, and on a terminal. Some streams call themselves terminals and have no
    width."""
    if is_in_notebook():
        return True
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # it has no number that the system knows
        return True


def write_line(line: str) -> None:
    """Write a line above the bars: to stderr, or in a notebook to stdout, for it shows stderr as trouble."""
    # Nobody may be listening any more: Ctrl-C ends a `| tee` before the checkpoint that it asks for is written.
    with suppress(BrokenPipeError):
        tqdm.write(line, sys.stdout if is_in_notebook() else sys.stderr)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """In this block, transformers shows no bar for each file of weights that it reads or writes, and does not report which
    weights are new: this package logs what is important of that. A decorator, too."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
