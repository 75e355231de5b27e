"""How batches come from dataloader workers to the training process: by shared memory and sockets, either of which may be
missing. A batch that cannot be handed over is an error at once, where PyTorch would wait for it for ever."""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, process, queues
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from tqdm.auto import tqdm

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.waiting import WaitTooLong, limited_wait

SHARED_MEMORY = "/dev/shm"
# A hand-over of a few bytes within one process takes less than a millisecond.
TRIAL_SECONDS = 20.0
# A program that ends lets each worker so many seconds to end, too.
LEAVING_SECONDS = 1.0
NUM_SPARE_FILES = 16
# Less room than this counts as none.
MIN_SHARED_MEMORY = 2**20
# Words of errors about it.
OF_SHARED_MEMORY = ("shared memory", "torch_", "/dev/shm", "bus error", "function not implemented")
NO_WORKERS = "`dataloader_num_workers=0`"


class LostBatch(Exception):
    """
    A worker has made a batch that it could not hand over.

    Args:
        reason (`str`): Why, as the system says it.
    """


class _Lost(ExceptionWrapper):
    """Takes the place of a batch. The loader raises what it stands for."""

    def __init__(self, error: BaseException):
        self.reason = f"{type(error).__name__}: {error}"

    def reraise(self):
        raise LostBatch(self.reason)


class ReportingQueue(queues.Queue):
    """A queue that, in place of something that it could not send, sends the reason. Python's prints it and goes on."""

    def _on_queue_feeder_error(self, error: BaseException, item: Any) -> None:
        if isinstance(item, tuple):
            self.put((item[0], _Lost(error)))


class _Worker:
    """A process for which a program that ends does not wait for long, whatever it does."""

    def join(self, timeout: float | None = None) -> None:
        super().join(LEAVING_SECONDS if timeout is None else timeout)
        if timeout is None and self.is_alive():
            self.kill()
            super().join(LEAVING_SECONDS)


class _ReportingContext:
    def Queue(self, maxsize: int = 0) -> ReportingQueue:
        return ReportingQueue(maxsize, ctx=self.get_context())


class _ForkWorker(_Worker, context.ForkProcess):
    pass


class _SpawnWorker(_Worker, context.SpawnProcess):
    pass


class _ForkServerWorker(_Worker, context.ForkServerProcess):
    pass


class _Fork(_ReportingContext, context.ForkContext):
    Process = _ForkWorker


class _Spawn(_ReportingContext, context.SpawnContext):
    Process = _SpawnWorker


class _ForkServer(_ReportingContext, context.ForkServerContext):
    Process = _ForkServerWorker


CONTEXTS = {"fork": _Fork(), "spawn": _Spawn(), "forkserver": _ForkServer()}


def reporting_context(start_method: str | None = None) -> context.BaseContext:
    """What a loader starts its workers by, so that they report what they cannot hand over.

    Args:
        start_method (`str`, *optional*): `"fork"`, `"spawn"` or `"forkserver"`. Default: Python's.
    """
    return CONTEXTS[start_method or multiprocessing.get_start_method()]


def kill_workers(workers: list[process.BaseProcess] | None = None) -> None:
    """End workers at once, and wait a moment until they are gone.

    Args:
        workers (`list`, *optional*): Which. Default: all of this process.
    """
    if workers is None:
        workers = [child for child in multiprocessing.active_children() if isinstance(child, _Worker)]
    with _deaths_untold():
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(LEAVING_SECONDS)


@contextmanager
def _deaths_untold() -> Iterator[None]:
    """A block that PyTorch does not break off for each worker that is killed. Anywhere else it raises in the main thread, so
    also where Python has just taken note of an end, which it would then never know of."""
    before = signal.getsignal(signal.SIGCHLD)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def try_hand_over(batch_bytes: int = 1) -> None:
    """Hand a small tensor over, and make room for a batch, as a worker does; but within this process, since starting
    another takes 0.1 s and more.

    Args:
        batch_bytes (`int`, *optional*, defaults to 1): Bytes of a batch.

    Raises:
        [`SiTError`]: If that does not work, with the reason and the remedy.
    """
    try:
        _check_open_files()
        queue = reporting_context().Queue()
        try:
            with limited_wait(TRIAL_SECONDS):
                queue.put((0, torch.ones(1)))
                _, received = queue.get(timeout=TRIAL_SECONDS)
                if isinstance(received, ExceptionWrapper):
                    received.reraise()
            del received
            torch.UntypedStorage._new_shared(batch_bytes)
        finally:
            queue.close()
    except (LostBatch, WaitTooLong, queues.Empty, OSError, EOFError, RuntimeError) as problem:
        raise hand_over_error(problem) from problem


def _check_open_files() -> None:
    opened = []
    try:
        for _ in range(NUM_SPARE_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for number in opened:
            os.close(number)


def hand_over_error(problem: BaseException) -> SiTError:
    """The error to tell of a batch that did not come from a worker.

    Args:
        problem (`BaseException`): What was raised: by the worker, the loader or the receipt.
    """
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    text = lines[-1].removeprefix("RuntimeError: ")  # before it may be the traceback of a worker
    lowered = text.lower()
    free = free_shared_memory()
    is_full = free is not None and free < MIN_SHARED_MEMORY and "no space left" in lowered
    is_full |= free is not None and not os.access(SHARED_MEMORY, os.W_OK)
    if ("killed by signal" in lowered and "bus error" not in lowered) or "exited unexpectedly" in lowered:
        what = f"a worker has died, maybe because memory was short ({text})"
        remedy = f"give fewer `dataloader_num_workers`, or {NO_WORKERS}"
    elif "af_unix" in lowered:
        what = f"the path of the folder of temporary files, {_temporary_folder()}, is too long for a socket"
        remedy = f"set the environment variable TMPDIR to a shorter one, such as /tmp, or give {NO_WORKERS}"
    elif "too many open files" in lowered or "items of ancdata" in lowered:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        what = f"too many files are open (the limit is {limit})"
        remedy = f"raise the limit by ulimit -n, or give {NO_WORKERS}"
    elif "file too large" in lowered:
        what = f"the limit of this system on the size of a file is too low ({text})"
        remedy = f"raise the limit by ulimit -f, or give {NO_WORKERS}"
    elif is_full or any(words in lowered for words in OF_SHARED_MEMORY):
        what = f"{SHARED_MEMORY}, the shared memory, {_describe_room(free)}, does not take one ({text})"
        remedy = _more_shared_memory()
    else:
        what = f"{text} (the folder of temporary files is {_temporary_folder()})"
        remedy = (
            f"set the environment variable TMPDIR to a folder that can be written and has room, or give {NO_WORKERS}"
        )
    if not what.startswith("a worker"):
        what = f"workers cannot hand over batches: {what}"
    return SiTError(what, argument="dataloader_num_workers", remedy=remedy)


def needed_shared_memory(batch_bytes: int, num_workers: int, prefetch_factor: int = 2, pinned: bool = False) -> int:
    """Bytes that the batches of a loader take in shared memory at most.

    Args:
        batch_bytes (`int`): Bytes of a batch.
        num_workers (`int`): Workers of the loader.
        prefetch_factor (`int`, *optional*, defaults to 2): Batches that each makes ahead.
        pinned (`bool`, *optional*, defaults to `False`): Whether a thread moves each batch elsewhere when it comes.
    """
    # One more, which is being used.
    return batch_bytes * (num_workers * (1 if pinned else prefetch_factor) + 1) if num_workers else 0


def check_room(batch_bytes: int, num_workers: int, free: int | None, **loader: Any) -> None:
    """Check that the shared memory has room for all batches that a loader makes ahead.

    Args:
        batch_bytes, num_workers: As for [`needed_shared_memory`].
        free (`int`, *optional*): Bytes of room, from [`free_shared_memory`].
        loader: `prefetch_factor` and `pinned` of [`needed_shared_memory`].

    Raises:
        [`SiTError`]: If it has not.
    """
    needed = needed_shared_memory(batch_bytes, num_workers, **loader)
    if free is None or needed <= free:
        return
    fitting = fitting_workers(batch_bytes, num_workers, free, **loader)
    raise SiTError(
        f"{num_workers} workers keep batches of up to {_size(needed)} in {SHARED_MEMORY}, the shared memory, which has "
        f"room for {_size(free)}",
        argument="dataloader_num_workers",
        remedy=_more_shared_memory(needed, f"`dataloader_num_workers={fitting}`"),
    )


def fitting_workers(batch_bytes: int, num_workers: int, free: int | None, **loader: Any) -> int:
    """How many of the workers have room for their batches. The arguments are those of [`check_room`]."""
    if free is None:
        return num_workers
    return next(
        (
            number
            for number in range(num_workers, 0, -1)
            if needed_shared_memory(batch_bytes, number, **loader) <= free
        ),
        0,
    )


def usable_workers(
    num_workers: int, asked: int | None, batch_bytes: int, num_local_processes: int = 1, pinned: bool = False
) -> int:
    """How many workers to start, once it is tried that they can hand a batch over.

    Args:
        num_workers (`int`): How many there would be, at least 1.
        asked (`int`, *optional*): How many the user asks for. If `None`, there may be fewer, which is logged.
        batch_bytes (`int`): Bytes of a batch.
        num_local_processes (`int`, *optional*, defaults to 1): Processes that share the memory.
        pinned (`bool`, *optional*, defaults to `False`): As for [`needed_shared_memory`].

    Raises:
        [`SiTError`]: If it does not work, or there is no room for as many workers as the user asks for, or for one.
    """
    free = free_shared_memory()
    free = free if free is None else free // num_local_processes
    fitting = fitting_workers(batch_bytes, num_workers, free, pinned=pinned)
    if asked is not None or fitting == 0:
        check_room(batch_bytes, num_workers, free, pinned=pinned)
    try_hand_over(batch_bytes)
    if fitting < num_workers:
        tqdm.write(
            f"{fitting} dataloader workers, not {num_workers}: {SHARED_MEMORY} has room for {_size(free)}; "
            f"{_more_shared_memory(needed_shared_memory(batch_bytes, num_workers, pinned=pinned), 'leave it so')}",
            file=sys.stderr,
        )
    return fitting


def free_shared_memory() -> int | None:
    """Bytes of room for batches that are handed over, `None` where that is unknown."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux
        return None
    return status.f_bavail * status.f_frsize


def num_bytes(batch: Any) -> int:
    """Bytes of all tensors of a batch, in mappings and sequences of any depth."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if hasattr(batch, "values") and callable(batch.values):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return 0
    return sum(map(num_bytes, batch))


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR", "none")


def _describe_room(free: int | None) -> str:
    return "which is missing" if free is None else f"with {_size(free)} free"


def _more_shared_memory(needed: int | None = None, fewer: str = NO_WORKERS) -> str:
    size = 2 * 10**9 if needed is None else needed
    return f"give a container more by docker run --shm-size={max(1, -(-size // 10**9))}g, or give {fewer}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
