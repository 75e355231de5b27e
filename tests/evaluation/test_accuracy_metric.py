"""The accuracy metric, loaded as `evaluate` loads it, against scikit-learn's."""

import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

import modeling_sit.evaluation.metrics
from modeling_sit.evaluation.metrics import load_metric

METRICS_FOLDER = Path(modeling_sit.evaluation.metrics.__file__).parent


@pytest.fixture(scope="module")
def accuracy():
    return load_metric("accuracy")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_scikit_learn(accuracy, seed, normalize, weighted):
    generator = np.random.default_rng(seed)
    predictions, references = generator.integers(0, 4, size=(2, 101))
    sample_weight = generator.random(101) if weighted else None
    result = accuracy.compute(
        predictions=predictions, references=references, normalize=normalize, sample_weight=sample_weight
    )
    expected = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
    assert result == {"accuracy": pytest.approx(expected, abs=0)}
    assert type(result["accuracy"]) is float


def test_takes_tensors_and_batches(accuracy):
    accuracy.add_batch(predictions=torch.tensor([0, 1]), references=torch.tensor([0, 2]))
    accuracy.add_batch(predictions=[3, 4, 5], references=[3, 4, 5])
    assert accuracy.compute() == {"accuracy": 0.8}


def test_loads_by_the_path_of_its_file(tmp_path):
    metric = evaluate.load(str(METRICS_FOLDER / "accuracy.py"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 1]) == {"accuracy": 0.5}
    assert "predictions" in metric.inputs_description


def test_metrics_side_by_side_share_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    one, other = load_metric("accuracy"), load_metric("accuracy")
    one.add_batch(predictions=[0], references=[0])
    other.add_batch(predictions=[0], references=[1])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (one.compute(), other.compute()) == ({"accuracy": 1.0}, {"accuracy": 0.0})


def test_unknown_metric():
    with pytest.raises(ValueError, match=r"'acuracy'.* accuracy"):
        load_metric("acuracy")


def test_a_program_called_evaluate_does_not_hide_the_library(monkeypatch, tmp_path):
    """As it is for the programs in scripts/, whose folder is first on the path."""
    (tmp_path / "evaluate.py").write_text("raise AssertionError('this is the program, not the library')")
    monkeypatch.syspath_prepend(tmp_path)
    path = list(sys.path)
    monkeypatch.delitem(sys.modules, "evaluate")
    assert load_metric("accuracy").compute(predictions=[1, 2], references=[1, 1]) == {"accuracy": 0.5}
    assert sys.path == path
