"""Where every program gets its batches from: PyTorch's `DataLoader`, which waits for none of them for ever."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import DataLoader

from modeling_sit.data.hand_over import (
    LostBatch,
    check_room,
    free_shared_memory,
    hand_over_error,
    kill_workers,
    num_bytes,
    reporting_context,
    try_hand_over,
)
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import end_with_loop, ignore_signals_in_worker
from modeling_sit.runtime.waiting import WaitTooLong, can_limit, limited_wait

DEFAULT_TIMEOUT = 600
TIMEOUT_HELP = "Seconds to wait for a batch at most. Then the run ends with an error, where it would wait for ever."
# What PyTorch says of a hand-over: of its files in shared memory, and of what comes by a socket.
OF_A_HAND_OVER = ("</torch_", "items of ancdata")
# Workers that have nothing to do any more get so many seconds to end.
LEAVING_SECONDS = 5.0
# What PyTorch says of a worker itself, not of an error in it.
OF_A_WORKER = ("DataLoader worker (pid", "DataLoader timed out", "Pin memory thread exited", "Too many open files")


class BatchLoader(DataLoader):
    """
    A `DataLoader` whose batches come within a time limit. If one does not come, it is an error that names the remedy. Its
    workers end with it, at the latest a few seconds after it.

    A signal to all processes of a run does not end its workers, whose batches the step still needs.

    Args:
        dataset (`torch.utils.data.Dataset`): As for `DataLoader`.
        limit (`float`, *optional*, defaults to 600): Seconds to wait for a batch at most.
        settings: More arguments of `DataLoader`.

    Iterating raises [`SiTError`] if no batch comes, a worker dies, or a batch cannot be handed over.
    """

    limit: float

    def __init__(self, dataset: Any, *, limit: float = DEFAULT_TIMEOUT, **settings):
        super().__init__(dataset, **settings)
        self._guard(limit)

    @classmethod
    def guard(cls, loader: DataLoader, limit: float) -> None:
        """Make a loader that someone else has made, such as transformers' `Trainer`, one of these."""
        loader.__class__ = cls
        loader._guard(limit)

    def _guard(self, limit: float) -> None:
        self.limit = limit
        if self.num_workers:
            self.worker_init_fn = _start_worker
            given = self.multiprocessing_context
            self.multiprocessing_context = reporting_context(given and given.get_start_method())

    def __iter__(self) -> Iterator[Any]:
        free = None
        if self.num_workers:
            free = free_shared_memory()
            try_hand_over()
            # By itself PyTorch notices within seconds that a worker is gone; with a limit of its own only after that.
            self.timeout = 0 if can_limit() else self.limit
        with timely_batches(self.limit, self.num_workers):
            batches = super().__iter__()
        leave_at_once = True
        try:
            while True:
                with timely_batches(self.limit, self.num_workers):
                    try:
                        batch = next(batches)
                    except StopIteration:
                        leave_at_once = False
                        return
                if free is not None:
                    check_room(
                        num_bytes(batch),
                        self.num_workers,
                        free,
                        prefetch_factor=self.prefetch_factor,
                        pinned=self.pin_memory,
                    )
                    free = None
                try:
                    yield batch
                except GeneratorExit:
                    leave_at_once = False
                    raise
        finally:
            if self.num_workers and (leave_at_once or not self.persistent_workers):
                _end(batches, leave_at_once)


@contextmanager
def timely_batches(limit: float, num_workers: int) -> Iterator[None]:
    """A block that waits for batches, so many seconds at most, and tells why one does not come.

    Args:
        limit (`float`): Seconds.
        num_workers (`int`): Workers of the loader.

    Raises:
        [`SiTError`]: If the time is over, a worker has died, or a batch cannot be handed over.
        [`WaitStopped`]: If a signal has asked the run to stop, and the batch did not come in a few seconds.
    """
    try:
        with limited_wait(limit):
            yield
    except WaitTooLong as problem:
        raise _late(problem.seconds, num_workers) from problem
    except (LostBatch, OSError, EOFError, RuntimeError) as problem:
        if not num_workers or not is_of_worker(problem):
            raise
        if "timed out" in str(problem):
            raise _late(limit, num_workers) from problem
        raise hand_over_error(problem) from problem


@contextmanager
def worker_deaths() -> Iterator[None]:
    """A block that works with batches. PyTorch says at any moment of it that a worker has died; this tells it as a
    [`SiTError`]."""
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith(OF_A_WORKER):
            raise
        raise hand_over_error(problem) from problem


def is_of_worker(problem: BaseException) -> bool:
    """Whether an error is of the loader's workers or their batches' way, and not one that a worker met in its work."""
    text = str(problem)
    if isinstance(problem, LostBatch):
        return True
    if isinstance(problem, RuntimeError):
        # A worker may put its batch together in shared memory.
        return text.startswith(OF_A_WORKER) or any(words in text for words in OF_A_HAND_OVER)
    return not text.startswith("Caught ")


def _late(seconds: float, num_workers: int) -> SiTError:
    who = f"none of {num_workers} workers" if num_workers else "this process"
    return SiTError(
        f"{who} has made a batch within {seconds:g} s",
        argument="dataloader_timeout",
        remedy="see whether the disk or the network of the images still answers; if reading is only slow, allow more seconds",
    )


def _start_worker(worker: int) -> None:
    ignore_signals_in_worker(worker)
    end_with_loop()


def _end(batches: Any, at_once: bool) -> None:
    """End the workers of an iterator of a `DataLoader`, those that hang too."""
    if at_once:
        kill_workers(batches._workers)
    # In a thread, since PyTorch waits for its own thread without a limit, and that one maybe for a worker.
    leaving = threading.Thread(target=batches._shutdown_workers, daemon=True)
    with suppress(RuntimeError):  # at the end of the interpreter, which ends them; or PyTorch has seen one killed
        leaving.start()
        leaving.join(LEAVING_SECONDS)
        if leaving.is_alive():
            kill_workers(batches._workers)
            leaving.join(LEAVING_SECONDS)
