"""Forms of datasets: image folders, parquet and webdataset files, saved datasets, the Hub, the built-in digits, and
objects of the `datasets` library. Each form gives its splits as they are, with all their columns."""

import importlib.util
import io
import itertools
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from modeling_sit.data.folder_splits import split_folders
from modeling_sit.data.folder_tree import group_by_class
from modeling_sit.data.image_datasets import Shard
from modeling_sit.data.listed_images import split_listed
from modeling_sit.data.opening import image_extensions, timely_listing
from modeling_sit.data.own_files import list_folder, walk
from modeling_sit.data.parquet_files import describe_parquet_paths
from modeling_sit.data.shard_splits import split_shards
from modeling_sit.data.split_names import tell_once
from modeling_sit.data.tar_folders import split_tars
from modeling_sit.data.unread_splits import (
    SplitStream,
    UnreadSplit,
    describe_hub_files,
    name_image_columns,
    reads_files,
)
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import cache_error, check_datasets_cache
from modeling_sit.runtime.words import counted

logger = logging.getLogger(__name__)

ARRAY_EXTENSION = ".npy"
# Steps of a stream of `datasets` that shards would each take by themselves.
COUNTING_STEPS = {
    *("SkipExamplesIterable", "TakeExamplesIterable", "StepExamplesIterable"),
    *("CyclingMultiSourcesExamplesIterable", "RandomlyCyclingMultiSourcesExamplesIterable"),
    *("HorizontallyConcatenatedMultiSourcesExamplesIterable", "InterleavedShardsExamplesIterable"),
}
# Pillow does not read these by itself.
HEIC, CONVERT_HEIC = (".heic", ".heif"), "convert HEIC files to JPEG"
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".rar", ".7z", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".gz")


Splits = dict[str, datasets.Dataset | SplitStream | UnreadSplit]


def load_splits(
    dataset: Any,
    config_name: str | None,
    streaming: bool,
    image_column: str | None = None,
    asked: Iterable[str] = (),
) -> Splits:
    """All splits of a dataset. Of parquet and tar files no rows are read.

    Args:
        dataset: As for [`~modeling_sit.data.sources.load_images`].
        config_name (`str`, *optional*): Configuration of a Hub dataset, or of a folder.
        streaming (`bool`): Whether to stream the forms that can be: parquet and tar files and the Hub.
        image_column (`str`, *optional*): The column that the user has named.
        asked (iterable of `str`, *optional*):
            Names of splits that the user gives: in a folder, sub-folders and files of these names are splits.

    Raises:
        [`SiTError`]: If there is no such dataset, or it cannot be read.
    """
    splits = _load_form(dataset, config_name, streaming, frozenset(asked))
    name_image_columns(splits, image_column)
    return splits


def _load_form(dataset: Any, config_name: str | None, streaming: bool, asked: frozenset[str]) -> Splits:
    in_memory = not isinstance(dataset, (str, os.PathLike))
    path = "" if in_memory else os.path.abspath(os.path.expanduser(dataset))
    with timely_listing(path):
        local = in_memory or dataset == "digits" or (dataset and os.path.lexists(path))
        is_saved = any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))
        is_folder = local and not in_memory and dataset != "digits" and os.path.isdir(path) and not is_saved
    if local and not is_folder and config_name is not None:
        raise SiTError(
            "only folders and datasets on the Hub have configurations",
            argument="dataset_config_name",
            remedy="leave it out",
        )
    if in_memory:
        return _splits_in_memory(dataset)
    if dataset == "digits":
        return _load_digits()
    if not local:
        return _load_from_hub(os.fspath(dataset), config_name, streaming)
    if not os.path.isdir(path):
        return _load_file(path, streaming, asked)
    if is_saved:
        return _load_saved(path)
    return _load_folder(path, config_name, streaming, asked)


def _splits_in_memory(dataset: Any) -> Splits:
    splits = dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "train"): dataset}
    return {
        split: _name_shards(split, _as_it_is(rows)) if isinstance(rows, datasets.IterableDataset) else rows
        for split, rows in splits.items()
    }


def _as_it_is(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """A stream whose shards have all of its rows, and no others. Of a stream that counts rows (`take`, `skip`) or mixes several
    (`interleave_datasets`), each shard would count or mix anew: it becomes one shard."""
    if rows.num_shards == 1 or not COUNTING_STEPS & {type(step).__name__ for step in _steps_of(rows._ex_iterable)}:
        return rows
    rows = _with_features(rows)
    return datasets.IterableDataset.from_generator(_Rows(rows.decode(False)), features=rows.features)


@dataclass
class _Rows:
    """Gives the rows of a stream."""

    stream: datasets.IterableDataset

    def __call__(self) -> Iterator[dict[str, Any]]:
        yield from self.stream


def _steps_of(step: Any) -> Iterator[Any]:
    yield step
    for inner in (getattr(step, "ex_iterable", None), *getattr(step, "ex_iterables", ())):
        if inner is not None:
            yield from _steps_of(inner)


def _name_shards(split: str, rows: datasets.IterableDataset, num_rows: int | None = None) -> SplitStream:
    shards = [Shard(f"shard {number} of {split}") for number in range(rows.num_shards)]
    return SplitStream(_with_features(rows), shards, num_rows)


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
        split: _dataset(arrow_images(encoded=[encoded[row] for row in rows]), digits.target[rows], label)
        for split, rows in {"train": np.sort(train), "test": np.sort(test)}.items()
    }


def _load_file(path: str, streaming: bool, asked: frozenset[str]) -> Splits:
    if path.lower().endswith(".parquet"):
        return {"train": UnreadSplit(describe_parquet_paths([path]), "train", streaming)}
    if path.lower().endswith(TAR_EXTENSIONS):
        return _tar_splits(path, {"train": [path]}, streaming, asked)
    if not os.path.exists(path):
        raise SiTError(f"a link to {os.path.realpath(path)}, which does not exist")
    if path.lower().endswith((*image_extensions(), ARRAY_EXTENSION)):
        raise SiTError("one image is no dataset", remedy="give the folder that it lies in")
    if path.lower().endswith(OTHER_ARCHIVES):
        raise _packed([path])
    raise SiTError("a file of an unknown kind", remedy="give a folder of images, or .parquet or .tar files")


def _load_saved(path: str) -> dict[str, datasets.Dataset]:
    with reader_errors(f"{path} cannot be read as a `save_to_disk` folder"):
        saved = datasets.load_from_disk(path)
    return _splits_in_memory(saved)


def _load_from_hub(dataset: str, config_name: str | None, streaming: bool) -> Splits:
    # `load_dataset` would take `csv` and the like for its readers of local files, and read the current folder.
    is_reader = dataset.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{dataset}")
    if is_reader or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", dataset):
        raise SiTError("no such file or folder, and no id of a dataset on the Hub either")
    owner, separator, _ = dataset.partition("/")
    if separator and os.path.isdir(owner):
        raise SiTError(
            f"no such file or folder, and {owner}/ is a folder here",
            remedy="check the spelling; a dataset of that name on the Hub is read where the working folder has no folder "
            f"{owner}",
        )
    check_datasets_cache()
    with reader_errors(
        "no such file or folder, and the Hub does not give such a dataset",
        "check the spelling, the network and `dataset_config_name`",
    ):
        builder = datasets.load_dataset_builder(dataset, name=config_name)
        if reads_files(builder):
            return {
                str(split): UnreadSplit(describe_hub_files(builder, split), str(split), streaming)
                for split in builder.config.data_files
            }
        if not streaming:
            return dict(datasets.load_dataset(dataset, config_name))
        splits = {}
        for split, rows in builder.as_streaming_dataset(split=None).items():
            known = rows.info.splits.get(split) if rows.info.splits else None
            splits[split] = _name_shards(split, rows, known.num_examples if known is not None else None)
        return splits


def _load_folder(folder: str, config_name: str | None, streaming: bool, asked: frozenset[str]) -> Splits:
    sub_folder = _sub_folder(folder, config_name) if config_name is not None else None
    if sub_folder is not None:
        return _load_folder(sub_folder, None, streaming, asked)
    images, parquet, tars, others = [], [], [], []
    own: list[str] = []
    extensions = image_extensions()
    try:
        for path in walk(folder, own):
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
        raise SiTError(f"{error.filename}: {error.strerror}", remedy="the folder must be readable") from error

    if own:
        names = ", ".join(os.path.relpath(path, folder) for path in own[:10]) + (" and more" if len(own) > 10 else "")
        tell_once(f"{folder}: not read, because programs of this package wrote it: {names}")
    kinds = {"images": images, "parquet files": parquet, "tar files": tars}
    found = [f"{kind} ({len(paths)})" for kind, paths in kinds.items() if paths]
    if len(found) > 1:
        raise SiTError(
            f"it holds {' and '.join(found)}", remedy="keep one kind in the folder, or give the sub-folder of one"
        )
    if not found:  # beside images, arrays are mostly masks or features of them
        arrays = [path for path in others if path.lower().endswith(ARRAY_EXTENSION)]
        images, others = arrays, [path for path in others if not path.lower().endswith(ARRAY_EXTENSION)]
        found = ["arrays"] if arrays else []
    if not found and not others:
        raise SiTError("the folder is empty")
    archives = [path for path in others if path.lower().endswith(OTHER_ARCHIVES)]
    if not found and archives:
        raise _packed(archives)
    if not found:
        raise SiTError(
            "no image (.jpg, .png, .tif, .npy, ...), .parquet or .tar file in the folder or its sub-folders",
            remedy=CONVERT_HEIC if any(path.lower().endswith(HEIC) for path in others) else None,
        )
    if images and config_name is not None:
        raise SiTError(f"no sub-folder {config_name}", argument="dataset_config_name")
    if images:
        _tell_others(folder, others)
        found = split_listed(folder, split_folders(folder, images, asked), others)
        return {split: _folder_dataset(parts) for split, parts in found.items()}
    splits = split_shards(folder, parquet or tars, asked, config_name)
    if tars:
        return _tar_splits(folder, splits, streaming, asked)
    return {split: UnreadSplit(describe_parquet_paths(shards), split, streaming) for split, shards in splits.items()}


def _tell_others(folder: str, others: list[str]) -> None:
    """Say which files of a folder of images are left out."""
    if not others:
        return
    text = f"{folder}: {counted(len(others), 'file is not an image', 'files are not images')} and left out"
    heic = [path for path in others if path.lower().endswith(HEIC)]
    if heic:
        text += f", {len(heic):,} of them HEIC, such as {heic[0]}: {CONVERT_HEIC}"
    else:
        text += f", such as {others[0]}" if len(others) > 1 else f": {others[0]}"
    logger.warning("%s", text)


def _packed(archives: list[str]) -> SiTError:
    """The error about files that hold images, perhaps, and are not read."""
    names = ", ".join(os.path.basename(path) for path in archives[:3]) + (", ..." if len(archives) > 3 else "")
    return SiTError(
        f"packed files of this kind are not read: {names}",
        remedy="unpack them, each split into a folder train, test, ..., and give the folder that holds the images",
    )


def _tar_splits(dataset: str, splits: dict[str, list[str]], streaming: bool, asked: frozenset[str]) -> Splits:
    found = split_tars(dataset, splits, streaming, asked)
    return {split: UnreadSplit(tars, split, streaming) for split, tars in found.items()}


def _sub_folder(folder: str, name: str) -> str | None:
    """The sub-folder of this name, or of the only folder in the folder; `None` if there is none."""
    path = os.path.join(folder, name)
    with timely_listing(path):
        is_folder = os.path.isdir(path)
    if is_folder and os.path.relpath(path, folder).split(os.sep)[0] not in (os.curdir, os.pardir):
        return path
    folders: set[str] = set()
    with reader_errors(f"{folder} cannot be read"):
        visible = [entry for entry in list_folder(folder, folders) if not entry.name.startswith(".")]
    return _sub_folder(visible[0].path, name) if len(visible) == 1 and folders else None


def _folder_dataset(parts: list[tuple[str, list[str]]]) -> datasets.Dataset:
    """The images of folders, whose sub-folders are classes."""
    by_class = group_by_class(parts)
    try:
        if by_class is not None:
            names = sorted(by_class)
            images = arrow_images(paths=list(itertools.chain.from_iterable(by_class[name] for name in names)))
            counts = [len(by_class[name]) for name in names]
            return _dataset(images, np.repeat(np.arange(len(counts)), counts), datasets.ClassLabel(names=names))
        return _dataset(arrow_images(paths=[path for _, paths in parts for path in paths]))
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        remedy = "rename it" if encoding == "utf-8" else f"names are read as {encoding} here: set PYTHONUTF8=1"
        raise SiTError(f"a file or folder name is not valid UTF-8: {error.object!r}", remedy=remedy) from error


def _with_features(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same rows with features. If the reader does not know them, they are inferred from the first row."""
    if rows.features is not None:
        return rows
    with reader_errors("its first row cannot be read"):
        first = next(iter(rows), None)
    if first is None:
        raise SiTError("it is empty")
    return rows.cast(datasets.Dataset.from_list([first]).features)


@contextmanager
def reader_errors(problem: str, remedy: str | None = None) -> Iterator[None]:
    """Turn what a reader raises into one line. On a damaged file, readers raise nearly everything."""
    try:
        yield
    except SiTError:
        raise
    except Exception as error:
        if (of_the_cache := cache_error(error)) is not None:
            raise of_the_cache from error
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        if isinstance(cause, SiTError):  # it names the file
            raise cause from error
        reason = textwrap.shorten(str(cause or error) or type(error).__name__, 300, placeholder=" ...")
        raise SiTError(f"{problem}: {reason}", remedy=remedy) from error


# Tables are made in Arrow: with lists of dictionaries, a million files would take minutes.


def arrow_images(paths: list[str] | None = None, encoded: list[bytes] | None = None) -> pa.StructArray:
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
