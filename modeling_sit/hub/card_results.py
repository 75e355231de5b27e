"""Results in a model card: in its `model-index`, which the Hub reads, and in a table, which people read."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from modeling_sit.evaluation.metric_results import ProtocolResult
from modeling_sit.evaluation.results import WEIGHTS
from modeling_sit.hub.card_file import Card, DamagedCard, card_to_update
from modeling_sit.hub.provenance import public_name
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.markdown import escaped, table
from modeling_sit.runtime.progress import write_line

SECTION = "results"
# The Hub's names of tasks other than image classification.
TASKS = {
    "retrieval": "image-feature-extraction",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
# Metrics that the Hub calls otherwise.
METRIC_TYPES = {"macro_f1": "f1"}
# Metrics in the card of a fine-tuned model, by its task. Its loss, and what is of one class, is in eval_results.json.
BOX_METRICS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
FINETUNING_METRICS = {
    "classification": ("accuracy", "mean_average_precision", "macro_f1"),
    "detection": BOX_METRICS,
    "instance_segmentation": (*(f"mask_{name}" for name in BOX_METRICS), *BOX_METRICS),
    "semantic_segmentation": ("mean_iou", "mean_accuracy", "overall_accuracy"),
}
# The Hub's name of each of these tasks.
FINETUNING_TASKS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "instance_segmentation": "image-segmentation",
    "semantic_segmentation": "image-segmentation",
}
NOTHING = (
    "What the features are worth for a task was not measured yet. The command `modeling-sit evaluate` measures them "
    "on labeled images, and with `update_model_card` writes the results here."
)


def update_card(
    folder: Path,
    measurements: dict[str, ProtocolResult],
    *,
    dataset: str,
    dataset_config: str | None = None,
    split: str,
    settings: dict[str, Any],
) -> Path:
    """
    Write results into the `model-index` and the table of a folder's model card. They replace all earlier ones of the
    same protocols on the same split of the same dataset, and those of other weights, which it says. The rest of the card
    keeps every byte.

    Args:
        folder (`Path`): The model's folder, with a `README.md`.
        measurements (`dict[str, ProtocolResult]`): What was measured, by protocol.
        dataset (`str`): Id or path of the dataset. The card has only the last part of a path.
        dataset_config (`str`, *optional*): Configuration of a Hub dataset.
        split (`str`): Split that was measured on.
        settings (`dict[str, Any]`): Other settings of the results: pooling, layer, fingerprint of the weights.

    Returns:
        `Path`: The card.

    Raises:
        [`SiTError`]: If there is no card, its metadata or its marks are damaged, or it cannot be written.
    """
    card = card_to_update(folder)
    results = [
        EvalResult(
            task_type=TASKS.get(protocol, "image-classification"),
            dataset_type=public_name(dataset),
            dataset_name=public_name(dataset),
            dataset_config=dataset_config,
            dataset_split=split,
            metric_type=METRIC_TYPES.get(metric.name, metric.name),
            metric_name=f"{protocol} {metric.name}",
            metric_value=round(metric.value, 6),
            metric_args={
                **({} if metric.interval is None else {"interval": [round(end, 6) for end in metric.interval]}),
                **({} if metric.std is None else {"std": round(metric.std, 6)}),
                **settings,
                # Tables of classes, and of how a setting was chosen, are in eval_results.json.
                **{name: value for name, value in measurement.settings.items() if not isinstance(value, dict)},
            },
        )
        for protocol, measurement in measurements.items()
        for metric in measurement.metrics
        if not math.isnan(metric.value)
    ]
    try:
        dropped = put_results(card, results, folder.resolve().name)
    except DamagedCard as problem:
        raise SiTError(
            f"{folder / 'README.md'} cannot be updated: {problem}", argument="update_model_card"
        ) from problem
    path = card.save(folder)
    if dropped:
        write_line(f"{path}: dropped {', '.join(dropped)}: results of other weights")
    return path


def finetuning_results(report: dict[str, Any]) -> list[EvalResult]:
    """The results of a fine-tuned model.

    Args:
        report (`dict[str, Any]`): What `eval_results.json` has of it. Without `task`, that of a classifier.

    Returns:
        `list[EvalResult]`: Those of the measured split, then those of the split that the checkpoint was chosen on. A metric
            of which there is nothing to measure, such as that of large objects, is left out.
    """
    task = report.get("task", "classification")
    dataset = public_name(report["dataset"])
    measured = [report]
    if report.get("validation") is not None and report["validation"]["split"] != report["split"]:
        measured.append(report["validation"])
    return [
        EvalResult(
            task_type=FINETUNING_TASKS[task],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=values["split"],
            metric_type=METRIC_TYPES.get(name, name),
            metric_name=f"finetune {name}",
            metric_value=round(values[name], 6),
            metric_args={
                "num_train": report["num_train"],
                "num_validation": values["num_validation"],
                "epochs": report["epochs"],
                "seed": report["seed"],
            },
        )
        for values in measured
        for name in FINETUNING_METRICS[task]
        if values.get(name) is not None
    ]


def put_results(card: Card, results: list[EvalResult], model_name: str, keep_others: bool = True) -> list[str]:
    """Put results into a card. They replace all those of the same protocols on the same split of the same dataset, and those that
    say that they are of other weights.

    Args:
        card (`Card`): Changed in place: `model-index` and `metrics` of its metadata, and its section `results`.
        results (`list[EvalResult]`): May be empty.
        model_name (`str`): Name of the model for a new `model-index`.
        keep_others (`bool`, *optional*, defaults to `True`):
            Whether other results stay; `False` if they are those of other weights.

    Returns:
        `list[str]`: Names of the results of other weights that were dropped, and not replaced.

    Raises:
        [`DamagedCard`]: If the metadata or the section's marks do not allow it. The card is left unchanged.
    """
    before = (card.metadata_yaml, card.body)
    metadata = card.metadata
    # A second model is not ours to change.
    first, *others = (metadata.get("model-index") if keep_others else None) or [{"name": model_name, "results": []}]
    new = eval_results_to_model_index(first["name"], results)[0]["results"]
    replaced = {_measurement(result, metric) for result in new for metric in result["metrics"]}
    weights = {_weights(metric) for result in new for metric in result["metrics"]} - {None}
    kept, dropped = [], []
    for result in first["results"]:
        left = [metric for metric in result["metrics"] if _measurement(result, metric) not in replaced]
        metrics = [metric for metric in left if not weights or _weights(metric) in [None, *weights]]
        dropped += [str(metric.get("name") or metric["type"]) for metric in left if metric not in metrics]
        kept += [{**result, "metrics": metrics}] if metrics else []
    measured = [*kept, *new]
    metrics = [] if not keep_others else metadata.get("metrics") or []
    metrics = [metrics] if isinstance(metrics, str) else metrics
    gone = _metric_types(first["results"]).keys() - _metric_types(measured)
    metrics = list(dict.fromkeys([*(name for name in metrics if name not in gone), *_metric_types(new)]))
    try:
        card.set_metadata("metrics", metrics or None)
        card.set_metadata("model-index", [{**first, "results": measured}, *others] if measured or others else None)
        card.put_section(SECTION, f"## Results\n\n{_table(measured) if measured else NOTHING}")
    except DamagedCard:
        card.metadata_yaml, card.body = before
        raise
    return list(dict.fromkeys(dropped))


def _measurement(result: dict[str, Any], metric: dict[str, Any]) -> tuple:
    """What results have in common that a new run replaces together: task, dataset, split and protocol. Of what is not named as the
    results of protocols are, each metric is on its own."""
    dataset = result["dataset"]
    place = (result["task"]["type"], *(dataset.get(name) for name in ("type", "config", "split", "revision")))
    protocol, _, name = str(metric.get("name")).partition(" ")
    if metric["type"] == METRIC_TYPES.get(name, name):
        return (*place, protocol)
    return (*place, metric["type"], metric.get("name"))


def _weights(metric: dict[str, Any]) -> str | None:
    """The fingerprint of the weights that were measured, if a result says it."""
    settings = metric.get("args")
    return settings.get(WEIGHTS) if isinstance(settings, dict) else None


def _metric_types(results: list[dict[str, Any]]) -> dict[str, None]:
    """The types of the metrics in results, each once, in their order."""
    return {metric["type"]: None for result in results for metric in result["metrics"]}


def _table(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        dataset = result["dataset"]
        name = dataset["name"] if dataset.get("config") is None else f"{dataset['name']} ({dataset['config']})"
        for metric in result["metrics"]:
            settings = metric.get("args")
            settings = dict(settings) if isinstance(settings, dict) else {"": settings} if settings else {}
            settings.pop(WEIGHTS, None)  # for programs
            interval, std = settings.pop("interval", None), settings.pop("std", None)
            std = settings.pop("spread", std)  # its name on earlier cards
            value = _number(metric["value"]) + (f" ± {_number(std)}" if std is not None else "")
            row = [
                name,
                dataset.get("split") or "",
                metric.get("name") or metric["type"],
                value,
                " to ".join(map(_number, interval)) if isinstance(interval, list) else str(interval or ""),
                ", ".join(f"{key} {_setting(value)}".strip() for key, value in settings.items()),
            ]
            rows.append([escaped(cell) for cell in row])
    return table(["dataset", "split", "metric", "value", "95 % interval", "settings"], rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
