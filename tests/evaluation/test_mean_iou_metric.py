"""Mean IoU against a slow twin that looks at one pixel after the other, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from label_maps import maps, slow_figures
from sklearn.metrics import confusion_matrix as scikit_confusion_matrix
from sklearn.metrics import jaccard_score

from modeling_sit.evaluation.metrics import load_metric

NAMES = ["sky", "road", "tree", "car"]


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_twin(seed):
    predictions, references = maps(seed)
    # Class 4 is in neither.
    result = load_metric("mean_iou").compute(predictions=predictions, references=references, num_labels=5)
    assert result == pytest.approx(slow_figures(predictions, references, 5), nan_ok=True, abs=1e-15)
    assert math.isnan(result["iou_4"]) and math.isnan(result["accuracy_3"]) and result["iou_3"] == 0
    assert all(type(value) is float for value in result.values())


def test_equals_scikit_learn():
    predictions, references = maps(3)
    predicted, true = (np.concatenate([each.ravel() for each in images]) for images in (predictions, references))
    predicted, true = predicted[true != 255], true[true != 255]
    result = load_metric("mean_iou").compute(predictions=predictions, references=references, label_names=NAMES)
    iou = jaccard_score(true, predicted, labels=range(4), average=None)
    assert [result[f"iou_{name}"] for name in NAMES] == pytest.approx(iou)
    counts = scikit_confusion_matrix(true, predicted, labels=range(4))
    assert result["overall_accuracy"] == pytest.approx(np.diag(counts).sum() / counts.sum())


def test_a_prediction_is_never_ignored():
    """Where a program drops the pixels that are predicted as the ignored class, it measures recall."""
    result = load_metric("mean_iou").compute(
        predictions=[[[255, 0, -1, 7]]], references=[[[0, 0, 0, 255]]], num_labels=2
    )
    assert result["iou_0"] == result["overall_accuracy"] == pytest.approx(1 / 3)
    result = load_metric("mean_iou").compute(
        predictions=[[[0, 1, 1]]], references=[[[0, 1, 0]]], num_labels=2, ignore_index=0
    )
    assert result["iou_1"] == 1 and math.isnan(result["iou_0"]) and result["mean_iou"] == 1


def test_batches_tensors_and_numbers_of_classes_that_grow():
    predictions, references = maps(4)
    together = load_metric("mean_iou").compute(predictions=predictions, references=references, num_labels=4)
    metric = load_metric("mean_iou")
    metric.add_batch(predictions=[torch.tensor(predictions[0])], references=[references[0].astype(np.uint8)])
    metric.add(prediction=predictions[2].tolist(), reference=references[2])
    metric.add(prediction=predictions[1], reference=torch.tensor(references[1]))
    assert metric.compute(num_labels=4) == pytest.approx(together, nan_ok=True, abs=0)
    metric.add(prediction=[[0]], reference=[[0]])
    assert metric.compute()["mean_iou"] == 1  # what was added before is forgotten
    with pytest.raises(ValueError, match="no predictions"):
        metric.compute()


def test_mistakes():
    metric = load_metric("mean_iou")
    with pytest.raises(ValueError, match="2 classes, and pixels of class 2"):
        metric.compute(predictions=[[[0, 1]]], references=[[[0, 2]]], num_labels=2)
    with pytest.raises(ValueError, match="shape"):
        metric.compute(predictions=[[[0, 1]]], references=[[[0]]], num_labels=2)
    with pytest.raises(ValueError, match="class -1"):
        metric.compute(predictions=[[[0, 1]]], references=[[[0, -1]]], num_labels=2)


def test_nothing_but_ignored_pixels():
    result = load_metric("mean_iou").compute(predictions=[[[0]]], references=[[[255]]], num_labels=1)
    assert all(math.isnan(value) for value in result.values())
