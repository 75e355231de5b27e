"""COCO's figures of what is found, image by image: annotations against themselves, and pycocotools on the same files."""

import contextlib
import io
import logging
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from made_up_detections import NAMES, found_in, made_up_rows

from modeling_sit.data.dense.loading import open_dense
from modeling_sit.evaluation.coco_evaluation import CocoEvaluation
from modeling_sit.runtime.errors import SiTError

pytest.importorskip("pycocotools")
DATA = Path(__file__).parents[3] / "shared" / "data"


def by_pycocotools(rows: datasets.Dataset, found: dict[int, tuple], iou_type: str) -> list[float]:
    """The twelve numbers that COCO's own program prints, by its own reader of results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, annotations = COCO(), []
    for row in rows:
        for values in zip(*(row["objects"][name] for name in row["objects"]), strict=True):
            each = dict(zip(row["objects"], values, strict=True))
            annotations.append(
                {**each, "id": len(annotations) + 1, "image_id": row["image_id"], "category_id": each["category"]}
            )
    truth.dataset = {
        "images": [{"id": row["image_id"], "width": row["width"], "height": row["height"]} for row in rows],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    results = []
    for image_id, (boxes, scores, labels, masks) in found.items():
        for (left, top, right, bottom), score, label, rle in zip(boxes, scores, labels, masks, strict=True):
            result = {"image_id": image_id, "category_id": int(label), "score": float(score)}
            coordinates = {"bbox": [left, top, right - left, bottom - top]}
            results.append({**result, **(coordinates if iou_type == "bbox" else {"segmentation": rle})})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [value if value > -1 else float("nan") for value in evaluation.stats.tolist()]


def test_equals_pycocotools():
    rows, generator = made_up_rows(), np.random.default_rng(1)
    found = {row["image_id"]: found_in(row, generator) for row in rows}
    evaluation = CocoEvaluation(rows, NAMES, ("bbox", "segm"))
    for image_id in random.Random(0).sample(sorted(found), len(found)):
        boxes, scores, labels, masks = found[image_id]
        evaluation.add(image_id, torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), masks)
    figures = evaluation.compute()
    sizes = ("small", "medium", "large")
    names = ["map", "map_50", "map_75", *(f"map_{size}" for size in sizes)]
    names += ["mar_1", "mar_10", "mar_100", *(f"mar_{size}" for size in sizes)]
    for prefix, iou_type in (("", "bbox"), ("mask_", "segm")):
        expected = by_pycocotools(rows, found, iou_type)
        assert [figures[prefix + name] for name in names] == pytest.approx(expected, nan_ok=True, abs=1e-12)
        assert 0.05 < figures[f"{prefix}map"] < 0.95
    assert figures["map"] == pytest.approx((figures["map_cell"] + figures["map_crowded"]) / 2)
    assert evaluation.num_objects == {"cell": 10, "crowded": 5} and evaluation.num_images == 6


def test_annotations_against_themselves():
    rows = made_up_rows()
    evaluation = CocoEvaluation(rows, NAMES, ("bbox", "segm"))
    for row in rows:
        objects = row["objects"]
        boxes = np.array(objects["bbox"], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        evaluation.add(row["image_id"], boxes, np.ones(len(boxes)), objects["category"], objects["segmentation"])
    figures = evaluation.compute()
    assert figures["map"] == figures["mask_map"] == figures["mar_100"] == pytest.approx(1)


def test_what_does_not_count(caplog):
    rows = made_up_rows()
    evaluation = CocoEvaluation(rows, NAMES)
    first = rows[0]
    left, top, width, height = first["objects"]["bbox"][0]
    box = [left, top, left + width, top + height]
    nothing = [[np.nan] * 4, [0, 0, 9, 9]]
    evaluation.add(first["image_id"], [box, *nothing], [0.5, 0.9, 0.9], [0, -1, -1])  # padding of a batch
    once = evaluation.compute()
    assert once["mar_100_cell"] == 0.5 and once["map_50"] > 0
    evaluation.add(first["image_id"], [], [], [])  # again, at the end of an epoch
    assert evaluation.compute() == pytest.approx(once, nan_ok=True) and evaluation.num_images == 1
    with pytest.raises(ValueError, match="no image 7"):
        evaluation.add(7, [], [], [])
    with pytest.raises(SiTError, match="not finite"):
        evaluation.add(rows[1]["image_id"], [box], [np.nan], [0])
    with caplog.at_level(logging.WARNING):
        CocoEvaluation(crowded_rows(101), ["cell"])
    assert "1 of 1 images have more than 100 objects of a class" in caplog.text


def crowded_rows(count: int) -> datasets.Dataset:
    objects = {"bbox": [[0, 0, 5, 5]] * count, "category": [0] * count, "area": [25] * count, "iscrowd": [0] * count}
    return datasets.Dataset.from_list([{"image_id": 0, "objects": objects}])


def test_masks_that_are_missing():
    with pytest.raises(SiTError, match="has no mask"):
        CocoEvaluation(crowded_rows(1), ["cell"], ("bbox", "segm"))
    rows = made_up_rows()
    with pytest.raises(ValueError, match="none are given"):
        CocoEvaluation(rows, NAMES, ("segm",)).add(rows[0]["image_id"], [[0, 0, 1, 1]], [1], [0])


@pytest.mark.parametrize(
    ("name", "iou_types"), [("nuclei", ("bbox", "segm")), ("coco_mini", ("bbox", "segm")), ("bccd", ("bbox",))]
)
def test_real_annotations_against_themselves(name, iou_types):
    """As they are read. Crowds are neither found nor missed."""
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {DATA / name}")
    dataset = open_dense(DATA / name, "boxes")
    rows = dataset.read("test").select(range(40))
    evaluation = CocoEvaluation(rows, dataset.label_names, iou_types)
    for row in rows.remove_columns("image"):
        objects = row["objects"]
        found = [place for place, crowd in enumerate(objects["iscrowd"]) if not crowd]
        boxes = np.array([objects["bbox"][place] for place in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels, masks = ([objects[field][place] for place in found] for field in ("category", "segmentation"))
        evaluation.add(row["image_id"], boxes, np.ones(len(found)), labels, masks)
    figures = evaluation.compute()
    for prefix in ("", "mask_")[: len(iou_types)]:
        assert figures[f"{prefix}map"] == pytest.approx(1) and figures[f"{prefix}mar_100"] == pytest.approx(1)
    assert name != "coco_mini" or sum(map(sum, (objects["iscrowd"] for objects in rows["objects"]))) > 0
