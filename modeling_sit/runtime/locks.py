"""Locks on files, where the file system has them. Some have none, such as many that are reached over a network."""

import errno
import fcntl
import sys
from collections.abc import Callable
from functools import cache
from typing import BinaryIO, TextIO

from tqdm.auto import tqdm

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


@cache
def warn_without_lock(consequence: str, reason: str) -> None:
    """Say once that there are no locks."""
    tqdm.write(f"warning: files cannot be locked here ({reason}): {consequence}", file=sys.stderr)
