"""Accuracy, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score

DESCRIPTION = "The fraction of images whose predicted label is the true one."

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[int]`): Predicted labels.
    references (`list[int]`): True labels, in the same order.
    normalize (`bool`, *optional*, defaults to `True`):
        Whether to return the fraction of correct predictions, not their number (with `sample_weight`, their weight).
    sample_weight (`list[float]`, *optional*): How much each image counts.

Returns:
    `dict[str, float]` with the key `accuracy`: in `[0, 1]`, or a count if `normalize` is `False`.
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


class Accuracy(evaluate.Metric):
    """[`sklearn.metrics.accuracy_score`] as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, normalize=True, sample_weight=None) -> dict[str, float]:
        accuracy = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(accuracy)}
