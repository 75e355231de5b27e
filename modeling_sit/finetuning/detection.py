"""Detection and instance segmentation: objects with boxes and classes, and with masks."""

import itertools
from typing import Any, ClassVar

import datasets
import torch
from accelerate import Accelerator

from modeling_sit import SiTForInstanceSegmentation, SiTForObjectDetection
from modeling_sit.dense_outputs import detections_of
from modeling_sit.evaluation.coco_evaluation import MASKS_PREFIX, CocoEvaluation, IouType, check_pycocotools
from modeling_sit.evaluation.metrics import metric_module
from modeling_sit.finetuning.anchors import describe_anchors, fitting_anchors, object_sizes
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.dense import DenseTask
from modeling_sit.finetuning.dense_images import DenseImages
from modeling_sit.finetuning.dense_splits import DenseSplits
from modeling_sit.finetuning.measurement import Measurement
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments

FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100")
FIGURES_OF_CLASSES = ("map", "mar_100")


class Detection(DenseTask):
    """Learns boxes and classes of objects (Faster R-CNN). The best model is that of the highest average precision."""

    kind = "boxes"
    model_class = SiTForObjectDetection
    iou_types: ClassVar[tuple[IouType, ...]] = ("bbox",)

    def __init__(
        self, arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: DenseSplits
    ):
        check_pycocotools()
        super().__init__(arguments, training_arguments, splits)
        # Those of masks come first: the first one compares models.
        prefixes = (MASKS_PREFIX, "") if "segm" in self.iou_types else ("",)
        keys = map(metric_module("coco_average_precision").key_of, splits.label_names)
        of_classes = [f"{figure}_{key}" for key, figure in itertools.product(keys, FIGURES_OF_CLASSES)]
        self.metric_names = tuple(f"{prefix}{name}" for prefix in prefixes for name in FIGURES)
        self.class_metric_names = tuple(f"{prefix}{name}" for prefix in prefixes for name in of_classes)

    def settings(self, saved: dict[str, Any]) -> dict[str, Any]:
        arguments = self.arguments
        sizes = object_sizes(self.splits.train, self.image_size)
        anchors, is_chosen = arguments.anchor_sizes, False
        if anchors is None and self.has_heads(saved):
            anchors = saved.get("anchor_sizes")
        elif anchors is None:
            anchors, is_chosen = fitting_anchors(sizes), True
        if anchors is not None:
            self.notes += describe_anchors(sizes, anchors, self.image_size, is_chosen)
        given = {"anchor_sizes": anchors, "detections_per_image": arguments.detections_per_image}
        return {name: value for name, value in given.items() if value is not None}

    def no_labels(self, pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        _, _, height, width = pixel_values.shape
        return [
            {
                "class_labels": torch.zeros(0, dtype=torch.int64),
                "boxes": torch.zeros(0, 4),
                "masks": torch.zeros(0, height, width, dtype=torch.bool),
            }
        ]

    def measurement(self, dataset: DenseImages) -> Measurement:
        return ObjectMeasurement(dataset.split, self.splits.label_names, self.iou_types)


class InstanceSegmentation(Detection):
    """Learns boxes, masks and classes of objects (Mask R-CNN). The best model is that of the highest average precision of the
    masks."""

    kind = "masks"
    model_class = SiTForInstanceSegmentation
    iou_types = ("bbox", "segm")


class ObjectMeasurement(Measurement):
    """
    COCO's figures of what is found in images.

    Args:
        rows (`datasets.Dataset`), label_names, iou_types: As of [`CocoEvaluation`].
    """

    def __init__(self, rows: datasets.Dataset, label_names: list[str], iou_types: tuple[IouType, ...]):
        self.evaluation = CocoEvaluation(rows, label_names, iou_types)

    def add(self, inputs: dict[str, Any], predictions: Any) -> None:
        items = inputs["items"]
        if not items:  # no image could be read
            return
        for (image_id, *_), found in zip(
            items, detections_of(predictions, [size for _, size, _ in items]), strict=True
        ):
            self.evaluation.add(image_id, *(found[name] for name in ("boxes", "scores", "labels", "masks")))

    def merge(self, accelerator: Accelerator) -> None:
        self.evaluation.merge(accelerator)

    def compute(self) -> dict[str, float]:
        return self.evaluation.compute()

    @property
    def num_images(self) -> int:
        return self.evaluation.num_images
