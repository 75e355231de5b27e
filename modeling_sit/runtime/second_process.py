"""Work in a second process, where the machine has a core for it."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import torch

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.memory import keep_freed_memory
from modeling_sit.runtime.signals import end_with_loop
from modeling_sit.runtime.streams import copy_of_output, survive_closed_output

# The first process has workers, too, and what it does takes longest.
BEHIND = 10


class SecondProcess:
    """
    A process beside this one. Made by [`second_process`].

    Args:
        executor (`ProcessPoolExecutor`): Of one worker.
        log (`Path`): The file that it prints into.
    """

    def __init__(self, executor: ProcessPoolExecutor, log: Path):
        self._executor = executor
        self._log = log
        self._begun: list[Future] = []

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the process call a function of a module, after what it was given before. Raises what one of those has raised."""
        self._raise_errors([future for future in self._begun if future.done()])
        with self._named():
            self._begun.append(self._executor.submit(function, *arguments))

    def is_done(self) -> bool:
        """Whether nothing that was begun is left."""
        return all(future.done() for future in self._begun)

    def wait(self) -> None:
        """Wait until all is done that was begun. Raises what a function raised, and [`SiTError`] if the process has died."""
        self._raise_errors(self._begun)

    def _raise_errors(self, futures: list[Future]) -> None:
        for future in futures:
            with self._named():
                future.result()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            remedy = f"{self._log} has what it printed; if the memory was full, close other programs"
            raise SiTError("the second process has died", remedy=remedy) from error


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
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (log, each, os.getpid()))
    # Ctrl-C reaches all processes of a terminal. The first one answers it, and ends the second one.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = executor.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    torch.set_num_threads(each)
    second = SecondProcess(executor, log)
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
    print(text, file=_terminal, flush=True)


_terminal = None  # of the second process


def _begin(log: Path, num_threads: int, first_process: int) -> None:
    global _terminal
    end_with_loop()
    if os.getppid() != first_process:  # it ended before
        os._exit(1)
    keep_freed_memory()
    os.nice(BEHIND)
    torch.set_num_threads(num_threads)
    _terminal = copy_of_output()
    with open(log, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    survive_closed_output()
