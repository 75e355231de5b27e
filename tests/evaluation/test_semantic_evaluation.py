"""Figures of semantic segmentation, image by image, against the metric that has all images at once."""

import numpy as np
import pytest
import torch
from label_maps import maps, slow_figures

from modeling_sit.evaluation.bootstrap import confidence_interval
from modeling_sit.evaluation.semantic_evaluation import SemanticEvaluation

NAMES = ["0", "1", "2", "3", "4"]


@pytest.fixture
def measured():
    predictions, references = maps(5)
    evaluation = SemanticEvaluation(NAMES)
    for image, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        evaluation.add(image, torch.tensor(prediction), reference.astype(np.uint8))
    return evaluation, predictions, references


def test_equals_a_slow_twin_and_counts_each_image_once(measured):
    evaluation, predictions, references = measured
    expected = slow_figures(predictions, references, 5)
    assert evaluation.compute() == pytest.approx(expected, nan_ok=True, abs=1e-15)
    evaluation.add(1, references[1], references[1])
    assert evaluation.compute() == pytest.approx(expected, nan_ok=True, abs=1e-15) and evaluation.num_images == 3
    assert evaluation.confusion.dtype == np.int64
    assert evaluation.confusion.sum() == sum((reference != 255).sum() for reference in references)


def test_statistics_equal_the_figures_of_the_drawn_images(measured):
    evaluation, predictions, references = measured
    counts = torch.tensor([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]], dtype=torch.float64)
    for name, statistic in evaluation.statistics().items():
        for drawn, value in zip(counts.int().tolist(), statistic(counts).tolist(), strict=True):
            images = [image for image, times in enumerate(drawn) for _ in range(times)]
            twin = slow_figures([predictions[i] for i in images], [references[i] for i in images], 5)
            assert value == pytest.approx(twin[name])
    low, high = confidence_interval(evaluation.statistics()["mean_iou"], 3, num_resamples=50)
    assert low <= evaluation.compute()["mean_iou"] <= high
