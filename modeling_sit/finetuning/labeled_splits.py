"""The splits of a dataset with a label for each image, or several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np

from modeling_sit.data.description import tell
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.labeled import labeled_rows, labeled_splits, labels_of
from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import (
    NothingToHoldOut,
    hold_out_labeled,
    label_fraction_rows,
    train_validation_rows,
)
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.splits import HOLD_BACK_FROM, Splits, choose_names, name_held_back
from modeling_sit.runtime.errors import argument_names


@dataclass(kw_only=True)
class LabeledSplits(Splits):
    """
    [`Splits`] of labeled images.

    Args:
        multi_label (`bool`): Whether an image may have several classes.
        images ([`ImageDatasets`], *optional*): The dataset, with its training split only.
        measured_rows (`np.ndarray`, *optional*): The row that each image of `test`, or without it of `validation`, has in its split of
            the dataset: of images that are held back, in the training split.
    """

    multi_label: bool
    images: ImageDatasets | None = None
    measured_rows: np.ndarray | None = None

    def tell(self, intensity_range: Sequence[float | str] | None) -> None:
        tell(self.images, *self.measured, intensity_range=intensity_range)

    def hold_out(self, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        """As [`hold_out_labeled`]."""
        try:
            return hold_out_labeled(self.train, fraction, seed)
        except NothingToHoldOut as error:
            raise NothingToHoldOut(
                error.problem,
                argument="learning_rate",
                remedy="give a number and `max_steps` too, a larger `label_fraction`, or a `validation_split`",
            ) from error


def load_splits(arguments: FinetuningArguments, seed: int, evaluates: bool | None) -> LabeledSplits:
    """The labeled images to train on, to choose by and to measure.

    The test split never chooses anything. Where no other split can choose, a fraction of the training images of each
    class is held back. The same holds where there is no test split, so that the run can measure something; these images
    choose a checkpoint only if the run has to evaluate.

    Args:
        arguments (`FinetuningArguments`): Dataset, names of splits, fractions.
        seed (`int`): Seed of the random draws: which labels are used, and which images are held back.
        evaluates (`bool`, *optional*):
            Whether the run evaluates during training, so that it can choose a checkpoint. `None` for whether there is a
            validation split, or at least [`HOLD_BACK_FROM`] training images, so that some can be held back.

    Raises:
        [`SiTError`]: If there is no such split, two are the same, or labels are missing.
    """
    arguments.check_intensity_range()
    images = _load(arguments, arguments.validation_split)
    images.refuse_streams()
    validation_name, test_name = choose_names(images.splits, arguments, evaluates)
    train, validation, test = None, None, None
    measured, measured_rows = [], None
    if validation_name is not None:
        images = _load(arguments, validation_name, images)
        train, validation = labeled_splits(images)
        measured.append(images.validation)
        measured_rows = labeled_rows(images.validation)
    if test_name is not None:
        with argument_names(validation_split="test_split"):
            images = _load(arguments, test_name, images)
            # Test sets on the Hub often come without their labels.
            if arguments.test_split is None and (labels_of(images.validation) < 0).all():
                test_name = None
            else:
                train, test = labeled_splits(images)
                measured.append(images.validation)
                measured_rows = labeled_rows(images.validation)
    if train is None:
        images.validation = None
        train, _ = labeled_splits(images, validation="if there")
    rows = labeled_rows(images.train)
    if arguments.label_fraction < 1:
        chosen = label_fraction_rows(train, arguments.label_fraction, seed)
        train, rows = train.select(chosen), rows[chosen]
    may_choose = validation is not None or test is not None or evaluates is True
    if evaluates is None:
        evaluates = len(train) >= HOLD_BACK_FROM
    is_held_back = validation is None and (evaluates or test is None)
    if is_held_back:
        at_least = ", one of each class at least" if arguments.label_fraction < 1 else ""
        validation_name = name_held_back(train, arguments, at_least)
        rest, held_back = train_validation_rows(train, arguments.validation_fraction, seed)
        train, validation = train.select(rest), train.select(held_back)
        measured_rows = rows[held_back] if test is None else measured_rows
    return LabeledSplits(
        name=images.name,
        label_names=images.label_names,
        multi_label=images.multi_label,
        train=train,
        validation=validation,
        validation_name=validation_name,
        is_held_back=is_held_back,
        may_choose=may_choose,
        test=test,
        test_name=test_name,
        images=replace(images, validation=None),
        measured=measured,
        measured_rows=measured_rows,
    )


def _load(arguments: FinetuningArguments, name: str | None, loaded: ImageDatasets | None = None) -> ImageDatasets:
    """The dataset with the training split and the split `name`; `loaded`, if it has that split already."""
    if loaded is not None and loaded.validation is not None:
        is_it = str(loaded.validation.split) == re.sub(r"\W+", "_", name)
        if is_it:
            return loaded
    return load_images(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=name,
        labels="required",
    )
