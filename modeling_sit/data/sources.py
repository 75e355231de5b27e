"""Where images come from: a folder, parquet or webdataset files, a saved dataset, the Hub, or the built-in digits."""

import functools
import glob
import importlib.util
import io
import itertools
import logging
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from modeling_sit.data.decoding import DraftScale, UnreadableImage, decode_image
from modeling_sit.data.label_encoding import (
    EncodedLabels,
    described,
    encode_labels,
    find_image_column,
    find_label_column,
    listed,
)
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

TRAIN_SPLITS = ("train", "training")
VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "test", "testing")
TEST_SPLITS = ("test", "testing")
# Pillow knows these when it sees them, and cannot decode them: videos and arrays that lie beside the images.
UNDECODABLE_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
# Into how many shards a set that lies open in memory is cut to be streamed: enough to shuffle and to share them.
MAX_SHARDS_OF_A_TABLE = 256


@dataclass
class Shard:
    """A part of a stream, for those who name its rows.

    Args:
        name (`str`): Its file, or what else to call it.
        first_row (`int`, *optional*, defaults to 0): Number, in what `name` names, of the shard's first row.
    """

    name: str
    first_row: int = 0


@dataclass
class ImageDatasets:
    """The images of a dataset, not decoded yet.

    Each split has the columns `image` (a `datasets.Image(decode=False)`: `{"bytes": ..., "path": ...}`, or `None` in a
    row without an image) and, if `label_names` is not `None`, `label`, with the same encoding in all splits:

    - a `datasets.ClassLabel`, -1 where an image has no label, as in the Hub's test sets;
    - in a multi-label set a `datasets.List` of such, the indices of the image's classes, ascending; null where no label is
      known, and an empty list where the image has none of the classes.

    Splits that are streamed have the same columns, with labels as they are stored: of classes whose names the dataset
    does not tell, `label` holds integers, and `label_names` is `None`.

    Args:
        name (`str`): What the user gave as `--dataset`, for logs and model cards.
        train (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            `None` if there are several splits and none is called `train`.
        validation (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            `None` if the dataset has no such split; none is made up.
        label_names (`list[str]`, *optional*): Names of the classes, in the order of their indices.
        splits (`list[str]`): Names of all splits of the dataset, also of those not used.
        num_train (`int`, *optional*):
            Number of images to train on; `None` if that is not known without reading the whole stream.
        train_shards (`list[Shard]`, *optional*): What `train` is made of, in its order, where it is streamed.
        multi_label (`bool`, *optional*, defaults to `False`): Whether an image may have several classes.
    """

    name: str
    train: datasets.Dataset | datasets.IterableDataset | None
    validation: datasets.Dataset | datasets.IterableDataset | None
    label_names: list[str] | None
    splits: list[str]
    num_train: int | None = None
    train_shards: list[Shard] | None = None
    multi_label: bool = False


@dataclass
class _Stream:
    """A split that is streamed, with all its columns."""

    rows: datasets.IterableDataset
    shards: list[Shard]
    num_rows: int | None

    @property
    def features(self) -> datasets.Features:
        return self.rows.features


def load_images(
    dataset: str,
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
        dataset (`str`):
            One of

            - `digits`: scikit-learn's 1,797 grey 8 x 8 images, 1,437 to train and 360 to test, always the same;
            - a folder of images: class sub-folders, or a pile without labels if images lie in the folder itself.
              If the sub-folders with images are all called like splits (`train`, `val`, `test`, ...), they are splits;
            - a parquet or webdataset tar file, which is the `train` split, or a folder of them, whose names
              (`train-00000-of-00002.parquet`) or sub-folders tell the split;
            - a folder written by `save_to_disk`;
            - the id of a dataset on the Hub.
        dataset_config_name (`str`, *optional*): Configuration of a Hub dataset.
        image_column (`str`, *optional*):
            Column of the images. Default: the one of type `Image`, or else the one of encoded images (binary, or a
            struct of `bytes` and `path`).
        label_column (`str`, *optional*):
            Column of the labels, or `COLUMN.FIELD` of a struct (such as `json.labels` of a webdataset): `ClassLabel`s,
            integers or strings, or in a multi-label set lists of them or multi-hot vectors of booleans or of 0 and 1.
            Default: the one column of `ClassLabel`s, or else the one with a usual name (`label`, `cls`, ...). Classes
            without names are sorted and named after their values. -1 and null are no label.
        train_split (`str`, *optional*): Default: `train`, or the only split.
        validation_split (`str`, *optional*): Default: `validation`, or else `test`, where there is one.
        streaming (`bool`, *optional*, defaults to `False`):
            Give `datasets.IterableDataset`s, which read images when they are asked for. Parquet and tar files and data
            sets on the Hub are then neither copied nor downloaded, so that they can be larger than the disk. Class labels,
            also lists of them, and integers are kept, other labels left out.
        labels (`str`, *optional*, defaults to `"if clear"`):
            With `"if clear"`, for those who can do without: if it is not clear which column holds the labels, or it holds
            none, a warning says so, and the set has no labels. With `"required"` that is an error, and so is a set without
            labels. A `label_column` that is named must hold labels in either case.

    Returns:
        [`ImageDatasets`]

    Raises:
        [`SiTError`]: If there is no such dataset, file, column or split, it holds nothing to train on, or labels are
            required and there are none, or it is not clear which they are.
    """
    try:
        splits = _load_splits(dataset, dataset_config_name, streaming)
        train_split = _choose_split(splits, train_split, "--train_split", TRAIN_SPLITS)
        if train_split is None and len(splits) == 1:
            (train_split,) = splits
        others = [split for split in splits if split != train_split]
        validation_split = _choose_split(
            others if validation_split is None else splits, validation_split, "--validation_split", VALIDATION_SPLITS
        )
        chosen = [split for split in (train_split, validation_split) if split is not None]
        if not chosen:
            raise SiTError(f"which split? It has {listed(splits)}; choose with --train_split or --validation_split")
        features = {**splits[chosen[-1]].features, **splits[chosen[0]].features}
        image_column = find_image_column(features, image_column)
        are_streams = any(isinstance(split, _Stream) for split in splits.values())
        used = {split: splits[split] for split in chosen}
        try:
            column = find_label_column(features, label_column)
            # The splits that are not used take part: a class has the same index whichever are.
            found = (
                (_labels_of_streams(used, column) if are_streams else encode_labels(splits, column))
                if column
                else None
            )
            if found is None and labels == "required":
                reason = f"column {column} holds none" if column else f"no column of them among {listed(features)}"
                raise SiTError(f"no labels: {reason}; name their column with --label_column")
        except SiTError as problem:
            if labels == "required" or label_column is not None:
                raise
            logger.warning("%s: labels are not read: %s", dataset, problem)
            found = None
        if are_streams:
            label_column = found.column if found is not None else None
            images = {
                split: _only_streamed_image_and_label(stream, split, image_column, label_column)
                for split, stream in used.items()
            }
        else:
            images = {split: _only_image_and_label(table, split, image_column, found) for split, table in used.items()}
            if streaming:
                images = {split: _stream_table(table) for split, table in images.items()}
    except SiTError as error:
        raise SiTError(f"--dataset {dataset}: {error}") from error
    rows = {split: found.rows if isinstance(found, _Stream) else found for split, found in images.items()}
    train = images.get(train_split)
    return ImageDatasets(
        name=dataset,
        train=rows.get(train_split),
        validation=rows.get(validation_split),
        label_names=found.label_names if found is not None else None,
        splits=list(splits),
        num_train=train.num_rows if train is not None else None,
        train_shards=train.shards if isinstance(train, _Stream) else None,
        multi_label=found is not None and found.multi_label,
    )


def image_name(dataset: datasets.Dataset, index: int) -> str:
    """What to call an image in a log: its file's path, or the row where its bytes are.

    Args:
        dataset (`datasets.Dataset`): A split of [`ImageDatasets`].
        index (`int`): Row of the image, from 0.

    Returns:
        `str`: Such as `/data/cells/a/007.png`, or `row 17 of train (007.png)`.
    """
    image = dataset[index]["image"] or {"bytes": None, "path": None}
    if image["path"] and image["bytes"] is None:
        return image["path"]
    row = f"row {index} of {dataset.split or 'the dataset'}"
    return f"{row} ({image['path']})" if image["path"] else row


def read_row(
    dataset: datasets.Dataset, index: int, num_channels: int = 3, draft_scale: DraftScale | None = None
) -> tuple[PIL.Image.Image, dict[str, Any]]:
    """An image of a dataset, decoded, and its row.

    Raises:
        [`UnreadableImage`]: If it cannot be decoded, naming it as [`image_name`] does.
    """
    row, name = dataset[index], str(index)
    try:
        return decode_image(row["image"], num_channels, name=name, draft_scale=draft_scale), row
    except UnreadableImage as problem:
        # The full name takes another look at the row, which the many readable images can do without.
        reason = str(problem).removeprefix(f"{name}: ")
        raise UnreadableImage(f"{image_name(dataset, index)}: {reason}") from None


# Forms of datasets. Each gives the splits as they are, with all their columns.


def _load_splits(
    dataset: str, config_name: str | None, streaming: bool
) -> dict[str, datasets.Dataset] | dict[str, _Stream]:
    path = os.path.abspath(os.path.expanduser(dataset))
    local = dataset == "digits" or (dataset and os.path.lexists(path))
    if local and config_name is not None:
        raise SiTError("--dataset_config_name is for datasets on the Hub; leave it out here")
    if dataset == "digits":
        return _load_digits()
    if not local:
        return _load_from_hub(dataset, config_name, streaming)
    if not os.path.isdir(path):
        return _load_file(path, streaming)
    if any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json")):
        return _load_saved(path)
    return _load_folder(path, streaming)


def _load_digits() -> dict[str, datasets.Dataset]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    encoded = []
    for values in digits.images:
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.rint(values * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    train, test = train_test_split(np.arange(len(encoded)), test_size=360, stratify=digits.target, random_state=0)
    label = datasets.ClassLabel(names=[str(name) for name in digits.target_names])
    return {
        split: _dataset(_images(encoded=[encoded[row] for row in rows]), digits.target[rows], label)
        for split, rows in {"train": np.sort(train), "test": np.sort(test)}.items()
    }


def _load_file(path: str, streaming: bool) -> dict[str, datasets.Dataset] | dict[str, _Stream]:
    if path.lower().endswith(".parquet"):
        return {"train": _load_parquet([path], "train", streaming)}
    if path.lower().endswith(TAR_EXTENSIONS):
        return {"train": _load_tars([path], "train", streaming)}
    if not os.path.exists(path):
        raise SiTError(f"a link to {os.path.realpath(path)}, which does not exist")
    if path.lower().endswith(_image_extensions()):
        raise SiTError("one image is no dataset; give the folder that it lies in")
    raise SiTError("a file of an unknown kind; give a folder of images, or .parquet or .tar files")


def _load_saved(path: str) -> dict[str, datasets.Dataset]:
    saved = _or_user_error(f"{path} cannot be read as a `save_to_disk` folder", datasets.load_from_disk, path)
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}


def _load_from_hub(
    dataset: str, config_name: str | None, streaming: bool
) -> dict[str, datasets.Dataset] | dict[str, _Stream]:
    # `load_dataset` would take `csv` and the like for its readers of local files, and read the current folder.
    is_reader = dataset.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{dataset}")
    if is_reader or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", dataset):
        raise SiTError("no such file or folder, and no id of a dataset on the Hub either")
    trouble = (
        "no such file or folder, and the Hub does not give such a dataset "
        "(check the spelling, the network and --dataset_config_name)"
    )
    if not streaming:
        return dict(_or_user_error(trouble, datasets.load_dataset, dataset, config_name))
    splits = _or_user_error(trouble, _open_stream, dataset, name=config_name)
    return {split: _or_user_error(trouble, _hub_stream, split, rows) for split, rows in splits.items()}


def _hub_stream(split: str, rows: datasets.IterableDataset) -> _Stream:
    known = rows.info.splits.get(split) if rows.info.splits else None
    shards = [Shard(f"shard {number} of {split}") for number in range(rows.num_shards)]
    return _Stream(_with_features(rows), shards, known.num_examples if known is not None else None)


def _load_folder(folder: str, streaming: bool) -> dict[str, datasets.Dataset] | dict[str, _Stream]:
    images, parquet, tars, others = [], [], [], []
    extensions = _image_extensions()
    try:
        for path in _walk(folder):
            name = path.lower()
            if name.endswith(extensions):
                images.append(path)
            elif name.endswith(".parquet"):
                parquet.append(path)
            elif name.endswith(TAR_EXTENSIONS):
                tars.append(path)
            else:
                others.append(path)
    except OSError as error:
        raise SiTError(f"{error.filename}: {error.strerror}; the folder must be readable") from error

    kinds = {"images": images, "parquet files": parquet, "tar files": tars}
    found = [f"{kind} ({len(paths)})" for kind, paths in kinds.items() if paths]
    if len(found) > 1:
        raise SiTError(f"it holds {' and '.join(found)}; keep one kind in the folder, or give the sub-folder of one")
    if not found and not others:
        raise SiTError("the folder is empty")
    if not found:
        raise SiTError("no image (.jpg, .png, .tif, ...), .parquet or .tar file in the folder or its sub-folders")
    if images:
        if others:
            logger.warning("%s: %d files are not images and left out, such as %s", folder, len(others), others[0])
        return _split_folders(folder, images)
    load = _load_parquet if parquet else _load_tars
    return {split: load(shards, split, streaming) for split, shards in _split_shards(folder, parquet or tars).items()}


def _walk(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """The files in a folder and its sub-folders that are not hidden, in sorted order; links are followed."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link back to a folder that we are in
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, (*above, identity))
        else:
            yield entry.path


@functools.cache
def _image_extensions() -> tuple[str, ...]:
    formats = PIL.Image.registered_extensions()  # fills `OPEN`, too
    readable = set(PIL.Image.OPEN) - UNDECODABLE_FORMATS
    return tuple(extension for extension, format in formats.items() if format in readable)


def _split_folders(folder: str, paths: list[str]) -> dict[str, datasets.Dataset]:
    by_sub_folder = _group_by_sub_folder(folder, paths)
    if all(name.lower() in TRAIN_SPLITS + VALIDATION_SPLITS for name in by_sub_folder):
        return {name: _folder_dataset(os.path.join(folder, name), inside) for name, inside in by_sub_folder.items()}
    return {"train": _folder_dataset(folder, paths)}


def _folder_dataset(folder: str, paths: list[str]) -> datasets.Dataset:
    by_class = _group_by_sub_folder(folder, paths)
    try:
        if "" not in by_class:
            images = _images(paths=list(itertools.chain.from_iterable(by_class.values())))
            counts = [len(inside) for inside in by_class.values()]
            return _dataset(
                images, np.repeat(np.arange(len(counts)), counts), datasets.ClassLabel(names=list(by_class))
            )
        if len(by_class) > 1:
            logger.warning("%s: some images lie in the folder itself, so its sub-folders are not classes", folder)
        return _dataset(_images(paths=paths))
    except UnicodeEncodeError as error:
        raise SiTError(f"a file or folder name is not valid UTF-8: {error.object!r}; rename it") from error


def _group_by_sub_folder(folder: str, paths: list[str]) -> dict[str, list[str]]:
    """Group paths by the first-level sub-folder that they lie in; "" stands for the folder itself."""
    groups: dict[str, list[str]] = {}
    start = len(os.path.join(folder, ""))
    for path in paths:
        sub_folder, separator, _ = path[start:].partition(os.sep)
        groups.setdefault(sub_folder if separator else "", []).append(path)
    return groups


def _split_shards(folder: str, paths: list[str]) -> dict[str, list[str]]:
    by_split: dict[str | None, list[str]] = {}
    for path in paths:
        by_split.setdefault(_split_of_shard(os.path.relpath(path, folder)), []).append(path)
    if None in by_split and len(by_split) > 1:
        raise SiTError(
            f"{by_split[None][0]}: the name tells no split, others' do; name it like train-0000, or move it"
        )
    return {split or "train": shards for split, shards in by_split.items()}


def _split_of_shard(path: str) -> str | None:
    """The split that a path such as `data/train-00000-of-00002.parquet` or `val/0.tar` names, the file name first."""
    names = "|".join(TRAIN_SPLITS + VALIDATION_SPLITS)
    for part in reversed(path.lower().split(os.sep)):
        if match := re.match(rf"({names})(?![a-z])", part):
            return match[1]
    return None


def _load_parquet(paths: list[str], split: str, streaming: bool) -> datasets.Dataset | _Stream:
    footers = {
        path: _or_user_error(f"{path} is not a readable parquet file", pq.read_metadata, path) for path in paths
    }
    filled = [path for path in paths if footers[path].num_rows > 0]  # `datasets` fails on a shard without rows
    if not filled and not streaming:
        features = datasets.Features.from_arrow_schema(footers[paths[0]].schema.to_arrow_schema())
        return datasets.Dataset.from_dict({column: [] for column in features}, features=features)
    rows = _load_shards("parquet", filled or paths[:1], split, streaming)
    if not streaming:
        return rows
    return _Stream(rows, [Shard(path) for path in filled], sum(footers[path].num_rows for path in filled))


def _load_tars(paths: list[str], split: str, streaming: bool) -> datasets.Dataset | _Stream:
    rows = _load_shards("webdataset", paths, split, streaming)
    return _Stream(_with_features(rows), [Shard(path) for path in paths], None) if streaming else rows


def _load_shards(
    form: str, paths: list[str], split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    # One split at a time: a test split may lack the column of the labels.
    data_files = {split: [glob.escape(path) for path in paths]}
    which = paths[0] if len(paths) == 1 else f"{paths[0]} or one of {len(paths) - 1} more"
    trouble = f"{which} cannot be read as {form}"
    if streaming:
        return _or_user_error(trouble, _open_stream, form, data_files=data_files, split=split)
    return _or_user_error(trouble, datasets.load_dataset, form, data_files=data_files, split=split)


def _open_stream(
    path: str, split: str | None = None, **settings
) -> datasets.IterableDatasetDict | datasets.IterableDataset:
    """`load_dataset(path, streaming=True)`, but of a parquet file that is being read, little is kept in memory."""
    builder = datasets.load_dataset_builder(path, **settings)
    if hasattr(builder.config, "fragment_scan_options"):  # of parquet, from datasets 4.2 on
        # PyArrow would by default keep all that it has read of a file until the file's end: hundreds of megabytes each.
        builder.config.fragment_scan_options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    return builder.as_streaming_dataset(split=split)


def _with_features(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same rows with features; those that the reader does not tell are read off the first row."""
    if rows.features is not None:
        return rows
    first = next(iter(rows), None)
    if first is None:
        raise SiTError("it is empty")
    return rows.cast(datasets.Dataset.from_list([first]).features)


def _or_user_error(trouble: str, function: Callable, *args, **kwargs) -> Any:
    """Call a reader, and turn what it raises into one line; readers raise nearly everything on a damaged file."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = textwrap.shorten(str(cause or error) or type(error).__name__, 300, placeholder=" ...")
        raise SiTError(f"{trouble}: {reason}") from error


# Tables in Arrow: lists of dictionaries would take a look at every file, and minutes for a million.


def _images(paths: list[str] | None = None, encoded: list[bytes] | None = None) -> pa.StructArray:
    """An Arrow column in the storage type of `datasets.Image`, of files or of encoded images."""
    length = len(paths or encoded)
    columns = [
        pa.nulls(length, pa.binary()) if encoded is None else pa.array(encoded, pa.binary()),
        pa.nulls(length, pa.string()) if paths is None else pa.array(paths, pa.string()),
    ]
    return pa.StructArray.from_arrays(columns, ["bytes", "path"])


def _dataset(
    images: pa.StructArray, labels: np.ndarray | None = None, label: datasets.ClassLabel | None = None
) -> datasets.Dataset:
    columns, features = {"image": images}, {"image": datasets.Image(decode=False)}
    if label is not None:
        columns["label"], features["label"] = pa.array(labels, pa.int64()), label
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _only_image_and_label(
    dataset: datasets.Dataset, split: str, image_column: str, labels: EncodedLabels | None
) -> datasets.Dataset:
    if image_column not in dataset.column_names:
        raise SiTError(f"split {split} has no column {image_column}, only {listed(dataset.column_names)}")
    if len(dataset) == 0:
        raise SiTError(f"split {split} is empty; choose another with --train_split or --validation_split")
    dataset = dataset.select_columns([image_column])
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    if labels is not None:
        dataset = dataset.add_column("label", labels.columns[split], feature=labels.feature)
    # Files and saved datasets do not always say which split they are; a split's name is one of word characters.
    return datasets.Dataset(dataset.data, info=dataset.info, split=datasets.NamedSplit(re.sub(r"\W+", "_", split)))


@dataclass
class _StreamedLabels:
    """Which column holds the labels of a stream, the classes' names where they are known, and whether it holds lists."""

    column: str
    label_names: list[str] | None
    multi_label: bool


def _labels_of_streams(streams: dict[str, _Stream], column: str) -> _StreamedLabels:
    """The labels of these splits, which are left as they are stored: what they mean must be the same in all."""
    features = [stream.features.get(column) for stream in streams.values()]
    is_index = isinstance(features[0], datasets.Value) and re.fullmatch(r"u?int\d+", features[0].dtype) is not None
    multi_label = isinstance(features[0], datasets.List)
    one_class = features[0].feature if multi_label else features[0]
    if not (is_index or isinstance(one_class, datasets.ClassLabel)) or any(other != features[0] for other in features):
        raise SiTError(
            f"--label_column {column}: the labels of a stream are class labels, lists of them, or integers, the same in all "
            f"its splits, not {listed(described(feature) for feature in features)}; leave it out, for pretraining needs none"
        )
    return _StreamedLabels(column, getattr(one_class, "names", None), multi_label)


def _only_streamed_image_and_label(
    stream: _Stream, split: str, image_column: str, label_column: str | None
) -> _Stream:
    if image_column not in stream.features:
        raise SiTError(f"split {split} has no column {image_column}, only {listed(stream.features)}")
    if stream.num_rows == 0:
        raise SiTError(f"split {split} is empty; choose another with --train_split or --validation_split")
    columns = {"image": image_column, **({"label": label_column} if label_column else {})}
    # Before anything else: what is decoded on the way, even if only to rename it, is decoded in vain.
    rows = stream.rows.decode(False).select_columns(list(columns.values()))
    renamed = {column: name for name, column in columns.items() if column != name}
    rows = rows.rename_columns(renamed) if renamed else rows
    return _Stream(rows.cast_column("image", datasets.Image(decode=False)), stream.shards, stream.num_rows)


def _stream_table(table: datasets.Dataset) -> _Stream:
    num_shards = min(len(table), MAX_SHARDS_OF_A_TABLE)
    size, larger = divmod(len(table), num_shards)
    # `Dataset.shard` makes contiguous shards, the first ones longer by a row where they cannot be equal.
    shards = [Shard(str(table.split), number * size + min(number, larger)) for number in range(num_shards)]
    return _Stream(table.to_iterable_dataset(num_shards=num_shards), shards, len(table))


def _choose_split(splits: Iterable[str], asked: str | None, flag: str, usual: tuple[str, ...]) -> str | None:
    if asked is not None:
        if asked not in splits:
            raise SiTError(f"{flag} {asked}: no such split, only {listed(splits)}")
        return asked
    by_name = {split.lower(): split for split in splits}
    return next((by_name[name] for name in usual if name in by_name), None)
