"""The cache of Hugging Face's libraries: a folder that is full, or cannot be written, is told as what it is.

It lies in the user's home, unless `HF_HOME` and its like name another place.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
from huggingface_hub import constants

from modeling_sit.runtime.errors import SiTError

# A full disk may take a file of few bytes still.
PROBE_BYTES = 2**16
# Reading never fails so.
OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class CacheError(SiTError):
    """The cache is full, or cannot be used. What was asked for may be in order."""


def datasets_cache() -> Path:
    """Folder of the `datasets` library's cache."""
    return Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))


def check_datasets_cache() -> None:
    """Check that the `datasets` library can write its cache, before it is asked to.

    Raises:
        [`CacheError`]: If there is no place for the folder, or it is full, cannot be written, or has no file locks.
    """
    folder = datasets_cache()
    check_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as the library does
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise _error(folder, problem) from problem


def check_place(folder: Path) -> None:
    """Check that a folder of a cache has a place. Python gives `~` itself for a home folder that it cannot find.

    Raises:
        [`CacheError`]: If it would be a folder called `~` in the current folder.
    """
    if folder.parts[:1] == ("~",):
        raise CacheError("there is no home folder, so the cache of Hugging Face has no place", remedy=_remedy())


def cache_error(error: BaseException) -> CacheError | None:
    """What an error says of the cache; `None` if it does not come from there.

    Args:
        error (`BaseException`): Raised by a library that may write into the cache.
    """
    folders = [datasets_cache(), *(Path(folder) for folder in (constants.HF_HUB_CACHE, constants.HF_HOME))]
    for problem in _chain(error):
        if not isinstance(problem, OSError):
            continue
        named = f"{problem.filename or ''} {problem}"
        folder = next((folder for folder in folders if str(folder) in named), None)
        if problem.errno in OF_WRITING or (problem.errno is not None and folder is not None):
            return _error(folder or datasets_cache(), problem)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _error(folder: Path, problem: OSError) -> CacheError:
    reason = os.strerror(problem.errno) if problem.errno is not None else problem
    return CacheError(f"the cache of Hugging Face, {folder}, cannot be written: {reason}", remedy=_remedy())


def _remedy() -> str:
    narrower = [name for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE") if name in os.environ]
    narrower = f" ({' and '.join(narrower)}, which you have set, come before it)" if narrower else ""
    return f"set the environment variable HF_HOME to a folder that can be written and has room{narrower}"
