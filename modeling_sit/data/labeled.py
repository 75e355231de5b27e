"""Labeled images, for fine-tuning and for measuring features."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow.compute as pc
import torch

from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.image_datasets import ImageDatasets, read_row
from modeling_sit.data.label_encoding import join, natural_order
from modeling_sit.data.without_labels import give_labels
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# The label that cross-entropy leaves out, given to an image that cannot be read.
IGNORED_LABEL = -100
# So many images say which folders a class lies in.
NUM_LOCATED_IMAGES = 1000


def labeled_splits(
    images: ImageDatasets, validation: Literal["required", "if there"] = "required"
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The training and the validation split, without the images that have no label. A warning counts those.

    Args:
        images ([`ImageDatasets`]): Not streamed.
        validation (`str`, *optional*, defaults to `"required"`):
            With `"if there"`, a dataset without validation split gives `None` in its place.

    Raises:
        [`SiTError`]: If there is no such split, it is streamed, the two are one and the same, there are no labels in
            one of them, all training images have the same, or the validation split has classes of which there is no
            training image.
    """
    splits = {"train_split": images.train, "validation_split": images.validation}
    if images.validation is None:  # classes one level too deep hide the splits, too
        _check_several_classes(images)
    if images.validation is None and validation == "if there":
        del splits["validation_split"]
    for argument, split in splits.items():
        if split is None:
            raise SiTError(
                f"{images.name} has no split of a usual name for this, only {join(images.splits)}",
                argument=argument,
                remedy="name one, or lay a folder out as train/CLASS/ and test/CLASS/",
            )
    images.refuse_streams()
    if images.label_names is None:
        remedy = give_labels(images.name, images.train)
        raise SiTError(f"{images.name} has no labels", argument="label_column", remedy=remedy)
    if images.validation is not None and images.train.split == images.validation.split:
        raise SiTError(
            f"{images.validation.split} is the training split", argument="validation_split", remedy="name another"
        )
    labeled = {argument: _with_labels(split, argument) for argument, split in splits.items()}
    if "validation_split" in labeled:
        _check_known(*labeled.values())
    _check_several_classes(images)
    return labeled["train_split"], labeled.get("validation_split")


def _with_labels(split: datasets.Dataset, argument: str) -> datasets.Dataset:
    labels = labels_of(split)
    has_label = is_labeled(labels)
    if not has_label.any():
        raise SiTError(f"none of the images of {split.split} has a label", argument=argument)
    if labels.ndim == 2 and not (labels > 0).any():
        raise SiTError(f"none of the images of {split.split} has any of the classes", argument=argument)
    if has_label.all():
        return split
    if os.environ.get("RANK", "0") == "0":  # once, of several processes
        num_left_out = int((~has_label).sum())
        logger.warning(
            "split %s: %d of %d images have no label and are left out", split.split, num_left_out, len(split)
        )
    return split.select(labeled_rows(split))


def labeled_rows(split: datasets.Dataset) -> np.ndarray:
    """The rows of the images that have a label, in their order."""
    return is_labeled(labels_of(split)).nonzero()[:, 0].numpy()


def _check_known(train: datasets.Dataset, validation: datasets.Dataset) -> None:
    labels = labels_of(validation)
    is_unknown = (class_counts(train) == 0) & (class_counts(validation) > 0)
    if is_unknown.any():
        has_unknown = is_unknown[labels] if labels.ndim == 1 else (labels[:, is_unknown] > 0).any(dim=1)
        raise SiTError(
            f"{int(has_unknown.sum())} images of {validation.split} are of classes that no image of {train.split} has: "
            f"{join_classes(train, is_unknown)}",
            argument="validation_split",
            remedy=f"take them out, or add such images to {train.split}" + _which_are_alike(train, is_unknown),
        )


def _which_are_alike(split: datasets.Dataset, is_unknown: torch.Tensor) -> str:
    names = _class_label(split).names
    unknown = {names[index] for index in is_unknown.nonzero()[:, 0].tolist()}
    alike = [group for group in alike_names(names) if not unknown.isdisjoint(group)]
    return f"; rename those that are one class: {', '.join(map(' and '.join, alike[:5]))}" if alike else ""


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """The names that differ only in upper and lower case, in spaces and `_`, or in how accents are encoded."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", name).casefold()).strip(), []).append(
            name
        )
    return [group for group in alike.values() if len(group) > 1]


def _check_several_classes(images: ImageDatasets) -> None:
    """Raise [`SiTError`] if there is nothing to tell apart: any classifier would be right on every training image."""
    train = images.train
    if not isinstance(train, datasets.Dataset) or images.label_names is None:
        return
    only = only_classes(train)
    if not only:
        return
    names = join(only)
    unlabeled = int((~is_labeled(labels_of(train))).sum())
    number = len(train) - unlabeled
    problem = f"all {number:,} labeled images of {train.split} are of one class, {names}"
    if images.multi_label:
        problem = f"all {number:,} labeled images of {train.split} have the same labels: {names}"
    problem += f", and the other {unlabeled:,} have no label" if unlabeled else ""
    folders = class_folders(train, only[0]) if len(only) == 1 else None
    raise SiTError(
        f"{images.name}: {problem}, so there is nothing to tell apart",
        argument="label_column" if folders is None else "dataset",
        remedy="name a column of several classes" if folders is None else folders.remedy(len(images.splits) > 1),
    )


def only_classes(split: datasets.Dataset) -> list[str] | None:
    """The names of the classes that every labeled image of a split has, if no two of them differ; else `None`."""
    labels = labels_of(split)
    labels = labels[is_labeled(labels)]
    if not len(labels) or (labels != labels[0]).any():
        return None
    names = _class_label(split).names
    return [names[labels[0]]] if labels.ndim == 1 else [names[index] for index in labels[0].nonzero()[:, 0].tolist()]


@dataclass(frozen=True)
class ClassFolders:
    """
    The folder of a class, and what lies in it.

    Args:
        folder (`str`): The innermost folder that holds all of the class's images.
        sub_folders (`list[str]`): Names of those in it that hold images.
        above (`str`): The folder that the class's folder lies in.
    """

    folder: str
    sub_folders: list[str]
    above: str

    def remedy(self, has_splits: bool) -> str:
        """What to do if the class is none."""
        if len(self.sub_folders) < 2:
            return (
                "put the images of each class into a folder of its own; labels in other files, such as YOLO's, are not "
                "read"
            )
        which = f"its sub-folders ({shorten(self.sub_folders, 3)}) are the classes"
        if has_splits:
            return f"if {which}, move them from {self.folder} to {self.above}"
        return f"if {which}, give {self.folder}"


def class_folders(split: datasets.Dataset, name: str) -> ClassFolders | None:
    """Where the images of a split lie, all of the class `name`; `None` if that is no folder's name.

    At most `NUM_LOCATED_IMAGES` are looked at.
    """
    rows = range(0, len(split), -(-len(split) // NUM_LOCATED_IMAGES))
    images = [image or {} for image in split.select(rows)["image"]]
    if any(image.get("bytes") is not None or not image.get("path") for image in images):
        return None
    parents = {Path(image["path"]).parent for image in images}
    if len({parent.anchor for parent in parents}) > 1:
        return None
    folder = Path(os.path.commonpath(parents))
    if name not in folder.parts:
        return None
    sub_folders = sorted({parent.relative_to(folder).parts[0] for parent in parents if parent != folder})
    place = len(folder.parts) - folder.parts[::-1].index(name) - 1
    return ClassFolders(str(folder), sub_folders, str(Path(*folder.parts[:place])))


def num_labels_of(split: datasets.Dataset) -> int:
    """Number of classes of a split with the column `label`."""
    return _class_label(split).num_classes


def _class_label(split: datasets.Dataset) -> datasets.ClassLabel:
    return getattr(split.features["label"], "feature", split.features["label"])


def labels_of(split: datasets.Dataset) -> torch.Tensor:
    """The labels of a split.

    Args:
        split (`datasets.Dataset`): Column `label`, as [`ImageDatasets`] has it.

    Returns:
        `torch.Tensor`: Int64 `(num_images,)`, -1 for no label. Of a multi-label dataset float32
        `(num_images, num_labels)`, 1 for each class that an image has and 0 for the others, -1 throughout if no label
        is known.
    """
    column = split.select_columns(["label"]).with_format("arrow")[:].column("label")
    if not isinstance(split.features["label"], datasets.List):
        return torch.from_numpy(pc.fill_null(column, -1).to_numpy().astype(np.int64))
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    labels = torch.zeros(len(split), num_labels_of(split))
    labels[torch.from_numpy(lengths < 0)] = -1
    rows = np.repeat(np.arange(len(split)), np.maximum(lengths, 0))
    labels[torch.from_numpy(rows), torch.from_numpy(pc.list_flatten(column).to_numpy().astype(np.int64))] = 1
    return labels


def is_labeled(labels: torch.Tensor) -> torch.Tensor:
    """Whether each image has a known label, bool `(num_images,)`, of what [`labels_of`] gives."""
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def class_counts(split: datasets.Dataset) -> torch.Tensor:
    """Number of images of each class in a split, int64 `(num_labels,)`."""
    labels = labels_of(split)
    if labels.ndim == 2:
        return (labels > 0).sum(dim=0)
    return torch.bincount(labels[labels >= 0], minlength=num_labels_of(split))


def join_classes(split: datasets.Dataset, which: torch.Tensor, limit: int = 5) -> str:
    """Names of the classes that `which`, bool `(num_labels,)`, marks, at most `limit` of them, for a message."""
    return shorten([_class_label(split).names[number] for number in which.nonzero()[:, 0].tolist()], limit)


def shorten(names: Sequence[str], limit: int) -> str:
    """At most `limit` names in a list, for a message, in natural order, and how many more there are."""
    return join(natural_order(names)[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


class LabeledImageDataset(torch.utils.data.Dataset):
    """
    Images with labels, as a classifier reads them.

    Args:
        split (`datasets.Dataset`): Columns `image` (encoded) and `label`.
        pixel_format ([`PixelFormat`] or `int`): What images are decoded to; a number is one of channels.
        transform (callable, *optional*): From image to image; random in training.

    An item is a dict of `image` (as of [`decode_image`]), `label` and `unreadable` (`str` or `None`). The label is an `int`,
    or of a multi-label dataset a float32 `torch.Tensor` of shape `(num_labels,)`, 1 for each class that the image has
    and 0 for the others. An image that cannot be read is gray. Its label, `IGNORED_LABEL` (in a multi-label dataset in
    every place), is one that losses and metrics leave out.
    """

    def __init__(self, split: datasets.Dataset, pixel_format: PixelFormat | int, transform=None):
        self.split = split
        self.pixel_format = PixelFormat.of(pixel_format)
        self.transform = transform
        self.num_labels = num_labels_of(split) if isinstance(split.features["label"], datasets.List) else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict:
        try:
            image, row = read_row(self.split, index, self.pixel_format)
            label, unreadable = self._label(row["label"]), None
        except UnreadableImage as problem:
            image = self.pixel_format.blank()
            label, unreadable = self._label(None), str(problem)
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "label": label, "unreadable": unreadable}

    def _label(self, stored: int | list[int] | None) -> int | torch.Tensor:
        if self.num_labels is None:
            return IGNORED_LABEL if stored is None else stored
        if stored is None:
            return torch.full((self.num_labels,), float(IGNORED_LABEL))
        label = torch.zeros(self.num_labels)
        label[stored] = 1
        return label
