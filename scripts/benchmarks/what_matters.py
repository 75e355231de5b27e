#!/usr/bin/env python
"""What matters most for good features? A recipe, and the same recipe with one thing changed, on held-out images.

    OMP_NUM_THREADS=1 python scripts/benchmarks/what_matters.py --output_dir outputs/what_matters

Pretrains on four fifths of the training images of digits, and measures the frozen features on the last fifth: kNN with all labels,
logistic regression with a tenth of them. It writes `results.json` and `results.md` after every run, and does not repeat the runs
that are already in the folder. A run takes two to four minutes on a CPU.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from learning import hold_out
from transformers.utils import logging as transformers_logging

import modeling_sit
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import ExampleHelpFormatter, RecipeArgumentParser
from modeling_sit.experiments.grid import claim_folder, results_of
from modeling_sit.hub.provenance import typed_command
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.markdown import table
from modeling_sit.runtime.recipes import read_recipe

RECIPE = "digits"
BASE = read_recipe(RECIPE)
STEPS, BATCH, RATE = (BASE[name] for name in ("max_steps", "per_device_train_batch_size", "base_learning_rate"))
# What is changed, and how; `config_overrides` are added to the recipe's. The recipe itself comes first.
CHANGES: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "initialization: a normal of 0.02 in every layer": {"config_overrides": "initialization=normal"},
    "positions: fixed, sine and cosine": {"config_overrides": "position_embedding_type=sincos"},
    "a third of the steps": {"max_steps": STEPS // 3},
    "a quarter of the batch, as many steps and the same peak rate": {
        "per_device_train_batch_size": BATCH // 4,
        "base_learning_rate": 4 * RATE,
    },
    "a quarter of the learning rate": {"base_learning_rate": RATE / 4},
    "the paper's corruption: noise 0.5 to 0.7, replace 0.3": {"noise_ratio": [0.5, 0.7], "replace_ratio": [0.3, 0.3]},
    "the paper's crops: from 0.2 of the image": {"crop_scale": [0.2, 1.0]},
    "the paper's teacher momentum: 0.996": {"teacher_momentum": 0.996},
    "the teacher exported": {"export": "teacher"},
    "reconstruction alone": {"contrastive_weight": 0},
    "contrast alone": {"reconstruction_weight": 0},
}
FEW = "10%"


@dataclass(kw_only=True)
class WhatMattersArguments:
    """Where the runs go, and how long they are."""

    output_dir: str = field(metadata={"help": "Folder for the runs and the table. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to delete earlier runs in that folder."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and augmentation."})
    changes: list[int] | None = field(
        default=None, metadata={"help": "Numbers of the changes to run, 0 for the recipe itself. Default: all."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "Steps of every run, for a trial."})

    def __post_init__(self):
        if self.changes is None:
            self.changes = list(range(len(CHANGES)))
        if not all(0 <= number < len(CHANGES) for number in self.changes):
            raise SiTError(f"must be from 0 to {len(CHANGES) - 1}, got {self.changes}", argument="changes")


def main() -> None:
    parser = RecipeArgumentParser((WhatMattersArguments,), description=__doc__, formatter_class=ExampleHelpFormatter)
    with one_line_errors(parser.flags):
        (arguments,) = parser.parse()
        measure_changes(arguments)


def measure_changes(arguments: WhatMattersArguments) -> list[dict[str, Any]]:
    """Run what is missing in the folder, and write the table after every run. Gives all results."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    output_dir = Path(arguments.output_dir)
    settings = {"seed": arguments.seed, "max_steps": arguments.max_steps, "recipe": BASE}
    claim_folder(output_dir, settings, ("run-*",), arguments.overwrite_output_dir)
    images = hold_out(RECIPE)
    results = []
    for number in arguments.changes:
        name = list(CHANGES)[number]
        measured = _measure(output_dir / f"run-{number}-seed{arguments.seed}", images, with_change(name), arguments)
        results.append({"change": name, **measured})
        text = describe(results, images)
        report = {"command": typed_command(), "settings": settings, "results": results}
        (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (output_dir / "results.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)
    return results


def with_change(name: str) -> dict[str, Any]:
    """Arguments of pretraining that the recipe does not give, for a change."""
    change = dict(CHANGES[name])
    if "config_overrides" in change:
        change["config_overrides"] = f"{BASE['config_overrides']},{change['config_overrides']}"
    return change


def _measure(
    run_dir: Path, images: datasets.DatasetDict, change: dict[str, Any], arguments: WhatMattersArguments
) -> dict[str, float]:
    """`knn` and `fewshot` in [0, 1]: accuracy of the frozen features on the held-out images."""

    def run(missing: list[str]) -> None:
        print(f"\n{run_dir.name}", flush=True)
        length = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
        modeling_sit.pretrain(
            images,
            run_dir,
            recipe=RECIPE,
            **(change | length),
            seed=arguments.seed,
            monitors=["none"],
            preview_steps=0,
            overwrite_output_dir=True,
        )
        modeling_sit.evaluate(str(run_dir), images, protocols=["knn", "fewshot"], fewshot_labels=[FEW])

    found = results_of(run_dir, ["knn", "fewshot"], run)
    return {"knn": found["knn"]["accuracy"], "fewshot": found["fewshot"]["accuracy_10_percent"]}


def describe(results: list[dict[str, Any]], images: datasets.DatasetDict) -> str:
    """A row for each run."""
    rows = [[result["change"], f"{100 * result['knn']:.1f}", f"{100 * result['fewshot']:.1f}"] for result in results]
    caption = f"Accuracy in % on {len(images['validation'])} held-out training images of {RECIPE}, frozen features, one seed:"
    return f"{caption}\n\n{table(['pretrained with', 'kNN', f'logistic regression, {FEW} of the labels'], rows)}"


if __name__ == "__main__":
    main()
