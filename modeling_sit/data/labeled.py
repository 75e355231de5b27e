"""Labelled pictures, for fine-tuning and for measuring features."""

import logging
import os
from typing import Literal

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.sources import Pictures, read_row
from modeling_sit.image_modes import MODES
from modeling_sit.runtime.errors import UserError

logger = logging.getLogger(__name__)

# What cross-entropy leaves out, and what a picture that cannot be read therefore gets for a label.
IGNORED_LABEL = -100


def labelled_splits(
    pictures: Pictures, validation: Literal["required", "if there"] = "required"
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The training and the validation split, each without the pictures that have no label; a warning counts them.

    Args:
        pictures ([`Pictures`]): Not streamed.
        validation (`str`, *optional*, defaults to `"required"`):
            With `"if there"`, a set without validation split gives `None` in its place.

    Raises:
        [`UserError`]: If there is no such split, they are one and the same, there are no labels in one of them, or the
            validation split has classes of which there is no training picture.
    """
    splits = {"--train_split": pictures.train, "--validation_split": pictures.validation}
    if pictures.validation is None and validation == "if there":
        del splits["--validation_split"]
    for flag, split in splits.items():
        if split is None:
            raise UserError(
                f"{flag}: name one of the splits of {pictures.name}, which are {', '.join(pictures.splits)}"
            )
    if pictures.label_names is None:
        raise UserError(f"--label_column: {pictures.name} has no labels; name their column")
    if pictures.validation is not None and pictures.train.split == pictures.validation.split:
        raise UserError(f"--validation_split {pictures.validation.split}: this is the training split; name another")
    labelled = {flag: _with_labels(split, flag) for flag, split in splits.items()}
    if "--validation_split" in labelled:
        _check_known(*labelled.values())
    return labelled["--train_split"], labelled.get("--validation_split")


def _with_labels(split: datasets.Dataset, flag: str) -> datasets.Dataset:
    labels = labels_of(split)
    is_labelled = _is_labelled(labels)
    if not is_labelled.any():
        raise UserError(f"{flag} {split.split}: none of its pictures has a label")
    if labels.ndim == 2 and not (labels > 0).any():
        raise UserError(f"{flag} {split.split}: none of its pictures has any of the classes")
    if is_labelled.all():
        return split
    if os.environ.get("RANK", "0") == "0":  # once, of several processes
        num_left_out = int((~is_labelled).sum())
        logger.warning(
            "split %s: %d of %d pictures have no label and are left out", split.split, num_left_out, len(split)
        )
    return split.select(is_labelled.nonzero()[:, 0].numpy())


def _check_known(train: datasets.Dataset, validation: datasets.Dataset) -> None:
    labels = labels_of(validation)
    is_unknown = (class_counts(train) == 0) & (class_counts(validation) > 0)
    if is_unknown.any():
        has_unknown = is_unknown[labels] if labels.ndim == 1 else (labels[:, is_unknown] > 0).any(dim=1)
        raise UserError(
            f"--validation_split {validation.split}: {int(has_unknown.sum())} of its pictures are of classes that no picture "
            f"of {train.split} has: {_listed_classes(train, is_unknown)}; take them out, or add such pictures to "
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
        split (`datasets.Dataset`): Column `label`, as [`Pictures`] has it.

    Returns:
        `torch.Tensor`: Int64 `(num_pictures,)`, -1 for no label; of a multi-label set float32 `(num_pictures, num_labels)`,
        1 for each class that a picture has and 0 for the others, -1 throughout for no label known.
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


def _is_labelled(labels: torch.Tensor) -> torch.Tensor:
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def class_counts(split: datasets.Dataset) -> torch.Tensor:
    """How many pictures of a split there are of each class, int64 `(num_labels,)`."""
    labels = labels_of(split)
    if labels.ndim == 2:
        return (labels > 0).sum(dim=0)
    return torch.bincount(labels[labels >= 0], minlength=num_labels_of(split))


def _members(labels: torch.Tensor, label: int) -> np.ndarray:
    """Rows of the pictures of a class."""
    return np.flatnonzero(labels == label if labels.ndim == 1 else labels[:, label] > 0)


def _listed_classes(split: datasets.Dataset, which: torch.Tensor, limit: int = 5) -> str:
    names = [_class_label(split).names[number] for number in which.nonzero()[:, 0].tolist()]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def select_label_fraction(split: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """A random share of the pictures of every class, at least one of each, in their old order.

    Of a multi-label set, as near to the share of every class as classes that come together allow: [`hold_back`] says how.
    Pictures without a label are left out.

    Args:
        split (`datasets.Dataset`): Column `label`.
        fraction (`float` in (0, 1]): Share of each class's pictures, rounded.
        seed (`int`): Seed of the choice.
    """
    counts = (fraction * class_counts(split).double()).round().clamp(min=1)
    is_chosen, _ = _choose(labels_of(split), counts, fraction, np.random.default_rng(seed))
    return split.select(np.flatnonzero(is_chosen))


def select_per_class(split: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """The same number of random pictures of every class, in their old order: the few shots of few-shot learning.

    In a multi-label set a picture counts for each of its classes, the rarest class is served first, and a class that comes
    with others may have more than `count`.

    Args:
        split (`datasets.Dataset`): Column `label`. Classes without a picture in it are passed over.
        count (`int`): Pictures of each class, at least 1.
        seed (`int`): Seed of the choice.

    Raises:
        [`UserError`]: If a class has fewer pictures.
    """
    labels, num_members = labels_of(split), class_counts(split)
    is_short = (num_members > 0) & (num_members < count)
    if is_short.any():
        raise UserError(
            f"split {split.split}: fewer than {count} pictures of {_listed_classes(split, is_short)}; ask for fewer of each "
            f"class, at most {num_members[is_short].min()}"
        )
    generator = np.random.default_rng(seed)
    is_chosen = np.zeros(len(split), dtype=bool)
    for label in num_members.argsort(stable=True).tolist():
        members = _members(labels, label)
        num_wanted = max(0, count - int(is_chosen[members].sum()))
        is_chosen[generator.permutation(members[~is_chosen[members]])[:num_wanted]] = True
    return split.select(np.flatnonzero(is_chosen))


def hold_back(split: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Hold back a random share of the pictures of every class, to choose by what is not trained on.

    At least one picture of every class is held back, and at least one is left. In a multi-label set a picture goes with all
    its classes, so the shares are as near as that allows, mostly to one picture; every class is still left at least one.

    Args:
        split (`datasets.Dataset`): Column `label`. Pictures without a label are in neither part.
        share (`float` in (0, 1)): Share of each class's pictures, rounded.
        seed (`int`): Seed of the choice.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The rest and the pictures held back, each in the old order.

    Raises:
        `ValueError`: If `share` is not in (0, 1).
        [`UserError`]: If a class has only one picture.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold back is in (0, 1), got {share}")
    num_members = class_counts(split)
    if (num_members == 1).any():
        raise UserError(
            f"split {split.split}: only one picture of {_listed_classes(split, num_members == 1)}, so none can be held back "
            "for validation; add pictures of it, take it out, or name a --validation_split"
        )
    counts = num_members - (share * num_members.double()).round().clamp(min=1).minimum(num_members - 1)
    is_rest, is_held_back = _choose(labels_of(split), counts, 1 - share, np.random.default_rng(seed))
    return split.select(np.flatnonzero(is_rest)), split.select(np.flatnonzero(is_held_back))


def _choose(
    labels: torch.Tensor, counts: torch.Tensor, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `counts` of the labelled pictures of each class; each multi-label class has one among those chosen at least.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Of each picture, whether it is chosen, and whether it has a label and is not.
    """
    is_labelled = _is_labelled(labels).numpy()
    is_chosen = np.zeros(len(labels), dtype=bool)
    if labels.ndim == 1:
        for label in labels[labels >= 0].unique().tolist():
            is_chosen[generator.permutation(_members(labels, label))[: int(counts[label])]] = True
    else:
        has_class = (labels > 0).numpy()[is_labelled]
        chosen = _stratified(has_class, counts.numpy(), round(share * len(has_class)), generator)
        for label in np.flatnonzero(has_class.any(axis=0)):
            if not has_class[chosen, label].any():
                chosen[generator.choice(np.flatnonzero(has_class[:, label]))] = True
        is_chosen[is_labelled] = chosen
    return is_chosen, is_labelled & ~is_chosen


def _stratified(
    has_class: np.ndarray, counts: np.ndarray, num_pictures: int, generator: np.random.Generator
) -> np.ndarray:
    """Choose pictures so that of each class about `counts` are chosen, and about `num_pictures` of all.

    Pictures of most classes come first, for they are the hardest to place. Each goes to the part, the chosen or the others,
    that still lacks the larger share of what it is to have: of each of the picture's classes, and of pictures.

    Args:
        has_class (`np.ndarray` of shape `(num_pictures, num_labels)`): Bool.
        counts (`np.ndarray` of shape `(num_labels,)`): Of each class, how many to choose.
        num_pictures (`int`): Of all pictures, how many to choose.
        generator (`np.random.Generator`): Shuffles the pictures.

    Returns:
        `np.ndarray` of shape `(num_pictures,)`: Bool, whether a picture is chosen.
    """
    # Of the others and the chosen ones, how many pictures of each class, and in the last column of all, are still lacking.
    wanted = np.stack(
        [np.append(has_class.sum(axis=0) - counts, len(has_class) - num_pictures), np.append(counts, num_pictures)]
    )
    lacking = wanted.astype(float)
    order = generator.permutation(len(has_class))
    order = order[np.argsort(-has_class[order].sum(axis=1), kind="stable")]
    is_chosen = np.zeros(len(has_class), dtype=bool)
    for picture in order:
        columns = np.append(np.flatnonzero(has_class[picture]), -1)
        need_of_others, need = (lacking[:, columns] / np.maximum(wanted[:, columns], 1)).sum(axis=1)
        is_chosen[picture] = need > need_of_others
        lacking[int(is_chosen[picture]), columns] -= 1
    return is_chosen


class LabelledPictures(torch.utils.data.Dataset):
    """
    Pictures with labels, as a classifier reads them.

    Args:
        split (`datasets.Dataset`): Columns `image` (encoded) and `label`.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        transform (callable, *optional*): From picture to picture; random in training.

    An item is a dict of `image` (`PIL.Image.Image`), `label` and `unreadable` (`str` or `None`). The label is an `int`, or
    of a multi-label set a `torch.Tensor` of shape `(num_labels,)`, float32, 1 for each class that the picture has and 0 for
    the others. A picture that cannot be read is grey, and its label is one that losses and metrics leave out:
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
            picture, row = read_row(self.split, index, self.num_channels)
            label, unreadable = self._label(row["label"]), None
        except UnreadablePicture as problem:
            picture = Image.new(MODES[self.num_channels], (32, 32), "grey")
            label, unreadable = self._label(None), str(problem)
        if self.transform is not None:
            picture = self.transform(picture)
        return {"image": picture, "label": label, "unreadable": unreadable}

    def _label(self, stored: int | list[int] | None) -> int | torch.Tensor:
        if self.num_labels is None:
            return IGNORED_LABEL if stored is None else stored
        if stored is None:
            return torch.full((self.num_labels,), float(IGNORED_LABEL))
        label = torch.zeros(self.num_labels)
        label[stored] = 1
        return label
