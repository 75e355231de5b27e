"""Locks on files, where the file system has them. Some have none, such as many that are reached over a network."""

import errno
import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, TextIO

from tqdm.auto import tqdm

from modeling_sit.runtime.errors import SiTError

# What the system says of a lock that another process holds. Everything else says that there are no locks here.
HELD = (errno.EACCES, errno.EAGAIN)


class LockHeld(Exception):
    """Another process holds the lock."""


def take_lock(
    file: BinaryIO | TextIO, operation: int, consequence: str, lock: Callable[..., None] | None = None
) -> bool:
    """Take a lock that lasts until the file is closed.

    Args:
        file (file): Open, and with a number.
        operation (`int`): As `fcntl.flock` takes it, such as `fcntl.LOCK_EX | fcntl.LOCK_NB`.
        consequence (`str`): What is not so without a lock; a warning says it, once.
        lock (callable, *optional*): `fcntl.lockf`, whose locks child processes do not have. Default: `fcntl.flock`.

    Returns:
        `bool`: Whether there is a lock. `False`: the file system has none.

    Raises:
        [`LockHeld`]: If another process has it, and the operation does not wait.
    """
    try:
        (lock or fcntl.flock)(file, operation)
    except OSError as problem:
        if problem.errno in HELD:
            raise LockHeld(problem.strerror) from problem
        warn_without_lock(consequence, problem.strerror or str(problem))
        return False
    return True


@contextmanager
def taken(path: Path, consequence: str, waits: bool = False) -> Iterator[bool]:
    """Hold a lock on a file that says who does a piece of work, among processes of one or several machines with the same folder.

    A process that is killed loses its locks. Locks are of a process: within it, a second one is had too.

    Args:
        path (`Path`): The file. It is made, and stays.
        consequence (`str`): What is not so on a file system without locks, where nobody is kept out.
        waits (`bool`, *optional*, defaults to `False`): Whether to wait for another process.

    Returns:
        context manager: Gives whether the work is this process's; `False`, if another one does it.

    Raises:
        [`SiTError`]: If the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as problem:
        raise SiTError(f"{path} cannot be written: {problem.strerror}", argument="output_dir") from problem
    with file:
        try:
            # Not by `flock`: dataloader workers have its locks too, and keep them for a while when their process is killed.
            take_lock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), consequence, fcntl.lockf)
        except LockHeld:
            yield False
            return
        yield True


@cache
def warn_without_lock(consequence: str, reason: str) -> None:
    """Say once that there are no locks."""
    tqdm.write(f"warning: files cannot be locked here ({reason}): {consequence}", file=sys.stderr)
