"""Outputs that are whole, and found good, or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX, fsync, fsync_files
from modeling_sit.runtime.errors import SiTError


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Give a path beside `destination`, of the same name, to write a file or a folder to. When the block has ended without
    an error, it takes the place of `destination`: a file with those that were written beside it, a folder as a whole, or
    file by file where there is one already. After an error nothing of it is left."""
    staging = destination.with_name(TEMPORARY_PREFIX + destination.name)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    written = staging / destination.name
    try:
        yield written
        fsync_files(staging)
        if written.is_dir() and destination.is_dir():
            for path in sorted(written.iterdir()):
                path.replace(destination / path.name)
            fsync(destination)
        else:
            for path in sorted(staging.iterdir()):
                path.replace(destination.with_name(path.name))
        fsync(destination.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(source: str, destination: Path, suffix: str | None, overwrite: bool) -> None:
    """
    Raise [`SiTError`] if something is there that may not be overwritten, or the name does not fit the format.

    Args:
        suffix (`str`, *optional*): Of the format's file, `.onnx` for one. `None`: it is a folder.
        overwrite (`bool`): Whether files that are there may be replaced. The source itself never may.
    """
    if suffix is not None and destination.suffix != suffix:
        raise SiTError(f"TO {destination}: this format is a file whose name ends in {suffix}")
    if destination.exists() and Path(source).exists() and destination.samefile(source):
        raise SiTError(f"TO {destination} is FROM, whose heads may be lost; name another")
    # What holds nothing is as good as nothing.
    is_there = any(destination.iterdir()) if destination.is_dir() else destination.exists()
    if suffix is not None and destination.is_dir():
        raise SiTError(f"TO {destination} is a folder, but this format is a file; name one in it")
    if suffix is None and destination.exists() and not destination.is_dir():
        raise SiTError(f"TO {destination} is a file, but this format is a folder; name another")
    if is_there and not overwrite:
        raise SiTError(f"TO {destination} is there already; name another, or give --overwrite_output_dir")
