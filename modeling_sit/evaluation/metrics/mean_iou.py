"""Mean intersection over union of semantic segmentation, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
The mean over the classes of intersection over union (IoU): pixels where a class is both predicted and true, by pixels where
it is predicted or true. All pixels of all images are counted together, in whole numbers. Pixels whose truth is
`ignore_index` do not count, whatever is predicted there; a prediction is never ignored. A class that is nowhere predicted
nor true has no IoU, and is left out of the mean.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list` of integer arrays of shape `(height, width)`): Predicted class of each pixel, one array an image.
        A value outside of `[0, num_labels)` is a wrong answer of no class.
    references (`list` of integer arrays of shape `(height, width)`): True class of each pixel, of the same sizes.
    num_labels (`int`, *optional*): Number of classes. Default: that of `label_names`, or one more than the largest.
    label_names (`list[str]`, *optional*): Names of the classes for the keys. Default: their numbers.
    ignore_index (`int`, *optional*, defaults to 255): Truth of the pixels that do not count.

Returns:
    `dict[str, float]` with the keys `mean_iou`, `mean_accuracy` (mean over the classes of the fraction of the class's
    pixels that are predicted right), `overall_accuracy` (the fraction of all pixels), and for each class `iou_NAME` and
    `accuracy_NAME`: in `[0, 1]`, or NaN where there is nothing to divide by.

Raises:
    `ValueError`: If sizes differ, or a true class is outside of `[0, num_labels)`.
"""

CITATION = """
@article{everingham2010pascal,
  title = {The {PASCAL} Visual Object Classes ({VOC}) Challenge},
  author = {Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume = {88},
  pages = {303--338},
  year = {2010}
}
"""

# Without a number of classes, a table of so many is counted.
MOST_LABELS = 4096


class MeanIoU(evaluate.Metric):
    """Mean IoU and accuracies from a confusion matrix, as an `evaluate` metric. Images are counted as they are added: none
    is kept."""

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def add(self, *, prediction, reference, ignore_index: int = 255) -> None:
        """Count the pixels of an image."""
        prediction, reference = (np.asarray(labels).astype(np.int64) for labels in (prediction, reference))
        counted = reference[reference != ignore_index]
        largest = max(int(counted.max(initial=0)), int(prediction.clip(max=MOST_LABELS - 1).max(initial=0)))
        counts = confusion_matrix(prediction, reference, largest + 1, ignore_index)
        self._counts = _summed(getattr(self, "_counts", None), counts)

    def add_batch(self, *, predictions, references, ignore_index: int = 255) -> None:
        """Count the pixels of some images."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference, ignore_index=ignore_index)

    def compute(
        self,
        *,
        predictions=None,
        references=None,
        num_labels: int | None = None,
        label_names=None,
        ignore_index: int = 255,
    ) -> dict[str, float]:
        """The metrics of what was added, and of these images. What was added is forgotten."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, ignore_index=ignore_index)
        counts = getattr(self, "_counts", None)
        self._counts = None
        if counts is None:
            raise ValueError("there are no predictions to measure")
        if label_names is not None:
            num_labels = len(label_names)
        if num_labels is None:
            occurs = counts.any(axis=1) | counts[:, :-1].any(axis=0)
            num_labels = int(np.flatnonzero(occurs).max(initial=0)) + 1
        if counts[num_labels:].any():
            wrong = num_labels + int(np.flatnonzero(counts[num_labels:].any(axis=1))[0])
            raise ValueError(f"there are {num_labels} classes, and pixels of class {wrong}")
        whole = np.zeros((num_labels, num_labels + 1), np.int64)
        known = min(num_labels, len(counts))
        whole[:known, :known] = counts[:known, :known]
        whole[:known, -1] = counts[:known, known:].sum(axis=1)
        return figures_of(whole, label_names or [str(number) for number in range(num_labels)])


def confusion_matrix(
    prediction: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int = 255
) -> np.ndarray:
    """How many pixels of each true class (rows) are predicted as each class (columns), of one image.

    Args:
        prediction (`np.ndarray` of shape `(height, width)`): Integers. Those that are no class count in the last column.
        reference (`np.ndarray` of shape `(height, width)`): Integers.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Truth of the pixels that are left out.

    Returns:
        `np.ndarray` of shape `(num_labels, num_labels + 1)`: int64.

    Raises:
        `ValueError`: If the shapes differ, or a true class is outside of `[0, num_labels)`.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"predictions of shape {prediction.shape} and references of shape {reference.shape}")
    is_counted = reference != ignore_index
    truth, guess = reference[is_counted].astype(np.int64), prediction[is_counted].astype(np.int64)
    is_known = (truth >= 0) & (truth < num_labels)
    if not is_known.all():
        raise ValueError(f"there are {num_labels} classes, and pixels of class {int(truth[~is_known][0])}")
    guess = np.where((guess >= 0) & (guess < num_labels), guess, num_labels)
    counts = np.bincount(truth * (num_labels + 1) + guess, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


def figures_of(confusion: np.ndarray, label_names) -> dict[str, float]:
    """The metrics, by name, from the sum of the matrices of [`confusion_matrix`] over the images."""
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    iou, accuracy = _divided(hits, true + predicted - hits), _divided(hits, true)
    return {
        "mean_iou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(_divided(hits.sum(), true.sum())),
        **{f"iou_{name}": float(value) for name, value in zip(label_names, iou, strict=True)},
        **{f"accuracy_{name}": float(value) for name, value in zip(label_names, accuracy, strict=True)},
    }


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotients; NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _summed(counts: np.ndarray | None, more: np.ndarray) -> np.ndarray:
    """Two confusion matrices of maybe different numbers of classes, as one of the larger number."""
    if counts is None:
        return more
    summed = np.zeros(max(counts.shape, more.shape), np.int64)
    for each in (counts, more):
        summed[: len(each), : len(each)] += each[:, :-1]
        summed[: len(each), -1] += each[:, -1]
    return summed
