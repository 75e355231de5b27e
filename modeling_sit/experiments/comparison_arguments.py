"""Arguments of comparisons."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.protocol_arguments import FEATURE_PROTOCOLS
from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.runtime.arguments import did_you_mean
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import plain_no


@dataclass(kw_only=True)
class MeasuringArguments(DatasetArguments):
    """
    How models are measured: the labels, the lengths, the seeds, the protocols.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to measure. It chooses nothing. Default: `test`, if there is one with labels; else "
            "`validation`; else a fifth of the training images of each class, the same for all runs."
        },
    )
    output_dir: str = field(metadata={"help": "Folder for the runs and the tables. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to delete an earlier comparison in that folder."}
    )
    finetuning_recipe: str | None = field(
        default=None,
        metadata={"help": "Fine-tuning recipe for all runs: a YAML file, or the name of a recipe of the package."},
    )
    label_fractions: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0],
        metadata={"help": "Fractions of the training labels to train with, each in (0, 1]."},
    )
    num_train_epochs: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs of fine-tuning: one number for all fractions, or one number for each. Default: chosen, or "
            "as in the recipe: see `tune`."
        },
    )
    max_steps: list[int] | None = field(
        default=None,
        metadata={"help": "Steps of fine-tuning, in place of epochs: one number, or one for each fraction."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={
            "help": "Seeds of fine-tuning. Each seed draws other labels, another order and, from scratch, other "
            "weights."
        },
    )
    protocols: list[str] = field(
        default_factory=lambda: ["knn", "linear"],
        metadata={"help": "Protocols that measure the frozen features, separated by spaces or commas; or `none`."},
    )
    raw_pixels: list[str] = field(
        default_factory=lambda: list(CLASSIFIERS),
        metadata={
            "help": "Classifiers of the images' own pixels, separated by spaces or commas: `knn`, `logistic` "
            "(regression), `svm` (with an RBF kernel); or `none`."
        },
    )

    def __post_init__(self):
        if not all(0 < fraction <= 1 for fraction in self.label_fractions):
            raise SiTError(f"{self.label_fractions}: each must be in (0, 1]", argument="label_fractions")
        if min(self.seeds, default=0) < 0:
            raise SiTError(f"must be at least 0, got {min(self.seeds)}", argument="seeds")
        for name in ("label_fractions", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SiTError(f"{getattr(self, name)} has a value twice", argument=name)
            if not getattr(self, name) and name in self.needed:
                raise SiTError("names none", argument=name)
        for name in ("num_train_epochs", "max_steps"):
            lengths = getattr(self, name)
            if lengths is not None and len(lengths) not in (1, len(self.label_fractions)):
                raise SiTError(
                    f"got {len(lengths)} numbers for {len(self.label_fractions)} `label_fractions`",
                    argument=name,
                    remedy="give one number, or one for each fraction",
                )
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise SiTError("`num_train_epochs` is given too", argument="max_steps", remedy="leave one of them out")
        self.protocols, self.raw_pixels = names_in(self.protocols), names_in(self.raw_pixels)
        for name in self.protocols:
            if name not in FEATURE_PROTOCOLS:
                raise SiTError(
                    f"no protocol {name!r} of frozen features, only {', '.join(FEATURE_PROTOCOLS)}"
                    f"{did_you_mean(name, FEATURE_PROTOCOLS)}",
                    argument="protocols",
                )
        for name in self.raw_pixels:
            if name not in CLASSIFIERS:
                raise SiTError(f"no classifier {name!r}, only {', '.join(CLASSIFIERS)}", argument="raw_pixels")

    @property
    def needed(self) -> Collection[str]:
        """Lists that cannot be empty."""
        return ("label_fractions", "seeds")

    @property
    def pixel_fractions(self) -> list[float]:
        """Fractions of the labels that the classifiers of raw pixels get."""
        return self.label_fractions

    def length_of(self, fraction: float) -> dict[str, Any]:
        """The arguments of fine-tuning that say how long it takes with this fraction of the labels, one of them `None`, so
        that a recipe's does not count; empty if none was given."""
        for name, other in (("num_train_epochs", "max_steps"), ("max_steps", "num_train_epochs")):
            lengths = getattr(self, name)
            if lengths is not None:
                return {name: lengths[self.label_fractions.index(fraction) if len(lengths) > 1 else 0], other: None}
        return {}

    def tunes(self, start: str) -> bool:
        """Whether rate and steps of fine-tuning are chosen on held-out images, for `"scratch"` or for another start."""
        raise NotImplementedError


@dataclass(kw_only=True)
class ComparisonArguments(MeasuringArguments):
    """The model that is compared."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the pretrained model. Required."})
    tune: bool = field(
        default=True,
        metadata={
            "help": "Whether to choose the learning rate and the number of steps on held-out training images, for "
            "each fraction, from scratch and from the pretrained weights alike, with the first seed. The runs then use all "
            "labels of the fraction. A search trains up to about 27 times as long as a usual run. With no, rate and steps are "
            "those of the recipe, and the comparison is much shorter; a small `max_tuning_steps` in `finetuning_recipe` makes "
            "each search shorter."
        },
    )

    def tunes(self, start: str) -> bool:
        return self.tune


def names_in(given: list[str]) -> list[str]:
    """The names in a list whose items may be several, separated by commas. `none` is none."""
    names = [name.strip() for text in given for name in text.split(",")]
    return [name for name in names if plain_no(name) not in ("", "none", "no")]
