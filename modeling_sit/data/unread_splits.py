"""Splits in parquet or tar files: their columns are known before a row is read, and only those that are wanted are read."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from modeling_sit.data.image_datasets import Shard
from modeling_sit.data.parquet_files import ParquetFiles, describe_parquet
from modeling_sit.data.shard_files import Reading
from modeling_sit.data.tar_files import TarFiles, describe_tars, name_alike
from modeling_sit.data.tar_folders import check_unknown_folders
from modeling_sit.runtime.hugging_face_cache import check_datasets_cache


@dataclass
class SplitStream:
    """A split that is streamed.

    Args:
        rows (`datasets.IterableDataset`): The rows.
        shards (`list[Shard]`): Names of the stream's shards.
        num_rows (`int`, *optional*): Number of rows; `None` if only reading the whole stream would give it.
    """

    rows: datasets.IterableDataset
    shards: list[Shard]
    num_rows: int | None

    @property
    def features(self) -> datasets.Features:
        return self.rows.features


@dataclass
class UnreadSplit:
    """A split in parquet or tar files, of which no row is read yet.

    Args:
        files ([`ParquetFiles`] or [`TarFiles`]): The files.
        split (`str`): Its name.
        streaming (`bool`): Whether it is to be streamed.
    """

    files: ParquetFiles | TarFiles
    split: str
    streaming: bool

    @property
    def features(self) -> datasets.Features:
        """All columns."""
        return self.files.features

    @property
    def lacking(self) -> dict[str, str]:
        """For each column that not all files have, a file that lacks it. Images and labels of tar files may be missing."""
        return self.files.lacking if isinstance(self.files, ParquetFiles) else {}

    @property
    def mixed(self) -> dict[str, str]:
        """For each column of which files hold values of different kinds, what two of them hold."""
        return self.files.mixed if isinstance(self.files, ParquetFiles) else {}

    def read(self, image: str | None, labels: list[str], is_strict: bool = True) -> datasets.Dataset | SplitStream:
        """The rows, with these columns only, or the structs that hold them.

        Args:
            image (`str`, *optional*): The column of the images.
            labels (`list[str]`): The columns that may hold labels, or `COLUMN.FIELD` of structs.
            is_strict (`bool`): Whether a label in a tar file that is not what others are is an error.

        Raises:
            [`SiTError`]: If a file lacks one of the columns, or the cache of the `datasets` library cannot be written.
            `Exception`: Of any kind, from the `datasets` library. What is wrong with a file is a [`SiTError`] that names
                it, which may be the cause of a `DatasetGenerationError`.
        """
        reading = Reading(self.split, image, labels)
        if self.streaming:
            shards = [Shard(file) for file in self.files.files]
            # The library makes the folder of its cache, and a lock there, even where it keeps nothing.
            with tempfile.TemporaryDirectory() as unused:
                builder = self.files.builder(replace(reading, cache_dir=unused, is_strict=is_strict))
                return SplitStream(builder.as_streaming_dataset(self.split), shards, self.files.num_rows)
        check_datasets_cache()
        builder = self.files.builder(reading)
        if self.files.num_rows == 0:  # `datasets` fails on files without rows
            features = builder.info.features
            return datasets.Dataset.from_dict({column: [] for column in features}, features=features)
        try:  # strictly first, so that all programs share what is stored
            builder.download_and_prepare()
        except datasets.exceptions.DatasetGenerationError as error:
            if is_strict or getattr(error.__cause__, "argument", None) != "label_column":
                raise
            builder = self.files.builder(replace(reading, is_strict=False))
            builder.download_and_prepare()
        rows = builder.as_dataset(self.split)
        # Where `datasets` itself keeps what it has read.
        rows.info.download_checksums = {file: {"num_bytes": None, "checksum": None} for file in self.files.files}
        return rows


def name_image_columns(splits: Mapping[str, Any], image_column: str | None) -> None:
    """Call the columns of images in tar files alike in all splits, as the user does if one is named."""
    name_alike(
        [rows.files for rows in splits.values() if isinstance(rows, UnreadSplit) and isinstance(rows.files, TarFiles)],
        image_column,
    )


def notes_on_tars(splits: Mapping[str, Any]) -> list[str]:
    """What folders in tar files tell, and which files in them are not read though they might be images, a line each."""
    tars = {
        split: rows.files
        for split, rows in splits.items()
        if isinstance(rows, UnreadSplit) and isinstance(rows.files, TarFiles)
    }
    told = [
        f"{split} is {', '.join(f'{folder}/' for folder in files.folders)}"
        for split, files in tars.items()
        if files.folders and "" not in files.folders
    ]
    told += ["folders are the classes"] if any(files.classes is not None for files in tars.values()) else []
    arrays = sorted({field for files in tars.values() for field in files.others if field.rpartition(".")[2] == "npy"})
    notes = [f"in the tar files {', '.join(told)}"] if told else []
    return notes + ([f"arrays beside the images are not read: .{', .'.join(arrays)}"] if arrays else [])


def reads_files(builder: datasets.DatasetBuilder) -> bool:
    """Whether a dataset of the Hub is one of parquet or tar files."""
    return isinstance(builder, (Parquet, WebDataset))


def describe_hub_files(builder: Parquet | WebDataset, split: str) -> ParquetFiles | TarFiles:
    """The files of a split of a dataset on the Hub. One of them, perhaps of thousands, is looked into."""
    files = builder.config.data_files[split]
    if isinstance(builder, WebDataset):
        return check_unknown_folders(describe_tars(files), split)
    with fsspec.open(files[0], "rb") as file:
        schema = pq.read_schema(file)
    known = (builder.info.splits or {}).get(str(split))
    num_rows = known.num_examples if known is not None else None
    return describe_parquet(files, {files[0]: schema}, num_rows, builder.info.features)
