"""Labeled images, for fine-tuning and for measuring features."""

import logging
import os
from typing import Literal

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sources import ImageDatasets, read_row
from modeling_sit.image_modes import MODES
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# What cross-entropy leaves out, and what an image that cannot be read therefore gets for a label.
IGNORED_LABEL = -100


def labeled_splits(
    images: ImageDatasets, validation: Literal["required", "if there"] = "required"
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The training and the validation split, each without the images that have no label; a warning counts them.

    Args:
        images ([`ImageDatasets`]): Not streamed.
        validation (`str`, *optional*, defaults to `"required"`):
            With `"if there"`, a set without validation split gives `None` in its place.

    Raises:
        [`SiTError`]: If there is no such split, they are one and the same, there are no labels in one of them, or the
            validation split has classes of which there is no training image.
    """
    splits = {"--train_split": images.train, "--validation_split": images.validation}
    if images.validation is None and validation == "if there":
        del splits["--validation_split"]
    for flag, split in splits.items():
        if split is None:
            raise SiTError(f"{flag}: name one of the splits of {images.name}, which are {', '.join(images.splits)}")
    if images.label_names is None:
        raise SiTError(f"--label_column: {images.name} has no labels; name their column")
    if images.validation is not None and images.train.split == images.validation.split:
        raise SiTError(f"--validation_split {images.validation.split}: this is the training split; name another")
    labeled = {flag: _with_labels(split, flag) for flag, split in splits.items()}
    if "--validation_split" in labeled:
        _check_known(*labeled.values())
    return labeled["--train_split"], labeled.get("--validation_split")


def _with_labels(split: datasets.Dataset, flag: str) -> datasets.Dataset:
    labels = labels_of(split)
    is_labeled = _is_labeled(labels)
    if not is_labeled.any():
        raise SiTError(f"{flag} {split.split}: none of its images has a label")
    if labels.ndim == 2 and not (labels > 0).any():
        raise SiTError(f"{flag} {split.split}: none of its images has any of the classes")
    if is_labeled.all():
        return split
    if os.environ.get("RANK", "0") == "0":  # once, of several processes
        num_left_out = int((~is_labeled).sum())
        logger.warning(
            "split %s: %d of %d images have no label and are left out", split.split, num_left_out, len(split)
        )
    return split.select(is_labeled.nonzero()[:, 0].numpy())


def _check_known(train: datasets.Dataset, validation: datasets.Dataset) -> None:
    labels = labels_of(validation)
    is_unknown = (class_counts(train) == 0) & (class_counts(validation) > 0)
    if is_unknown.any():
        has_unknown = is_unknown[labels] if labels.ndim == 1 else (labels[:, is_unknown] > 0).any(dim=1)
        raise SiTError(
            f"--validation_split {validation.split}: {int(has_unknown.sum())} of its images are of classes that no image "
            f"of {train.split} has: {_listed_classes(train, is_unknown)}; take them out, or add such images to "
            f"{train.split}"
        )


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
        `torch.Tensor`: Int64 `(num_images,)`, -1 for no label; of a multi-label set float32 `(num_images, num_labels)`,
        1 for each class that an image has and 0 for the others, -1 throughout for no label known.
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


def _is_labeled(labels: torch.Tensor) -> torch.Tensor:
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def class_counts(split: datasets.Dataset) -> torch.Tensor:
    """How many images of a split there are of each class, int64 `(num_labels,)`."""
    labels = labels_of(split)
    if labels.ndim == 2:
        return (labels > 0).sum(dim=0)
    return torch.bincount(labels[labels >= 0], minlength=num_labels_of(split))


def _members(labels: torch.Tensor, label: int) -> np.ndarray:
    """Rows of the images of a class."""
    return np.flatnonzero(labels == label if labels.ndim == 1 else labels[:, label] > 0)


def _listed_classes(split: datasets.Dataset, which: torch.Tensor, limit: int = 5) -> str:
    names = [_class_label(split).names[number] for number in which.nonzero()[:, 0].tolist()]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def select_label_fraction(split: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """A random share of the images of every class, at least one of each, in their old order.

    Of a multi-label set, as near to the share of every class as classes that come together allow: [`train_validation_split`] says how.
    Images without a label are left out.

    Args:
        split (`datasets.Dataset`): Column `label`.
        fraction (`float` in (0, 1]): Share of each class's images, rounded.
        seed (`int`): Seed of the choice.
    """
    counts = (fraction * class_counts(split).double()).round().clamp(min=1)
    is_chosen, _ = _choose(labels_of(split), counts, fraction, np.random.default_rng(seed))
    return split.select(np.flatnonzero(is_chosen))


def select_per_class(split: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """The same number of random images of every class, in their old order: the few shots of few-shot learning.

    In a multi-label set an image counts for each of its classes, the rarest class is served first, and a class that comes
    with others may have more than `count`.

    Args:
        split (`datasets.Dataset`): Column `label`. Classes without an image in it are passed over.
        count (`int`): Images of each class, at least 1.
        seed (`int`): Seed of the choice.

    Raises:
        [`SiTError`]: If a class has fewer images.
    """
    labels, num_members = labels_of(split), class_counts(split)
    is_short = (num_members > 0) & (num_members < count)
    if is_short.any():
        raise SiTError(
            f"split {split.split}: fewer than {count} images of {_listed_classes(split, is_short)}; ask for fewer of each "
            f"class, at most {num_members[is_short].min()}"
        )
    generator = np.random.default_rng(seed)
    is_chosen = np.zeros(len(split), dtype=bool)
    for label in num_members.argsort(stable=True).tolist():
        members = _members(labels, label)
        num_wanted = max(0, count - int(is_chosen[members].sum()))
        is_chosen[generator.permutation(members[~is_chosen[members]])[:num_wanted]] = True
    return split.select(np.flatnonzero(is_chosen))


def train_validation_split(
    split: datasets.Dataset, share: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Hold back a random share of the images of every class, to choose by what is not trained on.

    At least one image of every class is held back, and at least one is left. In a multi-label set an image goes with all
    its classes, so the shares are as near as that allows, mostly to one image; every class is still left at least one.

    Args:
        split (`datasets.Dataset`): Column `label`. Images without a label are in neither part.
        share (`float` in (0, 1)): Share of each class's images, rounded.
        seed (`int`): Seed of the choice.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The rest and the images held back, each in the old order.

    Raises:
        `ValueError`: If `share` is not in (0, 1).
        [`SiTError`]: If a class has only one image.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold back is in (0, 1), got {share}")
    num_members = class_counts(split)
    if (num_members == 1).any():
        raise SiTError(
            f"split {split.split}: only one image of {_listed_classes(split, num_members == 1)}, so none can be held back "
            "for validation; add images of it, take it out, or name a --validation_split"
        )
    counts = num_members - (share * num_members.double()).round().clamp(min=1).minimum(num_members - 1)
    is_rest, is_held_back = _choose(labels_of(split), counts, 1 - share, np.random.default_rng(seed))
    return split.select(np.flatnonzero(is_rest)), split.select(np.flatnonzero(is_held_back))


def _choose(
    labels: torch.Tensor, counts: torch.Tensor, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `counts` of the labeled images of each class; each multi-label class has one among those chosen at least.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Of each image, whether it is chosen, and whether it has a label and is not.
    """
    is_labeled = _is_labeled(labels).numpy()
    is_chosen = np.zeros(len(labels), dtype=bool)
    if labels.ndim == 1:
        for label in labels[labels >= 0].unique().tolist():
            is_chosen[generator.permutation(_members(labels, label))[: int(counts[label])]] = True
    else:
        has_class = (labels > 0).numpy()[is_labeled]
        chosen = _stratified(has_class, counts.numpy(), round(share * len(has_class)), generator)
        for label in np.flatnonzero(has_class.any(axis=0)):
            if not has_class[chosen, label].any():
                chosen[generator.choice(np.flatnonzero(has_class[:, label]))] = True
        is_chosen[is_labeled] = chosen
    return is_chosen, is_labeled & ~is_chosen


def _stratified(
    has_class: np.ndarray, counts: np.ndarray, num_images: int, generator: np.random.Generator
) -> np.ndarray:
    """Choose images so that of each class about `counts` are chosen, and about `num_images` of all.

    Images of most classes come first, for they are the hardest to place. Each goes to the part, the chosen or the others,
    that still lacks the larger share of what it is to have: of each of the image's classes, and of images.

    Args:
        has_class (`np.ndarray` of shape `(num_images, num_labels)`): Bool.
        counts (`np.ndarray` of shape `(num_labels,)`): Of each class, how many to choose.
        num_images (`int`): Of all images, how many to choose.
        generator (`np.random.Generator`): Shuffles the images.

    Returns:
        `np.ndarray` of shape `(num_images,)`: Bool, whether an image is chosen.
    """
    # Of the others and the chosen ones, how many images of each class, and in the last column of all, are still lacking.
    wanted = np.stack(
        [np.append(has_class.sum(axis=0) - counts, len(has_class) - num_images), np.append(counts, num_images)]
    )
    lacking = wanted.astype(float)
    order = generator.permutation(len(has_class))
    order = order[np.argsort(-has_class[order].sum(axis=1), kind="stable")]
    is_chosen = np.zeros(len(has_class), dtype=bool)
    for image in order:
        columns = np.append(np.flatnonzero(has_class[image]), -1)
        need_of_others, need = (lacking[:, columns] / np.maximum(wanted[:, columns], 1)).sum(axis=1)
        is_chosen[image] = need > need_of_others
        lacking[int(is_chosen[image]), columns] -= 1
    return is_chosen


class LabeledImageDataset(torch.utils.data.Dataset):
    """
    Images with labels, as a classifier reads them.

    Args:
        split (`datasets.Dataset`): Columns `image` (encoded) and `label`.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        transform (callable, *optional*): From image to image; random in training.

    An item is a dict of `image` (`PIL.Image.Image`), `label` and `unreadable` (`str` or `None`). The label is an `int`, or
    of a multi-label set a `torch.Tensor` of shape `(num_labels,)`, float32, 1 for each class that the image has and 0 for
    the others. An image that cannot be read is grey, and its label is one that losses and metrics leave out:
    `IGNORED_LABEL`, of a multi-label set in every place.
    """

    def __init__(self, split: datasets.Dataset, num_channels: int, transform=None):
        self.split = split
        self.num_channels = num_channels
        self.transform = transform
        self.num_labels = num_labels_of(split) if isinstance(split.features["label"], datasets.List) else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict:
        try:
            image, row = read_row(self.split, index, self.num_channels)
            label, unreadable = self._label(row["label"]), None
        except UnreadableImage as problem:
            image = Image.new(MODES[self.num_channels], (32, 32), "grey")
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
