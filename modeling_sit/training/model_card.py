"""Model cards, written from what was run and measured."""

import os
import platform
import shlex
import sys
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.views import ViewArguments
from modeling_sit.training.arguments import CorruptionArguments, ModelArguments, PretrainingArguments
from modeling_sit.training.metrics_log import read_metrics
from modeling_sit.training.schedules import Schedules

NUM_METRICS_LINES = 10
MAX_LISTED_LABELS = 20
# What a classifier's card tells of what was measured; its loss is in eval_results.json.
FIGURES = ("accuracy", "mean_average_precision", "macro_f1")
PACKAGES = ("modeling-sit", "torch", "transformers", "accelerate")
# Said elsewhere on the card, or of this machine only.
NOT_SETTINGS = {"dataset", "output_dir", "export", "overwrite_output_dir", "resume_from_checkpoint"}


def write_pretraining_card(
    template: Path,
    output_dir: Path,
    *,
    settings: dict[str, Any],
    command: str,
    num_pictures: int,
    num_unreadable: int,
    schedules: Schedules,
    num_processes: int,
    device: torch.device,
    seconds: float,
) -> None:
    """Write `README.md` of a finished pretraining run.

    Args:
        template (`Path`): Jinja template of the card.
        output_dir (`Path`): The run's folder, with `metrics.jsonl` and `previews/`.
        settings (`dict`): The flags' values.
        command (`str`): What was typed.
        num_pictures, num_unreadable (`int`): Pictures of the data set; those of them that could not be read.
        schedules (`Schedules`): The run's length.
        num_processes (`int`), device (`torch.device`): What it ran on.
        seconds (`float`): How long, all starts together.
    """
    previews = sorted((output_dir / "previews").glob("*.png"))
    lines = read_metrics(output_dir / "metrics.jsonl")
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", license="apache-2.0", tags=["sit", "self-supervised", "vit"]),
        template_path=str(template),
        model_name=output_dir.resolve().name,
        model_id=str(output_dir),
        dataset=settings["dataset"],
        num_pictures="an unknown number of" if num_pictures is None else f"{num_pictures:,}",
        num_unreadable=num_unreadable,
        preview=f"previews/{previews[-1].name}" if previews else None,
        command=command,
        steps=f"{schedules.num_steps:,}",
        epochs=_describe_epochs(schedules),
        total_batch_size=settings["per_device_train_batch_size"] * num_processes * schedules.batches_per_step,
        export=settings["export"],
        hardware=f"{num_processes} x {_describe_device(device)}",
        duration=f"{seconds / 60:.1f} minutes",
        versions=_describe_versions(),
        settings=_changed_settings(settings),
        metrics=_spread(lines, NUM_METRICS_LINES),
    )
    card.save(output_dir / "README.md")


def write_finetuning_card(
    template: Path,
    output_dir: Path,
    *,
    report: dict[str, Any],
    label_names: list[str],
    command: str,
    num_processes: int,
    device: torch.device,
) -> None:
    """Write `README.md` of a fine-tuned classifier.

    Args:
        template (`Path`): Jinja template of the card.
        output_dir (`Path`): The classifier's folder.
        report (`dict`): What `eval_results.json` says of it.
        label_names (`list[str]`): The classes.
        command (`str`): What was typed.
        num_processes (`int`), device (`torch.device`): What it ran on.
    """
    name = output_dir.resolve().name
    figures = _figures(report)
    validation = report.get("validation")
    ModelCard.from_template(
        ModelCardData(
            model_name=name,
            library_name="transformers",
            license="apache-2.0",
            pipeline_tag="image-classification",
            tags=["sit", "vit"],
            metrics=list(figures),
            eval_results=_eval_results(report, figures),
        ),
        template_path=str(template),
        figures=figures,
        validation_figures=_figures(validation or {}),
        measures_what_chose=validation is not None and validation["split"] == report["split"],
        multi_label="mean_average_precision" in figures,
        model_name=name,
        model_id=str(output_dir),
        num_labels=len(label_names),
        labels=", ".join(label_names[:MAX_LISTED_LABELS]) + (", ..." if len(label_names) > MAX_LISTED_LABELS else ""),
        command=command,
        hardware=f"{num_processes} x {_describe_device(device)}",
        versions=_describe_versions(),
        **report,
    ).save(output_dir / "README.md")


def _figures(report: dict[str, Any]) -> dict[str, float]:
    return {name: report[name] for name in FIGURES if name in report}


def _eval_results(report: dict[str, Any], figures: dict[str, float]) -> list[EvalResult]:
    """The figures as the Hub lists them beside a model."""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=report["dataset"],
            dataset_name=report["dataset"],
            dataset_split=report["split"],
            metric_type=name,
            metric_value=value,
        )
        for name, value in figures.items()
    ]


def _describe_epochs(schedules: Schedules) -> str:
    epochs = schedules.epoch(schedules.num_steps)
    return "unknown" if epochs is None else f"{epochs:.4g}"


def typed_command() -> str:
    """The command that started this program, as a shell reads it."""
    launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    return f"{launcher} {shlex.join(sys.argv)}"


def _describe_versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU ({os.cpu_count()} cores)" if device.type == "cpu" else device.type


def _changed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for group in (PretrainingArguments, StreamingArguments, ModelArguments, CorruptionArguments, ViewArguments):
        for item in fields(group):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if settings[item.name] != default and item.name not in NOT_SETTINGS:
                changed[item.name] = settings[item.name]
    return changed


def _spread(lines: list[dict], count: int) -> list[dict]:
    """At most `count` of the lines, evenly spread, the last one among them."""
    if len(lines) <= count:
        return lines
    return [lines[round((number + 1) * len(lines) / count) - 1] for number in range(count)]
