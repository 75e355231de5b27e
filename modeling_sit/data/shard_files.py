"""Files of a dataset that hold many images each: how `datasets` is given them, and errors that name one of them."""

import glob
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from datasets.data_files import DataFilesDict, DataFilesList

from modeling_sit.runtime.errors import SiTError


def data_files_of(split: str, files: list[str]) -> dict[str, list[str]]:
    """What the readers of `datasets` take: local paths as patterns that match nothing else, or what the Hub has found."""
    if isinstance(files, DataFilesList):
        return DataFilesDict({split: files})
    return {split: [glob.escape(file) for file in files]}


@contextmanager
def shard_errors(path: str, form: str) -> Iterator[None]:
    """Turn what a reader raises about a file into a [`SiTError`] of one line. On a damaged file, readers raise nearly
    everything."""
    try:
        yield
    except SiTError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise SiTError(f"{path}: it cannot be read as {form}: {reason}") from error
