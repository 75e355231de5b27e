"""Which columns of a dataset hold images and labels, and one encoding for the labels of all its splits."""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_sit.data.missing_labels import LabelValues, check_minus_one, classes_in
from modeling_sit.runtime.errors import SiTError

# Of a column in which every row is null.
NO_TYPE = datasets.Value("null")
LABEL_COLUMNS = {
    *("label", "labels", "class", "classes", "cls", "target", "targets", "category", "categories", "fine_label")
}
# Masks with a class for each pixel.
MASK_COLUMNS = {
    *("label", "labels", "annotation", "annotations", "mask", "masks", "segmentation", "semantic_mask", "gt"),
}
# From here on, float64 does not tell neighboring integers apart.
LARGEST_WHOLE_FLOAT = 2.0**53


def find_image_column(features: dict[str, Any], asked: str | None) -> str:
    """The column of the images: the one `asked` for, or else the only one of that type.

    Raises:
        [`SiTError`]: If there is no such column, or there are several.
    """
    if asked is not None:
        if asked not in features:
            raise SiTError(f"no column {asked}, only {join(features)}", argument="image_column")
        if not isinstance(features[asked], datasets.Image) and not _holds_encoded_images(features[asked]):
            raise SiTError(
                f"column {asked} does not hold images, but {type_name(features[asked])}", argument="image_column"
            )
        return asked
    columns = image_columns(features)
    if not columns:
        texts = [column for column in features if _holds_paths(column, features[column])]
        remedy = (
            f"name it; {join(texts)} holds text: write the images' bytes in place of paths" if texts else "name it"
        )
        raise SiTError(f"no column of images among {join(features)}", argument="image_column", remedy=remedy)
    if len(columns) > 1:
        raise SiTError(f"several columns of images: {join(columns)}", argument="image_column", remedy="choose one")
    return columns[0]


def image_columns(features: dict[str, Any]) -> list[str]:
    """The columns that hold images: those of type `Image`, or else those of encoded images, first those that are not called
    like labels or masks."""
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if typed:
        return [column for column in typed if column.lower() not in MASK_COLUMNS] or typed
    encoded = [column for column, feature in features.items() if _holds_encoded_images(feature)]
    return [column for column in encoded if not _has_usual_name(column, features)] or encoded


def _holds_encoded_images(feature: Any) -> bool:
    if isinstance(feature, dict):  # a struct, as pandas writes `Image` columns
        return "bytes" in feature and set(feature) <= {"bytes", "path"} and _holds_encoded_images(feature["bytes"])
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "binary_view")


def _holds_paths(column: str, feature: Any) -> bool:
    is_text = getattr(feature, "dtype", None) in ("string", "large_string")
    return is_text and any(word in column.lower() for word in ("image", "img", "path", "file", "photo"))


def find_label_column(features: dict[str, Any], asked: str | None) -> str | None:
    """The column of the labels: the one `asked` for, or else the only one of class labels, or else the only one with a
    usual name, or else `None`.

    Fields of a struct are called `COLUMN.FIELD`, as `json.labels` in a webdataset's `.json` files.

    Raises:
        [`SiTError`]: If there is no such column, it holds no labels, or there are several.
    """
    fields = _with_struct_fields(features)
    if asked is not None:
        if asked not in fields:
            raise SiTError(f"no column {asked}, only {join(features)}", argument="label_column")
        if not _holds_labels(fields[asked]):
            raise _no_labels(asked, fields[asked])
        return asked
    columns = [column for column in features if isinstance(_of_one_class(features[column]), datasets.ClassLabel)]
    others = [column for column in fields if _has_usual_name(column, features) and fields[column] != NO_TYPE]
    columns = columns or [column for column in others if _holds_labels(fields[column])]
    # A column of floats may hold what is measured, and is taken for labels only if no other column is.
    columns = [column for column in columns if not _holds_floats(fields[column])] or columns
    if len(columns) > 1:
        raise SiTError(f"several columns of labels: {join(columns)}", argument="label_column", remedy="choose one")
    if others and not columns:
        raise _no_labels(others[0], fields[others[0]], remedy="name another")
    return columns[0] if columns else None


def label_columns(features: dict[str, Any], asked: str | None) -> list[str]:
    """The columns, and the fields of structs, that [`find_label_column`] may choose."""
    fields = _with_struct_fields(features)
    if asked is not None:
        return [asked] if asked in fields else []
    typed = [column for column in features if isinstance(_of_one_class(features[column]), datasets.ClassLabel)]
    return typed or [column for column in fields if _has_usual_name(column, features)]


def _has_usual_name(column: str, features: dict[str, Any]) -> bool:
    """Whether a column has a name such as `Label`, or in a webdataset `labels.json` or the field `json.labels`.

    Fields of other structs have not: their classes may belong to boxes, not to the image.
    """
    struct, _, field = column.lower().partition(".")
    return (struct if column in features else field if struct == "json" else None) in LABEL_COLUMNS


def _no_labels(column: str, feature: Any, remedy: str | None = None) -> SiTError:
    if _holds_encoded_images(feature):
        return SiTError(
            f"column {column} holds bytes, which are no labels",
            argument="label_column",
            remedy="store the labels as text or whole numbers, or name another column",
        )
    return SiTError(
        f"column {column} holds not one class for each image (whole number or string) or a list of them, but "
        f"{type_name(feature)}",
        argument="label_column",
        remedy=remedy,
    )


def _with_struct_fields(features: dict[str, Any]) -> dict[str, Any]:
    fields = dict(features)
    for column, feature in features.items():
        if isinstance(feature, dict):
            fields |= {
                f"{column}.{name}": inner for name, inner in feature.items() if f"{column}.{name}" not in fields
            }
    return fields


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (datasets.List, datasets.LargeList))


def _of_one_class(feature: Any) -> Any:
    """The feature of one class, where a row may hold one or a list of them."""
    return feature.feature if _is_list(feature) else feature


def _holds_labels(feature: Any) -> bool:
    one_class = _of_one_class(feature)
    if isinstance(one_class, datasets.ClassLabel):
        return True
    # A list that is empty in every row has elements of no type. Whether floats are whole numbers, only their values say.
    pattern = r"u?int\d+|bool|float\d+|(large_)?string(_view)?" + ("|null" if _is_list(feature) else "")
    return isinstance(one_class, datasets.Value) and re.fullmatch(pattern, one_class.dtype) is not None


def _holds_floats(feature: Any) -> bool:
    return str(getattr(_of_one_class(feature), "dtype", "")).startswith("float")


@dataclass
class EncodedLabels:
    """The labels of all splits in one encoding.

    Args:
        columns (`dict[str, pa.Array]`):
            Of each split, int64, `(num_rows,)`, -1 for no label. Or, where an image may have several classes, lists of
            int64, ascending: null for no label known, empty for none of the classes.
        label_names (`list[str]`): The classes, in the order of their indices.
        multi_label (`bool`): Whether an image may have several classes.
        notes (`list[str]`, *optional*): What was understood that a user may not expect, a line each.
    """

    columns: dict[str, pa.Array]
    label_names: list[str]
    multi_label: bool
    notes: list[str] = field(default_factory=list)

    @property
    def feature(self) -> datasets.ClassLabel | datasets.List:
        """The type of each column."""
        one_class = datasets.ClassLabel(names=self.label_names)
        return datasets.List(one_class) if self.multi_label else one_class


def encode_labels(splits: dict[str, datasets.Dataset], column: str) -> EncodedLabels | None:
    """Give the labels of all splits one encoding.

    A column of lists makes a multi-label dataset. Vectors of booleans, and lists of one length, at least 2, that hold
    nothing but 0 and 1, are multi-hot: an entry for each class says whether the image has it. Null and -1 in other lists
    are padding.

    In texts, empty ones and what programs write for a missing value (`nan`, `<NA>`) are no label, and `None`, `null` and `N/A`
    if there are two other classes.

    Floats are taken for integers if all of them are whole numbers, and then NaN is no label: so pandas stores integers
    with gaps. Of integers without names, -1 is no label too, unless there is only one other value: then the two are the
    classes.

    Args:
        splits (`dict[str, datasets.Dataset]`): The splits; some may lack the column.
        column (`str`): Name of the column of the labels, or `COLUMN.FIELD` of a struct.

    Returns:
        [`EncodedLabels`], or `None` if no image has a label.

    Raises:
        [`SiTError`]: If a split's column holds no labels, one of a class without a name, numbers that are not whole, or
            lists only in some splits.
    """
    features = {split: _with_struct_fields(dataset.features).get(column) for split, dataset in splits.items()}
    features = {split: feature for split, feature in features.items() if feature not in (None, NO_TYPE)}
    for split, feature in features.items():
        if not _holds_labels(feature):
            raise _no_labels(f"{column} of split {split}", feature)
    if not features:
        return None
    multi_label = _is_list(next(iter(features.values())))
    for split, feature in features.items():
        if _is_list(feature) != multi_label:
            raise SiTError(
                f"column {column}: lists of classes in some splits, and one class an image in {split}",
                argument="label_column",
            )

    found = {split: _values_of(splits[split], split, column, feature) for split, feature in features.items()}
    if multi_label:
        check_minus_one(found, column)
        found = _from_multi_hot(found, column)
    indices, names, notes = _encode_values(found, column)
    if not names:
        return None
    columns = {}
    for split, dataset in splits.items():
        if not multi_label:
            columns[split] = pa.array(indices.get(split, np.full(len(dataset), -1)), pa.int64())
        elif split in found:
            columns[split] = _list_array(indices[split], found[split].lengths, len(names))
        else:
            columns[split] = pa.nulls(len(dataset), pa.list_(pa.int64()))
    return EncodedLabels(columns, names, multi_label, notes)


def _values_of(dataset: datasets.Dataset, split: str, column: str, feature: Any) -> LabelValues:
    if column in dataset.features:
        values = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    else:
        struct, _, name = column.partition(".")
        values = pc.struct_field(dataset.select_columns([struct]).with_format("arrow")[:].column(struct), name)
    lengths = None
    if _is_list(feature):
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy().astype(np.int64)
        values, feature = pc.list_flatten(values), feature.feature
    if pa.types.is_floating(values.type):
        values, feature = _whole_numbers(values, f"{column} of split {split}"), datasets.Value("int64")
    return LabelValues(values, feature, lengths)


def _whole_numbers(values: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Floats that are whole numbers as integers, NaN as null.

    Raises:
        [`SiTError`]: If one is not whole.
    """
    values = values.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), LARGEST_WHOLE_FLOAT))
    others = values.filter(pc.invert(is_whole))
    if len(others):
        raise SiTError(
            f"column {column} holds numbers that are not whole, such as {others[0].as_py():g}, and so no classes",
            argument="label_column",
            remedy="sort the numbers into classes, in a column of whole numbers or text, and name that one",
        )
    return values.cast(pa.int64())


def _from_multi_hot(found: dict[str, LabelValues], column: str) -> dict[str, LabelValues]:
    """Lists of classes out of multi-hot vectors; other lists as they are."""
    lengths = {int(length) for split in found.values() for length in np.unique(split.lengths) if length >= 0}
    are_booleans = [getattr(split.feature, "dtype", None) == "bool" for split in found.values()]
    if any(are_booleans):
        if not all(are_booleans) or len(lengths) != 1:
            raise SiTError(
                f"column {column}: vectors of booleans must have the same length in every row", argument="label_column"
            )
    elif not (
        len(lengths) == 1
        and min(lengths) >= 2
        and all(pa.types.is_integer(split.values.type) for split in found.values())
        and not any(isinstance(split.feature, datasets.ClassLabel) for split in found.values())
        and all(
            pc.all(pc.is_in(split.values, pa.array([0, 1], split.values.type))).as_py() for split in found.values()
        )
    ):
        return found
    (num_classes,) = lengths
    names = datasets.ClassLabel(names=[str(number) for number in range(num_classes)])
    lists = {}
    for split, (values, _, lengths_of_split) in found.items():
        known = lengths_of_split >= 0
        has_class = pc.fill_null(values.cast(pa.bool_()), False).to_numpy().reshape(-1, num_classes)
        counts = np.full(len(known), -1)
        counts[known] = has_class.sum(axis=1)
        lists[split] = LabelValues(pa.chunked_array([pa.array(np.nonzero(has_class)[1])]), names, counts)
    return lists


def _encode_values(found: dict[str, LabelValues], column: str) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Class indices of each split's values, -1 for none; the classes' names, of which there may be none; and notes."""
    notes = []
    values = {split: part.values for split, part in found.items()}
    # Lists that are all empty have elements of no type, and no names.
    features = [part.feature for part in found.values() if part.feature != NO_TYPE]
    names = features[0].names if features and isinstance(features[0], datasets.ClassLabel) else None
    for split, part in found.items():
        if isinstance(part.feature, datasets.ClassLabel) and part.feature.names:
            largest = pc.max(part.values).as_py()
            if largest is not None and largest >= len(part.feature.names):
                raise SiTError(
                    f"column {column} of split {split}: a label {largest}, but names for {len(part.feature.names)} "
                    "classes",
                    argument="label_column",
                )
    if names is None or any(getattr(feature, "names", None) != names for feature in features):
        values = {split: _named(array, found[split].feature) for split, array in values.items()}
        if any(pa.types.is_large_string(array.type) for array in values.values()):
            values = {split: array.cast(pa.large_string()) for split, array in values.items()}
        classes, notes = classes_in(values, found)
        names = [str(value) for value in classes]
        values = {split: pc.index_in(array, pa.array(classes, array.type)) for split, array in values.items()}
    indices = {split: array.cast(pa.int64()).fill_null(-1).to_numpy() for split, array in values.items()}
    return {split: np.maximum(array, -1) for split, array in indices.items()}, names, notes


def _named(values: pa.ChunkedArray, feature: Any) -> pa.ChunkedArray:
    """Class indices with names, strings and booleans become strings; integers stay."""
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        names = pa.chunked_array([pa.array(feature.names, pa.large_string())])
        return names.take(pc.if_else(pc.less(values, 0), None, values))
    stays_integer = pa.types.is_integer(values.type) or pa.types.is_null(values.type)
    return values.cast(pa.int64() if stays_integer else pa.large_string())


def _list_array(indices: np.ndarray, lengths: np.ndarray, num_labels: int) -> pa.ListArray:
    """The classes of each row, ascending, each once, without -1; null in rows of length -1."""
    rows = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))
    is_class = indices >= 0
    rows, classes = np.divmod(np.unique(rows[is_class] * num_labels + indices[is_class]), num_labels)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lengths)))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(classes, pa.int64()), mask=pa.array(lengths < 0)
    )


def type_name(feature: Any) -> str:
    """A column's type in one short line, for a message."""
    return textwrap.shorten(" ".join(str(feature).split()), 120, placeholder=" ...")


def natural_order(names: Iterable[str]) -> list[str]:
    """Names for people, with their numbers in order (1, 2, 10), if they are sorted by characters (1, 10, 2). Another order
    may mean something, and stays."""
    names = list(names)
    return sorted(names, key=_numbers_first) if names == sorted(names) else names


def _numbers_first(name: str) -> list[tuple[int, int, str]]:
    # Only ASCII digits: `int` knows no superscripts.
    return [
        (0, int(part), "") if number % 2 else (1, 0, part) for number, part in enumerate(re.split(r"([0-9]+)", name))
    ]


def join(names: Iterable[str]) -> str:
    """Names in a list, for a message."""
    return ", ".join(names)
