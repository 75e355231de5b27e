"""The same image in two splits of a dataset: byte for byte, where looking is cheap."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow.compute as pc

from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.opening import UnreadableImage, opened

# Larger datasets are not searched, nor is any for longer than these seconds.
MAX_IMAGES = 5000
MAX_SECONDS = 1.0


@dataclass(frozen=True)
class Duplicates:
    """
    Images of a split that are in another split too.

    Args:
        number (`int`): Of such images.
        split (`str`): Name of the split that they are counted in.
        other (`str`): Name of the other split.
        names (`tuple[str, str]`): One of them, as it is called in the two splits.
    """

    number: int
    split: str
    other: str
    names: tuple[str, str]


def find_duplicates(splits: Sequence[datasets.Dataset]) -> list[Duplicates] | None:
    """The images of each split that are byte for byte the same as one of an earlier split.

    Args:
        splits (sequence of `datasets.Dataset`): Column `image`, encoded.

    Returns:
        `list[Duplicates]`: Of each two splits that share images. `None` if the dataset has more than `MAX_IMAGES`, or the
        search took too long.
    """
    if sum(map(len, splits)) > MAX_IMAGES:
        return None
    end = time.monotonic() + MAX_SECONDS
    sizes = []
    for split in splits:
        sizes.append(_sizes(split))
        if time.monotonic() > end:
            return None
    # Only files of one size can be the same.
    owners: dict[int, set[int]] = {}
    for place, of_split in enumerate(sizes):
        for size in np.unique(of_split[of_split > 0]).tolist():
            owners.setdefault(size, set()).add(place)
    shared = [size for size, places in owners.items() if len(places) > 1]
    digests: list[dict[bytes, list[int]]] = []
    for split, of_split in zip(splits, sizes, strict=True):
        rows: dict[bytes, list[int]] = {}
        for row, content in _contents(split, np.flatnonzero(np.isin(of_split, shared))):
            rows.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(row)
            if time.monotonic() > end:
                return None
        digests.append(rows)
    found = []
    for place, rows in enumerate(digests):
        for earlier in range(place):
            same = [digest for digest in rows if digest in digests[earlier]]
            if same:
                names = (
                    image_name(splits[place], rows[same[0]][0]),
                    image_name(splits[earlier], digests[earlier][same[0]][0]),
                )
                number = sum(len(rows[digest]) for digest in same)
                found.append(Duplicates(number, str(splits[place].split), str(splits[earlier].split), names))
    return found


def _sizes(split: datasets.Dataset) -> np.ndarray:
    """Number of bytes of each encoded image, 0 where there is none."""
    images = split.select_columns(["image"]).with_format("arrow")[:].column("image")
    lengths = pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), 0).to_numpy().astype(np.int64)
    paths = pc.struct_field(images, "path").to_pylist()
    for row in np.flatnonzero(lengths == 0):
        try:
            lengths[row] = os.stat(paths[row]).st_size if paths[row] else 0
        except OSError:  # decoding it will report the error
            continue
    return lengths


def _contents(split: datasets.Dataset, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
    for row in rows.tolist():
        image = split[row]["image"]
        content = image["bytes"]
        if content is None:
            try:
                with opened(image["path"]) as file:
                    content = file.read()
            except (OSError, UnreadableImage):
                continue
        yield row, content
