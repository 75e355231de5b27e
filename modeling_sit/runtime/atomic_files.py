"""Files that are complete or not there: written beside their place, synced to the disk, then renamed into it."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from modeling_sit.runtime.errors import SiTError

TEMPORARY_PREFIX = ".unfinished-"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file to. After the block, the file replaces `path`, unless there was an error."""
    unfinished = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        yield unfinished
        fsync(unfinished)
        unfinished.replace(path)
        fsync(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def replace_files(folder: Path) -> Iterator[Path]:
    """Give a new folder to write files to. After the block, each file replaces the one of its name in `folder`, unless
    there was an error."""
    unfinished = folder / f"{TEMPORARY_PREFIX}files"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        fsync_files(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.replace(folder / path.name)
        fsync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def fsync(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk and survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_files(folder: Path) -> None:
    """Make sure that a folder and everything in it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


@contextmanager
def write_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk, or another failure to write, into a [`SiTError`] with `path`, the reason and the remedy."""
    try:
        yield
    # PyTorch and safetensors have their own errors for a full disk.
    except (OSError, RuntimeError, SafetensorError) as problem:
        # PyTorch's is a plain `RuntimeError`; errors of memory and of lost processes are subclasses.
        if isinstance(problem, RuntimeError) and type(problem) is not RuntimeError:
            raise
        reason = getattr(problem, "strerror", None) or (str(problem) or type(problem).__name__).splitlines()[0]
        raise SiTError(f"{path} cannot be written: {reason}", remedy=remedy) from problem


def digest(path: Path) -> str:
    """Checksum of a file (BLAKE2b, 16 bytes, hexadecimal)."""
    checksum = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
