"""Work in a second process, where the machine has a core for it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import torch

from modeling_sit.runtime.memory import keep_freed_memory
from modeling_sit.runtime.signals import end_with_loop

# The first process has workers, too, and what it does takes longest.
BEHIND = 10


class SecondProcess:
    """
    A process beside this one. Made by [`second_process`].

    Args:
        executor (`ProcessPoolExecutor`): Of one worker.
    """

    def __init__(self, executor: ProcessPoolExecutor):
        self._executor = executor
        self._begun: list[Future] = []

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the process call a function of a module, after what it was given before."""
        self._begun.append(self._executor.submit(function, *arguments))

    def is_done(self) -> bool:
        """Whether nothing that was begun is left."""
        return all(future.done() for future in self._begun)

    def wait(self) -> None:
        """Wait until all is done that was begun. Raises what a function raised."""
        for future in self._begun:
            future.result()


@contextmanager
def second_process(log: Path) -> Iterator[SecondProcess | None]:
    """A process that works while the block does, or `None` if this process may use one core only. Both have half of the cores, and
    where they are short the first one goes first. The block's end stops what is not done.

    Args:
        log (`Path`): A new file for all that the process prints, but for what it prints by [`say`].
    """
    num_threads, num_cores = torch.get_num_threads(), joblib.cpu_count()
    if num_cores < 2:
        yield None
        return
    each = max(1, min(num_threads, num_cores // 2))
    # A process that is forked would share locks and threads of this one.
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (log, each))
    process = executor.submit(os.getpid)
    torch.set_num_threads(each)
    second = SecondProcess(executor)
    try:
        yield second
    finally:
        torch.set_num_threads(num_threads)
        if not second.is_done():
            with suppress(Exception):  # it may have ended by itself
                os.kill(process.result(), signal.SIGKILL)
        executor.shutdown(cancel_futures=True)


def say(text: str) -> None:
    """Print a line: in the second process, where the first one prints, not into the log."""
    print(text, file=_terminal or sys.stdout, flush=True)


_terminal = None


def _begin(log: Path, num_threads: int) -> None:
    global _terminal
    end_with_loop()
    keep_freed_memory()
    os.nice(BEHIND)
    torch.set_num_threads(num_threads)
    _terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(log, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
