"""The splits of a dataset: one to train on, one that chooses the best checkpoint, one to measure once."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from modeling_sit.data.description import tell
from modeling_sit.data.image_datasets import TEST_SPLITS, VALIDATION_SPLITS, ImageDatasets
from modeling_sit.data.labeled import class_counts, labeled_splits, labels_of
from modeling_sit.data.sampling import HOLD_OUT, derive_seed
from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import select_label_fraction, train_validation_split
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.runtime.errors import SiTError, argument_names

# With fewer images, to learn from all of them is worth more than to choose among the checkpoints of a run.
HOLD_BACK_FROM = 5_000
# To choose the settings of a run, a tenth of a few hundred images is too few: a fifth is held out of fewer than this.
MANY_IMAGES, FRACTION_OF_FEW = 2_000, 0.2
# Several draws, until so many images are held out in all.
ENOUGH_HELD_OUT, MAX_DRAWS = 60, 5


@dataclass
class Splits:
    """
    The splits that fine-tuning uses.

    Args:
        name (`str`): Name of the dataset, as the user gave it.
        label_names (`list[str]`): Names of the classes, in the order of their indices.
        multi_label (`bool`): Whether an image may have several classes.
        train (`datasets.Dataset`): Training images.
        validation (`datasets.Dataset`, *optional*): Images that choose the best checkpoint. `None` for none.
        validation_name (`str`, *optional*): Their name for the user.
        is_held_back (`bool`): Whether they are a part of the training split.
        may_choose (`bool`): Whether they may choose the best checkpoint. Not so where they were held back only to measure
            the finished model, because there is no test split: the result would be too good.
        test (`datasets.Dataset`, *optional*): Images to measure once, at the end. `None` for none.
        test_name (`str`, *optional*): Their name for the user.
        images ([`ImageDatasets`], *optional*): The dataset, with its training split only.
        measured (`list[datasets.Dataset]`): Its other splits that are used.
    """

    name: str
    label_names: list[str]
    multi_label: bool
    train: datasets.Dataset
    validation: datasets.Dataset | None = None
    validation_name: str | None = None
    is_held_back: bool = False
    may_choose: bool = True
    test: datasets.Dataset | None = None
    test_name: str | None = None
    images: ImageDatasets | None = None
    measured: list[datasets.Dataset] = field(default_factory=list)

    def tell(self, intensity_range: Sequence[float] | None) -> None:
        """Print what is known of the dataset, whatever part of it the run uses."""
        tell(self.images, *self.measured, intensity_range=intensity_range)

    def summary(self) -> str:
        """What the images are used for, in one line."""
        parts = [f"{len(self.train):,} images to learn from"]
        if self.validation is not None:
            parts.append(f"{len(self.validation):,} for validation ({self.validation_name})")
        if self.test is not None:
            parts.append(f"{len(self.test):,} for the test ({self.test_name})")
        return ", ".join(parts)


def load_splits(arguments: FinetuningArguments, seed: int, evaluates: bool | None) -> Splits:
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
    others = [name for name in images.splits if name != arguments.train_split]
    validation_name = arguments.validation_split
    test_name = arguments.test_split or _called(others, TEST_SPLITS)
    if validation_name is None:
        usual = [name for name in VALIDATION_SPLITS if name not in TEST_SPLITS]
        validation_name = _called([name for name in others if name != test_name], usual)
    elif validation_name == test_name:
        if arguments.test_split is not None or evaluates:
            raise SiTError(
                f"test images choose nothing, and {validation_name} is the test split",
                argument="validation_split",
                remedy="leave it out, and `validation_fraction` of the training images is held back",
            )
        validation_name = None

    train, validation, test = None, None, None
    measured = []
    if validation_name is not None:
        images = _load(arguments, validation_name, images)
        train, validation = labeled_splits(images)
        measured.append(images.validation)
    if test_name is not None:
        with argument_names(validation_split="test_split"):
            images = _load(arguments, test_name, images)
            # Test sets on the Hub often come without their labels.
            if arguments.test_split is None and (labels_of(images.validation) < 0).all():
                test_name = None
            else:
                train, test = labeled_splits(images)
                measured.append(images.validation)
    if train is None:
        images.validation = None
        train, _ = labeled_splits(images, validation="if there")
    train_name = str(train.split)
    train = select_label_fraction(train, arguments.label_fraction, seed) if arguments.label_fraction < 1 else train
    may_choose = validation is not None or test is not None or evaluates is True
    if evaluates is None:
        evaluates = len(train) >= HOLD_BACK_FROM
    is_held_back = validation is None and (evaluates or test is None)
    if is_held_back:
        train, validation = train_validation_split(train, arguments.validation_fraction, seed)
        at_least = ", one of each class at least" if arguments.label_fraction < 1 else ""
        validation_name = f"{100 * arguments.validation_fraction:.4g} % of {train_name}{at_least}, held back"
    return Splits(
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
    )


def held_out_draws(splits: Splits, fraction: float, seed: int) -> tuple[list[Splits], str]:
    """What trials train on and what they are measured on.

    Args:
        splits ([`Splits`]): The dataset. A named validation split is what is measured. Images that were held back to
            measure the finished model are left out, as test images are.
        fraction (`float`): Fraction of each class to hold out, where there is no validation split; larger for few images.
        seed (`int`): Seed of the draws.

    Returns:
        `tuple[list[Splits], str]`: One for each draw, each with `validation` and without `test`; and what was held out,
        in words.

    Raises:
        [`SiTError`]: If every class has only one image.
    """
    if splits.validation is not None and not splits.is_held_back:
        name = f"{splits.validation_name}, {len(splits.validation):,} images"
        return [_with(splits, splits.train, splits.validation)], name
    if len(splits.train) < MANY_IMAGES:
        fraction = max(fraction, FRACTION_OF_FEW)
    draws: list[Splits] = []
    while not draws or (len(draws) < MAX_DRAWS and len(draws) * len(draws[0].validation) < ENOUGH_HELD_OUT):
        draws.append(_with(splits, *_hold_out(splits.train, fraction, derive_seed(seed, HOLD_OUT, len(draws)))))
    number = f"{len(draws[0].validation):,} images"
    name = f"{100 * fraction:.4g} % of {splits.train.split}, {number}"
    return draws, name if len(draws) == 1 else f"{name} in each of {len(draws)} draws"


def _hold_out(split: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """As [`train_validation_split`], but the only image of a class, and all that is on it, is left to train on."""
    rows = np.arange(len(split))
    while len(rows):
        part = split.select(rows)
        is_single = class_counts(part) == 1
        if not is_single.any():
            break
        labels = labels_of(part)
        is_kept = is_single[labels] if labels.ndim == 1 else (labels[:, is_single] > 0).any(dim=1)
        rows = rows[~is_kept.numpy()]
    if not len(rows):
        raise SiTError(
            f"split {split.split} has only one image of each class, so none can be held out",
            argument="learning_rate",
            remedy="give a number and `max_steps` too, a larger `label_fraction`, or a `validation_split`",
        )
    numbered = split.select(rows).select_columns(["label"]).add_column("row", rows)  # a new column copies the others
    _, chosen = train_validation_split(numbered, fraction, seed)
    is_held_out = np.zeros(len(split), dtype=bool)
    is_held_out[chosen["row"][:]] = True
    return split.select(np.flatnonzero(~is_held_out)), split.select(np.flatnonzero(is_held_out))


def _with(splits: Splits, train: datasets.Dataset, validation: datasets.Dataset) -> Splits:
    return Splits(splits.name, splits.label_names, splits.multi_label, train, validation, splits.validation_name)


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


def _called(splits: Iterable[str], usual: Iterable[str]) -> str | None:
    by_name = {split.lower(): split for split in splits}
    return next((by_name[name] for name in usual if name in by_name), None)
