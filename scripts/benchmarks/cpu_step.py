#!/usr/bin/env python
"""How fast is a step of pretraining small models on a CPU? As a run has it, and with what makes it fast taken back.

    python scripts/benchmarks/cpu_step.py --recipes digits fashion_mnist flowers --steps 15 --output FILE.json

The networks are those of the shipped recipes; images are digits or made up. The two take the same steps in turns, so that other
work on the machine slows both equally, and CPU time is measured, reading excluded. The ratio is the median of the ratios of
neighboring steps.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from reporting import positive, write_report
from throughput.photographs import photograph

from modeling_sit import SiTForPreTraining
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import Run, training_step
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.prepare import prepare
from modeling_sit.runtime.accelerator import create_accelerator
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.products import restore_linear_layers

# Side in pixels and PIL's mode of the images that are made up.
MADE_UP = {"fashion_mnist": (28, "L"), "flowers": (224, "RGB")}
RECIPES = ("digits", *MADE_UP)
NUM_WARMUP_STEPS = 3


def made_up_images(count: int, side: int, mode: str) -> datasets.Dataset:
    """Images in memory, PNG files of photographs that are made up."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        file = io.BytesIO()
        PIL.Image.fromarray(photograph(generator)).convert(mode).resize((side, side)).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))


def prepare_run(recipe: str, images: str | datasets.Dataset, batch_size: int | None, output_dir: str) -> Run:
    """A run of a shipped recipe, ready for its first batch."""
    given = {"dataset": images, "output_dir": output_dir, "max_steps": 1000, "dataloader_num_workers": 0}
    if batch_size is not None:
        given["per_device_train_batch_size"] = batch_size
    groups = build_arguments(PretrainingFlags.classes(), given, recipe, "pretrain")
    return prepare(PretrainingFlags(*groups), create_accelerator(cpu=True))


def make_plain(method: Method) -> None:
    """Take back what makes the step fast on a CPU: layers by oneDNN, and a teacher that computes no more than it has to."""
    restore_linear_layers(method)
    if method.teacher is not None:
        method.teacher.model.project = partial(project_of_all_tokens, method.teacher.model)


def project_of_all_tokens(model: SiTForPreTraining, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projections `(views, size)` of the contrastive token among all that the last block gives."""
    return model.projection_head(model.vit(pixel_values).last_hidden_state[:, 0])


def take_step(run: Run, batches: Iterator[dict[str, Any]], number: int) -> tuple[float, float]:
    """CPU seconds and loss of a step."""
    crops = next(batches)["crops"]
    started = time.process_time()
    output, _ = training_step(run, crops, number)
    return time.process_time() - started, output.loss.item()


def measure(recipe: str, batch_size: int | None, steps: int) -> dict[str, Any]:
    """CPU seconds and losses of every step, `fast` and `plain`, and the ratio of their times."""
    with tempfile.TemporaryDirectory() as folder:
        size = batch_size or 128
        images = made_up_images(2 * size, *MADE_UP[recipe]) if recipe in MADE_UP else recipe
        runs = {name: prepare_run(recipe, images, batch_size, folder) for name in ("fast", "plain")}
        make_plain(runs["plain"].method)
        batches = {name: run.data.batches(0, run.num_batches) for name, run in runs.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number in range(NUM_WARMUP_STEPS + steps):
            for name, run in runs.items():
                taken[name].append(take_step(run, batches[name], number))
        for each in batches.values():
            each.close()
    seconds = {name: [second for second, _ in each[NUM_WARMUP_STEPS:]] for name, each in taken.items()}
    return {
        "recipe": recipe,
        "batch_size": runs["fast"].flags.run.per_device_train_batch_size,
        "seconds": seconds,
        "losses": {name: [loss for _, loss in each] for name, each in taken.items()},
        "ratio": statistics.median(
            plain / fast for fast, plain in zip(seconds["fast"], seconds["plain"], strict=True)
        ),
    }


def row(result: dict[str, Any]) -> str:
    fast, plain = (1000 * statistics.median(result["seconds"][name]) for name in ("fast", "plain"))
    return f"{result['recipe']:20}{result['batch_size']:8}{plain:12.1f}{fast:12.1f}{result['ratio']:10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a step of pretraining small models on a CPU, as it is and plain.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="networks and views")
    parser.add_argument("--batch_size", type=positive, default=None, help="images in a batch; default: the recipe's")
    parser.add_argument("--steps", type=positive, default=15, help="timed steps of each, after three to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="PyTorch's threads")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for every step's time and loss")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    print(f"{'CPU ms a step':20}{'batch':>8}{'plain':>12}{'fast':>12}{'ratio':>10}")
    results = []
    for recipe in arguments.recipes:
        results.append(measure(recipe, arguments.batch_size, arguments.steps))
        print(row(results[-1]), flush=True)
    write_report(arguments.output, results=results)


if __name__ == "__main__":
    main()
