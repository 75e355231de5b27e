"""COCO's average precision of detected boxes and masks, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import contextlib
import io

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
Average precision (AP) and average recall (AR) of detected objects as COCO measures them, by its own program (pycocotools):
over 101 recalls, ten thresholds of intersection over union (IoU) from 0.5 to 0.95, and the classes that have objects. What
lies in a crowd is no mistake, and no crowd has to be found. Of an image and a class the 100 best detections count.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[dict]`): For each image the detected objects, a dict of lists of the same length:

        - `boxes`: `[left, top, right, bottom]` in pixels;
        - `scores`: any numbers;
        - `labels`: numbers of classes, from 0;
        - `masks`, with `config_name="masks"`: compressed RLE, `{"size": [height, width], "counts": text}`.
    references (`list[dict]`): For each image its objects, in the same order of images: `boxes` and `labels` (and `masks`) as
        above, and where they are known `iscrowd` (0 or 1; default: 0) and `area` in pixels, which tells small, medium and
        large objects apart (default: of the mask or the box).
    num_labels (`int`, *optional*): Number of classes. Default: that of `label_names`, or one more than the largest.
    label_names (`list[str]`, *optional*): Names of the classes for the keys. Default: their numbers.

Returns:
    `dict[str, float]`: `map` (IoU 0.5 to 0.95), `map_50`, `map_75`, `map_small` (area up to 32 x 32), `map_medium` (up to
    96 x 96), `map_large`, `mar_1`, `mar_10`, `mar_100` (recall with so many detections of an image and a class),
    `mar_small`, `mar_medium`, `mar_large`, and for each class `map_NAME` and `mar_100_NAME` (`map_class_NAME` of a class
    that is called `small` and the like): in `[0, 1]`, or NaN where there are no such objects.

Raises:
    `ImportError`: If pycocotools is not installed.
    `ValueError`: If there are not as many predictions as references.
"""

CITATION = """
@inproceedings{lin2014microsoft,
  title = {Microsoft {COCO}: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva and
    Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {European Conference on Computer Vision},
  year = {2014}
}
"""

# Detections of an image and a class that count; the last number is that of average precision.
MAX_DETECTIONS = (1, 10, 100)
SIZES = ("small", "medium", "large")
# Figures over all classes, by name, in the order of what `compute` returns.
SUMMARIES = (
    *("map", "map_50", "map_75", *(f"map_{size}" for size in SIZES)),
    *(f"mar_{most}" for most in MAX_DETECTIONS),
    *(f"mar_{size}" for size in SIZES),
)


class CocoAveragePrecision(evaluate.Metric):
    """Average precision and recall of boxes, or with `config_name="masks"` of masks, as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        number, whole = datasets.Value("float64"), datasets.Value("int64")
        objects = {"boxes": datasets.List(datasets.List(number)), "labels": datasets.List(whole)}
        if self.config_name == "masks":
            mask = {"size": datasets.List(whole), "counts": datasets.Value("string")}
            objects["masks"] = datasets.List(mask)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {**objects, "scores": datasets.List(number)},
                    "references": {**objects, "iscrowd": datasets.List(whole), "area": datasets.List(number)},
                }
            ),
        )

    def add(self, *, prediction, reference) -> None:
        """Keep the objects of an image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references) -> None:
        """Keep the objects of some images."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
        self._images = [*getattr(self, "_images", []), *zip(predictions, references, strict=True)]

    def compute(self, *, predictions=None, references=None, num_labels: int | None = None, label_names=None) -> dict:
        """The metrics of what was added, and of these images. What was added is forgotten."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        images = getattr(self, "_images", [])
        self._images = []
        truths = [each for number, (_, true) in enumerate(images) for each in annotations_of(number, true)]
        found = [each for number, (detected, _) in enumerate(images) for each in annotations_of(number, detected)]
        if label_names is None:
            largest = max((each["category_id"] for each in (*truths, *found)), default=0)
            label_names = [str(number) for number in range(num_labels or largest + 1)]
        iou_type = "segm" if self.config_name == "masks" else "bbox"
        return coco_figures(range(len(images)), truths, found, label_names, iou_type)


def annotations_of(image_id: int, objects: dict) -> list[dict]:
    """The objects of an image as COCO's annotations, or its results where they have scores.

    Args:
        image_id (`int`): The image.
        objects (`dict`): As of the metric's inputs.
    """
    annotations = []
    for number, ((left, top, right, bottom), label) in enumerate(
        zip(np.asarray(objects["boxes"], np.float64).reshape(-1, 4).tolist(), objects["labels"], strict=True)
    ):
        annotation = {"image_id": image_id, "category_id": int(label), "bbox": [left, top, right - left, bottom - top]}
        for ours, coco in (("masks", "segmentation"), ("scores", "score"), ("iscrowd", "iscrowd"), ("area", "area")):
            if objects.get(ours) is not None:
                annotation[coco] = objects[ours][number]
        annotations.append(annotation)
    return annotations


def coco_figures(
    image_ids, truths: list[dict], found: list[dict], label_names: list[str], iou_type: str = "bbox"
) -> dict[str, float]:
    """Average precision and recall by pycocotools, which prints nothing.

    Args:
        image_ids (iterable of `int`): The images that are measured.
        truths (`list[dict]`): `image_id`, `category_id` (an index of `label_names`), `bbox` (`[x, y, w, h]`), and where they
            are known `segmentation` (compressed RLE), `area` and `iscrowd`.
        found (`list[dict]`): The same, and `score`.
        label_names (`list[str]`): Names of all classes.
        iou_type (`str`, *optional*, defaults to `"bbox"`): Or `"segm"`.

    Returns:
        `dict[str, float]`: As the metric returns it.

    Raises:
        `ImportError`: If pycocotools is not installed.
    """
    from pycocotools.cocoeval import COCOeval

    images = sorted(image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(images, truths, len(label_names), iou_type),
            _coco(images, found, len(label_names), iou_type),
            iou_type,
        )
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    # (thresholds, recalls, classes, sizes, numbers of detections), and the same without recalls; -1 where there is nothing
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    thresholds = list(evaluation.params.iouThrs.round(2))
    figures = {
        "map": _mean(precision[:, :, :, 0, -1]),
        "map_50": _mean(precision[thresholds.index(0.5), :, :, 0, -1]),
        "map_75": _mean(precision[thresholds.index(0.75), :, :, 0, -1]),
        **{f"map_{size}": _mean(precision[:, :, :, place, -1]) for place, size in enumerate(SIZES, 1)},
        **{f"mar_{most}": _mean(recall[:, :, 0, place]) for place, most in enumerate(MAX_DETECTIONS)},
        **{f"mar_{size}": _mean(recall[:, :, place, -1]) for place, size in enumerate(SIZES, 1)},
    }
    for number, name in enumerate(label_names):
        figures[f"map_{key_of(name)}"] = _mean(precision[:, :, number, 0, -1])
        figures[f"mar_100_{key_of(name)}"] = _mean(recall[:, number, 0, -1])
    return figures


def key_of(name: str) -> str:
    """What a class is called in the keys: a class `small` is not to be taken for the small objects."""
    return f"class_{name}" if f"map_{name}" in SUMMARIES else name


def _coco(image_ids: list[int], annotations: list[dict], num_labels: int, iou_type: str):
    """A `COCO` of annotations, which are copied."""
    from pycocotools import mask
    from pycocotools.coco import COCO

    # It takes an object with the number 0 for none at all.
    annotations = [{"iscrowd": 0, **each, "id": number} for number, each in enumerate(annotations, 1)]
    for each in annotations:
        if "score" in each or each.get("area") is None:
            is_mask = iou_type == "segm"
            each["area"] = float(mask.area(each["segmentation"]) if is_mask else each["bbox"][2] * each["bbox"][3])
    coco = COCO()
    coco.dataset = {
        # Sizes are those of the masks.
        "images": [{"id": number, "height": 0, "width": 0} for number in image_ids],
        "categories": [{"id": number} for number in range(num_labels)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if len(values) else float("nan")
