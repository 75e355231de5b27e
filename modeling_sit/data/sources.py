"""Find the images, the labels and the splits of a dataset of any form."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from modeling_sit.data.dataset_forms import Splits, load_splits, reader_errors
from modeling_sit.data.image_datasets import TRAIN_SPLITS, VALIDATION_SPLITS, ImageDatasets, Shard, dataset_name
from modeling_sit.data.label_encoding import (
    EncodedLabels,
    encode_labels,
    find_image_column,
    find_label_column,
    join,
    label_columns,
    type_name,
)
from modeling_sit.data.opening import max_image_pixels
from modeling_sit.data.split_names import split_named
from modeling_sit.data.unread_splits import SplitStream, UnreadSplit, notes_on_tars
from modeling_sit.data.without_labels import NAME_COLUMN, give_labels, lies_in_files
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import CacheError

logger = logging.getLogger(__name__)

# A dataset that is not stored as a stream is cut into this many shards at most: enough to shuffle and to divide them
# among processes.
MAX_SHARDS_OF_A_TABLE = 256

IN_MEMORY = (datasets.Dataset, datasets.IterableDataset)


def load_images(
    dataset: str | os.PathLike | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset,
    *,
    dataset_config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    streaming: bool = False,
    labels: Literal["required", "if clear"] = "if clear",
) -> ImageDatasets:
    """Find the images, the labels and the splits of a dataset, without decoding an image.

    Args:
        dataset (`str`, path, or object of the `datasets` library):
            One of

            - `digits`: scikit-learn's 1,797 gray 8 x 8 images, 1,437 to train and 360 to test, always the same;
            - a folder of images: class sub-folders, or a pile without labels if images lie in the folder itself.
              Sub-folders that are called like splits (`train`, `seg_test`, `images/val`, ...) are splits by the rule of
              [`~modeling_sit.data.folder_splits`];
            - a parquet or webdataset tar file, which is the `train` split, or a folder of them, in whose names
              (`train-00000-of-00002.parquet`, `NAME-val-0.tar`) or sub-folders a word tells the split. Folders in a tar
              file are read as if it were unpacked;
            - a folder written by `save_to_disk`;
            - the id of a dataset on the Hub;
            - a `datasets.Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`. The last two are
              streamed, whatever `streaming` is.
        dataset_config_name (`str`, *optional*):
            Configuration of a Hub dataset. Of a folder the sub-folder to read, or what stands before the split in the
            files' names.
        image_column (`str`, *optional*):
            Column of the images. Default: the one of type `Image`, or else the one of encoded images (binary, or a
            struct of `bytes` and `path`).
        label_column (`str`, *optional*):
            Column of the labels, or `COLUMN.FIELD` of a struct (such as `json.labels` of a webdataset): `ClassLabel`s,
            integers or strings, or in a multi-label dataset lists of them or multi-hot vectors of booleans or of 0
            and 1. Floats that are whole numbers count as integers. Default: the one column of `ClassLabel`s, or else
            the one with a usual name (`label`, `cls`, ...). Classes without names are sorted and named after their
            values. Null, NaN, empty text and -1 mean no label; -1 beside one other value alone is a class.
        train_split (`str`, *optional*):
            Default: `train`, or the only split. It may name a sub-folder or files that are not called like a split.
        validation_split (`str`, *optional*): Default: `validation`, or else `test`, if there is one.
        streaming (`bool`, *optional*, defaults to `False`):
            Give `datasets.IterableDataset`s, which read images when they are needed. Parquet and tar files and
            datasets on the Hub are then neither copied nor downloaded, so they can be larger than the disk. Class
            labels, lists of them, and integers are kept. Other labels are left out.
        labels (`str`, *optional*, defaults to `"if clear"`):
            With `"if clear"`, labels are optional: if it is not clear which column holds them, or it holds none, a
            warning says so, and the dataset has no labels. With `"required"` that is an error, and so is a dataset
            without labels. A `label_column` that is named must hold labels in either case.

    Returns:
        [`ImageDatasets`]

    Raises:
        [`SiTError`]: If there is no such dataset, file, column or split, it holds nothing to train on, or labels are
            required and there are none, or it is not clear which they are.
        [`CacheError`]: If the dataset goes through the cache of Hugging Face, and that cannot be written.
    """
    in_memory = not isinstance(dataset, (str, os.PathLike))
    if in_memory:
        parts = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
        if not all(isinstance(part, IN_MEMORY) for part in parts):
            raise SiTError(
                f"an object of type {type(dataset).__name__} is no dataset",
                argument="dataset",
                remedy="give a path, the id of a dataset on the Hub, or a `datasets.Dataset`",
            )
    max_image_pixels()  # a wrong value is an error here, and not in a worker
    name = dataset_name(dataset)
    try:
        asked = [split for split in (train_split, validation_split) if split is not None]
        splits = load_splits(dataset, dataset_config_name, streaming, image_column, asked)
        train_split, validation_split = _choose_splits(splits, train_split, validation_split)
        arguments = {train_split: "train_split"} if train_split is not None else {}
        if validation_split is not None:
            arguments.setdefault(validation_split, "validation_split")
        features = {}
        for split in reversed(arguments):  # where columns of one name differ, the training split's counts
            features |= splits[split].features
        image_column = find_image_column(features, image_column)
        names = list(splits)
        wanted = label_columns(features, label_column)
        incomplete = _unfit_columns(splits, wanted)
        if incomplete and label_column is None and labels != "required":
            logger.warning("%s: labels are not read: %s (see `label_column`)", name, "; ".join(incomplete.values()))
            features = {column: feature for column, feature in features.items() if column not in incomplete}
            wanted = label_columns(features, None)
            incomplete = {}
        if incomplete:
            problem = next(iter(incomplete.values()))
            raise SiTError(problem, argument="label_column", remedy="write labels of one kind into all files")
        notes = notes_on_tars({split: splits[split] for split in arguments})
        splits = _read_columns(
            splits, list(arguments), image_column, wanted, labels == "required" or bool(label_column)
        )
        for split, argument in arguments.items():
            if splits[split].num_rows == 0:
                raise SiTError(f"split {split} is empty", argument=argument, remedy="choose another")
        used = {split: splits[split] for split in arguments}
        found = _find_labels(name, splits, used, features, label_column, labels == "required")
        images = {split: _only_image_and_label(rows, split, image_column, found) for split, rows in used.items()}
        if streaming:
            images = {
                split: part if isinstance(part, SplitStream) else _stream_table(part) for split, part in images.items()
            }
    except CacheError:
        raise
    except SiTError as error:
        # A problem of a file begins with it, and the file may be all of the dataset.
        problem = error.problem if error.problem.startswith(f"{name}: ") else f"{name}: {error.problem}"
        raise SiTError(problem, argument=error.argument or "dataset", remedy=error.remedy) from error
    rows = {split: part.rows if isinstance(part, SplitStream) else part for split, part in images.items()}
    train = images.get(train_split)
    return ImageDatasets(
        name=name,
        train=rows.get(train_split),
        validation=rows.get(validation_split),
        label_names=found.label_names if found is not None else None,
        splits=names,
        num_train=train.num_rows if train is not None else None,
        train_shards=train.shards if isinstance(train, SplitStream) else None,
        multi_label=found is not None and found.multi_label,
        in_memory=in_memory,
        image_column=image_column,
        label_column=find_label_column(features, label_column) if found is not None else None,
        notes=notes + (found.notes if isinstance(found, EncodedLabels) else []),
    )


def _choose_splits(splits: Splits, train: str | None, validation: str | None) -> tuple[str | None, str | None]:
    """Names of the training and the validation split; at least one of the two is not `None`."""
    if not splits:
        raise SiTError("it has no split")
    train = _choose_split(splits, train, "train_split", TRAIN_SPLITS)
    if train is None and len(splits) == 1:
        (train,) = splits
    others = [split for split in splits if split != train]
    validation = _choose_split(
        others if validation is None else splits, validation, "validation_split", VALIDATION_SPLITS
    )
    if train is None and validation is None:
        raise SiTError(
            f"it has several splits, none of them with a usual name: {join(splits)}",
            argument="train_split",
            remedy="choose one, or a `validation_split`",
        )
    return train, validation


def _choose_split(splits: Iterable[str], asked: str | None, argument: str, usual: tuple[str, ...]) -> str | None:
    if asked is not None:
        if asked not in splits:
            raise SiTError(f"no split {asked}, only {join(splits)}", argument=argument)
        return asked
    by_name = {split.lower(): split for split in splits}
    return next((by_name[name] for name in usual if name in by_name), None)


def _unfit_columns(splits: Splits, columns: list[str]) -> dict[str, str]:
    """For each column, or struct, that not all files of a split have, or have of one kind, a line that names files."""
    lines = {}
    for split, rows in splits.items():
        for column in columns:
            for name in (column, column.partition(".")[0]):
                if isinstance(rows, UnreadSplit) and name in rows.lacking:
                    lines[name] = f"{rows.lacking[name]} has no column {name}, but other files of split {split} have"
                elif isinstance(rows, UnreadSplit) and name in rows.mixed:
                    lines[name] = f"of column {name}, {rows.mixed[name]}"
    return lines


def _read_columns(splits: Splits, used: list[str], image: str, labels: list[str], is_strict: bool) -> Splits:
    """The splits with the columns that are wanted, of those that are not used only labels. A split that is not used and
    has no labels, or is streamed, may be left out. With `is_strict`, labels that are not what others are are an error."""
    read: Splits = {}
    for split, rows in splits.items():
        if split in used and image not in rows.features:
            raise SiTError(f"split {split} has no column {image}, only {join(rows.features)}", argument="image_column")
        if not isinstance(rows, UnreadSplit):
            read[split] = rows
            continue
        known = [label for label in labels if label in label_columns(rows.features, label)]
        with reader_errors(f"split {split} cannot be read"):
            if split in used:
                read[split] = rows.read(image, known, is_strict)
            elif known and not rows.streaming:
                read[split] = rows.read(None, known, is_strict)
    return read


@dataclass
class _StreamedLabels:
    """Which column holds the labels of a stream, the classes' names if they are known, and whether it holds lists."""

    column: str
    label_names: list[str] | None
    multi_label: bool


def _find_labels(
    name: str, splits: Splits, used: Splits, features: dict[str, Any], label_column: str | None, required: bool
) -> EncodedLabels | _StreamedLabels | None:
    """The labels of the splits. `None` if there are none, or they are not required and not clear."""
    found = None
    try:
        column = find_label_column(features, label_column)
        if column and any(isinstance(rows, SplitStream) for rows in splits.values()):
            found = _labels_of_streams(list(used.values()), column)
        elif column:
            # Splits that are not used take part, so that the index of a class does not depend on which are.
            found = encode_labels(splits, column)
        if found is None and required:
            rows = next(iter(used.values()))
            if column is None and lies_in_files(name, rows):
                reason = "the images do not lie in folders of classes"
                raise SiTError(f"no labels: {reason}", argument="label_column", remedy=give_labels(name, rows))
            reason = f"column {column} holds none" if column else f"no column of labels among {join(features)}"
            raise SiTError(f"no labels: {reason}", argument="label_column", remedy=NAME_COLUMN)
    except SiTError as error:
        if required or label_column is not None:
            raise
        logger.warning("%s: labels are not read: %s (see `label_column`)", name, error.problem)
    return found


def _labels_of_streams(streams: list[SplitStream], column: str) -> _StreamedLabels:
    """The labels of these splits, left as they are stored: they must mean the same in all splits."""
    features = [stream.features.get(column) for stream in streams]
    is_index = isinstance(features[0], datasets.Value) and re.fullmatch(r"u?int\d+", features[0].dtype) is not None
    multi_label = isinstance(features[0], datasets.List)
    one_class = features[0].feature if multi_label else features[0]
    if not (is_index or isinstance(one_class, datasets.ClassLabel)) or any(other != features[0] for other in features):
        raise SiTError(
            f"column {column}: the labels of a stream must be class labels, lists of them, or integers, the same in all "
            f"its splits, not {join(type_name(feature) for feature in features)}",
            argument="label_column",
            remedy="leave it out, for pretraining needs no labels",
        )
    return _StreamedLabels(column, getattr(one_class, "names", None), multi_label)


def _only_image_and_label(
    rows: datasets.Dataset | SplitStream,
    split: str,
    image_column: str,
    labels: EncodedLabels | _StreamedLabels | None,
) -> datasets.Dataset | SplitStream:
    if isinstance(rows, SplitStream):
        return _only_streamed_image_and_label(rows, image_column, labels)
    if rows.features[image_column] == datasets.Value("binary_view"):  # `datasets` does not make images of it
        rows = rows.cast_column(image_column, datasets.Value("large_binary"))
    table = rows.select_columns([image_column])
    if image_column != "image":
        table = table.rename_column(image_column, "image")
    table = table.cast_column("image", datasets.Image(decode=False))
    if labels is not None:
        table = _add_labels(table, labels.columns[split], labels.feature)
    # Files and saved datasets do not always know which split they are. The name of a split is one of word characters.
    name = split_named(split)
    return datasets.Dataset(table.data, info=table.info, split=name, indices_table=table._indices)


def _add_labels(
    table: datasets.Dataset, labels: pa.Array, feature: datasets.ClassLabel | datasets.List
) -> datasets.Dataset:
    data = table.data
    if isinstance(data, datasets.table.ConcatenationTable):
        # Parts of a table from which every column was taken would count as tables of no rows.
        parts = [[block for block in row if block.num_columns > 0] for row in data.blocks]
        data = datasets.table.ConcatenationTable.from_blocks(parts)
    if table._indices is None:
        return datasets.Dataset(data, info=table.info, split=table.split).add_column("label", labels, feature=feature)
    # A selection of rows: `add_column` would copy its images. Instead all rows get labels; those that are not selected
    # get any.
    selected = table._indices.column(0).to_numpy()
    place = np.zeros(len(table.data), dtype=np.int64)
    place[selected] = np.arange(len(selected))
    whole = datasets.Dataset(data, info=table.info)
    whole = whole.add_column("label", labels.take(pa.array(place)), feature=feature)
    return datasets.Dataset(whole.data, info=whole.info, indices_table=table._indices)


def _only_streamed_image_and_label(
    stream: SplitStream, image_column: str, labels: _StreamedLabels | None
) -> SplitStream:
    columns = {"image": image_column, **({"label": labels.column} if labels is not None else {})}
    # Before anything else: otherwise images are decoded on the way, even if only to rename them.
    rows = stream.rows.decode(False).select_columns(list(columns.values()))
    renamed = {column: name for name, column in columns.items() if column != name}
    rows = rows.rename_columns(renamed) if renamed else rows
    return SplitStream(rows.cast_column("image", datasets.Image(decode=False)), stream.shards, stream.num_rows)


def _stream_table(table: datasets.Dataset) -> SplitStream:
    num_shards = min(len(table), MAX_SHARDS_OF_A_TABLE)
    size, larger = divmod(len(table), num_shards)
    # `Dataset.shard` makes contiguous shards. If they cannot be equal, the first ones are longer by a row.
    shards = [Shard(str(table.split), number * size + min(number, larger)) for number in range(num_shards)]
    return SplitStream(table.to_iterable_dataset(num_shards=num_shards), shards, len(table))
