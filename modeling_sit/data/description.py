"""What the reader of a dataset understood, in a few lines that every program prints at its start."""

import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import torch

from modeling_sit.data.duplicates import Duplicates, find_duplicates
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.image_sample import NUM_READ_IMAGES, ImageSample, SampledImage, read_sample
from modeling_sit.data.label_encoding import natural_order
from modeling_sit.data.labeled import (
    alike_names,
    class_counts,
    class_folders,
    is_labeled,
    labels_of,
    only_classes,
    shorten,
)
from modeling_sit.data.value_ranges import warnings_of_ranges
from modeling_sit.runtime.words import counted

# So many classes are listed with their counts; of more, the fewest and the most.
MAX_LISTED_CLASSES = 10
NAMES_OF_MODES = {
    "1": "black and white",
    "L": "gray",
    "LA": "gray with transparency",
    "P": "a palette of colors",
    "RGBA": "RGB with transparency",
    "I": "gray",
    "F": "gray",
}

_is_told: ContextVar[bool] = ContextVar("is_told", default=False)


@dataclass(frozen=True)
class SplitFacts:
    """
    A split of a dataset.

    Args:
        name (`str`): Its name.
        num_images (`int`, *optional*): `None` if only reading the whole stream would give it.
        counts (`torch.Tensor` of shape `(num_labels,)`, *optional*): Images of each class, if they are known.
        num_unlabeled (`int`, *optional*, defaults to 0): Images without a label.
        origin (`str`, *optional*): The folder or the files that it was read from, as far as that is known.
    """

    name: str
    num_images: int | None
    counts: torch.Tensor | None = None
    num_unlabeled: int = 0
    origin: str | None = None

    @property
    def has_labels(self) -> bool:
        return self.counts is not None and bool(self.counts.any())


@dataclass(frozen=True)
class Description:
    """
    What the reader of a dataset understood.

    Args:
        name (`str`): Name of the dataset.
        splits (`list[SplitFacts]`): Those that are used, first the one to train on.
        unused (`list[str]`): Names of the other splits.
        is_streamed (`bool`): Whether the images are streamed.
        label_names (`list[str]`, *optional*): Names of the classes.
        sample ([`ImageSample`]): Images that were looked at.
        duplicates (`list[Duplicates]`, *optional*): Images that are in two splits; `None` if they were not searched.
        notes (`list[str]`): Lines of the reader.
        intensity_range (sequence of `float` or `str`, *optional*): The stored values that become black and white, if it is asked for.
    """

    name: str
    splits: list[SplitFacts]
    unused: list[str]
    is_streamed: bool
    label_names: list[str] | None
    sample: ImageSample
    duplicates: list[Duplicates] | None
    notes: list[str] = field(default_factory=list)
    intensity_range: Sequence[float | str] | None = None

    def lines(self) -> list[str]:
        """The dataset in a line, and what else there is to tell in lines below it."""
        below = [
            *self._origins(),
            *self._classes(),
            *self._alike_classes(),
            *describe_sample(self.sample, self.is_streamed, self.intensity_range),
            *self.notes,
            *self._duplicates(),
        ]
        return [self.headline(), *(f"  {line}" for line in below)]

    def headline(self) -> str:
        """Name and numbers of images, in a line."""
        first = self.splits[0]
        classes = ""
        if first.has_labels:
            number = int((first.counts > 0).sum())
            classes = f" of {number:,} class{'es' if number != 1 else ''}"
        images = "an unknown number of images" if first.num_images is None else counted(first.num_images, "image")
        counts = [f"{images}{classes} in {first.name}"]
        for split in self.splits[1:]:
            number = "an unknown number" if split.num_images is None else f"{split.num_images:,}"
            counts.append(f"{number} in {split.name}")
        unused = f"; splits that are not used: {shorten(self.unused, MAX_LISTED_CLASSES)}" if self.unused else ""
        return f"{self.name}: {', '.join(counts)}{', streamed' if self.is_streamed else ''}{unused}"

    def _origins(self) -> Iterator[str]:
        known = [f"{split.name} from {split.origin}" for split in self.splits if split.origin is not None]
        if known:
            yield f"splits: {', '.join(known)}"

    def _classes(self) -> Iterator[str]:
        train = self.splits[0]
        if not train.has_labels:
            if self.is_streamed and self.label_names is not None:
                yield f"{len(self.label_names):,} classes, not counted in a stream: {self._names(self.label_names)}"
            return
        present = train.counts > 0
        counts = {self.label_names[index]: int(train.counts[index]) for index in present.nonzero()[:, 0].tolist()}
        pairs = [(name, counts[name]) for name in natural_order(counts)]
        if len(pairs) <= MAX_LISTED_CLASSES:
            text = ", ".join(f"{name} {count:,}" for name, count in pairs)
        else:
            fewest, most = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
            text = f"{len(pairs):,}, {counted(fewest[1], 'image')} each"
            if fewest[1] != most[1]:
                text = f"{len(pairs):,}, of {fewest[1]:,} ({fewest[0]}) to {counted(most[1], 'image')} ({most[0]})"
        unlabeled = f"; {counted(train.num_unlabeled, 'image')} without a label" if train.num_unlabeled else ""
        yield f"classes in {train.name}: {text}{unlabeled}"
        if not present.all():
            yield f"no image in {train.name} of {self._which(~present)}"
        for split in self.splits[1:]:
            if split.num_unlabeled:
                yield f"{split.num_unlabeled:,} of {split.num_images:,} images in {split.name} have no label"
            if split.has_labels and bool((lacking := present & (split.counts == 0)).any()):
                yield f"classes differ: no image in {split.name} of {self._which(lacking)}"
            if split.has_labels and bool((unknown := ~present & (split.counts > 0)).any()):
                yield f"classes differ: only in {split.name} there are {self._which(unknown)}"

    def _alike_classes(self) -> Iterator[str]:
        """Classes such as `A` of one split and `a` of another. Where a split has both, as of letters, they are two."""
        counts = [split.counts for split in self.splits if split.counts is not None]
        index = {name: number for number, name in enumerate(self.label_names or ())}
        for names in alike_names(index):
            number = [int((split_counts[[index[name] for name in names]] > 0).sum()) for split_counts in counts]
            if counts and max(number) < 2 <= sum(number):
                yield f"warning: {' and '.join(map(repr, names))} count as different classes; rename one if they are one"

    def _which(self, mask: torch.Tensor) -> str:
        return self._names([self.label_names[index] for index in mask.nonzero()[:, 0].tolist()])

    def _names(self, names: Sequence[str]) -> str:
        return shorten(names, MAX_LISTED_CLASSES)

    def _duplicates(self) -> Iterator[str]:
        for found in self.duplicates or ():
            if found.split == found.other:
                names = [_below(name, self.name) for name in found.names]
                copies = "image is a copy" if found.number == 1 else "images are copies"
                yield f"{found.number:,} {copies} of others in {found.split}, such as {names[0]} of {names[1]}"
                continue
            yield f"warning: {describe_copies(found, self.name)}"


def describe(
    images: ImageDatasets,
    *more: datasets.Dataset,
    intensity_range: Sequence[float | str] | None = None,
    is_thorough: bool = False,
) -> Description:
    """What the reader understood of a dataset. Only a sample of the images is opened.

    Args:
        images ([`ImageDatasets`]): The dataset.
        more: Other splits of it that are used.
        intensity_range (sequence of `float` or `str`, *optional*): As of [`~modeling_sit.image_modes.PixelFormat`].
        is_thorough (`bool`, *optional*, defaults to `False`): Whether to take more time: for a larger sample, which is
            decoded, and for images that a split has more than once.
    """
    splits = {}
    for split in (images.train, images.validation, *more):
        if split is not None:
            splits.setdefault(str(split.split or "train"), split)
    is_streamed = any(isinstance(split, datasets.IterableDataset) for split in splits.values())
    facts = [_facts_of(name, split, images) for name, split in splits.items()]
    used = {name.lower() for name in splits}
    files = [shard.name for shard in images.train_shards or ()]
    if files and os.path.exists(files[0]) and facts[0].name == str(images.train.split or "train"):
        facts[0] = replace(facts[0], origin=_files_in(files, images.name))
    notes = list(images.notes)
    if not is_streamed and images.train is not None and images.label_names is not None:
        notes += _note_on_one_class(images)
    return Description(
        name=images.name,
        splits=facts,
        unused=[name for name in images.splits if re.sub(r"\W+", "_", name).lower() not in used],
        is_streamed=is_streamed,
        label_names=images.label_names,
        sample=read_sample(images, is_thorough),
        duplicates=None if is_streamed else find_duplicates(list(splits.values()), is_thorough),
        notes=notes,
        intensity_range=intensity_range,
    )


def tell(images: ImageDatasets, *more: datasets.Dataset, intensity_range: Sequence[float | str] | None = None) -> None:
    """Print what [`describe`] gives, in the main process, unless it is told already."""
    if _tells():
        print("\n".join(describe(images, *more, intensity_range=intensity_range).lines()), flush=True)


def tell_more(line: str) -> None:
    """Print a line below those of [`tell`], where that prints."""
    if _tells():
        print(f"  {line}", flush=True)


def _tells() -> bool:
    return not _is_told.get() and os.environ.get("RANK", "0") == "0"


@contextmanager
def told() -> Iterator[None]:
    """A block in which [`tell`] prints nothing: for a program that has told of its images, and starts others with the same;
    and for functions that return what they find, and leave printing to a command."""
    token = _is_told.set(True)
    try:
        yield
    finally:
        _is_told.reset(token)


def _facts_of(name: str, split: datasets.Dataset | datasets.IterableDataset, images: ImageDatasets) -> SplitFacts:
    if isinstance(split, datasets.IterableDataset):
        return SplitFacts(name, images.num_train if split is images.train else None)
    origin = _origin_of(split, images.name)
    if "label" not in split.column_names:
        return SplitFacts(name, len(split), origin=origin)
    unlabeled = int((~is_labeled(labels_of(split))).sum())
    return SplitFacts(name, len(split), class_counts(split), unlabeled, origin)


def _origin_of(split: datasets.Dataset, dataset: str) -> str | None:
    """The folder below the dataset's that the images of a split lie in, or the files of its table, if they are known."""
    folder = os.path.abspath(os.path.expanduser(dataset))
    files = [file for file in split.info.download_checksums or () if os.path.exists(file)]
    if files:
        return _files_in(files, dataset)
    # The first and the last of sorted paths have in common what all have.
    paths = [(split[row]["image"] or {}).get("path") for row in (0, -1)] if len(split) else [None]
    if not all(path and Path(path).is_relative_to(folder) for path in paths):
        return None
    common = os.path.relpath(os.path.commonpath([os.path.dirname(path) for path in paths]), folder)
    return None if common == os.curdir else f"{common}{os.sep}"


def _files_in(files: Sequence[str], dataset: str) -> str:
    first = _below(files[0], dataset)
    return first if len(files) == 1 else f"{len(files):,} files, such as {first}"


def _note_on_one_class(images: ImageDatasets) -> Iterator[str]:
    only = only_classes(images.train)
    folders = class_folders(images.train, only[0]) if only is not None and len(only) == 1 else None
    if folders is not None:
        yield f"warning: all images in {images.train.split} are of one class; {folders.remedy(len(images.splits) > 1)}"


def describe_copies(found: Duplicates, dataset: str) -> str:
    """Images of a split that are in another one too, in a line.

    Args:
        found ([`Duplicates`]): The images.
        dataset (`str`): Name of the dataset. Files in its folder are named relative to it.
    """
    are = "image is" if found.number == 1 else "images are"
    names = [_below(name, dataset) for name in found.names]
    return (
        f"{found.number:,} {are} in {found.split} and in {found.other} too, byte for byte, such as {names[0]} and {names[1]}; "
        "results on them are too good"
    )


def describe_sample(
    sample: ImageSample, is_streamed: bool, intensity_range: Sequence[float | str] | None = None
) -> Iterator[str]:
    """What the images of a sample are, in lines."""
    images, number = sample.images, len(sample.images) + len(sample.problems)
    which = f"the first {number}" if is_streamed else f"a sample of {number}"
    if sample.problems:
        yield f"warning: {len(sample.problems)} of {which} cannot be read, such as {sample.problems[0]}"
    if not images:
        return
    modes = Counter((_name_of_mode(image), image.bits) for image in images)
    kinds = [
        f"{name} of {bits} bit{'s' if bits > 1 else ''}" + (f" ({count})" if len(modes) > 1 else "")
        for (name, bits), count in modes.most_common()
    ]
    yield f"{which}: {_sizes_of(images)}; {', '.join(kinds)}"
    frames = sum(image.has_more for image in images)
    if frames:
        yield f"{frames} of {which} have several frames or pages, of which the first is read"
    yield from warnings_of_ranges(images, intensity_range)


def _name_of_mode(image: SampledImage) -> str:
    name = NAMES_OF_MODES.get("L" if image.mode.startswith("I;") else image.mode, image.mode)
    return f"{name}, floats" if image.is_float else name


def _sizes_of(images: Sequence[SampledImage]) -> str:
    sizes = sorted(((image.height, image.width) for image in images), key=lambda size: size[0] * size[1])
    # Of the images that pretraining settles its sizes by, and as it does.
    first = [(image.height, image.width) for image in images[:NUM_READ_IMAGES]]
    middle = [round(statistics.median(sides)) for sides in zip(*first, strict=True)]
    median, smallest, largest = (f"{height} x {width}" for height, width in (middle, sizes[0], sizes[-1]))
    if smallest == largest:
        return f"{median} pixels"
    return f"{median} pixels in the middle, from {smallest} to {largest}"


def _below(path: str, dataset: str) -> str:
    """A path relative to the dataset's folder, if it lies in it."""
    folder = os.path.abspath(os.path.expanduser(dataset))
    if not os.path.isabs(path) or not Path(path).is_relative_to(folder):
        return path
    return os.path.relpath(path, folder) if path != folder else os.path.basename(path)
