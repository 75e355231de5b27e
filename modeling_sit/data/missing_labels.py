"""Values in a column of labels that stand for no label: -1, and texts such as `nan`."""

from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_sit.runtime.errors import SiTError

# Of the integers that stand for classes, the one that stands for none.
NO_LABEL = -1
NULL = np.iinfo(np.int64).min
# Texts that programs write for a value that is missing. Those of the second kind may be the name of a class (no defect).
MISSING_TEXTS = {"", "nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NaT"}
DOUBTFUL_TEXTS = {"None", "null", "NULL", "N/A", "n/a", "#N/A"}


class LabelValues(NamedTuple):
    """A column of a split: one value a row, or all values of its lists and how many each row has (-1: null)."""

    values: pa.ChunkedArray
    feature: Any
    lengths: np.ndarray | None


def classes_in(values: dict[str, pa.ChunkedArray], found: dict[str, LabelValues]) -> tuple[list[int | str], list[str]]:
    """The classes in these values, sorted, and notes on values that are none of them."""
    distinct = set().union(*(array.unique().to_pylist() for array in values.values())) - {None}
    if any(isinstance(part.feature, datasets.ClassLabel) for part in found.values()):  # of these, names are names
        return sorted(distinct - {NO_LABEL}), []
    missing = {value for value in distinct if isinstance(value, str) and value.strip() in MISSING_TEXTS}
    missing |= {NO_LABEL} & distinct
    doubtful = {value for value in distinct - missing if isinstance(value, str) and value.strip() in DOUBTFUL_TEXTS}
    if len(distinct - missing - doubtful) > 1:
        missing |= doubtful
    classes = sorted(distinct - missing)
    if NO_LABEL in missing and any(part.lengths is not None for part in found.values()):
        return classes, []
    # The labels of many two-class methods; without -1 there would be nothing to tell apart.
    if NO_LABEL in missing and len(classes) == 1:
        return [NO_LABEL, *classes], []
    return classes, [_note_on_missing(values, missing)] if missing else []


def _note_on_missing(values: dict[str, pa.ChunkedArray], missing: set[int | str]) -> str:
    number = sum(
        pc.sum(pc.is_in(array, pa.array(sorted(missing), array.type))).as_py() or 0 for array in values.values()
    )
    shown = ", ".join(dict.fromkeys(str(value).strip() or "empty" for value in sorted(missing)))
    another = "write the labels as text" if NO_LABEL in missing else "give it another name"
    return (
        f"{number:,} of {sum(map(len, values.values())):,} labels are {shown}, which means no label here; if it is a class, "
        f"{another}"
    )


def check_minus_one(found: dict[str, LabelValues], column: str) -> None:
    """Raise a [`SiTError`] if it is not clear what -1 means in lists. It is padding in lists of one length, in which no class
    is twice, and beside classes."""
    lengths = {int(length) for part in found.values() for length in np.unique(part.lengths) if length >= 0}
    for split, part in found.items():
        if not pa.types.is_signed_integer(part.values.type) or not len(part.values):
            continue
        values = pc.fill_null(part.values.cast(pa.int64()), NULL).to_numpy()
        rows = np.repeat(np.arange(len(part.lengths)), np.maximum(part.lengths, 0))
        num_classes = np.bincount(rows[values >= 0], minlength=len(part.lengths))
        num_unknown = np.bincount(rows[values == NO_LABEL], minlength=len(part.lengths))
        bare = (num_unknown > 0) & (num_classes == 0)
        if len(lengths) > 1 and bare.any():
            raise SiTError(
                f"column {column} of split {split}: {int(bare.sum()):,} lists hold -1 and no class",
                argument="label_column",
                remedy="write null where no label is known, and an empty list where the image has none of the classes",
            )
        if len(lengths) == 1 and num_unknown.any() and values.max() <= 1:
            is_twice = np.unique(np.stack([rows, values])[:, values >= 0], axis=1).shape[1] < int((values >= 0).sum())
            if is_twice:
                raise SiTError(
                    f"column {column} of split {split}: vectors of 0 and 1 hold -1 too",
                    argument="label_column",
                    remedy="write 0 or 1 in its place, or null in the place of a vector that is not known",
                )
