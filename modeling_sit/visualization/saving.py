"""Finished figures: showing them, and their files: whether they can be written, and writing them whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from matplotlib.figure import Figure

from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.runtime import atomic_files
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.markdown import escaped
from modeling_sit.runtime.notebook import show
from modeling_sit.visualization.arguments import ResolutionArguments

REMEDY = "give another place"


@dataclass(frozen=True)
class Visualization:
    """
    A figure that is drawn. A notebook shows it, below its notes.

    Args:
        figure (`PIL.Image.Image` or `matplotlib.figure.Figure`): The figure.
        paths (`list[Path]`): The files that it was written to.
        notes (`list[str]`, *optional*): Lines to show to the user.
    """

    figure: PIL.Image.Image | Figure = field(repr=False)
    paths: list[Path]
    notes: list[str] = field(default_factory=list)

    def _ipython_display_(self) -> None:
        show(*["\n\n".join(map(escaped, self.notes))] * bool(self.notes), self.figure)


def finish(
    figure: PIL.Image.Image | Figure,
    output: str | None,
    resolution: ResolutionArguments | None = None,
    notes: Sequence[str] = (),
) -> Visualization:
    """The figure, written to its file, if it gets one. An image has its own resolution."""
    if output is None:
        paths = []
    elif resolution is None:
        paths = [save(output, figure.save)]
    else:
        paths = [save_figure(output, resolution, figure)]
    return Visualization(figure, paths, list(notes))


def check_writable(output: str | None, dataset: Any, argument: str = "output") -> None:
    """Check that a file can be written and will not lie in the dataset, before anything is computed for it. Leaves nothing
    behind.

    Raises:
        [`SiTError`]: If it cannot, or will.
    """
    if output is None:
        return
    check_outside_dataset(output, dataset, argument)
    atomic_files.check_writable(Path(output), REMEDY)


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
