#!/usr/bin/env python
"""What does the initialization by width give, against a normal of 0.02, at each width?

    python scripts/benchmarks/initialization.py --output_dir outputs/initialization
    python scripts/benchmarks/initialization.py --datasets digits FLOWERS CIFAR10 --max_images 5000 --seeds 0 1 2 --output_dir O

For each dataset, width and seed it pretrains SiT and trains a classifier from scratch, once with `initialization=xavier` and once
with `initialization=normal,initializer_range=0.02`. Nothing else differs: images, order, steps, learning rate, augmentation. It
measures on a part of the training images that is held out: kNN of the frozen features, and the accuracy of the classifier. It
writes `results.json` and `results.md` after every run, and does not repeat the runs that are already in the folder, so the same
command goes on where it was cut off. One run of width 64 on digits takes about a minute on a CPU; wider and larger ones take more.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import datasets
from learning import GRAY_VIEWS, hold_out, look_at, short_name
from transformers.utils import logging as transformers_logging

import modeling_sit
from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import ExampleHelpFormatter, RecipeArgumentParser
from modeling_sit.experiments.grid import claim_folder, results_of
from modeling_sit.experiments.report import mean_and_std, over_seeds
from modeling_sit.hub.provenance import typed_command
from modeling_sit.pretraining.checkpoints import delete_checkpoint, list_checkpoints
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.markdown import escaped, table
from modeling_sit.runtime.trackers import read_metrics

INITIALIZATIONS = {
    "normal": {"initialization": "normal", "initializer_range": 0.02},
    "xavier": {"initialization": "xavier"},
}
STARTS = ("sit", "scratch")
WIDTH_OF_A_HEAD = 32
# Views for images of at most this many pixels: image size and patch size. 16 or 64 patches, as in the recipes for a CPU.
VIEWS = ((16, 16, 4), (48, 32, 4), (float("inf"), 64, 8))
BLUR_FROM = 64
# What both initializations share.
PRETRAINING = {
    "preset": "paper",  # what these settings do not say, whatever the machine
    "per_device_train_batch_size": 64,
    "teacher_momentum": 0.99,
    "reconstruction_weight": 5,
    "export": "student",
    "preview_steps": 0,
    "monitors": ["none"],
    "checkpointing_steps": "100",
    "checkpoints_total_limit": 1,
}
GRAY = {"base_learning_rate": 6e-3, **GRAY_VIEWS}
COLOR = {"base_learning_rate": 2e-3}
SCRATCH = {
    "from_scratch": True,
    "per_device_train_batch_size": 64,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
}
SCRATCH_GRAY = {"learning_rate": 1e-3, "crop_scale": [0.5, 1.0], "horizontal_flip_probability": 0}
SCRATCH_COLOR = {"learning_rate": 5e-4}


@dataclass(kw_only=True)
class InitializationArguments:
    """What is compared, on which images, how long."""

    output_dir: str = field(metadata={"help": "Folder for the runs and the tables. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to delete earlier runs in that folder."}
    )
    datasets: list[str] = field(
        default_factory=lambda: ["digits"],
        metadata={
            "help": "Labeled images, as `modeling-sit pretrain` takes them. Their training split alone is used."
        },
    )
    widths: list[int] = field(
        default_factory=lambda: [64, 128, 192, 384],
        metadata={"help": "Widths of the backbone, each with a head for every 32 of it."},
    )
    num_hidden_layers: int = field(default=4, metadata={"help": "Number of blocks of the backbone."})
    steps: int = field(default=880, metadata={"help": "Steps of pretraining, of 64 images each."})
    scratch_steps: int | None = field(
        default=None, metadata={"help": "Steps of training from scratch. Default: as many as of pretraining."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Seeds of weights, order and augmentation."}
    )
    starts: list[str] = field(
        default_factory=lambda: list(STARTS),
        metadata={"help": "What is trained: `sit` (pretraining), `scratch` (a classifier), or both."},
    )
    max_images: int | None = field(
        default=None,
        metadata={"help": "Number of images of each dataset to use, the held-out ones included. Default: all."},
    )

    def __post_init__(self):
        for name in ("widths", "num_hidden_layers", "steps", "scratch_steps", "max_images"):
            value = getattr(self, name)
            if any(number < 1 for number in (value if isinstance(value, list) else [value or 1])):
                raise SiTError(f"must be at least 1, got {value}", argument=name)
        for width in self.widths:
            if width % num_heads(width):
                raise SiTError(f"{width} is no multiple of {WIDTH_OF_A_HEAD}", argument="widths")
        for start in self.starts:
            if start not in STARTS:
                raise SiTError(f"{start} is none of {', '.join(STARTS)}", argument="starts")
        for name in ("datasets", "widths", "seeds", "starts"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SiTError(f"{getattr(self, name)} has a value twice", argument=name)
        names = [short_name(dataset) for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise SiTError(f"{', '.join(names)}: two folders of one name", argument="datasets")


@dataclass(frozen=True)
class Cell:
    """
    One run.

    Args:
        dataset (`str`): Images.
        width (`int`): Width of the backbone.
        start (`str`): `"sit"` or `"scratch"`.
        initialization (`str`): `"normal"` or `"xavier"`.
        seed (`int`): Seed of weights, order and augmentation.
    """

    dataset: str
    width: int
    start: str
    initialization: str
    seed: int

    @property
    def folder(self) -> str:
        return f"run-{short_name(self.dataset)}-{self.width}-{self.start}-{self.initialization}-seed{self.seed}"


def num_heads(width: int) -> int:
    return max(1, width // WIDTH_OF_A_HEAD)


def main() -> None:
    parser = RecipeArgumentParser(
        (InitializationArguments,), description=__doc__, formatter_class=ExampleHelpFormatter
    )
    with one_line_errors(parser.flags):
        (arguments,) = parser.parse()
        compare_initializations(arguments)


def compare_initializations(arguments: InitializationArguments) -> list[dict[str, Any]]:
    """Run what is missing in the folder, and write the tables after every run. Gives all results."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    output_dir = Path(arguments.output_dir)
    names = ("num_hidden_layers", "steps", "scratch_steps", "max_images")
    settings = {name: getattr(arguments, name) for name in names}
    claim_folder(output_dir, settings, ("run-*",), arguments.overwrite_output_dir)
    images = {dataset: hold_out(dataset, max_images=arguments.max_images) for dataset in arguments.datasets}
    results = []
    # The two that a row compares come one after the other, and a seed after all widths: what is there early says most.
    cells = product(arguments.seeds, arguments.datasets, arguments.widths, arguments.starts, INITIALIZATIONS)
    for seed, dataset, width, start, initialization in cells:
        cell = Cell(dataset, width, start, initialization, seed)
        result = {**asdict(cell), **run_cell(cell, images[dataset], arguments)}
        results.append(result)
        print(f"{cell.folder}: {result['metric'].replace('_', ' ')} {100 * result['value']:.1f} %", flush=True)
        write_report(results, images, arguments)
    print("\n" + describe(results, images, arguments))
    return results


def run_cell(cell: Cell, images: datasets.DatasetDict, arguments: InitializationArguments) -> dict[str, Any]:
    """The value of a run in [0, 1], and what else is known of it; from its folder, if it is finished there."""
    run_dir = Path(arguments.output_dir) / cell.folder
    protocol = {"sit": "knn", "scratch": "finetune"}[cell.start]

    def run(missing: list[str]) -> None:
        print(f"\n{run_dir.name}", flush=True)
        if cell.start == "sit":
            pretrain(cell, images, run_dir, arguments)
            modeling_sit.evaluate(str(run_dir), images, protocols=["knn"])
            for path in list_checkpoints(run_dir):
                delete_checkpoint(path)
        else:
            train_from_scratch(cell, images, run_dir, arguments)

    measured = results_of(run_dir, [protocol], run)[protocol]
    metric = "accuracy" if "accuracy" in measured else "mean_average_precision"
    result = {"metric": metric, "value": measured[metric], "num_validation": measured["num_validation"]}
    if cell.start == "sit":
        result["last_line"] = read_metrics(run_dir / "metrics.jsonl")[-1]
    return result


def sizes_of(cell: Cell, images: datasets.Dataset, num_hidden_layers: int) -> dict[str, Any]:
    """Fields of the configuration, but for the initialization. The heads grow with the backbone."""
    side, channels = look_at(images)
    image_size, patch_size = next((size, patch) for most, size, patch in VIEWS if side <= most)
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": cell.width,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_heads(cell.width),
        "decoder_hidden_size": 2 * cell.width,
        "projection_hidden_size": 4 * cell.width,
        "projection_size": cell.width,
        "drop_path_rate": 0.0,  # too few steps for it
    }


def pretrain(cell: Cell, images: datasets.DatasetDict, output_dir: Path, arguments: InitializationArguments) -> None:
    """Pretrain as the cell says, or go on from the checkpoint in the folder."""
    sizes = sizes_of(cell, images["train"], arguments.num_hidden_layers)
    own = ("image_size", "patch_size")  # arguments of their own
    overrides = {name: value for name, value in sizes.items() if name not in own} | INITIALIZATIONS[
        cell.initialization
    ]
    modeling_sit.pretrain(
        images,
        output_dir,
        **{name: sizes[name] for name in own},
        config_overrides=",".join(f"{name}={value}" for name, value in overrides.items()),
        **PRETRAINING,
        **(GRAY if sizes["num_channels"] == 1 else COLOR),
        # Blur leaves little of smaller views.
        **({"blur_probability": [0, 0]} if sizes["image_size"] < BLUR_FROM and sizes["num_channels"] > 1 else {}),
        max_steps=arguments.steps,
        seed=cell.seed,
        resume_from_checkpoint="auto",
    )


def train_from_scratch(
    cell: Cell, images: datasets.DatasetDict, run_dir: Path, arguments: InitializationArguments
) -> None:
    """Train a classifier that begins with the weights that pretraining begins with."""
    sizes = sizes_of(cell, images["train"], arguments.num_hidden_layers)
    is_gray = sizes["num_channels"] == 1
    # A model that says sizes and initialization: its own weights are not used.
    untrained = run_dir / "untrained"
    SiTForPreTraining(SiTConfig(**sizes, **INITIALIZATIONS[cell.initialization])).save_pretrained(untrained)
    statistics = {"image_mean": [0.5], "image_std": [0.5]} if is_gray else {}
    size = {"height": sizes["image_size"], "width": sizes["image_size"]}
    SiTImageProcessor(size=size, patch_size=sizes["patch_size"], **statistics).save_pretrained(untrained)
    modeling_sit.finetune(
        str(untrained),
        images,
        run_dir,
        **SCRATCH,
        **(SCRATCH_GRAY if is_gray else SCRATCH_COLOR),
        max_steps=arguments.scratch_steps or arguments.steps,
        seed=cell.seed,
    )
    shutil.rmtree(untrained)


def write_report(
    results: list[dict[str, Any]], images: dict[str, datasets.DatasetDict], arguments: InitializationArguments
) -> None:
    """Write all results, and the table.

    Raises:
        [`SiTError`]: If a file cannot be written.
    """
    text = describe(results, images, arguments)
    report = {"command": typed_command(), "arguments": asdict(arguments), "results": results}
    try:
        (Path(arguments.output_dir) / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (Path(arguments.output_dir) / "results.md").write_text(text + "\n", encoding="utf-8")
    except OSError as problem:
        reason = problem.strerror or problem
        raise SiTError(f"{arguments.output_dir} cannot be written: {reason}", argument="output_dir") from problem


def describe(
    results: list[dict[str, Any]], images: dict[str, datasets.DatasetDict], arguments: InitializationArguments
) -> str:
    """A row for each dataset and width, with both initializations side by side; what is not measured yet is a dash."""
    rows = []
    for dataset, width in product(arguments.datasets, arguments.widths):
        cells = []
        for start in STARTS:
            values = {name: values_of(results, dataset, width, start, name) for name in INITIALIZATIONS}
            cells += [mean_and_std(values[name]) if values[name] else "-" for name in INITIALIZATIONS]
            cells.append(difference(values["normal"], values["xavier"]))
        numbers = " + ".join(f"{len(part):,}" for part in images[dataset].values())
        rows.append([escaped(short_name(dataset)), numbers, str(width), *cells])
    header = ["dataset", "images, trained on + held out", "width"]
    header += [
        f"{start}, {name}"
        for start in ("SiT, kNN", "from scratch")
        for name in ("normal 0.02", "xavier", "difference, points")
    ]
    steps = arguments.steps, arguments.scratch_steps or arguments.steps
    caption = (
        f"{steps[0]:,} steps of pretraining and {steps[1]:,} from scratch, {arguments.num_hidden_layers} blocks; on held-out "
        f"training images, {over_seeds(len(arguments.seeds))}:"
    )
    return f"{caption}\n\n{table(header, rows)}"


def values_of(results: list[dict[str, Any]], dataset: str, width: int, start: str, initialization: str) -> list[float]:
    wanted = {"dataset": dataset, "width": width, "start": start, "initialization": initialization}
    return [result["value"] for result in results if wanted.items() <= result.items()]


def difference(normal: list[float], xavier: list[float]) -> str:
    """What xavier gives more, in points, over the seeds that both have."""
    pairs = list(zip(normal, xavier, strict=False))
    return f"{100 * sum(after - before for before, after in pairs) / len(pairs):+.1f}" if pairs else "-"


if __name__ == "__main__":
    main()
