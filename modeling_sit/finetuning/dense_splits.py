"""The splits of a dataset of objects, or of a class for each pixel."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

from modeling_sit.data.dense.loading import Kind, open_dense
from modeling_sit.data.dense.rows import OBJECTS
from modeling_sit.data.image_datasets import TRAIN_SPLITS, dataset_name
from modeling_sit.data.label_encoding import join
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.splits import HOLD_BACK_FROM, Splits, called, choose_names, name_held_back
from modeling_sit.runtime.errors import SiTError

MAX_LISTED_CLASSES = 10


@dataclass(kw_only=True)
class DenseSplits(Splits):
    """
    [`Splits`] of images with objects, or with a class for each pixel: rows as of `data.dense.rows`.

    Args:
        notes (`list[str]`): What the reader understood or left out that the user may not expect, a line each.
    """

    notes: list[str] = field(default_factory=list)

    def tell(self, intensity_range: Sequence[float | str] | None) -> None:
        if os.environ.get("RANK", "0") == "0":
            print("\n".join(self.lines()), flush=True)

    def lines(self) -> list[str]:
        """What is known of the dataset, a line each."""
        lines = [f"{self.name}:"]
        for split in (self.train, *self.measured):
            lines.append(f"  {split.split}: {len(split):,} images{_objects_of(split, self.label_names)}")
        shown = join(self.label_names[:MAX_LISTED_CLASSES])
        more = len(self.label_names) - MAX_LISTED_CLASSES
        lines.append(f"  classes: {len(self.label_names)}, {shown}" + (f" and {more:,} more" if more > 0 else ""))
        return lines + [f"  {note}" for note in self.notes]

    def num_measured(self) -> int:
        """The objects of the validation images, or as many as there are classes for each image."""
        if self.validation is None or OBJECTS not in self.validation.column_names:
            return super().num_measured() * len(self.label_names)
        return sum(len(categories) for categories in learned_categories(self.validation))

    def hold_out(self, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        if len(self.train) < 2:
            raise SiTError(
                f"split {self.train.split} has only one image, so none can be held out",
                argument="learning_rate",
                remedy="give a number and `max_steps` too, or a `validation_split`",
            )
        return hold_out(self.train, fraction, seed)


def load_dense_splits(arguments: FinetuningArguments, kind: Kind, seed: int, evaluates: bool | None) -> DenseSplits:
    """The images to train on, to choose by and to measure, as [`~labeled_splits.load_splits`] has them, but the fraction of
    the labels and the images that are held back are drawn from all images alike.

    Args:
        arguments (`FinetuningArguments`): Dataset, names of splits, fractions.
        kind (`str`): As of [`open_dense`].
        seed (`int`), evaluates (`bool`, *optional*): As of [`~labeled_splits.load_splits`].

    Raises:
        [`SiTError`]: If there is no such dataset or split, two are the same, or there is no object to learn from.
    """
    arguments.check_intensity_range()
    asked = [arguments.train_split, arguments.validation_split, arguments.test_split]
    dataset = open_dense(
        arguments.dataset,
        kind,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        asked=tuple(name for name in asked if name is not None),
        reduce_labels=arguments.do_reduce_labels,
    )
    names = list(dataset.splits)
    for argument in ("train_split", "validation_split", "test_split"):
        name = getattr(arguments, argument)
        if name is not None and name not in names:
            raise SiTError(f"no split {name}, only {join(names)}", argument=argument)
    train_name = arguments.train_split or called(names, TRAIN_SPLITS)
    if train_name is None and len(names) > 1:
        raise SiTError(
            f"none of the splits has a usual name: {join(names)}", argument="train_split", remedy="name one of them"
        )
    train_name = train_name or names[0]
    validation_name, test_name = choose_names([name for name in names if name != train_name], arguments, evaluates)
    for argument, name in (("validation_split", validation_name), ("test_split", test_name)):
        if name == train_name:
            raise SiTError(f"{name} is the training split", argument=argument, remedy="name another")
    train = dataset.read(train_name)
    validation = None if validation_name is None else dataset.read(validation_name)
    test = None if test_name is None else dataset.read(test_name)
    measured = [split for split in (validation, test) if split is not None]
    if arguments.label_fraction < 1:
        train = select_fraction(train, arguments.label_fraction, seed)
    may_choose = validation is not None or test is not None or evaluates is True
    if evaluates is None:
        evaluates = len(train) >= HOLD_BACK_FROM
    is_held_back = validation is None and (evaluates or test is None)
    if is_held_back:
        if len(train) < 2:
            raise SiTError(
                f"split {train.split} has only one image, so none can be held back for validation",
                argument="validation_split",
                remedy="name one, or give a larger `label_fraction` if you gave one",
            )
        validation_name = name_held_back(train, arguments)
        train, validation = hold_out(train, arguments.validation_fraction, seed)
    if OBJECTS in train.column_names and not any(learned_categories(train)):
        raise SiTError(
            f"none of the {len(train):,} images of {train.split} to learn from has an object that is no crowd",
            argument="dataset" if arguments.label_fraction == 1 else "label_fraction",
            remedy=None if arguments.label_fraction == 1 else "give a larger one",
        )
    return DenseSplits(
        name=dataset_name(arguments.dataset),
        label_names=list(dataset.label_names),
        train=train,
        validation=validation,
        validation_name=validation_name,
        is_held_back=is_held_back,
        may_choose=may_choose,
        test=test,
        test_name=test_name,
        measured=measured,
        notes=list(dataset.notes),
    )


def select_fraction(split: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """A random fraction of the images, at least one, in their old order. A larger fraction has all images of a smaller one."""
    order = np.random.default_rng(seed).permutation(len(split))
    return split.select(np.sort(order[: max(1, round(fraction * len(split)))]))


def hold_out(split: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rest, and a random fraction of the images: one of each at least. Both in their old order."""
    order = np.random.default_rng(seed).permutation(len(split))
    number = min(max(1, round(fraction * len(split))), len(split) - 1)
    return split.select(np.sort(order[number:])), split.select(np.sort(order[:number]))


def learned_categories(split: datasets.Dataset) -> list[list[int]]:
    """Of each image the classes of its objects. Crowds (`iscrowd`) are neither learned nor counted."""
    return [
        [category for category, crowd in zip(objects["category"], objects["iscrowd"], strict=True) if not crowd]
        for objects in split.select_columns([OBJECTS])[OBJECTS]
    ]


def _objects_of(split: datasets.Dataset, label_names: list[str]) -> str:
    """How many objects a split has, and how many of each class, in words; nothing, if it has classes of pixels."""
    if OBJECTS not in split.column_names:
        return ""
    categories = learned_categories(split)
    counts = np.bincount(np.concatenate([*categories, []]).astype(int), minlength=len(label_names))
    empty = sum(not each for each in categories)
    most = np.argsort(-counts, kind="stable")[:MAX_LISTED_CLASSES]
    by_class = ", ".join(f"{label_names[index]} {counts[index]:,}" for index in most)
    without = f", {empty:,} without any" if empty else ""
    return f"{without}, {counts.sum():,} objects ({by_class}{', ...' if len(label_names) > len(most) else ''})"
