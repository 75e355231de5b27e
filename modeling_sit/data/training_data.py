"""The images of a run as batches of crops: one interface to folders, decoded caches, images on the device and streams."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from modeling_sit.data.caching import ImageCacheArguments, cache_images
from modeling_sit.data.crops import CropGroup, CropsDataset, DecodedImages, RandomCrops, collate_crops
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.loaders import BatchLoader
from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler
from modeling_sit.data.shard_reading import first_images
from modeling_sit.data.streaming import DEFAULT_BUFFER_SIZE, StreamedCrops, StreamingArguments, StreamingLoader
from modeling_sit.data.unreadable import as_error, unreadable_errors
from modeling_sit.runtime.errors import SiTError

NUM_FINGERPRINTED_ROWS = 1000
NUM_FINGERPRINTED_OF_A_STREAM = 16


class TrainingData:
    """
    The training images of a dataset, as one process of a run reads them.

    Args:
        images ([`ImageDatasets`]): The dataset.
        groups (sequence of [`CropGroup`]): The crops of each image.
        loading ([`LoadingSettings`]): Batch size, seed, process and workers.
        streaming ([`StreamingArguments`]): How images are streamed, if the dataset is.
        cache ([`ImageCacheArguments`]): Where decoded images are kept.

    Raises:
        [`SiTError`]: If a cache is asked for and the images are streamed.
    """

    def __init__(
        self,
        images: ImageDatasets,
        groups: Sequence[CropGroup],
        loading: LoadingSettings,
        streaming: StreamingArguments,
        cache: ImageCacheArguments,
    ):
        self.images = images
        self.loading = loading
        self.cache_arguments = cache
        self.is_streamed = isinstance(images.train, datasets.IterableDataset)
        # A stream in memory is streamed without being asked for.
        self.shuffle_buffer_size = streaming.shuffle_buffer_size or DEFAULT_BUFFER_SIZE
        self.crops_on_device: bool | None = None
        self._stream: StreamingLoader | None = None
        if self.is_streamed and cache.image_cache not in ("auto", "none"):
            raise SiTError(
                f"{cache.image_cache}: images that are streamed are not kept",
                argument="image_cache",
                remedy="leave it out, or leave out `streaming`",
            )
        random_crops = RandomCrops(groups, loading.crop_ratio)
        self._crops: CropsDataset | StreamedCrops
        if self.is_streamed:
            self._crops = StreamedCrops(random_crops, loading.pixel_format)
        else:
            decoded = DecodedImages(images.train, loading.pixel_format, random_crops.draft_scale)
            self._crops = CropsDataset(decoded, random_crops)
        self._decoding_crops = self._crops

    @property
    def name(self) -> str:
        """The dataset's name in logs and model cards."""
        return self.images.name

    @property
    def num_images(self) -> int | None:
        """Number of images. `None` for a stream of unknown length."""
        return self.images.num_train

    def fingerprint(self) -> str:
        """A short checksum that, nearly always, differs between datasets of other images or another order.

        It is made from the number of images and, for a thousand evenly spaced ones, from the path below the dataset's
        folder and the size of the file; of a stream, from the names of its shards. So a dataset that was moved as a
        whole keeps its fingerprint. Of a dataset in memory, the encoded images themselves count: of the same thousand,
        or the first few of a stream.
        """
        folder = Path(os.path.expanduser(self.name)).absolute()
        checksum = hashlib.blake2b(str(self.num_images).encode(), digest_size=8)
        if self.is_streamed:
            for shard in self.images.train_shards or ():
                checksum.update(f"{_below(shard.name, folder)} {shard.first_row}\n".encode())
            if self.images.in_memory:
                first = first_images(self.images.train, NUM_FINGERPRINTED_OF_A_STREAM, self.images.train_shards)
                for image, _ in first:
                    checksum.update((image or {}).get("bytes") or b"")
        else:
            train = self.images.train
            rows = range(0, len(train), -(-len(train) // NUM_FINGERPRINTED_ROWS))
            for image in train.select(rows)["image"]:
                path = (image or {}).get("path") or ""
                checksum.update(f"{_below(path, folder)} {_encoded_size(image, Path(path))}\n".encode())
                if self.images.in_memory:
                    checksum.update((image or {}).get("bytes") or b"")
        return checksum.hexdigest()

    def preview_crops(self, count: int, seeds: Callable[[int], int]) -> torch.Tensor:
        """One crop each of images from all over the dataset, which may be sorted by classes; of a stream's first images.

        Args:
            count (`int`): How many images; fewer if the dataset has fewer.
            seeds (callable): From the number of a crop, from 0, to its seed.

        Returns:
            `torch.Tensor`: uint8 `(images, channels, height, width)`, of the size of the first group.

        Raises:
            [`SiTError`]: If they cannot be read.
        """
        with unreadable_errors(self.name):
            if self.is_streamed:
                first = first_images(self.images.train, count, self.images.train_shards)
                items = self._decoding_crops.__getitems__(
                    [(image, seeds(number)) for number, image in enumerate(first)]
                )
            else:
                crops = self._decoding_crops
                count = min(count, len(crops))
                items = [crops[number * len(crops) // count, seeds(number)] for number in range(count)]
        return torch.stack([item["crops"][0][0] for item in items])

    def cache(self, accelerator: Accelerator, num_epochs: float, on_device: bool | None = None) -> None:
        """Decode the images once and keep them, if the user asks for it or it pays. Every process must call this. What is
        kept already stays.

        Args:
            accelerator (`Accelerator`): The processes, and the device that crops may be cut on.
            num_epochs (`float`): How often each image will be seen.
            on_device (`bool`, *optional*): Whether the run that is resumed cut its crops on the device, where rounding
                differs. Default: on the device if there is room.

        Raises:
            [`SiTError`]: If there is no room for the images, or they cannot be written.
        """
        if self.is_streamed or self._crops is not self._decoding_crops:
            return
        self._crops = cache_images(
            accelerator, self.name, self._decoding_crops, self.cache_arguments, num_epochs, on_device
        )
        self.crops_on_device = isinstance(self._crops, CropsOnDevice)

    def batches(self, start: int, stop: int, state: dict | None = None) -> Iterator[dict[str, Any]]:
        """This process's batches from number `start` of the run to before `stop`.

        Closing the iterator ends the dataloader's workers.

        Args:
            start, stop (`int`): Numbers of batches, counted from the start of the run.
            state (`dict`, *optional*): For a stream: [`state_dict`] of the same process after batch `start - 1`.

        Returns:
            Iterator of `dict`: `crops`, for each group uint8 `(number, batch, channels, height, width)`, and `unreadable`,
            a list of messages about images that could not be read.

        Raises:
            [`SiTError`]: If `state` is of another stream. While iterating, if too many images in a row cannot be read.
        """
        if self.is_streamed:
            loader = self._stream = StreamingLoader(
                self.images, self._crops, self.loading, stop - start, self.shuffle_buffer_size, state
            )
        else:
            sampler = ResumableBatchSampler(len(self._crops), self.loading, start, stop)
            if isinstance(self._crops, CropsOnDevice):
                loader = CropLoader(self._crops, batch_sampler=sampler, **self.loading.for_loader)
            else:
                loader = BatchLoader(
                    self._crops, batch_sampler=sampler, collate_fn=collate_crops, **self.loading.for_loader
                )
        return _read(loader, self.name)

    def epoch(self, num_batches: int) -> float | int | None:
        """How many times the images have been seen.

        Args:
            num_batches (`int`): Number of batches of each process so far. For a stream, the batches that [`batches`] has
                given count instead.

        Returns:
            `None` for a stream of unknown length before [`batches`].
        """
        if self._stream is not None:
            return self._stream.epoch
        if self.num_images is None:
            return None
        batch_size = self.loading.batch_size * self.loading.num_processes
        if self.is_streamed:
            return num_batches * batch_size / self.num_images
        return num_batches / (self.num_images // batch_size)

    def state_dict(self) -> dict | None:
        """Where this process's stream stands after the last batch, as JSON values. `None` if nothing must be saved."""
        return None if self._stream is None else self._stream.state_dict()


def _read(loader: BatchLoader | StreamingLoader | CropLoader, dataset: str) -> Iterator[dict[str, Any]]:
    try:
        yield from loader
        return
    except UnreadableImage as problem:
        error = as_error(dataset, problem)
        # The error and its frames hold each other, and with them the loader's workers, for which the program would wait
        # at its end.
        problem.__traceback__ = None
    raise error


def _below(path: str, folder: Path) -> str:
    """A path relative to the folder. For a file elsewhere, such as in a cache, its name."""
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _encoded_size(image: dict[str, Any] | None, path: Path) -> int:
    """Number of bytes of an encoded image, in memory or in its file. 0 if there is none."""
    encoded = (image or {}).get("bytes")
    if encoded is not None:
        return len(encoded)
    try:
        return path.stat().st_size if path.name else 0
    except OSError:  # decoding it will report the error
        return 0
