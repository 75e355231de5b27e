"""The images that the demo knows: those of the dataset, with their features, and one that a user gives."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import datasets

from modeling_sit.data.decoding import Image, UnreadableImage
from modeling_sit.data.image_datasets import ImageDatasets, read_row
from modeling_sit.data.image_sample import SampledImage, read_facts
from modeling_sit.data.opening import PIXEL_LIMIT, TOO_LARGE
from modeling_sit.demo.arguments import MEGABYTE
from modeling_sit.demo.checkpoints import ShownCheckpoint
from modeling_sit.evaluation.features import Features, frozen_features
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.selection import choose_rows, label_sets, label_text, short_name

# Pillow would have Ghostscript run it.
POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
Answer = TypeVar("Answer")
IMAGE = datasets.Features({"image": datasets.Image(decode=False)})


@dataclass(frozen=True)
class Query:
    """
    An image to show.

    Args:
        split (`datasets.Dataset`): One row, with the column `image`.
        name (`str`): What it is called.
        label (`str`, *optional*): Its classes.
        row (`int`, *optional*): Its number in the gallery.
    """

    split: datasets.Dataset
    name: str
    label: str | None = None
    row: int | None = None

    def read(self, pixel_format: PixelFormat) -> Image:
        """The image.

        Raises:
            [`SiTError`]: If it cannot be read, with the reason.
        """
        with _named(self.name):
            return read_row(self.split, 0, pixel_format)[0]

    def facts(self) -> SampledImage:
        """What its file holds.

        Raises:
            [`SiTError`]: If it cannot be read.
        """
        with _named(self.name):
            return read_facts(self.split[0]["image"])


@dataclass
class Gallery:
    """
    Images of a dataset. Their features are computed once for each checkpoint, when they are first needed.

    Args:
        name (`str`): Of the dataset.
        whole (`datasets.Dataset`): A split of it: columns `image` and perhaps `label`.
        rows (sequence of `int`): Which of its rows are the gallery's images.
        label_names (sequence of `str`, *optional*): Names of the classes.
    """

    name: str
    whole: datasets.Dataset
    rows: Sequence[int]
    label_names: Sequence[str] | None = None
    _features: dict[ShownCheckpoint, Features] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, images: ImageDatasets, max_images: int, seed: int) -> "Gallery":
        """The training images of a dataset, or those of the validation split where there are no others; some at random of
        many."""
        images.refuse_streams()
        split = images.train if images.train is not None else images.validation
        return cls(images.name, split, choose_rows(len(split), max_images, seed), images.label_names)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def split(self) -> datasets.Dataset:
        """The gallery's images."""
        return self.whole.select(self.rows)

    def query(self, number: Any) -> Query:
        """An image by its number, from 0.

        Raises:
            [`SiTError`]: If there is no such number.
        """
        try:
            row = int(number)
        except (TypeError, ValueError, OverflowError):
            row = -1
        if not 0 <= row < len(self):
            raise SiTError(f"no image {number}: the dataset has images 0 to {len(self) - 1:,}")
        label = label_text(label_sets(self.split.select([row]), self.label_names)[0])
        return Query(self.split.select([row]), short_name(self.whole, self.rows[row], self.name), label, row)

    def features(self, checkpoint: ShownCheckpoint) -> Features:
        """The features of all images that can be read.

        Raises:
            [`SiTError`]: If none can be read, or the checkpoint gives none.
        """
        with self._lock:  # of several users at once, one computes them
            if checkpoint not in self._features:
                images = self.split.select_columns("image")
                try:
                    self._features[checkpoint] = frozen_features(checkpoint.encoder, images, checkpoint.processor)
                except SiTError as error:  # it names the first image
                    raise SiTError(self._without_folder(error.problem), remedy=error.remedy) from error
            return self._features[checkpoint]

    def answer(self, ask: Callable[[], Answer]) -> Answer:
        """What a function gives that reads neighbors and their images. If one is gone since the features were computed, they
        are computed again, without it.

        Raises:
            [`SiTError`]: As the function, or if images go while it reads them.
        """
        try:
            return ask()
        except UnreadableImage:
            with self._lock:
                self._features.clear()
        try:
            return ask()
        except UnreadableImage as error:
            problem = f"the dataset changes while it is read: {self._without_folder(str(error))}"
            raise SiTError(problem, remedy="try again when it is complete") from error

    def _without_folder(self, text: str) -> str:
        """A text that does not say where the dataset lies on this machine."""
        given = self.name.rstrip(os.sep)
        for folder in (os.path.abspath(os.path.expanduser(given)), given):
            text = text.replace(f"{folder}{os.sep}", "")
        return text


def uploaded(path: str | os.PathLike, max_megabytes: float) -> Query:
    """A file of a user as an image to show. It is not decoded yet.

    Raises:
        [`SiTError`]: If it is too large, empty, not there, or a program.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise SiTError(f"{path.name} cannot be read: {problem.strerror}") from problem
    if size > max_megabytes * MEGABYTE:
        raise SiTError(
            f"{path.name} has {size / MEGABYTE:.1f} MB, and {max_megabytes:g} MB are allowed",
            remedy="give a smaller file",
        )
    if size == 0:
        raise SiTError(f"{path.name} is empty", remedy="give an image")
    content = path.read_bytes()
    if content.startswith(POSTSCRIPT):
        raise SiTError(f"{path.name} is PostScript, a program that would draw an image", remedy="give an image")
    return Query(datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]}, IMAGE), path.name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors about an image with its name, and without a path of this machine."""
    try:
        yield
    except UnreadableImage as error:
        reason = str(error).partition(": ")[2] or str(error)
        # Whoever gives an image of their own sets no variables where the page is served.
        reason = reason.replace(f" ({PIXEL_LIMIT} raises it)", "")
        kind = "a smaller" if reason.startswith(TOO_LARGE) else "another"
        raise SiTError(f"{name}: {reason}", remedy=f"give {kind} image") from error
