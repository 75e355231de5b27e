"""The figures of a classifier, by the project's metrics."""

from collections.abc import Callable

import torch
from transformers.trainer_utils import EvalPrediction

from modeling_sit.evaluation.metrics import load_metric
from modeling_sit.finetuning.collation import is_readable


def main_metric(multi_label: bool) -> str:
    """Name of the figure that classifiers are compared by."""
    return "mean_average_precision" if multi_label else "accuracy"


def create_compute_metrics(multi_label: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """What `Trainer` measures with: figures over the images that could be read, by the project's `evaluate` metrics.

    Accuracy and macro F1 of the most likely class; of several labels, mean average precision, and macro F1 of those that
    are more likely than not.
    """
    names = [main_metric(multi_label), "macro_f1"]
    metrics = {
        name: load_metric(name, *(["multilabel"] if multi_label and name == "macro_f1" else [])) for name in names
    }

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        readable = is_readable(torch.as_tensor(prediction.label_ids)).numpy()
        labels, logits = prediction.label_ids[readable], prediction.predictions[readable]
        if multi_label:
            labels = labels.astype(int)
            predicted = {"mean_average_precision": logits, "macro_f1": (logits > 0).astype(int)}
        else:
            predicted = dict.fromkeys(names, logits.argmax(axis=-1))
        figures = {}
        for name, metric in metrics.items():
            figures.update(metric.compute(predictions=predicted[name], references=labels))
        return figures

    return compute_metrics
