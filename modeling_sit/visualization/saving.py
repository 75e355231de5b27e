"""Files of figures: whether they can be written, and writing them whole."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.arguments import ResolutionArguments

REMEDY = "give another place"


@dataclass(frozen=True)
class SavedFigure:
    """
    What a call wrote.

    Args:
        paths (`list[Path]`): The files.
        notes (`list[str]`, *optional*): Lines to show to the user.
    """

    paths: list[Path]
    notes: list[str] = field(default_factory=list)


def check_writable(output: str, dataset: Any, argument: str = "output") -> None:
    """Check that a file can be written and will not lie in the dataset, before anything is computed for it. Leaves nothing
    behind.

    Raises:
        [`SiTError`]: If it cannot, or will.
    """
    check_outside_dataset(output, dataset, argument)
    path = Path(output)
    if path.is_dir():
        raise SiTError(f"{path} cannot be written: it is a folder", remedy=REMEDY)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with write_errors(path, REMEDY), tempfile.TemporaryFile(dir=folder):
        pass


def save_figure(output: str, resolution: ResolutionArguments, figure: Figure) -> Path:
    """Write a figure of matplotlib, in the format of the file's name."""
    return save(output, lambda path: figure.savefig(path, dpi=resolution.dots_per_inch))


def save(output: str, write: Callable[[Path], object]) -> Path:
    """Write a file; it is whole or not there."""
    path = Path(output)
    with write_errors(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as unfinished:
            write(unfinished)
    return path
