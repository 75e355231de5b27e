"""The splits of a dataset: one to train on, one that chooses the best checkpoint, one to measure once."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import datasets

from modeling_sit.data.image_datasets import TEST_SPLITS, VALIDATION_SPLITS
from modeling_sit.data.sampling import HOLD_OUT, derive_seed
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.words import counted

# With fewer images, to learn from all of them is worth more than to choose among the checkpoints of a run.
HOLD_BACK_FROM = 5_000
# To choose the settings of a run, a tenth of a few hundred images is too few: a fifth is held out of fewer than this.
MANY_IMAGES, FRACTION_OF_FEW = 2_000, 0.2
# Several draws, until so many images are held out in all.
ENOUGH_HELD_OUT, MAX_DRAWS = 60, 5


@dataclass(kw_only=True)
class Splits(ABC):
    """
    The splits that fine-tuning uses.

    Args:
        name (`str`): Name of the dataset, as the user gave it.
        label_names (`list[str]`): Names of the classes, in the order of their indices.
        train (`datasets.Dataset`): Training images.
        validation (`datasets.Dataset`, *optional*): Images that choose the best checkpoint. `None` for none.
        validation_name (`str`, *optional*): Their name for the user.
        is_held_back (`bool`): Whether they are a part of the training split.
        may_choose (`bool`): Whether they may choose the best checkpoint. Not so where they were held back only to measure
            the finished model, because there is no test split: the result would be too good.
        test (`datasets.Dataset`, *optional*): Images to measure once, at the end. `None` for none.
        test_name (`str`, *optional*): Their name for the user.
        measured (`list[datasets.Dataset]`): The dataset's splits, other than the training split, that are used.
    """

    name: str
    label_names: list[str]
    train: datasets.Dataset
    validation: datasets.Dataset | None = None
    validation_name: str | None = None
    is_held_back: bool = False
    may_choose: bool = True
    test: datasets.Dataset | None = None
    test_name: str | None = None
    measured: list[datasets.Dataset] = field(default_factory=list)

    @abstractmethod
    def tell(self, intensity_range: Sequence[float | str] | None) -> None:
        """Print what is known of the dataset, whatever part of it the run uses."""

    @abstractmethod
    def hold_out(self, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        """A random part of the training images to train on, and the rest to measure settings of a run on.

        Args:
            fraction (`float`): Fraction to measure on, in (0, 1).
            seed (`int`): Seed of the draw.

        Raises:
            [`SiTError`]: If no image can be held out.
        """

    def num_measured(self) -> int:
        """How many things the metrics of the validation images are means over: the fewer, the more they depend on chance."""
        return 0 if self.validation is None else len(self.validation)

    def summary(self) -> str:
        """What the images are used for, in one line."""
        parts = [f"{counted(len(self.train), 'image')} to learn from"]
        if self.validation is not None:
            parts.append(f"{len(self.validation):,} for validation ({self.validation_name})")
        if self.test is not None:
            parts.append(f"{len(self.test):,} for the test ({self.test_name})")
        return ", ".join(parts)

    def for_trial(self, train: datasets.Dataset, validation: datasets.Dataset) -> Self:
        """The splits of a trial, without test images."""
        return replace(
            self, train=train, validation=validation, is_held_back=False, may_choose=True, test=None, test_name=None
        )


def choose_names(
    names: Iterable[str], arguments: FinetuningArguments, evaluates: bool | None
) -> tuple[str | None, str | None]:
    """Which split chooses the best checkpoint, and which one is measured at the end; `None` for none.

    Args:
        names (iterable of `str`): The dataset's splits.
        arguments (`FinetuningArguments`): Those that the user names.
        evaluates (`bool`, *optional*): Whether the run evaluates while it trains; `None` for as its images are.

    Raises:
        [`SiTError`]: If the two are the same.
    """
    others = [name for name in names if name != arguments.train_split]
    validation = arguments.validation_split
    test = arguments.test_split or called(others, TEST_SPLITS)
    if validation is None:
        usual = [name for name in VALIDATION_SPLITS if name not in TEST_SPLITS]
        return called([name for name in others if name != test], usual), test
    if validation != test:
        return validation, test
    if arguments.test_split is not None or evaluates:
        raise SiTError(
            f"test images choose nothing, and {validation} is the test split",
            argument="validation_split",
            remedy="leave it out, and `validation_fraction` of the training images is held back",
        )
    return None, test


def name_held_back(train: datasets.Dataset, arguments: FinetuningArguments, at_least: str = "") -> str:
    """What to call a fraction of the training split that is held back; `at_least` is said of it too."""
    return f"{100 * arguments.validation_fraction:.4g} % of {train.split}{at_least}, held back"


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
        [`SiTError`]: If no image can be held out.
    """
    if splits.validation is not None and not splits.is_held_back:
        name = f"{splits.validation_name}, {counted(len(splits.validation), 'image')}"
        return [splits.for_trial(splits.train, splits.validation)], name
    if len(splits.train) < MANY_IMAGES:
        fraction = max(fraction, FRACTION_OF_FEW)
    draws: list[Splits] = []
    while not draws or (len(draws) < MAX_DRAWS and len(draws) * len(draws[0].validation) < ENOUGH_HELD_OUT):
        draws.append(splits.for_trial(*splits.hold_out(fraction, derive_seed(seed, HOLD_OUT, len(draws)))))
    number = counted(len(draws[0].validation), "image")
    name = f"{100 * fraction:.4g} % of {splits.train.split}, {number}"
    return draws, name if len(draws) == 1 else f"{name} in each of {len(draws)} draws"


def called(splits: Iterable[str], usual: Iterable[str]) -> str | None:
    """The first of the usual names that is among the splits, as it is written there; `None` without one."""
    by_name = {split.lower(): split for split in splits}
    return next((by_name[name] for name in usual if name in by_name), None)
