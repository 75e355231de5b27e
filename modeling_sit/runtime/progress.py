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


def bar_of_images(total: int, description: str, *, shown: bool = True, leave: bool = True) -> tqdm:
    """A bar that counts images, on a terminal and in a notebook. In a log it is a line a minute, and none of what takes less.

    Args:
        total (`int`): Images.
        description (`str`): What is done with them.
        shown (`bool`, *optional*, defaults to `True`): Whether there is one at all.
        leave (`bool`, *optional*, defaults to `True`): Whether a terminal keeps it.
    """
    seconds = 0 if shows_bar(sys.stderr) else 60
    return tqdm(
        total=total,
        desc=description,
        unit=" images",
        disable=not shown,
        leave=leave,
        delay=seconds,
        mininterval=max(0.1, seconds),
        maxinterval=max(10, seconds),
    )


def write_line(line: str) -> None:
    """Write a line above the bars: to stderr, or in a notebook to stdout, for it shows stderr as trouble."""
    # Nobody may be listening any more: Ctrl-C ends a `| tee` before the checkpoint that it asks for is written.
    with suppress(BrokenPipeError):
        tqdm.write(line, sys.stdout if is_in_notebook() else sys.stderr)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """In this block, transformers shows no bar for each file of weights that it reads or writes, and does not report which
    weights are new: this package logs what is important of that. Downloads and uploads keep their bars. A decorator, too."""
    verbosity = logging.get_verbosity()
    # `disable_progress_bar` would take the bars of the Hub away, too.
    hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)
