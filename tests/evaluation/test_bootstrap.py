"""Intervals against resampling by hand with the metrics themselves, and against the normal distribution."""

import numpy as np
import pytest
import scipy.stats
import torch

from modeling_sit.evaluation import bootstrap
from modeling_sit.evaluation.bootstrap import (
    confidence_interval,
    macro_f1_of,
    mean_average_precision_of,
    mean_of,
    mean_of_statistics,
)
from modeling_sit.evaluation.metrics import load_metric

NUM_IMAGES, NUM_LABELS = 25, 4


def single_label(seed=0):
    return torch.randint(NUM_LABELS, (2, NUM_IMAGES), generator=torch.Generator().manual_seed(seed))


def several_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    references = (torch.rand(NUM_IMAGES, NUM_LABELS, generator=generator) < 0.4).long()
    return torch.rand(NUM_IMAGES, NUM_LABELS, generator=generator).mul(8).round(), references


def resamples(count=20):
    """Rows that were drawn, and how often each one was."""
    drawn = torch.randint(NUM_IMAGES, (count, NUM_IMAGES), generator=torch.Generator().manual_seed(1))
    return drawn, torch.stack([torch.bincount(rows, minlength=NUM_IMAGES) for rows in drawn]).double()


def assert_equals_metric(statistic, predictions, references, metric, **options):
    drawn, counts = resamples()
    expected = [
        metric.compute(predictions=predictions[rows].numpy(), references=references[rows].numpy(), **options)
        for rows in [torch.arange(NUM_IMAGES), *drawn]
    ]
    counts = torch.cat([torch.ones(1, NUM_IMAGES, dtype=torch.float64), counts])
    assert statistic(counts).tolist() == pytest.approx([next(iter(each.values())) for each in expected], abs=1e-12)


def test_accuracy_of_resamples():
    predictions, references = single_label()
    assert_equals_metric(mean_of(predictions == references), predictions, references, load_metric("accuracy"))


def test_macro_f1_of_resamples():
    # A label that no image has, and one that is hardly there, so that resamples lack it.
    predictions, references = single_label() * 2
    references[references == 6] = torch.tensor([6] + [4] * (int((references == 6).sum()) - 1))
    statistic = macro_f1_of(predictions, references, 8)
    assert_equals_metric(statistic, predictions, references, load_metric("macro_f1"))


def test_macro_f1_of_resamples_with_several_labels():
    scores, references = several_labels()
    predictions = (scores > 4).long()
    statistic = macro_f1_of(predictions, references, NUM_LABELS)
    assert_equals_metric(statistic, predictions, references, load_metric("macro_f1", "multilabel"))


@pytest.mark.parametrize("style", ["step", "voc2007", "voc2010", "coco"])
def test_mean_average_precision_of_resamples(style):
    scores, references = several_labels()
    references[1:, 0] = 0  # so that resamples lack it
    references[0, 0] = 1
    statistic = mean_average_precision_of(scores, references, style)
    assert_equals_metric(statistic, scores, references, load_metric("mean_average_precision"), style=style)


def test_is_that_of_the_normal_distribution_for_a_mean():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 3 + 5
    low, high = confidence_interval(mean_of(values), 2000, num_resamples=4000)
    standard_error = values.std().item() / 2000**0.5
    mean = values.mean().item()
    assert low == pytest.approx(mean - 1.96 * standard_error, abs=0.1 * standard_error)
    assert high == pytest.approx(mean + 1.96 * standard_error, abs=0.1 * standard_error)
    narrow = confidence_interval(mean_of(values), 2000, num_resamples=4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.674 * standard_error, rel=0.1)


def test_bias_is_corrected():
    """Average precision of resamples is too high, for images come twice; the interval of it must not be."""
    scores, references = several_labels()
    statistic = mean_average_precision_of(scores + 2.0 * references, references)
    kept = []
    low, high = confidence_interval(lambda counts: kept.append(statistic(counts)) or kept[-1], NUM_IMAGES)
    metric, values_of_resamples = kept.pop().item(), sorted(torch.cat(kept).tolist())
    below = (
        sum(value < metric for value in values_of_resamples)
        + sum(value == metric for value in values_of_resamples) / 2
    )
    bias = scipy.stats.norm.ppf(below / 1000)
    assert bias < -0.2
    for end, z in ((low, -1.959964), (high, 1.959964)):
        assert end == pytest.approx(np.quantile(values_of_resamples, scipy.stats.norm.cdf(2 * bias + z)), abs=1e-6)
    assert low < metric < high and high < np.quantile(values_of_resamples, 0.975)


def test_interval_of_what_never_differs():
    assert confidence_interval(mean_of(torch.ones(5)), 5) == (1.0, 1.0)
    low, high = confidence_interval(lambda counts: torch.where(counts[:, 0] == 1, 0.5, 0.75).double(), 5)
    assert (low, high) == (0.5, 0.75)


def test_seed_alone_decides_and_nothing_else_is_drawn(monkeypatch):
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole = confidence_interval(mean_of(values), 300, seed=3)
    assert whole == confidence_interval(mean_of(values), 300, seed=3) != confidence_interval(mean_of(values), 300)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(bootstrap, "NUMBERS_AT_A_TIME", 1000)
    sizes = []

    def statistic(counts):
        assert (counts.sum(dim=1) == 300).all()
        sizes.append(len(counts))
        return counts[:, 0]

    confidence_interval(statistic, 300, num_resamples=10)
    assert sizes == [3, 3, 3, 1, 1]  # the last is the figure itself


def test_several_draws_are_averaged():
    values = torch.rand(2, NUM_IMAGES, generator=torch.Generator().manual_seed(0))
    _, counts = resamples()
    together = mean_of_statistics([mean_of(values[0]), mean_of(values[1])])(counts)
    torch.testing.assert_close(together, mean_of(values.mean(dim=0))(counts), atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", [{"num_images": 0}, {"num_resamples": 0}, {"level": 1.0}])
def test_refuses(change):
    with pytest.raises(ValueError, match="must be at least 1"):
        confidence_interval(mean_of(torch.ones(3)), **{"num_images": 3, **change})
    with pytest.raises(ValueError, match="not a number in any"):
        confidence_interval(mean_of(torch.full((3,), torch.nan)), 3)
