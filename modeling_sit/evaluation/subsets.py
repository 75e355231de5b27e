"""Subsets of the images whose features are known, drawn by their labels as `data/labeled.py` draws them."""

import datasets
import torch

from modeling_sit.data.splits import hold_out_labeled, select_label_fraction, select_per_class
from modeling_sit.evaluation.features import Features


def features_of_rows(features: Features, rows: torch.Tensor) -> Features:
    """The features and labels of some of the images, by their indices `(num_rows,)`."""
    return Features(features.features[rows], features.labels[rows], [])


def draw_fraction(labels: torch.Tensor, label_names: list[str], fraction: float, seed: int) -> torch.Tensor:
    """Indices of a random fraction of the images of every class: [`select_label_fraction`]."""
    return _rows(select_label_fraction(_labeled_rows(labels, label_names), fraction, seed))


def draw_per_class(labels: torch.Tensor, label_names: list[str], count: int, seed: int) -> torch.Tensor:
    """Indices of `count` random images of every class: [`select_per_class`]."""
    return _rows(select_per_class(_labeled_rows(labels, label_names), count, seed))


def draw_validation(
    labels: torch.Tensor, label_names: list[str], fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of images to fit, and of a random fraction of each class to choose by: [`hold_out_labeled`]."""
    fitted, validation = hold_out_labeled(_labeled_rows(labels, label_names), fraction, seed)
    return _rows(fitted), _rows(validation)


def _labeled_rows(labels: torch.Tensor, label_names: list[str]) -> datasets.Dataset:
    """A split of labels and row numbers without images."""
    label, column = datasets.ClassLabel(names=label_names), labels.tolist()
    if labels.ndim == 2:
        label, column = datasets.List(label), [row.nonzero()[:, 0].tolist() for row in labels]
    return datasets.Dataset.from_dict(
        {"label": column, "row": range(len(labels))},
        features=datasets.Features({"label": label, "row": datasets.Value("int64")}),
        split=datasets.Split.TRAIN,
    )


def _rows(split: datasets.Dataset) -> torch.Tensor:
    return torch.tensor(split["row"][:])
