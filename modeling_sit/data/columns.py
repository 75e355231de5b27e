"""Which columns of a data set hold pictures and labels, and one encoding for the labels of all its splits."""

import re
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_sit.cli.errors import UserError

# the first of these that there is
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "category", "fine_label")


def find_image_column(features: dict[str, Any], asked: str | None) -> str:
    """The column of the pictures: the one `asked` for, else the only one of that type."""
    if asked is not None:
        if asked not in features:
            raise UserError(f"--image_column {asked}: no such column, only {listed(features)}")
        if not isinstance(features[asked], datasets.Image) and not _holds_encoded_pictures(features[asked]):
            raise UserError(f"--image_column {asked}: the column does not hold pictures, but {features[asked]}")
        return asked
    columns = _picture_columns(features)
    if not columns:
        raise UserError(f"no column of pictures among {listed(features)}; name it with --image_column")
    if len(columns) > 1:
        raise UserError(f"several columns of pictures: {listed(columns)}; choose one with --image_column")
    return columns[0]


def _picture_columns(features: dict[str, Any]) -> list[str]:
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return typed or [column for column, feature in features.items() if _holds_encoded_pictures(feature)]


def _holds_encoded_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):  # a struct, as pandas writes `Image` columns
        return "bytes" in feature and set(feature) <= {"bytes", "path"} and _holds_encoded_pictures(feature["bytes"])
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def find_label_column(features: dict[str, Any], asked: str | None) -> str | None:
    """The column of the labels: the one `asked` for, else the only `ClassLabel`, else one with a usual name, else `None`."""
    if asked is not None:
        if asked not in features:
            raise UserError(f"--label_column {asked}: no such column, only {listed(features)}")
        if not _holds_labels(features[asked]):
            raise UserError(
                f"--label_column {asked}: not one class per picture (integer or string), but {features[asked]}"
            )
        return asked
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    columns = typed or [
        column for column, feature in features.items() if column.lower() in LABEL_COLUMNS and _holds_labels(feature)
    ]
    if len(columns) > 1:
        raise UserError(f"several columns of labels: {listed(columns)}; choose one with --label_column")
    return columns[0] if columns else None


def _holds_labels(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return (
        isinstance(feature, datasets.Value)
        and re.fullmatch(r"u?int\d+|bool|(large_)?string", feature.dtype) is not None
    )


def encode_labels(splits: dict[str, datasets.Dataset], column: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """Give the labels of all splits one encoding.

    Args:
        splits (`dict[str, datasets.Dataset]`): The splits; some may lack the column.
        column (`str`): Name of the column of the labels.

    Returns:
        `tuple`: The class indices of each split, `(num_rows,)`, int64, -1 for no label; and the classes' names, or `None`
        if no picture has a label.
    """
    values, features = {}, []
    for split, dataset in splits.items():
        feature = dataset.features.get(column, datasets.Value("null"))
        if feature == datasets.Value("null"):
            values[split] = pa.chunked_array([pa.nulls(len(dataset), pa.int64())])
        elif _holds_labels(feature):
            values[split] = dataset.select_columns([column]).with_format("arrow")[:].column(column)
            features.append(feature)
        else:
            raise UserError(f"column {column} of split {split}: not one class per picture, but {feature}")

    names = features[0].names if isinstance(features[0], datasets.ClassLabel) else None
    if names is None or any(getattr(feature, "names", None) != names for feature in features):
        values = {split: _named(array, splits[split].features.get(column)) for split, array in values.items()}
        if any(pa.types.is_large_string(array.type) for array in values.values()):
            values = {split: array.cast(pa.large_string()) for split, array in values.items()}
        classes = sorted(set().union(*(array.unique().to_pylist() for array in values.values())) - {None, -1})
        if not classes:
            return {}, None
        names = [str(value) for value in classes]
        values = {split: pc.index_in(array, pa.array(classes, array.type)) for split, array in values.items()}
    return {split: array.fill_null(-1).to_numpy().astype(np.int64) for split, array in values.items()}, names


def _named(values: pa.ChunkedArray, feature: Any) -> pa.ChunkedArray:
    """Class indices with names, strings and booleans become strings; integers stay."""
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        names = pa.chunked_array([pa.array(feature.names, pa.large_string())])
        return names.take(pc.if_else(pc.less(values, 0), None, values))
    return values.cast(pa.int64() if pa.types.is_integer(values.type) else pa.large_string())


def listed(names: Iterable[str]) -> str:
    """Names as a message lists them."""
    return ", ".join(names)
