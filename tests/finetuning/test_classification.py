"""Metrics of a classifier, against scikit-learn, without the images that could not be read."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from transformers.trainer_utils import EvalPrediction

from modeling_sit.data.labeled import IGNORED_LABEL
from modeling_sit.finetuning.classification import create_compute_metrics, is_readable, metric_names

LOGITS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def test_of_one_label():
    labels = np.random.default_rng(1).integers(0, 4, 30)
    labels[[3, 7]] = IGNORED_LABEL
    measured = create_compute_metrics(False)(EvalPrediction(LOGITS, labels))
    known = labels != IGNORED_LABEL
    predicted = LOGITS.argmax(1)[known]
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels[known], predicted))
    assert measured["macro_f1"] == pytest.approx(f1_score(labels[known], predicted, average="macro"))
    assert tuple(measured) == metric_names(False)


def test_of_several_labels():
    labels = np.random.default_rng(1).integers(0, 2, (30, 4)).astype(np.float32)
    labels[[3, 7]] = IGNORED_LABEL
    measured = create_compute_metrics(True)(EvalPrediction(LOGITS, labels))
    known = labels[:, 0] != IGNORED_LABEL
    expected = average_precision_score(labels[known], LOGITS[known], average="macro")
    assert measured["mean_average_precision"] == pytest.approx(expected)
    expected = f1_score(labels[known], LOGITS[known] > 0, average="macro")
    assert measured["macro_f1"] == pytest.approx(expected)
    assert tuple(measured) == metric_names(True)


def test_readable_of_several_labels():
    labels = torch.tensor([[0, 0.0], [1, 0], [IGNORED_LABEL, IGNORED_LABEL]])
    assert is_readable(labels).tolist() == [True, True, False]
