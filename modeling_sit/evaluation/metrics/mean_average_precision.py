"""Mean average precision of multi-label predictions, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
The mean over the labels of the average precision: how high the images with the label rank when all are sorted by its
score. Images with equal scores have one rank. Labels that no image has are left out of the mean.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): Scores of every label, one list an image; of any scale.
    references (`list[list[int]]`): 1 for each label that the image has and 0 for the others, in the same order.
    style (`str`, *optional*, defaults to `"step"`): How average precision is computed from the curve of precision over recall.

        - `"step"`: the sum of precision times the rise of recall, nothing interpolated: scikit-learn's
          `average_precision_score`, and the "mAP" of multi-label classification papers, on COCO and Visual Genome too.
        - `"voc2007"`: PASCAL VOC up to 2009: the mean at the 11 recalls 0, 0.1, ..., 1 of the highest precision at
          that recall or beyond.
        - `"voc2010"`: PASCAL VOC from 2010: the area under the curve of the highest precision at each recall or
          beyond, at all points.
        - `"coco"`: COCO's evaluation program: as `"voc2007"`, at the 101 recalls 0, 0.01, ..., 1.

Returns:
    `dict[str, float]` with the key `mean_average_precision`, in `[0, 1]`.

Raises:
    `ValueError`: If there is no such style, or no image has any label.
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

RECALL_STEPS = {"voc2007": 10, "coco": 100}


class MeanAveragePrecision(evaluate.Metric):
    """Mean average precision as scikit-learn, PASCAL VOC and COCO have it, as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, style="step") -> dict[str, float]:
        if style not in ("step", "voc2010", *RECALL_STEPS):
            raise ValueError(f"style must be step, voc2007, voc2010 or coco, not {style!r}")
        scores, truths = np.asarray(predictions), np.asarray(references)
        known = np.flatnonzero(truths.any(axis=0))
        if len(known) == 0:
            raise ValueError("no image has any label, so there is no precision to average")
        return {
            "mean_average_precision": float(
                np.mean([average_precision(scores[:, label], truths[:, label], style) for label in known])
            )
        }


def average_precision(scores: np.ndarray, truths: np.ndarray, style: str) -> float:
    """Average precision of one label, with scores and truths `(num_images,)`, at least one of them 1."""
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = truths[order].cumsum()[last_of_equals]
    precision = hits / (last_of_equals + 1)
    if style == "step":
        return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])
    highest_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    if style == "voc2010":
        return float((np.diff(hits, prepend=0) * highest_beyond).sum() / hits[-1])
    # In whole numbers, for 3 hits of 10 are the recall 0.3 and in floating point not three times 0.1.
    steps = RECALL_STEPS[style]
    reached = np.searchsorted(hits * steps, np.arange(steps + 1) * hits[-1])
    return float(highest_beyond[reached].mean())
