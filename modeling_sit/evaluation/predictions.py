"""What a classifier predicts for each image of a split, in a file beside its results."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_sit.runtime.atomic_files import replace_file, write_errors

PREDICTIONS_FILE = "predictions.csv"
COLUMNS, PATH = ("image", "label", "predicted"), "path"


@dataclass(frozen=True)
class Predictions:
    """
    The label and the predicted class of each image that could be read.

    Args:
        rows (`np.ndarray` of shape `(num_images,)`): The row of each image in its split, from 0 on.
        labels (`np.ndarray` of shape `(num_images,)`): Index of its class.
        predicted (`np.ndarray` of shape `(num_images,)`): Index of the class that is predicted.
        paths (sequence of `str` or `None`, *optional*): The path of its file, as far as that is known.
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    paths: Sequence[str | None] | None = None

    def write(self, path: Path, label_names: Sequence[str]) -> None:
        """
        Write a line for each image: its row, the names of both classes, and its path if one is known of any. The file is
        replaced as a whole.

        Args:
            path (`Path`): The file.
            label_names (sequence of `str`): Names of the classes, in the order of their indices.

        Raises:
            [`SiTError`]: If the file cannot be written.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        paths = self.paths or [None] * len(self.rows)
        has_paths = any(path is not None for path in paths)
        writer.writerow([*COLUMNS, PATH] if has_paths else COLUMNS)
        for row, *classes, image in zip(self.rows, self.labels, self.predicted, paths, strict=True):
            line = [int(row), *(label_names[int(index)] for index in classes)]
            writer.writerow([*line, image] if has_paths else line)
        with (
            write_errors(path, remedy="make room, or name another folder"),
            replace_file(path, f"{os.getpid()}-") as file,
        ):
            file.write_text(table.getvalue(), encoding="utf-8", newline="")


def read_hits(path: Path) -> dict[int, bool] | None:
    """Whether the predicted class of each image is its label, by the image's row in its split. `None` if there is no such
    file, or it is not of [`Predictions`]."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {int(line["image"]): line["label"] == line["predicted"] for line in csv.DictReader(file)}
    except (FileNotFoundError, KeyError, ValueError, csv.Error):
        return None


def hits_of(paths: Sequence[Path]) -> np.ndarray | None:
    """
    Whether several classifiers are right on the same images.

    Args:
        paths (sequence of `Path`): The file of each classifier.

    Returns:
        `np.ndarray` of shape `(num_classifiers, num_images)`, bool: In the order of the images. `None` if a file is
        missing, or is of other images.
    """
    found = [read_hits(path) for path in paths]
    if not found or any(hits is None or hits.keys() != found[0].keys() for hits in found):
        return None
    return np.array([list(hits.values()) for hits in found])
