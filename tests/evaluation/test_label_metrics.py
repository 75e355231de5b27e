"""Top-k accuracy, macro-F1 and mean average precision as `evaluate` loads them, against scikit-learn and slow versions."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, top_k_accuracy_score

import modeling_sit.evaluation.metrics
from modeling_sit.evaluation.metrics import METRICS, load_metric

METRICS_FOLDER = Path(modeling_sit.evaluation.metrics.__file__).parent
# What is measured of an image and what is true of it, where that is not a label.
OTHER_INPUTS = {
    "top_k_accuracy": ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),
    "mean_average_precision": ([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]]),
    "mean_iou": ([[[0, 1]]], [[[0, 1]]]),
    "coco_average_precision": (
        [{"boxes": [[0, 0, 9, 9]], "labels": [0], "scores": [1]}],
        [{"boxes": [[0, 0, 9, 9]], "labels": [0]}],
    ),
}
INTERPOLATED = {
    "voc2007": [number / 10 for number in range(11)],
    "coco": [number / 100 for number in range(101)],
}


def scores_with_ties(seed: int, num_images: int = 60, num_labels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Scores in tenths, and for each label images that have it and that do not."""
    generator = np.random.default_rng(seed)
    references = (generator.random((num_images, num_labels)) < 0.3).astype(int)
    references[0], references[1] = 1, 0
    scores = np.round(generator.random((num_images, num_labels)) + 0.3 * references, 1)
    return scores, references


def slow_average_precision(scores, truths, style) -> float:
    """From precision and recall at every threshold, counted anew."""
    curve = []
    for threshold in sorted(set(scores), reverse=True):
        retrieved = [truth for score, truth in zip(scores, truths, strict=True) if score >= threshold]
        curve.append((sum(retrieved) / sum(truths), sum(retrieved) / len(retrieved)))

    def highest(recall):
        return max((precision for reached, precision in curve if reached >= recall - 1e-9), default=0.0)

    if style in INTERPOLATED:
        return float(np.mean([highest(recall) for recall in INTERPOLATED[style]]))
    area, before = 0.0, 0.0
    for recall, precision in curve:
        area += (recall - before) * (precision if style == "step" else highest(recall))
        before = recall
    return area


@pytest.mark.parametrize("name", [name for name in METRICS if name != "accuracy"])
def test_loads_by_the_path_of_its_file(name, tmp_path):
    metric = evaluate.load(str(METRICS_FOLDER / f"{name}.py"), cache_dir=str(tmp_path))
    key = {"top_k_accuracy": "top_5_accuracy", "coco_average_precision": "map"}.get(name, name)
    assert "predictions" in metric.inputs_description and key in metric.inputs_description.split("`")


@pytest.mark.parametrize("name", METRICS)
def test_needs_no_cache(name, monkeypatch, tmp_path):
    """A cache of Hugging Face that cannot be written, as in a container of another user, is none of its business."""
    (tmp_path / "file").touch()
    for cache in ("HF_METRICS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_CACHE_HOME"):
        monkeypatch.setattr(f"evaluate.config.{cache}", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    predictions, references = OTHER_INPUTS.get(name, ([0, 1], [0, 1]))
    value, *_ = load_metric(name).compute(predictions=predictions, references=references).values()
    assert value == pytest.approx(1) and not list(tmp_path.rglob("cache"))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    scores, _ = scores_with_ties(k)
    labels = np.random.default_rng(k).integers(0, 7, 60)
    result = load_metric("top_k_accuracy").compute(predictions=scores, references=labels, k=k)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert result == {f"top_{k}_accuracy": pytest.approx(expected, abs=1e-6)}


def test_top_k_of_few_labels():
    metric = load_metric("top_k_accuracy")
    predictions, references = [[0.2, 0.8], [0.6, 0.4]], [1, 1]
    assert metric.compute(predictions=predictions, references=references, k=1) == {"top_1_accuracy": 0.5}
    assert metric.compute(predictions=predictions, references=references) == {"top_5_accuracy": 1.0}


@pytest.mark.parametrize(("references", "k", "message"), [([0], 0, "k must be"), ([2], 1, "labels run from 2")])
def test_top_k_refuses(references, k, message):
    with pytest.raises(ValueError, match=message):
        load_metric("top_k_accuracy").compute(predictions=[[0.5, 0.5]], references=references, k=k)


def test_macro_f1_equals_scikit_learn():
    predictions, references = np.random.default_rng(0).integers(0, 5, (2, 80))
    expected = f1_score(references, predictions, average="macro")
    result = load_metric("macro_f1").compute(predictions=predictions, references=references)
    assert result == {"macro_f1": pytest.approx(expected, abs=1e-6)}
    predictions, references = np.random.default_rng(0).integers(0, 2, (2, 80, 4))
    expected = f1_score(references, predictions, average="macro")
    result = load_metric("macro_f1", "multilabel").compute(predictions=predictions, references=references)
    assert result == {"macro_f1": pytest.approx(expected, abs=1e-6)}


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_equals_scikit_learn(seed):
    scores, references = scores_with_ties(seed)
    result = load_metric("mean_average_precision").compute(predictions=scores, references=references)
    expected = average_precision_score(references, scores, average="macro")
    assert result == {"mean_average_precision": pytest.approx(expected, abs=1e-6)}


@pytest.mark.parametrize("style", ["step", "voc2007", "voc2010", "coco"])
def test_every_style_equals_its_definition(style):
    scores, references = scores_with_ties(5)
    expected = np.mean([slow_average_precision(scores[:, label], references[:, label], style) for label in range(7)])
    result = load_metric("mean_average_precision").compute(predictions=scores, references=references, style=style)
    assert result == {"mean_average_precision": pytest.approx(expected, abs=1e-9)}


def test_recall_of_three_in_ten_reaches_three_tenths():
    """Where 0.1 times three is more than 3 / 10 in floating point."""
    truths = [1] * 3 + [0] * 7 + [1] * 7
    result = load_metric("mean_average_precision").compute(
        predictions=[[-rank] for rank in range(17)], references=[[truth] for truth in truths], style="voc2007"
    )
    # Four recalls, 0 to 0.3, at precision 1, the other seven at that of the last rank, the highest from there on.
    assert result["mean_average_precision"] == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_labels_that_no_image_has_are_left_out():
    metric = load_metric("mean_average_precision")
    result = metric.compute(predictions=[[0.9, 0.5], [0.1, 0.6]], references=[[1, 0], [0, 0]])
    assert result == {"mean_average_precision": 1.0}
    with pytest.raises(ValueError, match="no image has any label"):
        metric.compute(predictions=[[0.9]], references=[[0]])
    with pytest.raises(ValueError, match="style"):
        metric.compute(predictions=[[0.9]], references=[[1]], style="voc")
