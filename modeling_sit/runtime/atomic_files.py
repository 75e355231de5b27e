"""Files that are complete or not there: written beside their place, synced to the disk, then renamed into it.

They get the mode that the umask gives to new files, whoever wrote them: safetensors writes files that only their owner can
read, and copies have the mode of what they are copies of.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import delete_if_empty, is_marked, mark_run

TEMPORARY_PREFIX = ".unfinished-"
PROBE = f"{TEMPORARY_PREFIX}mode-*"
FULL, NO_SPACE = (errno.ENOSPC, errno.EDQUOT), os.strerror(errno.ENOSPC)
# Of PyTorch's errors where a file could not be written to its end. They do not say why.
WRITTEN_IN_PART = ("PytorchStreamWriter", "unexpected pos ", "iostream error")


@contextmanager
def replace_file(path: Path, process: str = "") -> Iterator[Path]:
    """Give a path to write a file to. After the block, the file replaces `path`, unless there was an error.

    Args:
        path (`Path`): The file.
        process (`str`, *optional*, defaults to `""`): A part of the other path, where several processes may write at once.
    """
    unfinished = path.with_name(TEMPORARY_PREFIX + process + path.name)
    try:
        yield unfinished
        set_usual_modes([unfinished])
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
    with temporary_folder(folder / f"{TEMPORARY_PREFIX}files") as unfinished:
        yield unfinished
        finish_files(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.replace(folder / path.name)
        fsync(folder)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder somewhere in `path`, which is deleted after the block with all that is in it.

    What a killed process left in `path` is deleted first. A mark tells it; a folder without one is a user's, and another
    name is taken.
    """
    number, outer = 1, path
    while not delete_temporary(outer):
        number += 1
        outer = path.with_name(f"{path.name}-{number}")
    folder = outer / "files"
    mark_run(outer, "unfinished")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def delete_temporary(path: Path) -> bool:
    """Delete what is left of a [`temporary_folder`], and say whether nothing is there now."""
    if is_marked(path):
        shutil.rmtree(path, ignore_errors=True)
    delete_if_empty(path)
    return not os.path.lexists(path)


def finish_files(folder: Path) -> None:
    """Give everything in a folder the usual modes, and make sure that it and the folder are on the disk."""
    set_usual_modes(folder.rglob("*"))
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def set_usual_modes(paths: Iterable[Path]) -> None:
    """Give files and folders the modes that new ones get here: by the umask, or by what the file system has in its place."""
    usual: dict[tuple[Path, bool], int] = {}
    for path in paths:
        place = path.parent, path.is_dir()
        # Not all file systems have modes, and what is of another user stays as it is.
        with suppress(OSError):
            if place not in usual:
                usual[place] = _mode_of_a_new_one(*place)
            if stat.S_IMODE(path.stat().st_mode) != usual[place]:
                path.chmod(usual[place])


def _mode_of_a_new_one(folder: Path, is_folder: bool) -> int:
    # To ask for the umask is to change it, for the other threads too. And a folder may have other rules.
    new = folder / PROBE.replace("*", uuid.uuid4().hex)
    if is_folder:
        new.mkdir()
    else:
        new.touch()
    try:
        return stat.S_IMODE(new.stat().st_mode)
    finally:
        new.rmdir() if is_folder else new.unlink()


def fsync(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk and survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        if _is_written_in_part(problem):
            reason = f"a file is written in part only ({reason}), perhaps the disk is full"
        raise SiTError(f"{path} cannot be written: {reason}", remedy=remedy) from problem


def check_writable(path: Path, remedy: str) -> None:
    """Check that a file can be written, before anything is computed for it. Leaves nothing behind.

    Raises:
        [`SiTError`]: If it cannot, with `path`, the reason and the remedy.
    """
    if path.is_dir():
        raise SiTError(f"{path} cannot be written: it is a folder", remedy=remedy)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with write_errors(path, remedy), tempfile.TemporaryFile(dir=folder):
        pass


def is_of_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a disk is full, or that a user has used up the room on it."""
    while error is not None:
        # PyTorch's and safetensors' errors have no number.
        if getattr(error, "errno", None) in FULL or NO_SPACE in str(error) or _is_written_in_part(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_written_in_part(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in WRITTEN_IN_PART)


def digest(path: Path) -> str:
    """Checksum of a file (BLAKE2b, 16 bytes, hexadecimal)."""
    checksum = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
