"""The same image in two splits of a dataset, or twice in one: byte for byte, where looking is cheap."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow.compute as pc

from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.opening import content_of

# Larger datasets are not searched, nor is any for longer than these seconds.
MAX_IMAGES = 5000
MAX_SECONDS = 1.0
# The same for a search that the user waits for.
MAX_IMAGES_THOROUGH = 200_000
MAX_SECONDS_THOROUGH = 20.0


@dataclass(frozen=True)
class Duplicates:
    """
    Images of a split that are in another split too, or are in it more than once.

    Args:
        number (`int`): Of such images. Of those that are in a split more than once, the first of each does not count.
        split (`str`): Name of the split that they are counted in.
        other (`str`): Name of the other split; that of the same split for images that it has more than once.
        names (`tuple[str, str]`): One of them, as it is called in the two places.
        rows (`tuple[int, int]`): Its rows there, from 0.
    """

    number: int
    split: str
    other: str
    names: tuple[str, str]
    rows: tuple[int, int]


def find_duplicates(splits: Sequence[datasets.Dataset], is_thorough: bool = False) -> list[Duplicates] | None:
    """The images of each split that are byte for byte the same as one of an earlier split.

    Args:
        splits (sequence of `datasets.Dataset`): Column `image`, encoded.
        is_thorough (`bool`, *optional*, defaults to `False`): Whether to take more time, and to find images that one split
            has more than once, too.

    Returns:
        `list[Duplicates]`: Of each two splits that share images. `None` if the dataset has more than `MAX_IMAGES`
        (`MAX_IMAGES_THOROUGH`), or the search took too long.
    """
    if sum(map(len, splits)) > (MAX_IMAGES_THOROUGH if is_thorough else MAX_IMAGES):
        return None
    end = time.monotonic() + (MAX_SECONDS_THOROUGH if is_thorough else MAX_SECONDS)
    sizes = []
    for split in splits:
        sizes.append(_sizes(split))
        if time.monotonic() > end:
            return None
    # Only files of one size can be the same.
    owners: Counter[int] = Counter()
    for of_split in sizes:
        each, counts = np.unique(of_split[of_split > 0], return_counts=True)
        owners.update(dict(zip(each.tolist(), counts.tolist() if is_thorough else [1] * len(each), strict=True)))
    shared = [size for size, number in owners.items() if number > 1]
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
        more = [same for same in rows.values() if len(same) > 1] if is_thorough else []
        if more:
            where = (more[0][1], more[0][0])
            names = (image_name(splits[place], where[0]), image_name(splits[place], where[1]))
            name = str(splits[place].split)
            found.append(Duplicates(sum(map(len, more)) - len(more), name, name, names, where))
        for earlier in range(place):
            same = [digest for digest in rows if digest in digests[earlier]]
            if same:
                where = (rows[same[0]][0], digests[earlier][same[0]][0])
                names = (image_name(splits[place], where[0]), image_name(splits[earlier], where[1]))
                number = sum(len(rows[digest]) for digest in same)
                found.append(Duplicates(number, str(splits[place].split), str(splits[earlier].split), names, where))
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
        content = content_of(split[row]["image"])
        if content is not None:
            yield row, content
