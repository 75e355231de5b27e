"""The model card of a fine-tuned model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from matplotlib.figure import Figure

from modeling_sit import SiTConfig
from modeling_sit.hub.card_file import read_written_card
from modeling_sit.hub.card_results import FINETUNING_TASKS, finetuning_results
from modeling_sit.hub.card_writing import (
    EXAMPLES,
    describe_commands,
    describe_hardware_of,
    license_of,
    save_curves,
    save_shown,
    write_card,
)
from modeling_sit.hub.provenance import Start, datasets_of, describe_duration, describe_versions, hub_id, public_name
from modeling_sit.runtime.markdown import code, escaped, table

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "finetuning_card.md"
MAX_LISTED_LABELS = 20
CURVES = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "eval_accuracy": "validation accuracy",
    "eval_mean_average_precision": "validation mAP",
    "eval_map": "validation AP of boxes",
    "eval_mask_map": "validation AP of masks",
    "eval_mean_iou": "validation mIoU",
}
# What a model of each task does, and how its pipeline is called in the card.
PURPOSES = {
    "classification": ("classifies images", "classify"),
    "detection": ("finds objects in images, each with a box and a class", "detect"),
    "instance_segmentation": ("finds objects in images, each with a box, a mask and a class", "segment"),
    "semantic_segmentation": ("gives each pixel of an image a class", "segment"),
}
# From which of the measured images examples are chosen.
CHOSEN_FROM = {"detection": " from those with objects", "instance_segmentation": " from those with objects"}


@dataclass
class FinetuningFacts:
    """
    What the card of a fine-tuned model says.

    Args:
        report (`dict`): Its results in `eval_results.json`.
        label_names (`list[str]`): The classes.
        log (sequence of mappings): `Trainer`'s `state.log_history`.
        starts (sequence of [`Start`]): The run's starts, oldest first.
        seconds (`float`): Duration of all starts together.
        license (`str`, *optional*): Identifier of the license. Default: that of an earlier card, or `apache-2.0`.
        model_id (`str`, *optional*): The model's id on the Hub. Default: the folder's name.
        examples (`Figure`, *optional*): What the model finds in a few of the measured images.
    """

    report: dict[str, Any]
    label_names: list[str]
    log: Sequence[Mapping[str, Any]]
    starts: Sequence[Start]
    seconds: float
    license: str | None = None
    model_id: str | None = None
    examples: Figure | None = None


def write_finetuning_card(output_dir: Path, facts: FinetuningFacts, keep_results: bool = False) -> Path:
    """
    Write `README.md` of a fine-tuned model, and the figures that it shows, `loss_curve.png` and `examples.png`. In a card
    that is there already, the text that people have written stays.

    Args:
        output_dir (`Path`): The model's folder, with its `config.json`.
        facts ([`FinetuningFacts`]): What the card says.
        keep_results (`bool`, *optional*, defaults to `False`):
            Whether the results of an earlier card were measured with the same weights.

    Returns:
        `Path`: The card.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    report, label_names = facts.report, facts.label_names
    earlier = read_written_card(output_dir)
    name = output_dir.resolve().name
    validation, license = report.get("validation"), license_of(facts.license, earlier)
    model_type, pooling = _read_config(output_dir)
    is_sit = model_type == SiTConfig.model_type
    task = report.get("task", "classification")
    purpose, call = PURPOSES[task]
    base = None if report["from_scratch"] else hub_id(report["model_name_or_path"])
    labels = ", ".join(map(escaped, label_names[:MAX_LISTED_LABELS]))
    data = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag=FINETUNING_TASKS[task],
        tags=[*(["sit", "vit"] if is_sit else [model_type]), FINETUNING_TASKS[task]],
        datasets=datasets_of(report["dataset"]),
        base_model=base,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=escaped(name),
        repository=json.dumps(facts.model_id or name, ensure_ascii=False),
        is_sit=is_sit,
        kind="Vision Transformer" if is_sit or model_type == "vit" else f"model ({code(model_type)})",
        loads_as_vit=is_sit and task == "classification" and pooling == "token",
        purpose=purpose,
        call=call,
        pipeline_tag=FINETUNING_TASKS[task],
        dataset=code(public_name(report["dataset"])),
        num_train=f"{report['num_train']:,}",
        start=_describe_start(report),
        chosen_by=escaped(report["chosen_by"]) if report["chosen_by"] else None,
        measures_what_chose=validation is not None and validation["split"] == report["split"],
        tunes_by_measured=_tunes_by_measured(report),
        examples=save_shown(output_dir, EXAMPLES, facts.examples),
        shown=f"{report['num_validation']:,} measured images ({escaped(report['split'])}), chosen at random"
        + CHOSEN_FROM.get(task, ""),
        loss_curve=save_curves(output_dir, facts.log, CURVES),
        commands=describe_commands(facts.starts),
        facts=table(
            ("", ""),
            [
                ("data", f"{code(public_name(report['dataset']))}: {report['num_train']:,} training images"),
                ("fraction of the labels", f"{report['label_fraction']:g}"),
                (
                    "classes",
                    f"{len(label_names)}: {labels}"
                    + (", ..." if len(label_names) > MAX_LISTED_LABELS else "")
                    + ("; an image may have several" if "mean_average_precision" in report else ""),
                ),
                ("start", _describe_start(report)),
                ("epochs, seed", f"{report['epochs']:.4g}, {report['seed']}"),
                ("learning rate, steps", _describe_length(report)),
                ("hardware", escaped(describe_hardware_of(facts.starts))),
                ("time, of all starts together", describe_duration(facts.seconds)),
                ("versions", escaped(describe_versions())),
            ],
        ),
        license_text=code(license),
    )
    return write_card(output_dir, str(card), earlier, finetuning_results(report), keep_results)


def _describe_start(report: dict[str, Any]) -> str:
    name = code(public_name(report["model_name_or_path"]))
    return f"random weights, with the configuration of {name}" if report["from_scratch"] else name


def _describe_length(report: dict[str, Any]) -> str:
    chosen = "" if report["tuned_by"] is None else f"; chosen by {escaped(report['tuned_by'])}"
    return f"{report['learning_rate']:.3g}, {report['steps']:,}{chosen}"


def _read_config(folder: Path) -> tuple[str, str | None]:
    """What kind of model it is, and its pooling."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["model_type"], config.get("pooling")


def _tunes_by_measured(report: dict[str, Any]) -> bool:
    """Whether the measured images chose the learning rate or the number of steps."""
    return report["tuned_by"] is not None and f" on {report['split']}, " in report["tuned_by"]
