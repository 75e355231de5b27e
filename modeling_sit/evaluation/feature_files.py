"""Parquet files of features: a split is cut into shards, and a shard's file is there when it is whole."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.errors import SiTError

# The key of a file's metadata that says what its features are of.
METADATA_KEY = b"modeling_sit"
CONTENT = "content"
IMAGE = datasets.Image()


@dataclass
class FeatureShard:
    """
    A part of a split, and the file of its features.

    Args:
        path (`Path`): The file.
        split (`datasets.Dataset`): The whole split.
        rows (`range`): Which of its rows.
    """

    path: Path
    split: datasets.Dataset
    rows: range

    def images(self) -> datasets.Dataset:
        return self.split.select(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """What tells the images of shards apart: their number, and a hash of their files and labels."""
        return {
            "first_row": self.rows.start,
            "num_rows": len(self.rows),
            CONTENT: content_hash(self.images()),
        }


def cut_into_shards(folder: Path, name: str, split: datasets.Dataset, shard_size: int) -> list[FeatureShard]:
    """The files of a split, named as the Hub names the shards of a dataset."""
    count = max(1, -(-len(split) // shard_size))
    return [
        FeatureShard(
            folder / f"{name}-{number:05}-of-{count:05}.parquet",
            split,
            range(number * shard_size, min((number + 1) * shard_size, len(split))),
        )
        for number in range(count)
    ]


def missing_shards(shards: list[FeatureShard], settings: dict[str, Any], overwrite: bool) -> list[int]:
    """Numbers of the shards that have no file yet. The files of the others are checked.

    Raises:
        [`SiTError`]: If a file of one of the splits is of other settings or images.
    """
    paths = {shard.path: shard for shard in shards}
    folder = shards[0].path.parent
    names = {path.name.rsplit("-", 3)[0] for path in paths}
    for path in sorted(folder.glob("*.parquet")):
        if path.name.rsplit("-", 3)[0] not in names:
            continue
        found = read_settings(path)
        if found is None:
            raise SiTError(f"{path} holds no features", remedy="choose another `output_dir`, or move it away")
        if overwrite:
            with write_errors(path, "choose another `output_dir`"):
                path.unlink()
            continue
        remedy = "choose another `output_dir`, or start over with `overwrite_output_dir=True`"
        if path not in paths:
            raise SiTError(f"{path} is of a run with another `shard_size`, or of other images", remedy=remedy)
        fingerprint = paths[path].fingerprint()
        if CONTENT not in found and is_of_paths(
            path, paths[path].images(), paths[path].rows.start, found.get("paths")
        ):
            del fingerprint[CONTENT]
        if found.get(CONTENT) != fingerprint.get(CONTENT):
            raise SiTError(f"{path} is of other images or labels", remedy=remedy)
        for name, value in {**settings, **fingerprint}.items():
            if found.get(name) != value:
                raise SiTError(f"{path} was made with another {name} ({found.get(name)}, now {value})", remedy=remedy)
    return [number for number, shard in enumerate(shards) if not shard.path.exists()]


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings and images that a file of features names; `None` if it names none."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    except (OSError, pa.ArrowException, ValueError) as problem:
        raise SiTError(f"{path} cannot be read: {' '.join(str(problem).split())}", remedy="remove it") from problem


def content_hash(images: datasets.Dataset) -> str:
    """A hash that differs where images or labels differ, as far as this is seen without reading every file.

    An image is known by its path and the size and time of its file; in the dataset itself, by its path and its bytes.
    """
    found = hashlib.sha256()
    for path, content in encoded_images(images):
        if content is None:
            found.update(f"{path} {_file_state(path)}\n".encode())
        else:
            found.update(f"{path} {content.size}\n".encode())
            found.update(content)
    if not isinstance(images.features.get("label", IMAGE), datasets.Image):  # no masks
        found.update(json.dumps(images["label"][:]).encode())
    return found.hexdigest()[:16]


def encoded_images(images: datasets.Dataset) -> Iterator[tuple[str | None, pa.Buffer | None]]:
    """Of each image its path, and its encoded bytes where they are in the dataset itself."""
    # Fields of the whole column first: of rows one by one, each would copy what tells which values are null.
    files = images.data.column("image")
    paths, contents = (pc.struct_field(files, name) for name in ("path", "bytes"))
    for row in range(len(files)) if images._indices is None else images._indices.column(0).to_pylist():
        yield paths[row].as_py(), contents[row].as_buffer()


def _file_state(path: str | None) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except (OSError, TypeError):
        return None
    return state.st_size, state.st_mtime_ns


def is_of_paths(file: Path, images: datasets.Dataset, first_row: int, expected: str | None) -> bool:
    """Whether a file of an earlier version, which knew images by a hash of their paths, is of these images and labels."""
    paths = paths_of(images)
    if paths.null_count or hashlib.sha256("\n".join(paths.to_pylist()).encode()).hexdigest()[:16] != expected:
        return False
    has_labels = "label" in pq.read_schema(file).names
    if not has_labels or "label" not in images.column_names:
        return has_labels == ("label" in images.column_names)
    rows, labels = pq.read_table(file, columns=["row", "label"]).to_pydict(), images["label"][:]
    return [labels[row - first_row] for row in rows["row"]] == rows["label"]


def paths_of(images: datasets.Dataset) -> pa.ChunkedArray:
    """The path of each image's file; null where it is not known."""
    paths = pc.struct_field(images.data.column("image"), "path")
    return paths if images._indices is None else paths.take(images._indices.column(0))


def feature_table(
    images: datasets.Dataset, features: torch.Tensor, rows: torch.Tensor, first_row: int = 0
) -> pa.Table:
    """Features as a table with the columns `row`, `path`, `vector` and, where there are labels, `label`.

    Args:
        images (`datasets.Dataset`): Columns `image` and perhaps `label`.
        features (`torch.Tensor` of shape `(num_kept, width)`): Float32.
        rows (`torch.Tensor` of shape `(num_kept,)`): The row of each in `images`.
        first_row (`int`, *optional*, defaults to 0): Number of the first row in its split.

    Returns:
        `pa.Table`: With the schema of `datasets`.
    """
    kept, width = pa.array(rows.numpy(), pa.int64()), features.shape[1]
    columns = {
        "row": datasets.Value("int64"),
        "path": datasets.Value("string"),
        "vector": datasets.List(datasets.Value("float32"), length=width),
    }
    values = {
        "row": pc.add(kept, first_row),
        "path": paths_of(images).take(kept),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy(), pa.float32()), width),
    }
    if "label" in images.column_names:
        columns["label"] = images.features["label"]
        values["label"] = images.select_columns("label").with_format("arrow")[:]["label"].take(kept)
    schema = datasets.Features(columns).arrow_schema
    return pa.Table.from_arrays([values[column.name].cast(column.type) for column in schema], schema=schema)


def write_shard(shard: FeatureShard, features: torch.Tensor, rows: torch.Tensor, settings: dict[str, Any]) -> None:
    """Write the file of a shard; it is whole or not there.

    Args:
        shard ([`FeatureShard`]): Names the file.
        features (`torch.Tensor` of shape `(num_kept, width)`): Float32.
        rows (`torch.Tensor` of shape `(num_kept,)`): The row of each in the split.
        settings (`dict[str, Any]`): What the features depend on beside the images, for [`missing_shards`].

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    table = feature_table(shard.images(), features, rows - shard.rows.start, shard.rows.start)
    description = json.dumps({**settings, **shard.fingerprint()}).encode()
    table = table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: description})
    with write_errors(shard.path, "make room, or choose another `output_dir`, and start again"):
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replace_file(shard.path) as unfinished,
            pq.ParquetWriter(unfinished, table.schema, use_dictionary=False) as writer,
        ):
            if len(rows):  # datasets cannot read an empty row group, but a file without one
                writer.write_table(table)
