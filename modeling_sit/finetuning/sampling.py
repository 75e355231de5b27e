"""Which training image comes when, and with which random numbers: functions of the seed and the epoch, so that a run
that goes on sees what an uninterrupted one sees, whatever the number of workers."""

from collections.abc import Iterator

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
        for place, index in enumerate(order.tolist()):
            # By its place too: an image that is drawn twice is to look different.
            yield index, derive_seed(self.seed, CROPS, self.epoch, index, place)


def balancing_weights(labels: torch.Tensor) -> torch.Tensor:
    """How likely each image is to be drawn so that all classes come equally often.

    Of several labels an image, its rarest counts; images without any are a class of their own.

    Args:
        labels (`torch.Tensor`): Class indices `(n,)`, or 0 and 1 `(n, num_labels)`.

    Returns:
        `torch.Tensor` of shape `(n,)`, float64: one over the number of images of the class.
    """
    if labels.ndim == 1:
        return 1 / labels.bincount().double()[labels]
    labels = torch.cat([labels, (labels.sum(dim=1, keepdim=True) == 0).to(labels.dtype)], dim=1).double()
    return (labels / labels.sum(dim=0).clamp(min=1)).amax(dim=1)
