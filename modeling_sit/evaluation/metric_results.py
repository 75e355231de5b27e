"""Metrics of predicted labels, each with its bootstrap interval."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch

from modeling_sit.evaluation.bootstrap import (
    Statistic,
    confidence_interval,
    macro_f1_of,
    mean_average_precision_of,
    mean_of,
    mean_of_statistics,
)
from modeling_sit.evaluation.metrics import load_metric
from modeling_sit.runtime.errors import SiTError

# How many guesses an image has in the second accuracy, where there are more labels than that.
TOP_K = 5
# Scores that are sorted and handed to a metric at a time: a metric makes each of them a Python number of 32 bytes.
SCORES_AT_A_TIME = 2**22


@dataclass(frozen=True)
class MetricResult:
    """
    The value of a metric.

    Args:
        name (`str`): Such as `"accuracy"`.
        value (`float`): The number, in `[0, 1]`; NaN where there is nothing to measure, such as large objects.
        interval (`tuple[float, float]`, *optional*): 95 % bootstrap interval over the validation images, where there is one.
        std (`float`, *optional*): Standard deviation over the draws, where there were several.
        chance (`float`, *optional*): The expected value for random features, where it is not obvious.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    std: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class ProtocolResult:
    """
    What a protocol measured.

    Args:
        metrics (`list[MetricResult]`): The values, the primary metric first.
        settings (`dict[str, Any]`): The protocol's settings, by name; they are in `eval_results.json` too.
    """

    metrics: list[MetricResult]
    settings: dict[str, Any]


Measured = Callable[[], tuple[dict[str, ProtocolResult], dict[str, Any]]]
"""Gives the results of protocols, by name, and the settings that all of them share."""


def label_metrics(
    draws: Iterable[torch.Tensor],
    labels: torch.Tensor,
    *,
    style: str = "step",
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[MetricResult]:
    """
    Metrics of predicted labels, predicted once, or several times from different training images.

    Where an image has one label: accuracy, top-5 accuracy if there are more than five labels, macro-F1. Where it has
    several: mean average precision, and macro-F1 of the labels with a score of more than 0.5.

    Args:
        draws (iterable of `torch.Tensor` of shape `(num_images, num_labels)`):
            Scores in [0, 1] of every label. With several draws a metric is their mean, and has a standard deviation.
            With an iterator, the scores of one draw are in memory at a time.
        labels (`torch.Tensor` of shape `(num_images,)`, or `(num_images, num_labels)` of 0 and 1):
            True labels.
        style (`str`, *optional*, defaults to `"step"`): Kind of average precision: see
            `metrics/mean_average_precision.py`.
        num_resamples (`int`, *optional*, defaults to 1000): Resamples of the bootstrap.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Raises:
        [`SiTError`]: If images can have several labels, and none has any.
    """
    if labels.ndim == 2 and not labels.any():
        raise SiTError(f"there is nothing to measure: none of {len(labels)} validation images has a label")
    computed = _of_several_labels if labels.ndim == 2 else _of_one_label
    measured = [computed(scores.cpu(), labels, scores.shape[1], style) for scores in draws]
    metrics = []
    for name in measured[0]:
        values, statistics = zip(*(draw[name] for draw in measured), strict=True)
        interval = confidence_interval(
            mean_of_statistics(list(statistics)), len(labels), num_resamples=num_resamples, seed=seed
        )
        std = stdev(values) if len(values) > 1 else None
        metrics.append(MetricResult(name, mean(values), interval, std))
    return metrics


def primary_metric(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The first metric of [`label_metrics`] alone: accuracy, or mean average precision."""
    if labels.ndim == 2:
        return _metric("mean_average_precision", scores.cpu(), labels.long())
    return _metric("accuracy", scores.cpu().argmax(dim=1), labels)


Computed = dict[str, tuple[float, Statistic]]


def _of_one_label(scores: torch.Tensor, labels: torch.Tensor, num_labels: int, style: str) -> Computed:
    predictions = scores.argmax(dim=1)
    computed: Computed = {"accuracy": (_metric("accuracy", predictions, labels), mean_of(predictions == labels))}
    if num_labels > TOP_K:
        computed[f"top_{TOP_K}_accuracy"] = _top_k_accuracy(scores, labels)
    computed["macro_f1"] = (_metric("macro_f1", predictions, labels), macro_f1_of(predictions, labels, num_labels))
    return computed


def _top_k_accuracy(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, Statistic]:
    name, at_a_time = f"top_{TOP_K}_accuracy", max(1, SCORES_AT_A_TIME // scores.shape[1])
    num_right, is_right = 0.0, []
    for chunk, true in zip(scores.split(at_a_time), labels.split(at_a_time), strict=True):
        num_right += len(true) * _metric("top_k_accuracy", chunk, true, key=name, k=TOP_K)
        guesses = chunk.sort(dim=1, stable=True).indices[:, -TOP_K:]
        is_right.append((guesses == true[:, None]).any(dim=1))
    # Whole numbers were added, but for rounding.
    return round(num_right) / len(labels), mean_of(torch.cat(is_right))


def _of_several_labels(scores: torch.Tensor, labels: torch.Tensor, num_labels: int, style: str) -> Computed:
    labels = labels.long()
    predictions = (scores > 0.5).long()
    return {
        "mean_average_precision": (
            _metric("mean_average_precision", scores, labels, style=style),
            mean_average_precision_of(scores, labels, style),
        ),
        "macro_f1": (
            _metric("macro_f1", predictions, labels, "multilabel"),
            macro_f1_of(predictions, labels, num_labels),
        ),
    }


def _metric(
    name: str,
    predictions: torch.Tensor,
    references: torch.Tensor,
    config_name: str | None = None,
    key: str | None = None,
    **options,
) -> float:
    metric = load_metric(name, config_name)
    return metric.compute(predictions=predictions.numpy(), references=references.numpy(), **options)[key or name]
