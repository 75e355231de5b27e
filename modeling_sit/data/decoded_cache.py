"""Decoded images in one file, mapped into memory: written once, read by any number of workers and processes.

The file holds the pixels of image after image, then an index of where each begins and its height and width, then a
description as JSON, and at the very end the length of that and a mark. What is cut short or foreign lacks the mark, or is
not as long as it says, so a file is taken for a cache only if all of it is there.
"""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
import PIL

from modeling_sit.data.crops import DecodedImages
from modeling_sit.data.decoding import UnreadableImage, decoded_size

FORMAT_VERSION = 1
MARK = b"SiTpics\x01"
NUM_SAMPLED_SIZES = 256
ROWS_AT_A_TIME = 10_000


class CacheTooLarge(Exception):
    """The images take more room than there is."""


@dataclass
class ImageIndex:
    """
    Where each image lies among the pixels, and which have none.

    Args:
        places (`np.ndarray` of shape `(images, 3)`): int64: the first byte, the height and the width in pixels.
        num_channels (`int`): Bytes of a pixel.
        unreadable (`dict` of `int` to `str`): What is wrong with those that cannot be read, by their index.
    """

    places: np.ndarray
    num_channels: int
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.places)

    def place(self, index: int) -> tuple[int, int, int]:
        """The first byte, the height and the width of an image. Raises `UnreadableImage`."""
        if index in self.unreadable:
            raise UnreadableImage(self.unreadable[index])
        start, height, width = self.places[index].tolist()
        return start, height, width

    @property
    def num_bytes(self) -> int:
        return int((self.places[:, 1] * self.places[:, 2]).sum()) * self.num_channels


class DecodedImageCache:
    """
    The images of a complete file of [`write_images`]; as a source of images, equal to those it was written from.

    While it is open, no [`lock_against_deletion`] of the same file succeeds. It can be handed to other processes.

    Args:
        path (`Path`): The file.
        key (`str`): Of [`cache_key`]: what the images must be.

    Raises:
        `OSError`: If there is no such file, or it cannot be read.
        `ValueError`: If it is not whole, or of other images.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.made_in: BinaryIO | None = (
            None  # what keeps a file without a name there, for those who open it by its path
        )
        self._file = open(path, "rb")  # noqa: SIM115 - holds the lock as long as the cache is in use
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH)
            self.index = _read_index(self._file, key)
            num_bytes = self.index.num_bytes
            # An empty file cannot be mapped, nor can one be of which no image could be read.
            self.pixels = (
                np.memmap(self._file, np.uint8, "r", shape=(num_bytes,)) if num_bytes else np.empty(0, np.uint8)
            )
        except BaseException:
            self._file.close()
            raise

    def __reduce__(self):
        return DecodedImageCache, (self.path, self.key)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> np.ndarray:
        start, height, width = self.index.place(index)
        channels = self.index.num_channels
        return self.pixels[start : start + height * width * channels].reshape(height, width, channels)


def lock_against_deletion(file: BinaryIO) -> bool:
    """Whether nobody has the cache in this file open; then nobody can open it until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def cache_key(images: DecodedImages) -> str:
    """A checksum that differs where the pixels might: by the dataset, its files' sizes and times, and the settings."""
    settings = {
        "format": FORMAT_VERSION,
        "num_channels": images.num_channels,
        "draft_scale": asdict(images.draft_scale),
        "pillow": PIL.__version__,
        "dataset": images.dataset._fingerprint,
        "num_images": len(images),
    }
    checksum = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for path in _files_of(images.dataset):
        try:
            status = os.stat(path)
            state = f"{path} {status.st_size} {status.st_mtime_ns}\n"
        except OSError as problem:
            state = f"{path} {problem.errno}\n"
        checksum.update(state.encode(errors="surrogatepass"))
    return checksum.hexdigest()


def _files_of(dataset: datasets.Dataset) -> Iterator[str]:
    """Paths of the images that lie in files of their own, whose content no fingerprint of the dataset knows."""
    table = dataset.select_columns(["image"]).with_format("arrow")
    for start in range(0, len(dataset), ROWS_AT_A_TIME):
        column = table[start : start + ROWS_AT_A_TIME]["image"].combine_chunks()
        is_file = column.field("bytes").is_null().to_pylist()
        for path, in_file in zip(column.field("path").to_pylist(), is_file, strict=True):
            if path and in_file:
                yield path


def estimate_bytes(images: DecodedImages) -> int:
    """About how many bytes the pixels of all images take, from the headers of a few that are evenly spread."""
    rows = range(0, len(images), -(-len(images) // NUM_SAMPLED_SIZES))
    areas = []
    for image in images.dataset.select(rows)["image"]:
        try:
            width, height = decoded_size(image, images.draft_scale)
            areas.append(width * height)
        except Exception:  # it takes no room, and is named when it is decoded
            areas.append(0)
    return int(np.mean(areas) * len(images)) * images.num_channels


def write_images(
    file: BinaryIO, images: DecodedImages, key: str, max_bytes: int, progress: Iterable[int], num_threads: int
) -> None:
    """Decode all images, and write what [`DecodedImageCache`] reads.

    Args:
        file (binary file): Empty.
        images (`DecodedImages`): The images. Those that cannot be read are remembered as such.
        key (`str`): Of [`cache_key`].
        max_bytes (`int`): Pixels that take more raise [`CacheTooLarge`].
        progress (iterable of `int`): The indices of all images, in order.
        num_threads (`int`): How many are decoded at once.
    """
    places, unreadable, end = np.zeros((len(images), 3), np.int64), {}, 0
    for index, pixels in zip(progress, _decode_ahead(images, num_threads), strict=True):
        if isinstance(pixels, UnreadableImage):
            unreadable[index] = str(pixels)
            continue
        if end + pixels.nbytes > max_bytes:
            raise CacheTooLarge
        file.write(np.ascontiguousarray(pixels))
        places[index] = end, *pixels.shape[:2]
        end += pixels.nbytes
    file.write(places)
    description = {
        "format": FORMAT_VERSION,
        "key": key,
        "num_images": len(places),
        "num_channels": images.num_channels,
        "unreadable": unreadable,
    }
    encoded = json.dumps(description).encode()
    file.write(encoded + len(encoded).to_bytes(8, "little") + MARK)
    file.flush()


def _decode_ahead(images: DecodedImages, num_threads: int) -> Iterator[np.ndarray | UnreadableImage]:
    """All images in order, decoded by threads (Pillow lets others run meanwhile), and no more ahead than these need."""

    def decode(index: int) -> np.ndarray | UnreadableImage:
        try:
            return images[index]
        except UnreadableImage as problem:
            return problem

    with ThreadPoolExecutor(num_threads, thread_name_prefix="image-cache") as pool:
        coming = deque()
        try:
            for index in range(len(images)):
                coming.append(pool.submit(decode, index))
                if len(coming) > 4 * num_threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_index(file: BinaryIO, key: str) -> ImageIndex:
    size = os.fstat(file.fileno()).st_size
    tail = 8 + len(MARK)
    if size < tail:
        raise ValueError("it is cut short")
    file.seek(size - tail)
    length, mark = int.from_bytes(file.read(8), "little"), file.read()
    if mark != MARK or length > size - tail:
        raise ValueError("it is cut short, or no cache of images")
    file.seek(size - tail - length)
    try:
        description = json.loads(file.read(length))
        if (description["format"], description["key"]) != (FORMAT_VERSION, key):
            raise ValueError("it is of other images")
        num_images, num_channels = description["num_images"], description["num_channels"]
        unreadable = {int(index): reason for index, reason in description["unreadable"].items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError("it is no cache of images") from problem
    index_size = 24 * num_images
    start = size - tail - length - index_size
    if start < 0:
        raise ValueError("it is cut short")
    file.seek(start)
    places = np.frombuffer(file.read(index_size), np.int64).reshape(num_images, 3)
    index = ImageIndex(places, num_channels, unreadable)
    if index.num_bytes != start:
        raise ValueError("it is not as long as it says")
    return index
