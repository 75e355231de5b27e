#!/usr/bin/env python
"""How good do features get in a given time? Pretraining and measuring, all within so many seconds.

    python scripts/benchmarks/timed_training.py --dataset FLOWERS --seconds 120 --output flowers.json
    python scripts/benchmarks/timed_training.py --dataset CIFAR10 --seconds 300 --pretraining_recipe mine.yaml --output cifar10.json

A short run first shows how long a step takes, and how long features take. The number of steps is what fits in the seconds that are
left. It measures kNN and linear classification by the frozen features, and kNN of the images' own pixels, on a part of the training
images that is held out, or with `--split test` on the test images. The JSON file is written after every stage, with the seconds
of each, so it holds what is known also where the program is stopped.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import datasets
import psutil
import torch
from learning import GRAY_VIEWS, hold_out, look_at, short_name
from transformers.utils import logging as transformers_logging

import modeling_sit
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import ExampleHelpFormatter, RecipeArgumentParser
from modeling_sit.data.labeled import labeled_splits
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.evaluation.features import Features, frozen_features
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.protocols import PROTOCOLS
from modeling_sit.evaluation.raw_pixels import classify_pixels, pixel_sizes, read_pixels
from modeling_sit.evaluation.results import as_result
from modeling_sit.hub.provenance import typed_command
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.presets import MILD_COLOR, MILD_GRAYSCALE, SHORT_RUN_RATIOS
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.runtime.trackers import read_metrics

# Of views for images of at most this many pixels. One GPU trains on the first at several thousand images a second; so a
# few minutes are tens of epochs of CIFAR-10, and hundreds of a few hundred larger images.
SETTINGS = {
    "gpu": (
        (
            48,
            {
                "model_size": "tiny",
                "image_size": 32,
                "patch_size": 4,
                "per_device_train_batch_size": 512,
                "base_learning_rate": 5e-4,
                "blur_probability": [0, 0],  # it leaves little of such images
            },
        ),
        (
            float("inf"),
            {
                "model_size": "tiny",
                "image_size": 96,
                "patch_size": 8,
                "per_device_train_batch_size": 128,
                "base_learning_rate": 2e-3,
            },
        ),
    ),
    "smoke": (
        (
            float("inf"),
            {"image_size": 16, "patch_size": 4, "per_device_train_batch_size": 32, "base_learning_rate": 6e-3},
        ),
    ),
}
FIELDS = {
    "gpu": {"projection_hidden_size": 1024, "decoder_hidden_size": 512, "drop_path_rate": 0},
    "smoke": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_hidden_size": 64,
        "projection_size": 32,
        "decoder_hidden_size": 64,
        "drop_path_rate": 0,
    },
}
ON_GPU = {"mixed_precision": "bf16", "image_cache": "device"}
COMMON = {
    "preset": "paper",  # what the settings do not say
    # As the presets have it in a short run.
    "export": "student",
    **{f"{kind}_ratio": SHORT_RUN_RATIOS[kind] for kind in ("noise", "replace")},
    "color_jitter": MILD_COLOR,
    "grayscale_probability": MILD_GRAYSCALE,
    "solarize_probability": [0.0, 0.0],
    "monitors": ["none"],
    "preview_steps": 0,
    "checkpointing_steps": "no",
}
# The images and folders are given, and the time says the length.
NOT_OF_A_RECIPE = {"dataset", "output_dir", "overwrite_output_dir", "max_steps", "num_train_epochs", "time_budget"}
# Steps of the short run; its first two thirds are not counted. And of the long one at most, for a look at whether all works.
PILOT_STEPS = {"gpu": 60, "smoke": 6}
MAX_STEPS = {"gpu": float("inf"), "smoke": 100}
# The teacher's memory, 1 / (1 - momentum) steps, as a fraction of the run; and the least momentum.
TEACHER_MEMORY, MIN_MOMENTUM = 0.02, 0.9
# What is left for slower moments, of the time to train; and seconds to end the program in.
MARGIN, ENDING = 0.05, 3.0
# Images whose features are read to see what reading costs before its first image.
FEW_IMAGES = 64
LINEAR_C = [0.001, 0.01, 0.1, 1.0]
# Products of a feature and a weight that a second of one core is enough for, with all iterations of L-BFGS. Several cores are
# faster by the square root of their number, about.
LINEAR_PRODUCTS = 1e7


@dataclass(kw_only=True)
class TimedArguments:
    """The images, the time, and what is trained."""

    dataset: str = field(metadata={"help": "Labeled images, as `modeling-sit pretrain` takes them. Required."})
    seconds: float = field(default=300.0, metadata={"help": "Seconds for everything, from the start of the program."})
    profile: Literal["gpu", "smoke"] = field(
        default="gpu",
        metadata={
            "help": "`gpu`: ViT-Ti in bf16 on a CUDA device. `smoke`: a tiny model on a CPU, to see that all works."
        },
    )
    pretraining_recipe: str | None = field(
        default=None,
        metadata={
            "help": "Recipe whose values replace those of the profile: a YAML file, or the name of a shipped one."
        },
    )
    torch_compile: bool = field(
        default=False,
        metadata={"help": "Whether PyTorch compiles the networks. It takes a minute or more of the time."},
    )
    split: Literal["held_out", "test"] = field(
        default="held_out",
        metadata={
            "help": "What is measured on: a fifth of the training images, which then trains nothing, or the test split."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of pretraining."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    model_dir: str | None = field(
        default=None, metadata={"help": "Folder to keep the model in. Default: it is not kept."}
    )

    def __post_init__(self):
        if self.seconds <= 0:
            raise SiTError(f"must be above 0, got {self.seconds}", argument="seconds")


class Report:
    """What is known, in `values`; written to the file, if there is one, after every stage."""

    def __init__(self, arguments: TimedArguments):
        self.values: dict[str, Any] = {"command": typed_command(), "arguments": asdict(arguments), "seconds": {}}
        self.output = None if arguments.output is None else Path(arguments.output)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of the block, and write what is known then."""
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        yield
        self.values["seconds"][name] = round(time.monotonic() - started, 3)
        self.write()

    def write(self) -> None:
        if self.output is None:
            return
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        except OSError as problem:
            reason = problem.strerror or problem
            raise SiTError(f"{self.output} cannot be written: {reason}", argument="output") from problem


def main() -> None:
    parser = RecipeArgumentParser((TimedArguments,), description=__doc__, formatter_class=ExampleHelpFormatter)
    with one_line_errors(parser.flags):
        (arguments,) = parser.parse()
        passed = time.time() - psutil.Process().create_time()  # libraries take many seconds to import
        run(arguments, time.monotonic() + arguments.seconds - passed)


def run(arguments: TimedArguments, deadline: float) -> dict[str, Any]:
    """Train and measure until `deadline`, of `time.monotonic()`. Gives what the JSON file holds."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    device = choose_device("cuda" if arguments.profile == "gpu" else "cpu")
    report = Report(arguments)
    with tempfile.TemporaryDirectory() as folder:
        with report.stage("find the images"):
            images = split_images(arguments)
            side, channels = look_at(images["train"])
        report.values["images"] = {
            "dataset": short_name(arguments.dataset),
            "num_train": len(images["train"]),
            "num_validation": len(images["validation"]),
            "split": arguments.split,
            "side": side,
            "channels": channels,
        }
        given = settings_of(arguments, side, channels)
        with report.stage("raw pixels"):
            report.values["raw_knn"] = measure_pixels(images, given["image_size"], channels)
        with report.stage("short run"):
            speed = measure_speed(arguments, images, given, Path(folder) / "short", device)
        fitted = fit_steps(speed, given, deadline - time.monotonic(), MAX_STEPS[arguments.profile])
        report.values["speed"] = {**asdict(speed), **fitted}
        with report.stage("train"):
            output_dir = Path(arguments.model_dir or Path(folder) / "model")
            report.values["training"] = train(
                images, output_dir, {**given, **fitted}, deadline - speed.measuring_seconds
            )
        with report.stage("features"):
            features = read_features(output_dir, images, device)
        for protocol in ("knn", "linear"):
            with report.stage(protocol):
                report.values[protocol] = measure(protocol, features, images, device)
    report.values["finished"] = True
    report.write()
    print(json.dumps({name: report.values[name] for name in ("raw_knn", "knn", "linear", "training")}, indent=2))
    return report.values


def split_images(arguments: TimedArguments) -> datasets.DatasetDict:
    """Images to train on, and to measure."""
    if arguments.split == "held_out":
        return hold_out(arguments.dataset)
    images = load_images(arguments.dataset, validation_split="test", labels="required")
    train, test = labeled_splits(images)
    return datasets.DatasetDict({"train": train, "validation": test})


def settings_of(arguments: TimedArguments, side: int, channels: int) -> dict[str, Any]:
    """Keyword arguments of pretraining, but for its length. A recipe's values replace the others."""
    recipe = {} if arguments.pretraining_recipe is None else read_recipe(arguments.pretraining_recipe)
    fields = {**FIELDS[arguments.profile], "num_channels": channels}
    given = {
        **COMMON,
        **next(settings for most, settings in SETTINGS[arguments.profile] if side <= most),
        **(GRAY_VIEWS if channels == 1 else {}),
        **(ON_GPU if arguments.profile == "gpu" else {}),
        "config_overrides": ",".join(f"{name}={value}" for name, value in fields.items()),
        "torch_compile": arguments.torch_compile,
        "seed": arguments.seed,
        **recipe,
    }
    return {name: value for name, value in given.items() if name not in NOT_OF_A_RECIPE}


@dataclass(frozen=True)
class Speed:
    """
    What a short run says of a long one.

    Args:
        step_seconds (`float`): Of a step.
        start_seconds (`float`): Before the first step and after the last one, with what only the first steps take.
        measuring_seconds (`float`): What measuring the model will take, about.
    """

    step_seconds: float
    start_seconds: float
    measuring_seconds: float


def measure_speed(
    arguments: TimedArguments,
    images: datasets.DatasetDict,
    given: dict[str, Any],
    output_dir: Path,
    device: torch.device,
) -> Speed:
    """Train for a few steps, and read the features of the images that are measured."""
    num_steps = PILOT_STEPS[arguments.profile]
    started = time.monotonic()
    result = modeling_sit.pretrain(
        images, output_dir, **{**given, "max_steps": num_steps, "logging_steps": num_steps // 3}
    )
    seconds = time.monotonic() - started
    step_seconds = images_of_a_step(given) / result.metrics["images_per_second"]
    measuring = measuring_seconds(output_dir, images, device)
    return Speed(step_seconds, max(0.0, seconds - num_steps * step_seconds), measuring + ENDING)


def measuring_seconds(folder: Path, images: datasets.DatasetDict, device: torch.device) -> float:
    """What it takes to read the features of all images, and to classify by them, as a few images tell."""
    num_images, times = len(images["validation"]), []
    few = images["validation"].select(range(min(FEW_IMAGES, num_images // 2)))
    for part in (few, images["validation"]):
        started = time.monotonic()
        features = read_features(folder, {"validation": part}, device)["validation"]
        times.append(time.monotonic() - started)
    per_image = max(0.0, times[1] - times[0]) / (num_images - len(few))
    num_fits = 0.8 * len(LINEAR_C) + 1  # each choice of C leaves out a fifth of the images
    products = len(images["train"]) * features.features.shape[1] * len(label_names_of(images))
    linear = num_fits * products / LINEAR_PRODUCTS / os.cpu_count() ** 0.5
    return 2 * times[0] + per_image * sum(map(len, images.values())) + linear


def fit_steps(speed: Speed, given: dict[str, Any], seconds: float, most: float) -> dict[str, Any]:
    """The number of steps for these seconds, measuring included, `most` at most; and what depends on it.

    Raises:
        [`SiTError`]: If there is no time for a step.
    """
    left = (1 - MARGIN) * (seconds - speed.measuring_seconds - speed.start_seconds)
    num_steps = int(min(most, left / speed.step_seconds))
    if num_steps < 1:
        raise SiTError(
            f"no time for a step is left: start and end take {speed.start_seconds + speed.measuring_seconds:.0f} s, and "
            f"{max(0.0, seconds):.0f} s are left",
            argument="seconds",
            remedy="give more",
        )
    momentum = max(MIN_MOMENTUM, 1 - 1 / max(1.0, TEACHER_MEMORY * num_steps))
    return {
        "max_steps": num_steps,
        "teacher_momentum": given.get("teacher_momentum", momentum),
        "logging_steps": max(1, num_steps // 50),
    }


def images_of_a_step(given: dict[str, Any]) -> int:
    return given["per_device_train_batch_size"] * given.get("gradient_accumulation_steps", 1)


def train(images: datasets.DatasetDict, output_dir: Path, given: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Pretrain, and stop at the deadline with the model as it is then."""
    started = time.monotonic()
    with alarm(deadline) as rang:
        try:
            modeling_sit.pretrain(images, output_dir, **given, overwrite_output_dir=True)
        except (TrainingInterrupted, KeyboardInterrupt):
            if not rang.is_set():
                raise
    seconds = time.monotonic() - started
    state = read_output_state(output_dir)
    if state is None or not (output_dir / "model.safetensors").exists():
        raise SiTError("the time is over, and nothing is trained yet", argument="seconds", remedy="give more")
    log = output_dir / "metrics.jsonl"
    lines = read_metrics(log) if log.exists() else []  # none where the end came before the first
    num_images = state.step * images_of_a_step(given)
    return {
        "settings": given,
        "steps": state.step,
        "planned_steps": given["max_steps"],
        "epochs": num_images / len(images["train"]),
        "images_per_second": median(line["images_per_second"] for line in lines) if lines else None,
        "images_per_second_overall": num_images / seconds,
        "last_line": lines[-1] if lines else None,
    }


@contextmanager
def alarm(deadline: float) -> Iterator[threading.Event]:
    """Interrupt the block at `deadline`, of `time.monotonic()`, as Ctrl-C does. Gives what then is set."""
    rang = threading.Event()

    def ring() -> None:
        rang.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), ring)
    timer.daemon = True
    # A process that a shell puts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield rang
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def read_features(folder: Path, images: dict[str, datasets.Dataset], device: torch.device) -> dict[str, Features]:
    """Features of the images by the model in the folder."""
    model, processor = load_encoder(str(folder))
    on_gpu = device.type == "cuda"
    settings = FeatureArguments(
        per_device_eval_batch_size=256 if on_gpu else 64,
        dataloader_num_workers=min(8, os.cpu_count()) if on_gpu else 0,
    )
    return {
        name: frozen_features(model, part, processor, settings, device=device, progress=False)
        for name, part in images.items()
    }


def measure_pixels(images: datasets.DatasetDict, image_size: int, channels: int) -> dict[str, Any]:
    """kNN of the images' own pixels, with what was chosen on the training images."""
    sizes = pixel_sizes(images["train"], channels, image_size)
    train, validation = (read_pixels(images[name], channels, sizes) for name in ("train", "validation"))
    result = classify_pixels("knn", train, validation, label_names_of(images))
    metric = "accuracy" if train.labels.ndim == 1 else "mean_average_precision"
    return {metric: result.value, **result.settings}


def measure(
    protocol: str, features: dict[str, Features], images: datasets.DatasetDict, device: torch.device
) -> dict[str, Any]:
    """Result of a protocol, as `eval_results.json` has it."""
    arguments = ProtocolArguments(protocols=[protocol], linear_c=LINEAR_C)
    result = PROTOCOLS[protocol](features["train"], features["validation"], label_names_of(images), arguments, device)
    return as_result(result)


def label_names_of(images: datasets.DatasetDict) -> list[str]:
    column = images["train"].features["label"]
    return getattr(column, "feature", column).names


if __name__ == "__main__":
    main()
