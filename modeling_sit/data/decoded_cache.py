"""Decoded images in an Arrow file that is mapped into memory: written once, read by all workers and processes.

The file is an Arrow stream, as the caches of `datasets` are, so `datasets.Dataset.from_file` opens it, too. It has a row
for each image. Its metadata says which images they are and how many, so a file that is cut short or foreign is refused.
It is written with Arrow rather than by `Dataset.map`, because that takes no file without a name, does not sync to the disk
and never deletes what a killed process leaves.
"""

import fcntl
import hashlib
import mmap
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import PIL
import pyarrow as pa
from joblib import cpu_count

from modeling_sit.data.crops import DecodedImages
from modeling_sit.data.decoding import UnreadableImage, decoded_size
from modeling_sit.data.opening import max_image_pixels
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.locks import take_lock
from modeling_sit.runtime.progress import bar_of_images

COLUMNS = pa.schema({"pixels": pa.large_binary(), "height": pa.int64(), "width": pa.int64(), "problem": pa.string()})
# A record batch of the file ends at either; it is in memory while it is written.
BATCH_BYTES = 16 * 2**20
BATCH_ROWS = 1000
KEY_BATCH_SIZE = 10_000
# One more with each change of what decoding gives.
DECODING_VERSION = 1
NUM_SAMPLED_SIZES = 256
# Then it is not the image that is slow, but its disk that does not answer.
SECONDS_FOR_AN_IMAGE = 600


class CacheTooLarge(Exception):
    """The images take more room than there is."""


@dataclass
class ImageIndex:
    """
    Where each image lies among the pixels of all images.

    Args:
        places (`np.ndarray` of shape `(images, 3)`): int64: the first byte, the height and the width in pixels.
        num_channels (`int`): Bytes of a pixel.
        unreadable (`dict` of `int` to `str`): What is wrong with the images that cannot be read, by their index.
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
        """Bytes of all pixels."""
        return int((self.places[:, 1] * self.places[:, 2]).sum()) * self.num_channels


class DecodedImageCache:
    """
    The images of a file of [`write_images`], with the same pixels. A shared lock on the file says that it is in use.

    Args:
        path (`Path`): The file. A pickled cache opens it again.
        key (`str`): The [`cache_key`] of the images.

    Attributes:
        index ([`ImageIndex`]): Where each image lies.
        parts (`list` of `np.ndarray`): uint8: the pixels of all images, one image after the other, cut between images.

    Raises:
        `OSError`, `ValueError`, `pa.ArrowException`: If the file is missing, cut short, no cache, or of other images.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.memory_file: BinaryIO | None = None  # what keeps a file without a name
        with open(path, "rb") as file:
            take_lock(file, fcntl.LOCK_SH, "image caches in use may be deleted by other runs")
            # It holds a duplicate of `file`, and so the lock.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
        table.validate(full=True)  # Arrow itself trusts a damaged file, and reads beyond its end
        metadata = table.schema.metadata or {}
        if not table.schema.equals(COLUMNS) or metadata.get(b"key") != key.encode():
            raise ValueError("it holds other images")
        num_channels, problems = int(metadata.get(b"num_channels", "")), table["problem"].to_pylist()
        shapes = np.stack([table["height"], table["width"]], axis=1)
        sizes = shapes.prod(axis=1) * num_channels
        self.index = ImageIndex(
            np.column_stack([sizes.cumsum() - sizes, shapes]),
            num_channels,
            {index: problem for index, problem in enumerate(problems) if problem is not None},
        )
        # The pixels of a record batch lie in one buffer, the last of its three.
        self.parts = [np.frombuffer(part.buffers()[-1] or b"", np.uint8) for part in table["pixels"].chunks]
        self._starts = np.cumsum([0, *map(len, self.parts)]).tolist()
        if len(table) != int(metadata.get(b"num_images", "")) or self._starts[-1] != sizes.sum():
            raise ValueError("it is cut short")

    def __reduce__(self):
        return DecodedImageCache, (self.path, self.key)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> np.ndarray:
        start, height, width = self.index.place(index)
        part = bisect_right(self._starts, start) - 1
        pixels = self.parts[part][start - self._starts[part] :]
        return pixels[: height * width * self.index.num_channels].reshape(height, width, -1)


def cache_key(images: DecodedImages) -> str:
    """A checksum that changes if the pixels may: with the dataset, its files' sizes and times, and the settings."""
    dataset = images.dataset
    decoding = (DECODING_VERSION, max_image_pixels(), PIL.__version__)
    settings = [images.pixel_format, images.draft_scale, decoding, dataset._fingerprint, len(dataset)]
    checksum = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for batch in dataset.select_columns("image").with_format("arrow").iter(KEY_BATCH_SIZE):
        column = batch["image"].combine_chunks()
        # The fingerprint does not know the content of images in files of their own.
        paths = column.field("path").filter(column.field("bytes").is_null()).to_pylist()
        checksum.update(repr([_file_state(path) for path in paths if path]).encode())
    return checksum.hexdigest()


def _file_state(path: str) -> tuple:
    try:
        status = os.stat(path)
        return path, status.st_size, status.st_mtime_ns
    except OSError as problem:
        return path, problem.errno


def estimate_bytes(images: DecodedImages) -> int:
    """About how many bytes the pixels of all images take, from the headers of a few evenly spaced images."""
    areas = []
    for image in images.dataset.select(range(0, len(images), -(-len(images) // NUM_SAMPLED_SIZES)))["image"]:
        try:
            width, height = decoded_size(image, images.draft_scale)
            areas.append(width * height)
        except Exception:  # it takes no room, and is named when it is decoded
            areas.append(0)
    return int(np.mean(areas) * len(images)) * images.pixel_format.num_channels


def write_images(file: BinaryIO, images: DecodedImages, key: str, max_bytes: int) -> None:
    """Decode all images, and write the file that [`DecodedImageCache`] reads.

    Args:
        file (binary file): Empty.
        images (`DecodedImages`): The images. For those that cannot be read the file says why.
        key (`str`): Their [`cache_key`].
        max_bytes (`int`): If the pixels take more, [`CacheTooLarge`] is raised.
    """
    metadata = {"key": key, "num_images": str(len(images)), "num_channels": str(images.pixel_format.num_channels)}
    rows, batch_bytes, all_bytes = [], 0, 0
    with (
        pa.ipc.new_stream(file, schema := COLUMNS.with_metadata(metadata)) as writer,
        bar_of_images(len(images), "decoding images", leave=False) as bar,
    ):
        for number, row in enumerate(_decode_all(images), start=1):
            bar.update()
            rows.append(row)
            batch_bytes += len(row["pixels"])
            if all_bytes + batch_bytes > max_bytes:
                raise CacheTooLarge
            if batch_bytes >= BATCH_BYTES or len(rows) == BATCH_ROWS or number == len(images):
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                rows, batch_bytes, all_bytes = [], 0, all_bytes + batch_bytes
    file.flush()


def _decode_all(images: DecodedImages) -> Iterator[dict[str, Any]]:
    """The rows of the file. Threads decode a few images ahead, for Pillow lets others run meanwhile."""
    num_threads, coming = cpu_count(), deque()
    tasks: SimpleQueue[tuple[int, Future] | None] = SimpleQueue()
    # No ThreadPoolExecutor: a program that ends would wait for a thread of it that hangs in a read.
    for _ in range(num_threads):
        threading.Thread(target=_decode_tasks, args=(images, tasks), daemon=True).start()
    try:
        for index in range(len(images)):
            coming.append(Future())
            tasks.put((index, coming[-1]))
            if len(coming) > 4 * num_threads:
                yield _wait_for(coming.popleft())
        while coming:
            yield _wait_for(coming.popleft())
    finally:
        for row in coming:
            row.cancel()
        for _ in range(num_threads):
            tasks.put(None)


def _decode_tasks(images: DecodedImages, tasks: SimpleQueue) -> None:
    for index, row in iter(tasks.get, None):
        if row.set_running_or_notify_cancel():
            try:
                row.set_result(_decode(images, index))
            except BaseException as problem:  # whoever asks for the row gets it
                row.set_exception(problem)


def _wait_for(row: Future) -> dict[str, Any]:
    try:
        return row.result(SECONDS_FOR_AN_IMAGE)
    except FutureTimeout:
        raise SiTError(
            f"an image is not decoded within {SECONDS_FOR_AN_IMAGE} s",
            argument="dataset",
            remedy="see whether the disk or the network of the images still answers",
        ) from None


def _decode(images: DecodedImages, index: int) -> dict[str, Any]:
    try:
        pixels = images[index]
    except UnreadableImage as problem:
        return {"pixels": b"", "height": 0, "width": 0, "problem": str(problem)}
    return {"pixels": pixels.tobytes(), "height": pixels.shape[0], "width": pixels.shape[1], "problem": None}
