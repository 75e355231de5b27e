"""Figures of semantic segmentation, from one image after the other, in one process or several."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_sit.evaluation.bootstrap import Statistic
from modeling_sit.evaluation.metrics import metric_module


class SemanticEvaluation:
    """
    Mean IoU and accuracies from a confusion matrix over the images that are added, in whole numbers.

    Of each image it keeps how often each pair of a true and a predicted class occurs, and no pixels.

    Args:
        label_names (sequence of `str`): Names of all classes.
        ignore_index (`int`, *optional*, defaults to 255): Truth of the pixels that do not count.
    """

    def __init__(self, label_names: Sequence[str], ignore_index: int = 255):
        self.label_names, self.ignore_index = list(label_names), ignore_index
        self._metric = metric_module("mean_iou")
        # By image: indices of the flattened matrix, and the counts there.
        self._counts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image_id: int, prediction: Any, truth: Any) -> None:
        """Count the pixels of an image. An image that was added before stays as it was.

        Args:
            image_id (`int`): Any number that no other image has.
            prediction (array-like of shape `(height, width)`): Predicted classes. Those that are no class are wrong.
            truth (array-like of shape `(height, width)`): True classes, or `ignore_index`.

        Raises:
            `ValueError`: If the shapes differ, or there is no such true class.
        """
        if int(image_id) not in self._counts:
            prediction, truth = _as_array(prediction), _as_array(truth)
            confusion = self._metric.confusion_matrix(
                prediction, truth, len(self.label_names), self.ignore_index
            ).ravel()
            places = np.flatnonzero(confusion)
            self._counts[int(image_id)] = (places, confusion[places])

    def merge(self, accelerator: Accelerator) -> None:
        """Give every process what all have added. An image that several have added counts once. Each must call this."""
        if accelerator.num_processes > 1:
            gathered = gather_object([self._counts])
            self._counts = {image: counts for process in reversed(gathered) for image, counts in process.items()}

    @property
    def confusion(self) -> np.ndarray:
        """Pixels of each true class (rows) that are predicted as each class (columns; the last one: as none), int64,
        `(num_labels, num_labels + 1)`."""
        shape = (len(self.label_names), len(self.label_names) + 1)
        confusion = np.zeros(np.prod(shape), np.int64)
        for places, counts in self._counts.values():
            confusion[places] += counts
        return confusion.reshape(shape)

    @property
    def num_images(self) -> int:
        """How many images were added."""
        return len(self._counts)

    def compute(self) -> dict[str, float]:
        """The figures over the images that were added.

        Returns:
            `dict[str, float]`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, and for each class `iou_NAME` and
                `accuracy_NAME`: in `[0, 1]`, or NaN where there is nothing to divide by. Such classes are left out of
                the means.
        """
        return self._metric.figures_of(self.confusion, self.label_names)

    def statistics(self) -> dict[str, Statistic]:
        """`mean_iou`, `mean_accuracy` and `overall_accuracy` as functions of how often each image counts, in the order of
        their numbers, for [`~bootstrap.confidence_interval`]."""
        num_labels = len(self.label_names)
        hits, true, predicted = (torch.zeros(len(self._counts), num_labels, dtype=torch.float64) for _ in range(3))
        for row, image in enumerate(sorted(self._counts)):
            confusion = np.zeros((num_labels, num_labels + 1), np.int64)
            np.put(confusion, *self._counts[image])
            hits[row] = torch.from_numpy(np.diag(confusion).copy())
            true[row] = torch.from_numpy(confusion.sum(axis=1))
            predicted[row] = torch.from_numpy(confusion[:, :-1].sum(axis=0))

        def mean_of_classes(divisor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
            # NaN where nothing is divided by nothing.
            return lambda counts: ((counts @ hits) / (counts @ divisor)).nanmean(dim=1)

        return {
            "mean_iou": mean_of_classes(true + predicted - hits),
            "mean_accuracy": mean_of_classes(true),
            "overall_accuracy": lambda counts: (counts @ hits.sum(dim=1)) / (counts @ true.sum(dim=1)),
        }


def _as_array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
