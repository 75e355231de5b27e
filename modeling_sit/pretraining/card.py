"""The model card of a pretrained encoder."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.views import ViewArguments
from modeling_sit.hub.card_file import read_written_card
from modeling_sit.hub.card_writing import describe_commands, describe_hardware_of, license_of, save_curves, write_card
from modeling_sit.hub.provenance import (
    Start,
    datasets_of,
    describe_duration,
    describe_versions,
    hub_id,
    public_name,
    without_private_paths,
    without_tokens,
)
from modeling_sit.pretraining.arguments import CorruptionArguments, ModelArguments, PretrainingArguments
from modeling_sit.pretraining.flags import MethodArguments
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.presets import PAPER
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.runtime.markdown import code, escaped, table
from modeling_sit.runtime.trackers import read_metrics

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "pretraining_card.md"
# How to compute the features, by the configuration's pooling.
FEATURES = {
    "token": "features = tokens[:, 0]  # the contrastive token; tokens[:, 1:] are the patch tokens",
    "mean": "features = tokens[:, 1:].mean(dim=1)  # the mean of the patch tokens; tokens[:, 0] is the contrastive token",
    "token_mean": "features = model(**inputs).pooler_output  # the contrastive token and the mean of the patch tokens",
}
NUM_METRICS_LINES = 10
SETTINGS = (
    PretrainingArguments,
    MethodArguments,
    StreamingArguments,
    ModelArguments,
    CorruptionArguments,
    ViewArguments,
)
# Said elsewhere on the card, or of this machine only.
NOT_SETTINGS = {"dataset", "output_dir", "export", "overwrite_output_dir", "resume_from_checkpoint", "license"}
MONITORS = {
    "rankme": "effective rank of the features; near 1 they have collapsed",
    "projection_rankme": "effective rank of the projections",
    "embedding_std": "standard deviation of the normalized features, 0 (collapsed) to 1",
    "teacher_agreement": "cosine between the student's and the teacher's projections of an image",
    "knn_accuracy": "nearest neighbors' votes for the labels, on few images",
    "linear_accuracy": "logistic regression for the labels, on few images",
}


@dataclass(kw_only=True)
class RunFacts:
    """
    What a card says of a run and is not in its folder.

    Args:
        settings (`dict`): The arguments' values; of `export`, whose weights the folder has.
        starts (sequence of [`Start`]): The run's starts, oldest first.
        images ([`ImageDatasets`]): The dataset.
        is_streamed (`bool`): Whether its images were streamed.
        num_unreadable (`int`): Images of it that could not be read.
        method ([`Method`]): What was trained, and its losses.
        schedules ([`Schedules`]): The run's length.
        step (`int`): Steps done; less than all where the run goes on.
        num_processes (`int`): Processes that shared a batch, at last.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        seconds (`float`): How long, all starts together.
        model_id (`str`, *optional*): The model's id on the Hub. Default: the folder's name.
    """

    settings: dict[str, Any]
    starts: Sequence[Start]
    images: ImageDatasets
    is_streamed: bool
    num_unreadable: int
    method: Method
    schedules: Schedules
    step: int
    num_processes: int
    mixed_precision: str
    seconds: float
    model_id: str | None = None


def write_pretraining_card(output_dir: Path, facts: RunFacts) -> Path:
    """
    Write `README.md` of a pretraining run, and `loss_curve.png` that it shows. Of a card that is there already, what
    people have written stays; results that were measured go, for they are of earlier weights.

    Args:
        output_dir (`Path`): The run's folder, with `metrics.jsonl` and, if there are any, `monitors.jsonl` and `previews/`.
        facts ([`RunFacts`]): Everything else.

    Returns:
        `Path`: The card.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    earlier = read_written_card(output_dir)
    images, settings, method, config = facts.images, facts.settings, facts.method, facts.method.config
    name, dataset = output_dir.resolve().name, public_name(images.name)
    license, start = license_of(settings["license"], earlier), settings["model_name_or_path"]
    previews = sorted((output_dir / "previews").glob("*.png"))
    lines = _lines(output_dir / "metrics.jsonl")
    num_parameters = sum(parameter.numel() for parameter in method.student.vit.parameters())
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    num_images = "an unknown number of" if images.num_train is None else f"{images.num_train:,}"
    data = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag="image-feature-extraction",
        tags=["sit", "vit", "self-supervised", *method.tags],
        datasets=datasets_of(images.name),
        base_model=hub_id(start) if start is not None else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=escaped(name),
        repository=json.dumps(facts.model_id or name, ensure_ascii=False),
        method=method.title,
        citation=method.citation,
        architecture=f"{num_parameters / 1e6:.2f} M parameters, {height} x {width} pixels in patches of "
        f"{patch_height} x {patch_width}",
        num_channels=config.num_channels,
        dataset=code(dataset),
        num_images=num_images,
        preview=f"previews/{previews[-1].name}" if previews else None,
        preview_rows=method.preview_rows,
        features=FEATURES[config.pooling],
        loss_curve=save_curves(output_dir, lines, {name: _loss_title(name) for name in method.losses}),
        commands=describe_commands(facts.starts),
        facts=table(("", ""), _facts_rows(facts, dataset, num_images)),
        settings=_changed_settings(settings, method),
        metrics=_metrics_table(_subsample(lines, NUM_METRICS_LINES), method.losses),
        monitors=_monitors_table(output_dir / "monitors.jsonl"),
        license_text=code(license),
    )
    return write_card(output_dir, str(card), earlier, [], keep_results=False)


def _facts_rows(facts: RunFacts, dataset: str, num_images: str) -> list[tuple[str, str]]:
    settings, start = facts.settings, facts.settings["model_name_or_path"]
    total_batch = settings["per_device_train_batch_size"] * facts.num_processes * facts.schedules.batches_per_step
    tokens = facts.step * total_batch * facts.method.encoder_tokens(facts.method.fingerprint())
    return [
        ("data", _describe_data(facts, dataset, num_images)),
        *([("went on from", code(public_name(start)))] if start is not None else []),
        ("steps, epochs", _describe_length(facts.schedules, facts.step)),
        ("total batch", f"{total_batch:,} images"),
        ("encoder tokens", f"{tokens:,}; the student's count three times, forward and backward, a teacher's once"),
        ("losses", facts.method.describe_losses()),
        ("weights in this folder", settings["export"]),
        ("hardware", escaped(describe_hardware_of(facts.starts))),
        ("precision", "float32" if facts.mixed_precision == "no" else facts.mixed_precision),
        ("time, of all starts together", describe_duration(facts.seconds)),
        ("versions", escaped(describe_versions())),
    ]


def _loss_title(name: str) -> str:
    return "loss (weighted sum)" if name == "loss" else name.replace("_", " ")


def _lines(path: Path) -> list[dict]:
    return read_metrics(path) if path.exists() else []


def _describe_data(facts: RunFacts, dataset: str, num_images: str) -> str:
    images = facts.images
    split = getattr(images.train, "split", None)
    return (
        f"{code(dataset)}: {num_images} images"
        + (f", {facts.num_unreadable:,} of them unreadable and skipped" if facts.num_unreadable else "")
        + (f", of split {code(split)}" if split is not None else "")
        + f" (its splits: {escaped(', '.join(images.splits))})"
        + (", streamed" if facts.is_streamed else "")
        + "; labels were not used to train"
    )


def _describe_length(schedules: Schedules, step: int) -> str:
    epochs = schedules.epoch(step)
    done = "" if step == schedules.num_steps else f" of {schedules.num_steps:,}, so far"
    return f"{step:,}{done}, {'unknown' if epochs is None else f'{epochs:.4g}'}"


def _changed_settings(settings: dict[str, Any], method: Method) -> str:
    lines = []
    paper = {**PAPER, **method.paper} if settings["preset"] == "paper" else {}
    for group in SETTINGS:
        for item in fields(group):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            default = paper.get(item.name, method.defaults.get(item.name, default))
            if settings[item.name] not in (None, default) and item.name not in NOT_SETTINGS:
                value = without_private_paths(without_tokens(str(settings[item.name])))
                lines.append(f"- {code(item.name)}: {code(value)}")
    return "\n".join(lines)


def _metrics_table(lines: list[dict], losses: Sequence[str]) -> str:
    losses = [name for name in losses if any(name in line for line in lines)]
    return table(
        ["step", "epoch", *(name.replace("_", " ") for name in losses), "images a second", "waiting for data"],
        [
            [
                str(line["step"]),
                f"{line['epoch']:.4g}",
                *(f"{line[name]:.4f}" for name in losses),
                f"{line['images_per_second']:.1f}",
                f"{100 * line['data_wait']:.1f} %",
            ]
            for line in lines
        ],
    )


def _monitors_table(path: Path) -> str | None:
    lines = _lines(path)
    if not lines:
        return None
    last = {name: value for name, value in lines[-1].items() if name not in ("step", "epoch")}
    heading = f"at step {lines[-1]['step']:,}"
    return table(
        ["monitor", heading, ""],
        [[code(name), f"{value:.4g}", MONITORS.get(name, "")] for name, value in last.items()],
    )


def _subsample(lines: list[dict], count: int) -> list[dict]:
    """At most `count` of the lines, evenly spread, the last one among them."""
    if len(lines) <= count:
        return lines
    return [lines[round((number + 1) * len(lines) / count) - 1] for number in range(count)]
