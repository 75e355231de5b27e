"""Arguments of an ablation: the plan, the images, and what a user says otherwise than the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.protocol_arguments import FEATURE_PROTOCOLS
from modeling_sit.experiments.comparison_arguments import MeasuringArguments, names_in
from modeling_sit.experiments.plan import FOLDER, MEASURES, Plan
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import shipped_names

# Minutes on a CPU, whatever the plan: it shows that all of it runs, and its results mean nothing.
SMOKE_MODEL = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=32,projection_hidden_size=32,projection_size=16"
PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "full": {},
        "smoke": {
            "images": {"train": 256, "test": 128},
            "measures": {"seeds": [0], "raw_pixels": ["knn"], "steps": 8},
            "largest": {"label_fractions": 1, "seeds": 1},
            "pretrain": {
                "config_overrides": SMOKE_MODEL,
                "per_device_train_batch_size": 16,
                "preview_steps": 0,
                "monitor_images": 64,
            },
            "finetune": {"max_steps": 4, "num_train_epochs": None, "per_device_train_batch_size": 16},
        },
    }
)


@dataclass(kw_only=True)
class AblationArguments(DatasetArguments):
    """
    The plan, the images, and what is not as the plan has it.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    plan: str = field(
        metadata={
            "help": f"What is compared: a YAML file, or the name of a plan of the package: {', '.join(shipped_names(FOLDER))}."
        }
    )
    validation_split: str | None = field(
        default=None, metadata=dict(MeasuringArguments.__dataclass_fields__["validation_split"].metadata)
    )
    output_dir: str = field(metadata={"help": "Folder for tables, charts and runs. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to delete the runs of an earlier ablation in that folder."}
    )
    runs_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the runs. Plans with the same folder share the runs that are the same. Default: `runs` in "
            "`output_dir`."
        },
    )
    cells: list[str] | None = field(
        default=None,
        metadata={
            "help": "Cells of the plan to run, separated by spaces or commas. Default: all. The tables also have the cells "
            "that earlier commands have run."
        },
    )
    profile: Literal[tuple(PROFILES)] = field(
        default="full",
        metadata={
            "help": "full: as the plan says. smoke: a tiny model, a few steps and a few images, to see in minutes that all of it "
            "runs; its results mean nothing."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Whether to say only how many runs, steps and hours the plan takes, by a few steps of each run. Nothing is "
            "written."
        },
    )
    pretraining_recipe: str | None = field(
        default=None,
        metadata={"help": "Recipe of pretraining for all cells: a YAML file, or the name of a recipe of the package."},
    )
    steps: int | None = field(
        default=None,
        metadata={"help": "Steps of the pretraining of a cell of length 1. Default: the plan's, else the preset's."},
    )
    finetuning_recipe: str | None = field(
        default=None, metadata={"help": "Recipe of fine-tuning for all cells. Default: the plan's."}
    )
    seeds: list[int] | None = field(
        default=None,
        metadata={"help": "Seeds. Each pretrains every cell anew, and draws other labels. Default: the plan's."},
    )
    protocols: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Protocols of the frozen features: {', '.join(FEATURE_PROTOCOLS)}; or none. Default: the plan's."
        },
    )
    label_fractions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fractions of the training labels to fine-tune with, each in (0, 1]; or none, for no fine-tuning. Default: the "
            "plan's."
        },
    )
    raw_pixels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Classifiers of the images' own pixels: `knn`, `logistic`, `svm`; or none. Default: the plan's."
        },
    )

    def __post_init__(self):
        if self.cells is not None:
            self.cells = names_in(self.cells)
            if not self.cells:
                raise SiTError("names none", argument="cells", remedy="leave it out for all cells")
        if self.steps is not None and self.steps < 1:
            raise SiTError(f"must be at least 1, got {self.steps}", argument="steps")

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return Path(self.output_dir) / "runs" if self.runs_dir is None else Path(self.runs_dir)


@dataclass(kw_only=True)
class PlannedMeasures(MeasuringArguments):
    """What is measured: the plan's, with what the user says otherwise. Lengths of fine-tuning are chosen by its recipe or preset."""

    label_fractions: list[float] = field(default_factory=lambda: [0.1])
    pretraining_recipe: str | None = None
    steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not (self.protocols or self.label_fractions):
            raise SiTError("names none, and there is no fine-tuning, so nothing is measured", argument="protocols")

    @property
    def needed(self) -> tuple[str, ...]:
        return ("seeds",)

    @property
    def pixel_fractions(self) -> list[float]:
        """With all labels in any case: what the frozen features are compared with."""
        return list(dict.fromkeys([*self.label_fractions, 1.0]))

    def tunes(self, start: str) -> bool:
        return False


def settle_measures(arguments: AblationArguments, plan: Plan) -> PlannedMeasures:
    """What is measured: what the user says; what the profile says; what the plan says.

    Raises:
        [`SiTError`]: If a value is out of range.
    """
    profile = PROFILES[arguments.profile]
    given = {name: getattr(arguments, name) for name in MEASURES if getattr(arguments, name) is not None}
    values = {**plan.measures, **profile.get("measures", {}), **given}
    if "label_fractions" in values:
        texts = [str(each) for each in _as_list(values["label_fractions"])]
        try:
            values["label_fractions"] = [float(text) for text in names_in(texts)]
        except ValueError as problem:
            raise SiTError(f"{', '.join(texts)}: not all are numbers", argument="label_fractions") from problem
    for name, most in profile.get("largest", {}).items():
        if name not in given and name in values:
            values[name] = sorted(_as_list(values[name]))[-most:]
    shared = {name: getattr(arguments, name) for name in DatasetArguments.__dataclass_fields__}
    return build_arguments(
        (PlannedMeasures,), {**shared, **values, "output_dir": str(arguments.runs)}, function="ablate"
    )[0]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
