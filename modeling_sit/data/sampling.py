"""The order of the images and their random numbers: functions of the seed and the step only.

So a run that resumes at a step sees the same batches as an uninterrupted one, with any number of dataloader workers.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Sampler

from modeling_sit.data.loaders import DEFAULT_TIMEOUT
from modeling_sit.image_modes import PixelFormat

# Purposes of a seed. The same numbers give unrelated seeds for different purposes.
ORDER, CROPS, STEP, PREVIEW, MONITOR, HOLD_OUT = range(6)


def derive_seed(seed: int, purpose: int, *numbers: int) -> int:
    """A seed below 2^63. If one of the arguments (at least 0) differs, so does the seed, but for a negligible chance."""
    words = repr((seed, purpose, *numbers)).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class LoadingSettings:
    """
    How one process loads its batches.

    Args:
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Seed of the order and of the crops.
        pixel_format ([`PixelFormat`], *optional*): What images are decoded to. Default: RGB.
        crop_ratio (pair of `float`, *optional*): Range of a crop's width divided by its height.
        num_workers (`int`, *optional*, defaults to 0): Processes that decode and crop. The batches do not depend on it.
        process_index (`int`, *optional*, defaults to 0): Which process this is.
        num_processes (`int`, *optional*, defaults to 1): How many processes there are.
        device (`torch.device`, *optional*): Where the batches go.
        timeout (`float`, *optional*, defaults to 600): Seconds to wait for a batch at most.
    """

    batch_size: int
    seed: int
    pixel_format: PixelFormat = field(default_factory=PixelFormat)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    num_workers: int = 0
    process_index: int = 0
    num_processes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = DEFAULT_TIMEOUT

    @property
    def for_loader(self) -> dict[str, Any]:
        """Arguments of [`~modeling_sit.data.loaders.BatchLoader`]."""
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.device.type == "cuda",
            "limit": self.timeout,
        }


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """
    Batches of one process: lists of (index of an image, seed of its draws), epoch after epoch.

    Each epoch is a new permutation of all images. Images that do not fill a batch of every process are left out of it.

    Args:
        num_images (`int`): Number of images.
        loading ([`LoadingSettings`]): Batch size, seed and process.
        start (`int`): Number of the first batch, counted from the start of the run.
        stop (`int`): Number of the batch to stop before.

    Raises:
        `ValueError`: If there are fewer images than the batches of all processes hold.
    """

    def __init__(self, num_images: int, loading: LoadingSettings, start: int, stop: int):
        self.batches_per_epoch = num_images // (loading.batch_size * loading.num_processes)
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{num_images} images do not fill one batch of {loading.batch_size} in each of "
                f"{loading.num_processes} processes"
            )
        self.num_images = num_images
        self.loading = loading
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loading = self.loading
        permuted_epoch, permutation = None, None
        for number in range(self.start, self.stop):
            epoch, position = divmod(number, self.batches_per_epoch)
            if epoch != permuted_epoch:
                generator = torch.Generator().manual_seed(derive_seed(loading.seed, ORDER, epoch))
                permutation = torch.randperm(self.num_images, generator=generator)
                permuted_epoch = epoch
            first = (position * loading.num_processes + loading.process_index) * loading.batch_size
            indices = permutation[first : first + loading.batch_size].tolist()
            yield [(index, derive_seed(loading.seed, CROPS, epoch, index)) for index in indices]
