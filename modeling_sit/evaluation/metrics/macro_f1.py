"""Macro-F1, as an `evaluate` metric that needs no network.

`evaluate` copies this file alone, and reads its imports by pattern: one `import x` a line, nothing from this package.
"""

import datasets
import evaluate
from sklearn.metrics import f1_score

DESCRIPTION = """
The mean over the labels of F1, the harmonic mean of precision and recall: rare labels count as much as common ones.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[int]`): Predicted labels; with `config_name="multilabel"` one list of 0 and 1 an image, one for
        each label.
    references (`list[int]`): True labels in the same form and order.

Returns:
    `dict[str, float]` with the key `macro_f1`, in `[0, 1]`. A label that is neither predicted nor true anywhere does not
    count in single-label data; in multi-label data it counts as 0.
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


class MacroF1(evaluate.Metric):
    """[`sklearn.metrics.f1_score`] with `average="macro"` as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        if self.config_name == "multilabel":
            label = datasets.Sequence(label)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}
