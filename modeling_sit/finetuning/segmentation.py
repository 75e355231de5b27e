"""Semantic segmentation: a class for each pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from modeling_sit import SiTForSemanticSegmentation
from modeling_sit.data.dense.rows import IGNORED_PIXEL
from modeling_sit.evaluation.semantic_evaluation import SemanticEvaluation
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.dense import DenseTask
from modeling_sit.finetuning.dense_images import DenseImages
from modeling_sit.finetuning.dense_splits import DenseSplits
from modeling_sit.finetuning.measurement import Measurement
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments

FIGURES = ("mean_iou", "mean_accuracy", "overall_accuracy")
FIGURES_OF_CLASSES = ("iou", "accuracy")


class SemanticSegmentation(DenseTask):
    """Learns the class of each pixel by cross-entropy. The best model is that of the highest mean IoU."""

    kind = "pixels"
    model_class = SiTForSemanticSegmentation

    def __init__(
        self, arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: DenseSplits
    ):
        super().__init__(arguments, training_arguments, splits)
        self.metric_names = FIGURES
        self.class_metric_names = tuple(
            f"{figure}_{name}" for figure in FIGURES_OF_CLASSES for name in splits.label_names
        )

    def settings(self, saved: dict[str, Any]) -> dict[str, Any]:
        head = self.arguments.segmentation_head
        return {"semantic_loss_ignore_index": IGNORED_PIXEL} | ({} if head is None else {"segmentation_head": head})

    def no_labels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = pixel_values.shape
        return torch.full((batch, height, width), IGNORED_PIXEL, device=pixel_values.device)

    def measurement(self, dataset: DenseImages) -> Measurement:
        return PixelMeasurement(self.splits.label_names, self.processor.post_process_semantic_segmentation)


class PixelMeasurement(Measurement):
    """
    Mean IoU and accuracies of the classes of pixels, in the images' own sizes.

    Args:
        label_names (sequence of `str`): Names of the classes.
        post_process (callable): From a model's outputs and the images' sizes to the class of each pixel.
    """

    def __init__(self, label_names: Sequence[str], post_process: Callable[..., list[torch.Tensor]]):
        self.evaluation = SemanticEvaluation(label_names, IGNORED_PIXEL)
        self.post_process = post_process

    def add(self, inputs: dict[str, Any], predictions: Any) -> None:
        items = inputs["items"]
        if not items:  # no image could be read
            return
        maps = self.post_process(predictions, target_sizes=[size for _, size, _ in items])
        for (image_id, _, truth), found in zip(items, maps, strict=True):
            self.evaluation.add(image_id, found, truth)

    def merge(self, accelerator: Accelerator) -> None:
        self.evaluation.merge(accelerator)

    def compute(self) -> dict[str, float]:
        return self.evaluation.compute()

    @property
    def num_images(self) -> int:
        return self.evaluation.num_images
