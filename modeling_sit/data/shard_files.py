"""Files of a dataset that hold many images each: how `datasets` is given them, and errors that name one of them."""

import glob
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datasets.data_files import DataFilesDict, DataFilesList

from modeling_sit.runtime.errors import SiTError


@dataclass(frozen=True)
class Reading:
    """
    What is read of the files of a split.

    Args:
        split (`str`): Its name.
        image (`str`, *optional*): The column of the images.
        labels (`list[str]`): The columns that may hold labels, or `COLUMN.FIELD` of structs.
        cache_dir (`str`, *optional*): Where the `datasets` library keeps what it has read. Default: its own cache.
        is_strict (`bool`, *optional*, defaults to `True`): Whether a label in a tar file that is not what others are is an
            error.
    """

    split: str
    image: str | None
    labels: list[str]
    cache_dir: str | None = None
    is_strict: bool = True


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
