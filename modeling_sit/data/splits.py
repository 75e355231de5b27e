"""Random draws from the labeled images of a split: a fraction of the labels, a few of each class, a validation split.

The draws are stratified by class, at least one image of each. scikit-learn's `StratifiedShuffleSplit` guarantees neither
that nor an answer for classes of one image, and it knows no multi-label datasets.
"""

import datasets
import numpy as np
import torch

from modeling_sit.data.labeled import class_counts, is_labeled, join_classes, labels_of
from modeling_sit.runtime.errors import SiTError


class NothingToHoldOut(SiTError):
    """No image with a class can be held out: each is the only one of a class, or has none."""


def select_label_fraction(split: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """A random fraction of the images of every class, at least one of each, in their old order.

    In a multi-label dataset, classes that occur together make the fractions approximate, as in
    [`train_validation_split`]. Images without a label are left out.

    Args:
        split (`datasets.Dataset`): Column `label`.
        fraction (`float` in (0, 1]): Fraction of each class's images, rounded.
        seed (`int`): Seed of the draw.
    """
    return split.select(label_fraction_rows(split, fraction, seed))


def label_fraction_rows(split: datasets.Dataset, fraction: float, seed: int) -> np.ndarray:
    """The rows of the images that [`select_label_fraction`] takes, in their order."""
    counts = (fraction * class_counts(split).double()).round().clamp(min=1)
    is_chosen, _ = _choose(labels_of(split), counts, fraction, np.random.default_rng(seed))
    return np.flatnonzero(is_chosen)


def select_per_class(split: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """The same number of random images of every class, in their old order: the few shots of few-shot learning.

    In a multi-label dataset an image counts for each of its classes, the rarest class is drawn first, and a class that
    occurs with others may get more than `count`.

    Args:
        split (`datasets.Dataset`): Column `label`. Classes without an image in it are skipped.
        count (`int`): Images of each class, at least 1.
        seed (`int`): Seed of the draw.

    Raises:
        [`SiTError`]: If a class has fewer images.
    """
    labels, num_members = labels_of(split), class_counts(split)
    is_short = (num_members > 0) & (num_members < count)
    if is_short.any():
        raise SiTError(
            f"split {split.split}: fewer than {count} images of {join_classes(split, is_short)}",
            remedy=f"ask for fewer of each class, at most {num_members[is_short].min()}",
        )
    generator = np.random.default_rng(seed)
    is_chosen = np.zeros(len(split), dtype=bool)
    for label in num_members.argsort(stable=True).tolist():
        members = _members(labels, label)
        num_wanted = max(0, count - int(is_chosen[members].sum()))
        is_chosen[generator.permutation(members[~is_chosen[members]])[:num_wanted]] = True
    return split.select(np.flatnonzero(is_chosen))


def train_validation_split(
    split: datasets.Dataset, fraction: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Hold back a random fraction of the images of every class for validation.

    At least one image of every class is held back, and at least one is left. In a multi-label dataset an image goes with
    all its classes, so the fractions are approximate, mostly to one image. Every class is still left at least one.

    Args:
        split (`datasets.Dataset`): Column `label`. Images without a label are in neither part.
        fraction (`float` in (0, 1)): Fraction of each class's images, rounded.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The rest and the images held back, each in the old order.

    Raises:
        `ValueError`: If `fraction` is not in (0, 1).
        [`SiTError`]: If a class has only one image.
    """
    rest, held_back = train_validation_rows(split, fraction, seed)
    return split.select(rest), split.select(held_back)


def train_validation_rows(split: datasets.Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the images of both parts of [`train_validation_split`], in their order."""
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction to hold back must be in (0, 1), got {fraction}")
    num_members = class_counts(split)
    if (num_members == 1).any():
        raise SiTError(
            f"split {split.split}: only one image of {join_classes(split, num_members == 1)}, so none can be held back "
            "for validation",
            remedy="add images of it, take it out, give a larger `label_fraction` if you gave one, or name a "
            "`validation_split`",
        )
    counts = num_members - (fraction * num_members.double()).round().clamp(min=1).minimum(num_members - 1)
    is_rest, is_held_back = _choose(labels_of(split), counts, 1 - fraction, np.random.default_rng(seed))
    return np.flatnonzero(is_rest), np.flatnonzero(is_held_back)


def hold_out_labeled(split: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """As [`train_validation_split`], but the only image of a class, and all that is on it, is left to train on.

    Args:
        split (`datasets.Dataset`): Column `label`. Images without a label are left to train on.
        fraction (`float` in (0, 1)): Fraction of each class's images, rounded.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The rest and the images held out, each in the old order.

    Raises:
        [`NothingToHoldOut`]: If no image with a class is left to hold out.
    """
    rows = np.arange(len(split))
    while len(rows):
        part = split.select(rows)
        is_single = class_counts(part) == 1
        if not is_single.any():
            break
        labels = labels_of(part)
        is_kept = is_single[labels] if labels.ndim == 1 else (labels[:, is_single] > 0).any(dim=1)
        rows = rows[~is_kept.numpy()]
    is_held_out = np.zeros(len(split), dtype=bool)
    if len(rows):
        _, chosen = train_validation_rows(split.select(rows), fraction, seed)
        is_held_out[rows[chosen]] = True
    held_out = split.select(np.flatnonzero(is_held_out))
    if not class_counts(held_out).any():
        raise NothingToHoldOut(
            f"split {split.split}: each image is the only one of a class, or has none, so none can be held out"
        )
    return split.select(np.flatnonzero(~is_held_out)), held_out


def _members(labels: torch.Tensor, label: int) -> np.ndarray:
    """Rows of the images of a class."""
    return np.flatnonzero(labels == label if labels.ndim == 1 else labels[:, label] > 0)


def _choose(
    labels: torch.Tensor, counts: torch.Tensor, fraction: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `counts` of the labeled images of each class. Of each multi-label class, at least one image is chosen.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Of each image, whether it is chosen, and whether it has a label and is not.
    """
    has_label = is_labeled(labels).numpy()
    is_chosen = np.zeros(len(labels), dtype=bool)
    if labels.ndim == 1:
        for label in labels[labels >= 0].unique().tolist():
            is_chosen[generator.permutation(_members(labels, label))[: int(counts[label])]] = True
    else:
        has_class = (labels > 0).numpy()[has_label]
        chosen = _stratified(has_class, counts.numpy(), round(fraction * len(has_class)), generator)
        for label in np.flatnonzero(has_class.any(axis=0)):
            if not has_class[chosen, label].any():
                chosen[generator.choice(np.flatnonzero(has_class[:, label]))] = True
        is_chosen[has_label] = chosen
    return is_chosen, has_label & ~is_chosen


def _stratified(
    has_class: np.ndarray, counts: np.ndarray, num_images: int, generator: np.random.Generator
) -> np.ndarray:
    """Choose images so that about `counts` of each class are chosen, and about `num_images` in total.

    Images of many classes come first, because they are the hardest to place. Each image goes to the part, the chosen or
    the others, that lacks the larger fraction of its target, summed over the image's classes and the number of images.

    Args:
        has_class (`np.ndarray` of shape `(num_images, num_labels)`): Bool.
        counts (`np.ndarray` of shape `(num_labels,)`): Of each class, how many to choose.
        num_images (`int`): Of all images, how many to choose.
        generator (`np.random.Generator`): Shuffles the images.

    Returns:
        `np.ndarray` of shape `(num_images,)`: Bool, whether an image is chosen.
    """
    # Targets of the others and of the chosen: images of each class, and in the last column images in total.
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
