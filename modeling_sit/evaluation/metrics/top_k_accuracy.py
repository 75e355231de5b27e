"""Top-k accuracy, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = "The fraction of images whose true label is among the k labels with the highest scores."

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): Scores of every label, one list an image, all of one length.
    references (`list[int]`): True labels in `[0, num_labels)`, in the same order.
    k (`int`, *optional*, defaults to 5): How many guesses an image has; of labels with equal scores, those of higher
        index are guessed first, as by scikit-learn.

Returns:
    `dict[str, float]` with the key `top_5_accuracy`, or with another k: in `[0, 1]`, and 1 where there are at most k
    labels.

Raises:
    `ValueError`: If `k` is less than 1, or a label has no score.
"""

CITATION = """
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in {P}ython},
  author = {Pedregosa, F. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""


class TopKAccuracy(evaluate.Metric):
    """What [`sklearn.metrics.top_k_accuracy_score`] gives, for two labels too, as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, k=5) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not 0 <= labels.min() <= labels.max() < scores.shape[1]:
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, and there are {scores.shape[1]} scores an image"
            )
        guesses = np.argsort(scores, axis=1, kind="stable")[:, -k:]
        return {f"top_{k}_accuracy": float((guesses == labels[:, None]).any(axis=1).mean())}
