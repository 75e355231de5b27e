"""Which image is seen when, and with which random numbers: functions of the seed and the step, of nothing else.

So a run that resumes at a step sees what an uninterrupted one sees there, whatever the number of dataloader workers.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

# What a seed is for; the same numbers give unrelated seeds for different purposes.
ORDER, CROPS, STEP, PREVIEW, MONITOR = range(5)


def derive_seed(seed: int, purpose: int, *numbers: int) -> int:
    """A seed below 2^63 that differs, for all practical purposes, wherever one of the arguments (from 0 on) differs."""
    words = repr((seed, purpose, *numbers)).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """
    Batches of one process: lists of (index of an image, seed of its draws), epoch after epoch.

    An epoch is a new permutation of all images; what does not fill a batch of every process is left to other epochs.

    Args:
        num_images (`int`): Number of images.
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Seed of the permutations and of the draws.
        start (`int`, *optional*, defaults to 0): Number of the first batch, counted from the start of the run.
        stop (`int`): Number of the batch to stop before.
        process_index (`int`, *optional*, defaults to 0): Which process this is.
        num_processes (`int`, *optional*, defaults to 1): How many processes share each batch number.

    Raises:
        `ValueError`: If there are fewer images than the batches of all processes hold.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        stop: int,
        start: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.batches_per_epoch = num_images // (batch_size * num_processes)
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{num_images} images do not fill one batch of {batch_size} in each of {num_processes} processes"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.process_index = process_index
        self.num_processes = num_processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permuted_epoch, permutation = None, None
        for number in range(self.start, self.stop):
            epoch, position = divmod(number, self.batches_per_epoch)
            if epoch != permuted_epoch:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, epoch))
                permutation = torch.randperm(self.num_images, generator=generator)
                permuted_epoch = epoch
            first = (position * self.num_processes + self.process_index) * self.batch_size
            indices = permutation[first : first + self.batch_size].tolist()
            yield [(index, derive_seed(self.seed, CROPS, epoch, index)) for index in indices]
