"""The protocols that measure a whole model on images with objects, or with a class for each pixel."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.dense.mask_values import check_values, read_mask
from modeling_sit.data.image_datasets import image_name
from modeling_sit.evaluation.bootstrap import confidence_interval
from modeling_sit.evaluation.coco_evaluation import MASKS_PREFIX, CocoEvaluation, IouType
from modeling_sit.evaluation.dense_models import DenseModel, Output, match_labels
from modeling_sit.evaluation.dense_predictions import DensePredictions, Found, FoundObjects
from modeling_sit.evaluation.metric_results import MetricResult, ProtocolResult
from modeling_sit.evaluation.metrics import metric_module
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.semantic_evaluation import SemanticEvaluation
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# The kind of COCO's figures of each output.
IOU_TYPES: dict[Output, IouType] = {"boxes": "bbox", "masks": "segm"}


class DenseMeasurement:
    """
    Figures of what a model finds in a split, each image measured once.

    Args:
        rows (`datasets.Dataset`): The truth.
        label_names (sequence of `str`): Names of its classes.
        id2label (mapping): Names of the model's classes, by number.
        outputs (sequence of [`Output`]): What is measured: boxes and masks, or pixels.

    Raises:
        [`SiTError`]: If the model and the split have no class in common, or objects have no masks.
    """

    def __init__(
        self, rows: datasets.Dataset, label_names: Sequence[str], id2label: dict[int, str], outputs: Sequence[Output]
    ):
        self.rows, self.label_names = rows, list(label_names)
        # One behind the last stands for what is no class of the model.
        self._indices = np.append(match_labels(id2label, label_names), -1)
        self.objects = {
            output: CocoEvaluation(rows, label_names, (IOU_TYPES[output],))
            for output in outputs
            if output in IOU_TYPES
        }
        self.pixels = SemanticEvaluation(label_names) if "pixels" in outputs else None
        self.skipped: dict[int, str] = {}

    @property
    def _evaluations(self) -> list[CocoEvaluation | SemanticEvaluation]:
        return [*self.objects.values(), *([] if self.pixels is None else [self.pixels])]

    @property
    def num_images(self) -> int:
        """How many images were measured."""
        return self._evaluations[0].num_images

    def add(self, found: Found) -> None:
        """Add what was found in an image.

        Raises:
            [`UnreadableImage`]: If its label map cannot be read, or is of another size than the image.
            [`SiTError`]: If what was found is not finite.
        """
        for output, evaluation in self.objects.items():
            self._add_objects(evaluation, found.row, getattr(found, output))
        if self.pixels is not None:
            truth = true_pixels(self.rows, found.row, self.label_names)
            if truth.shape != found.pixels.shape:
                sizes = (f"{width} x {height}" for height, width in (found.pixels.shape, truth.shape))
                raise UnreadableImage("it has {} pixels, and its labels are for {}".format(*sizes))
            self.pixels.add(found.row, self._dataset_labels(found.pixels), truth)

    def merge(self, accelerator: Accelerator) -> None:
        """Give every process what all have measured. Each must call this."""
        for evaluation in self._evaluations:
            evaluation.merge(accelerator)
        if accelerator.num_processes > 1:
            self.skipped = dict(sorted(gather_object(list(self.skipped.items()))))

    def _add_objects(self, evaluation: CocoEvaluation, row: int, objects: FoundObjects) -> None:
        labels = self._dataset_labels(objects.labels)
        boxes = np.zeros((len(labels), 4)) if objects.boxes is None else objects.boxes
        evaluation.add(self.rows[row]["image_id"], boxes, objects.scores, labels, objects.masks)

    def _dataset_labels(self, labels: np.ndarray) -> np.ndarray:
        is_known = (labels >= 0) & (labels < len(self._indices) - 1)
        return self._indices[np.where(is_known, labels, -1)]


def measure_dense(
    dense: DenseModel,
    rows: datasets.Dataset,
    label_names: Sequence[str],
    outputs: Sequence[Output],
    accelerator: Accelerator,
    **settings: Any,
) -> DenseMeasurement:
    """
    Measure what a model finds in a split. With several processes each of them must call this: each reads its part of the
    images, and all of them get the figures of all.

    Args:
        dense ([`DenseModel`]): The model, on the device where it is to run.
        rows (`datasets.Dataset`): The split.
        label_names (sequence of `str`): Names of its classes.
        outputs (sequence of [`Output`]): What to measure, of what the model gives: boxes and masks, or pixels.
        accelerator (`Accelerator`): Knows the processes.
        settings: More arguments of [`DensePredictions`]: `batch_size`, `num_workers`, `timeout`, `progress`.

    Returns:
        [`DenseMeasurement`]

    Raises:
        [`SiTError`]: In every process, if what one of them reads or finds cannot be measured.
    """
    with sync_errors(accelerator):
        measurement = DenseMeasurement(rows, label_names, dense.id2label, outputs)
        part = range(accelerator.process_index, len(rows), accelerator.num_processes)
        predictions = DensePredictions(dense, rows, outputs, part, **settings)
        for found in predictions:
            try:
                measurement.add(found)
            except UnreadableImage as problem:
                predictions.skipped[found.row] = str(problem)
        measurement.skipped = predictions.skipped
    measurement.merge(accelerator)
    if measurement.num_images == 0:
        first = "".join(
            f"; {image_name(rows, row)}: {reason}" for row, reason in list(measurement.skipped.items())[:1]
        )
        raise SiTError(f"split {rows.split}: none of {len(rows)} images can be measured{first}", argument="dataset")
    if accelerator.is_main_process:
        for row, reason in measurement.skipped.items():
            logger.warning("skipped %s: %s", image_name(rows, row), reason)
    return measurement


def true_pixels(rows: datasets.Dataset, row: int, label_names: Sequence[str]) -> np.ndarray:
    """The class of each pixel of an image of a split, int64 `(height, width)`; 255 where none counts.

    Raises:
        [`UnreadableImage`]: If it cannot be read, or has values beyond the classes.
    """
    name = f"the mask of {image_name(rows, row)}"
    try:
        pixels = read_mask(rows[row]["label"], name)
        check_values(np.unique(pixels), label_names, name)
    except SiTError as problem:
        raise UnreadableImage(problem.problem) from problem
    return pixels.astype(np.int64)


def objects_result(measurement: DenseMeasurement, output: Output) -> ProtocolResult:
    """COCO's figures of boxes, or of masks, whose names begin with `mask_`."""
    evaluation = measurement.objects[output]
    metric = metric_module("coco_average_precision")
    figures, counts = evaluation.compute(), evaluation.num_objects
    prefix = MASKS_PREFIX if output == "masks" else ""
    classes = {
        name: {
            "num_objects": counts[name],
            **{kind: figures[f"{prefix}{kind}_{metric.key_of(name)}"] for kind in ("map", "mar_100")},
        }
        for name in measurement.label_names
    }
    return ProtocolResult(
        [MetricResult(f"{prefix}{name}", figures[f"{prefix}{name}"]) for name in metric.SUMMARIES],
        {"num_objects": sum(counts.values()), "classes": classes},
    )


def pixels_result(measurement: DenseMeasurement, arguments: ProtocolArguments) -> ProtocolResult:
    """Mean IoU and accuracies, with bootstrap intervals over the images."""
    evaluation = measurement.pixels
    figures = evaluation.compute()
    interval_of = partial(
        confidence_interval,
        num_images=evaluation.num_images,
        seed=arguments.seed,
        num_resamples=arguments.bootstrap_resamples,
    )
    metrics = [
        MetricResult(name, figures[name], None if math.isnan(figures[name]) else interval_of(statistic))
        for name, statistic in evaluation.statistics().items()
    ]
    classes = {
        name: {"iou": figures[f"iou_{name}"], "accuracy": figures[f"accuracy_{name}"]}
        for name in measurement.label_names
    }
    return ProtocolResult(metrics, {"classes": classes})
