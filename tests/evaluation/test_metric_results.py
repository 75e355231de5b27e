"""Metrics in chunks against scikit-learn's of all images at once."""

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from modeling_sit.evaluation import metric_results
from modeling_sit.evaluation.metric_results import label_metrics


@pytest.mark.parametrize("at_a_time", [2**22, 8 * 7, 1])
def test_top_5_accuracy_in_chunks(monkeypatch, at_a_time):
    monkeypatch.setattr(metric_results, "SCORES_AT_A_TIME", at_a_time)
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(30, 8, generator=generator), torch.randint(8, (30,), generator=generator)
    expected = top_k_accuracy_score(labels, scores, k=5, labels=range(8))
    (metric,) = (each for each in label_metrics([scores], labels) if each.name == "top_5_accuracy")
    assert metric.value == pytest.approx(expected, abs=1e-12) and metric.interval[0] < expected < metric.interval[1]


def test_draws_of_an_iterator_are_looked_at_one_by_one():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(3, 30, 8, generator=generator), torch.randint(8, (30,), generator=generator)
    assert label_metrics(iter(scores), labels) == label_metrics(list(scores), labels)
