"""Order and random seeds of the training images.

Both are functions of the run's seed and the epoch, so that a run that resumes sees what an uninterrupted run sees,
whatever the number of workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import Sampler

from modeling_sit.data.sampling import CROPS, ORDER, derive_seed


class EpochOrder(Sampler[tuple[int, int]]):
    """
    The images of an epoch, as pairs (index of an image, seed of its augmentation): a new permutation each epoch, or with
    `weights` as many draws with replacement.

    Args:
        num_images (`int`): Number of images.
        seed (`int`): Seed of the orders and of the augmentation.
        weights (`torch.Tensor` of shape `(num_images,)`, *optional*):
            How likely an image is to be drawn, relative to others.
    """

    def __init__(self, num_images: int, seed: int, weights: torch.Tensor | None = None):
        self.num_images = num_images
        self.seed = seed
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_images, replacement=True, generator=generator)
        for position, index in enumerate(order.tolist()):
            # By its position too: an image that is drawn twice gets two augmentations.
            yield index, derive_seed(self.seed, CROPS, self.epoch, index, position)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """In this block, PyTorch's CPU generator starts from `seed`; afterwards it goes on as if there were no block."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
