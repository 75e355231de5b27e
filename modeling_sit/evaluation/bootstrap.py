"""Confidence intervals by the bootstrap: how much a metric would vary with other images of the same kind.

A statistic is a metric as a function of how often each image was drawn, for many resamples at a time. With every image
drawn once it equals the metric of its name in `metrics/`.
"""

from collections.abc import Callable
from statistics import NormalDist

import torch

Statistic = Callable[[torch.Tensor], torch.Tensor]
"""From how often each image was drawn, `(num_resamples, num_images)`, float64, to the metric in each resample,
`(num_resamples,)`; NaN where a resample leaves it undefined."""

# Numbers in the counts of the resamples that are computed at a time: 32 MB.
NUMBERS_AT_A_TIME = 2**22

RECALL_STEPS = {"voc2007": 10, "coco": 100}


def confidence_interval(
    statistic: Statistic, num_images: int, *, seed: int = 0, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """
    Bias-corrected percentile interval of a metric by the bootstrap (Efron 1987, the acceleration taken as 0).

    Images are drawn with replacement; the encoder, the training images and the fitted probe stay the same. The
    correction matters for average precision: images that are drawn twice make it too high, and with it the
    percentiles.

    Args:
        statistic (callable): The metric in each resample, from the counts of the images ([`Statistic`]).
        num_images (`int`): Images that the metric is measured on.
        seed (`int`, *optional*, defaults to 0): Seed of the draws, which decide the interval.
        num_resamples (`int`, *optional*, defaults to 1000): Resamples.
        level (`float` in (0, 1), *optional*, defaults to 0.95): Fraction of the resamples in the interval.

    Returns:
        `tuple[float, float]`: Its two ends.

    Raises:
        `ValueError`: If an argument is out of range, or the metric is NaN in every resample.
    """
    if num_images < 1 or num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"num_images ({num_images}) and num_resamples ({num_resamples}) must be at least 1, and level ({level}) "
            "between 0 and 1"
        )
    generator = torch.Generator().manual_seed(seed)
    at_a_time = max(1, NUMBERS_AT_A_TIME // num_images)
    values = []
    for start in range(0, num_resamples, at_a_time):
        size = (min(at_a_time, num_resamples - start), num_images)
        drawn = torch.randint(num_images, size, generator=generator)
        counts = torch.zeros(size, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones((), dtype=torch.float64).expand(size)
        )
        values.append(statistic(counts))
    values = torch.cat(values)
    values = values[~values.isnan()]
    if len(values) == 0:
        raise ValueError("the metric is not a number in any resample")
    normal = NormalDist()
    value = statistic(torch.ones(1, num_images, dtype=torch.float64))
    fraction_below = ((values < value).double().mean() + (values == value).double().mean() / 2).item()
    # Where no resample lies on a side, count half a one there.
    fraction_below = min(max(fraction_below, 0.5 / len(values)), 1 - 0.5 / len(values))
    bias = normal.inv_cdf(fraction_below)
    ends = [normal.cdf(2 * bias + normal.inv_cdf(end)) for end in ((1 - level) / 2, (1 + level) / 2)]
    low, high = torch.quantile(values, torch.tensor(ends, dtype=values.dtype)).tolist()
    return low, high


# The statistics. Each is made from predictions and labels, and is a function of the counts.


def mean_of(values: torch.Tensor) -> Statistic:
    """Mean of a value of each image, such as whether its label is predicted right: `(num_images,)`."""
    values = values.double()
    return lambda counts: counts @ values / counts.sum(dim=1)


def macro_f1_of(predictions: torch.Tensor, references: torch.Tensor, num_labels: int) -> Statistic:
    """
    Mean over the labels of F1, as in `metrics/macro_f1.py`.

    Args:
        predictions (`torch.Tensor` of shape `(num_images,)`, or `(num_images, num_labels)` of 0 and 1): Predicted
            labels.
        references (`torch.Tensor` like `predictions`): True labels.
        num_labels (`int`): Number of labels.
    """
    if predictions.ndim == 2:
        predicted, true = predictions.double(), references.double()
        return lambda counts: _f1(counts @ (predicted * true), counts @ predicted, counts @ true).mean(dim=1)
    hit = (predictions == references).double()

    def macro_f1(counts: torch.Tensor) -> torch.Tensor:
        empty = counts.new_zeros(len(counts), num_labels)
        hits = empty.index_add(1, references, counts * hit)
        predicted, true = empty.index_add(1, predictions, counts), empty.index_add(1, references, counts)
        occurs = (predicted + true > 0).double()
        return (_f1(hits, predicted, true) * occurs).sum(dim=1) / occurs.sum(dim=1)

    return macro_f1


def mean_average_precision_of(scores: torch.Tensor, references: torch.Tensor, style: str = "step") -> Statistic:
    """
    Mean average precision, as in `metrics/mean_average_precision.py`.

    Args:
        scores (`torch.Tensor` of shape `(num_images, num_labels)`): Scores, of any scale.
        references (`torch.Tensor` like `scores`): 1 for each label that the image has, 0 for the others.
        style (`str`, *optional*, defaults to `"step"`): Or `"voc2007"`, `"voc2010"`, `"coco"`.
    """
    # Sorted here, once for all resamples.
    columns = [
        (order, references[order, label].double(), _last_of_equals(scores[order, label]))
        for label, order in enumerate(scores.argsort(dim=0, descending=True, stable=True).T)
    ]

    def mean_average_precision(counts: torch.Tensor) -> torch.Tensor:
        precisions = []
        for order, truths, last_of_equals in columns:
            drawn = counts[:, order]
            hits = (drawn * truths).cumsum(dim=1)[:, last_of_equals]
            precisions.append(_average_precision(hits, drawn.cumsum(dim=1)[:, last_of_equals], style))
        return torch.stack(precisions).nanmean(dim=0)

    return mean_average_precision


def mean_of_statistics(statistics: list[Statistic]) -> Statistic:
    """Mean of several statistics of the same images."""
    return lambda counts: torch.stack([statistic(counts) for statistic in statistics]).nanmean(dim=0)


def _f1(hits: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return 2 * hits / (predicted + true).clamp_min(1)


def _last_of_equals(scores: torch.Tensor) -> torch.Tensor:
    """Of sorted scores, the places after which another score follows, or none."""
    is_last = torch.ones(len(scores), dtype=torch.bool)
    is_last[:-1] = scores[:-1] != scores[1:]
    return is_last.nonzero()[:, 0]


def _average_precision(hits: torch.Tensor, retrieved: torch.Tensor, style: str) -> torch.Tensor:
    """From the hits and the images down to each rank, `(num_resamples, num_ranks)`; NaN without a hit."""
    total = hits[:, -1:]
    precision = hits / retrieved.clamp_min(1)
    rises = hits.diff(dim=1, prepend=torch.zeros_like(total))
    if style == "step":
        return ((rises * precision).sum(dim=1, keepdim=True) / total)[:, 0]
    highest_beyond = precision.flip(1).cummax(dim=1).values.flip(1)
    if style == "voc2010":
        return ((rises * highest_beyond).sum(dim=1, keepdim=True) / total)[:, 0]
    steps = RECALL_STEPS[style]
    reached = torch.searchsorted(hits * steps, torch.arange(steps + 1, dtype=hits.dtype) * total)
    return torch.where(total > 0, highest_beyond.gather(1, reached.clamp_max(hits.shape[1] - 1)), torch.nan).mean(
        dim=1
    )
