"""COCO's average precision as a metric: closed forms, and the same figures as of pycocotools on files."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest

from modeling_sit.evaluation import metrics
from modeling_sit.evaluation.metrics import load_metric

pytest.importorskip("pycocotools")


def box(left: float, size: float = 20.0) -> list[float]:
    return [left, 0.0, left + size, size]


def image(*lefts: float, label: int = 0, scores=None, **more) -> dict:
    objects = {"boxes": [box(left) for left in lefts], "labels": [label] * len(lefts), **more}
    return objects if scores is None else {**objects, "scores": list(scores)}


def compute(predictions, references, config_name=None, **settings) -> dict[str, float]:
    return load_metric("coco_average_precision", config_name).compute(
        predictions=predictions, references=references, **settings
    )


def test_closed_forms():
    perfect = compute([image(0, 50, scores=[0.2, 0.1])], [image(0, 50)])
    assert perfect["map"] == pytest.approx(1) and perfect["mar_1"] == 0.5 and perfect["mar_10"] == 1
    assert perfect["map_small"] == pytest.approx(1) and math.isnan(perfect["map_large"])
    # One of two objects is found, after a false alarm: precision 1/2 up to recall 1/2, which is 51 of 101 recalls.
    half = compute([image(200, 50, scores=[0.9, 0.8])], [image(0, 50)])
    assert half["map"] == pytest.approx(51 / 101 / 2)
    # IoU 15 / 25 = 0.6: right at the thresholds 0.5, 0.55 and 0.6.
    moved = compute([image(5, scores=[1])], [image(0)])
    assert moved["map"] == pytest.approx(0.3) and moved["map_50"] == pytest.approx(1) and moved["map_75"] == 0
    assert all(type(value) is float for value in moved.values())


def test_classes_without_objects_are_left_out_of_the_mean():
    predictions = [image(0, scores=[1]), image(0, label=2, scores=[1])]
    result = compute(predictions, [image(0), image()], label_names=["cell", "small", "dust"])
    assert result["map"] == result["map_cell"] == pytest.approx(1)
    assert math.isnan(result["map_class_small"]) and math.isnan(result["map_dust"]) and "mar_100_small" not in result
    assert result["map_small"] == pytest.approx(1)  # of small objects


def test_crowds_are_ignored():
    references = [image(0, 100, iscrowd=[0, 1])]
    assert compute([image(0, 100, 101, scores=[0.5, 0.9, 0.8])], references)["map"] == pytest.approx(1)
    assert compute([image(0, 60, scores=[0.5, 0.9])], references)["map"] == pytest.approx(0.5)
    assert math.isnan(compute([image(0, scores=[1])], [image(0, iscrowd=[1])])["map"])


def test_masks():
    mask = pytest.importorskip("pycocotools.mask")

    def encoded(*rows: int) -> dict:
        dense = np.zeros((40, 40), np.uint8, order="F")
        dense[list(rows)] = 1
        found = mask.encode(dense)
        return {"size": found["size"], "counts": found["counts"].decode()}

    reference = image(0, masks=[encoded(*range(10))])
    detected = image(300, scores=[1], masks=[encoded(*range(8))])  # IoU 0.8, in a box that is wrong
    result = compute([detected], [reference], "masks")
    assert result["map"] == pytest.approx(0.7)
    assert compute([detected], [reference])["map"] == 0


def test_prints_nothing_draws_nothing_and_changes_no_input(capsys):
    predictions, references = [image(0, scores=[1])], [image(0)]
    before = np.random.get_state()[1].copy()
    compute(predictions, references)
    assert capsys.readouterr().out == ""
    assert (np.random.get_state()[1] == before).all()
    assert predictions == [image(0, scores=[1])] and references == [image(0)]


def test_batches_and_no_images():
    metric = load_metric("coco_average_precision")
    metric.add(prediction=image(0, scores=[1]), reference=image(0))
    metric.add_batch(predictions=[image(scores=[])], references=[image(0)])
    assert metric.compute()["mar_100"] == 0.5
    assert math.isnan(metric.compute(predictions=[], references=[], num_labels=1)["map"])
    with pytest.raises(ValueError, match="1 predictions and 2"):
        metric.compute(predictions=[image(scores=[])], references=[image(), image()])


def test_loads_by_the_path_of_its_file_with_masks(tmp_path):
    path = Path(metrics.__file__).parent / "coco_average_precision.py"
    metric = evaluate.load(str(path), "masks", cache_dir=str(tmp_path))
    assert "masks" in metric.features["predictions"]
