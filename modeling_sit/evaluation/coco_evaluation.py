"""COCO's figures of detected objects, from what was found in one image after the other, in one process or several."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import datasets
import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_sit.evaluation.metrics import metric_module
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# Before the names of the figures of masks, which stand beside those of boxes.
MASKS_PREFIX = "mask_"
IouType = Literal["bbox", "segm"]


class CocoEvaluation:
    """
    Average precision and recall of boxes and masks, by pycocotools, over the images that are added.

    It keeps boxes, scores, and masks as compressed RLE: some hundred bytes an object, and no dense masks.

    Args:
        rows (`datasets.Dataset`): The truth: columns `image_id` and `objects`, a struct of lists `bbox` (`[x, y, w, h]` in
            pixels), `category` (an index of `label_names`), `area`, `iscrowd`, and for masks `segmentation` (compressed
            RLE). Other columns, such as images, are not read.
        label_names (sequence of `str`): Names of all classes.
        iou_types (sequence of `str`, *optional*, defaults to boxes alone): `"bbox"`, `"segm"`, or both.

    Raises:
        [`SiTError`]: If pycocotools is not installed, or masks are to be measured and an object has none.
    """

    def __init__(self, rows: datasets.Dataset, label_names: Sequence[str], iou_types: Sequence[IouType] = ("bbox",)):
        check_pycocotools()
        self.label_names, self.iou_types = list(label_names), tuple(iou_types)
        self._metric = metric_module("coco_average_precision")
        self._truths: dict[int, list[dict[str, Any]]] = {}
        self._found: dict[int, list[dict[str, Any]]] = {}
        for row in rows.select_columns(["image_id", "objects"]):
            self._truths[int(row["image_id"])] = _truths_of(row, "segm" in self.iou_types)
        self._warn_of_crowded_images()

    def add(self, image_id: int, boxes: Any, scores: Any, labels: Any, masks: Sequence[dict] | None = None) -> None:
        """Add what was found in an image; nothing, where nothing was found. An image that was added before stays as it was.

        Args:
            image_id (`int`): One of the rows'.
            boxes (array-like of shape `(num_found, 4)`): Left, top, right and bottom in pixels of the original image.
            scores (array-like of shape `(num_found,)`): Any numbers; objects with higher ones count first.
            labels (array-like of shape `(num_found,)`): Indices of `label_names`. Negative: nothing was found.
            masks (sequence of `dict`, *optional*): Compressed RLE in the original image's size. Needed to measure masks.

        Raises:
            `ValueError`: If there is no such image, or the inputs are not of one length.
            [`SiTError`]: If a score or a box is not finite.
        """
        image_id = int(image_id)
        if image_id not in self._truths:
            raise ValueError(f"there is no image {image_id}")
        boxes, scores, labels = _as_array(boxes).reshape(-1, 4), _as_array(scores), _as_array(labels).astype(int)
        if "segm" in self.iou_types and masks is None:
            raise ValueError("masks are measured, and none are given")
        is_found = labels >= 0
        if not (np.isfinite(boxes[is_found]).all() and np.isfinite(scores[is_found]).all()):
            raise SiTError(
                "the model's boxes or scores are not finite: its training has diverged",
                argument="model_name_or_path",
                remedy="choose another model",
            )
        detected = {"boxes": boxes, "scores": scores.tolist(), "labels": labels}
        if "segm" in self.iou_types:
            detected["masks"] = masks
        found = self._metric.annotations_of(image_id, detected)
        self._found.setdefault(image_id, [each for each, keep in zip(found, is_found, strict=True) if keep])

    def merge(self, accelerator: Accelerator) -> None:
        """Give every process what all have added. An image that several have added counts once. Each must call this."""
        if accelerator.num_processes > 1:
            gathered = gather_object([self._found])
            self._found = {image: found for process in reversed(gathered) for image, found in process.items()}

    def compute(self) -> dict[str, float]:
        """The figures over the images that were added.

        Returns:
            `dict[str, float]`: `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_1`, `mar_10`,
                `mar_100`, `mar_small`, `mar_medium`, `mar_large`, and for each class `map_NAME` and `mar_100_NAME`; those
                of masks after `mask_`. In `[0, 1]`, or NaN where there are no such objects.
        """
        images = sorted(self._found)
        truths = [each for image in images for each in self._truths[image]]
        found = [each for image in images for each in self._found[image]]
        figures = {}
        for iou_type in self.iou_types:
            measured = self._metric.coco_figures(images, truths, found, self.label_names, iou_type)
            prefix = MASKS_PREFIX if iou_type == "segm" else ""
            figures |= {f"{prefix}{name}": value for name, value in measured.items()}
        return figures

    @property
    def num_images(self) -> int:
        """How many images were added."""
        return len(self._found)

    @property
    def num_objects(self) -> dict[str, int]:
        """How many objects of each class, without crowds, the images have that were added."""
        counts = Counter(
            each["category_id"] for image in self._found for each in self._truths[image] if not each["iscrowd"]
        )
        return {name: counts[number] for number, name in enumerate(self.label_names)}

    def _warn_of_crowded_images(self) -> None:
        most = max(self._metric.MAX_DETECTIONS)
        crowded = sum(
            any(count > most for count in Counter(each["category_id"] for each in truths).values())
            for truths in self._truths.values()
        )
        if crowded:
            logger.warning(
                "%d of %d images have more than %d objects of a class, which is what COCO counts: average precision cannot "
                "reach 1",
                crowded,
                len(self._truths),
                most,
            )


def check_pycocotools() -> None:
    """Raise [`SiTError`] if pycocotools is not installed."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as problem:
        raise SiTError(
            "detected objects are measured by pycocotools, which is not installed",
            remedy="run pip install 'modeling-sit[detection]'",
        ) from problem


def _truths_of(row: dict[str, Any], with_masks: bool) -> list[dict[str, Any]]:
    objects, annotations = row["objects"], []
    masks = objects.get("segmentation") or [None] * len(objects["bbox"])
    for bbox, category, area, crowd, mask in zip(
        objects["bbox"], objects["category"], objects["area"], objects["iscrowd"], masks, strict=True
    ):
        if with_masks and mask is None:
            raise SiTError(
                f"an object of the image {row['image_id']} has no mask",
                remedy="measure boxes, or give all objects masks",
            )
        annotation = {"image_id": int(row["image_id"]), "category_id": int(category), "bbox": bbox}
        annotation |= {"area": area, "iscrowd": int(crowd or 0)}
        annotations.append({**annotation, "segmentation": mask} if with_masks else annotation)
    return annotations


def _as_array(values: Any) -> np.ndarray:
    """Numbers, of a tensor on any device too, as float64."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)
