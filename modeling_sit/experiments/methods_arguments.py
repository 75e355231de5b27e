"""Arguments of a comparison of pretraining methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from modeling_sit.experiments.budgets import BUDGETS
from modeling_sit.experiments.comparison_arguments import MeasuringArguments, names_in
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.presets import MODEL_SIZES
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import did_you_mean
from modeling_sit.runtime.errors import SiTError

# By device: steps of pretraining, and of the search of fine-tuning's length. On two CPU cores, all methods on the digits are meant
# to take less than an hour.
PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cpu": {"steps": 250, "finetuning": {"tuning_steps": 300, "max_tuning_steps": 600}},
        "gpu": {"steps": 10_000, "finetuning": {}},
    }
)


@dataclass(kw_only=True)
class MethodsComparisonArguments(MeasuringArguments):
    """
    The methods, and what each of them may spend.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    methods: list[str] = field(
        default_factory=lambda: list(METHODS),
        metadata={"help": f"Pretraining methods, separated by spaces or commas: {', '.join(METHODS)}. Default: all."},
    )
    budget: Literal[tuple(BUDGETS)] = field(
        default="steps",
        metadata={
            "help": "What each method gets the same amount of: steps, epochs, images (steps x batch), tokens of the encoder, or "
            "seconds. An epoch of MAE has a tenth of SiT's tokens."
        },
    )
    budget_value: float | None = field(
        default=None,
        metadata={
            "help": f"How much of the budget each method gets. Default: {PROFILES['cpu']['steps']:,} steps on a CPU, "
            f"{PROFILES['gpu']['steps']:,} on a GPU."
        },
    )
    pretraining_recipe: str | None = field(
        default=None,
        metadata={
            "help": "Pretraining recipe for all methods: a YAML file, or the name of a recipe of the package. A method leaves "
            "out the settings that only others have."
        },
    )
    model_size: Literal[tuple(MODEL_SIZES)] | None = field(
        default=None, metadata={"help": "Size of the backbone, as of `modeling-sit pretrain`. Default: by the preset."}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Images per step of pretraining on each device. Default: by the preset."}
    )
    tune: bool = field(
        default=True,
        metadata={
            "help": "Whether to choose for each method, on a fifth of the labels of train and with the first seed: the learning "
            "rate (a third of the preset's, the preset's, three times it), student or teacher, and which tokens the features "
            "are of. With no, these are the preset's."
        },
    )
    tune_finetuning: Literal["scratch", "all", "no"] = field(
        default="scratch",
        metadata={
            "help": "Whose rate and steps of fine-tuning are chosen on held-out training images: scratch, which trains until it "
            "gets no better, and then each method trains as long, with the usual rate; all, each start with its own rate "
            "and steps, which takes long; or no, the recipe's."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Seeds. Each pretrains every method anew, and draws other labels."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.methods = names_in(self.methods)
        for name in self.methods:
            if name not in METHODS:
                raise SiTError(
                    f"no method {name!r}, only {', '.join(METHODS)}{did_you_mean(name, METHODS)}", argument="methods"
                )
        if len(set(self.methods)) < len(self.methods):
            raise SiTError(f"{', '.join(self.methods)} has a method twice", argument="methods")
        if not self.methods:
            raise SiTError("names none", argument="methods")
        if self.budget_value is None and self.budget != "steps":
            raise SiTError(
                f"missing, and {self.budget} have no default", argument="budget_value", remedy="say how many"
            )
        if self.budget_value is not None and not 0 < self.budget_value < float("inf"):
            raise SiTError(f"must be above 0, got {self.budget_value:g}", argument="budget_value")
        if self.budget == "steps" and self.budget_value is not None and self.budget_value < 1:
            raise SiTError(f"must be a step at least, got {self.budget_value:g}", argument="budget_value")

    @property
    def profile(self) -> Mapping[str, Any]:
        """What nobody gives, by the device."""
        return PROFILES["cpu" if choose_device(None).type == "cpu" else "gpu"]

    @property
    def amount(self) -> float:
        """The budget of each method."""
        return self.profile["steps"] if self.budget_value is None else self.budget_value

    def tunes(self, start: str) -> bool:
        return self.tune_finetuning == "all" or (self.tune_finetuning == "scratch" and start == "scratch")
