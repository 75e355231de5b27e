"""Random crops of each image, cut where images are decoded or kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomResizedCrop

from modeling_sit.data.decoding import DraftScale, UnreadableImage
from modeling_sit.data.image_datasets import read_row
from modeling_sit.image_modes import PixelFormat

# This many unreadable images in a row mean that more is wrong than a few damaged files.
MAX_UNREADABLE_IN_A_ROW = 100

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""


@dataclass(frozen=True)
class CropGroup:
    """
    Crops of one size.

    Args:
        number (`int`): Crops of each image.
        image_shape (pair of `int`): Height and width of the crops in pixels.
        scale (pair of `float`): Range of a crop's area, as a fraction of the image's.
    """

    number: int
    image_shape: tuple[int, int]
    scale: tuple[float, float]


class RandomCrops:
    """
    Cuts random crops out of an image. They depend on the image and the seed only.

    Args:
        groups (sequence of [`CropGroup`]): What to cut. The first group's boxes are drawn first, so they do not depend on
            the other groups.
        ratio (pair of `float`): Range of a crop's width divided by its height.
    """

    def __init__(self, groups: Sequence[CropGroup], ratio: tuple[float, float]):
        self.groups = list(groups)
        self.random_crops = [RandomResizedCrop(group.image_shape, scale=group.scale, ratio=ratio) for group in groups]
        self.draft_scale = DraftScale(
            tuple((max(group.image_shape), group.scale[0]) for group in groups), tuple(ratio)
        )

    def draw_boxes(self, height: int, width: int, seed: int) -> list[list[Box]]:
        """The boxes of each group in an image of this size."""
        size = torch.empty(1, height, width, device="meta")  # torchvision takes an image, and reads only its size
        # torchvision draws from PyTorch's global generator. Only the one of the CPU is seeded; devices keep theirs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return [
                [_as_box(random_crop.make_params([size])) for _ in range(group.number)]
                for group, random_crop in zip(self.groups, self.random_crops, strict=True)
            ]

    def __call__(self, image: np.ndarray, seed: int) -> tuple[torch.Tensor, ...]:
        """For each group, uint8 crops `(number, channels, height, width)` of a uint8 image `(height, width, channels)`."""
        height, width, _ = image.shape
        boxes = self.draw_boxes(height, width, seed)
        return tuple(
            torch.stack([_cut(image, box, group.image_shape) for box in boxes_of_group])
            for group, boxes_of_group in zip(self.groups, boxes, strict=True)
        )


def _as_box(params: dict[str, int]) -> Box:
    return params["top"], params["left"], params["height"], params["width"]


def _cut(image: np.ndarray, box: Box, image_shape: tuple[int, int]) -> torch.Tensor:
    # PyTorch's kernel for 8 bits is four times as fast as Pillow's, and its result differs by at most 2 of 255. The crop
    # is copied because the image may be read-only, which PyTorch does not support.
    top, left, height, width = box
    crop = torch.from_numpy(image[top : top + height, left : left + width].copy()).permute(2, 0, 1)
    return F.interpolate(crop[None], list(image_shape), mode="bicubic", antialias=True)[0]


class ImageSource(Protocol):
    """Where pixels come from: an image is decoded each time, or read from a cache."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """An upright image, uint8 `(height, width, channels)`. Raises `UnreadableImage`, which names it."""


class DecodedImages:
    """
    Images that are decoded each time they are read.

    Args:
        dataset (`datasets.Dataset`): Column `image` of encoded images.
        pixel_format ([`PixelFormat`] or `int`): What images are decoded to; a number is one of channels.
        draft_scale ([`DraftScale`]): By how much large ones shrink.
    """

    def __init__(self, dataset: datasets.Dataset, pixel_format: PixelFormat | int, draft_scale: DraftScale):
        self.dataset = dataset
        self.pixel_format = PixelFormat.of(pixel_format)
        self.draft_scale = draft_scale

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        image, _ = read_row(self.dataset, index, self.pixel_format, self.draft_scale)
        return as_pixels(image)


def as_pixels(image) -> np.ndarray:
    """The pixels of a decoded image, uint8 `(height, width, channels)`."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class CropsDataset(torch.utils.data.Dataset):
    """
    Images as random crops. The key of an item is (index, seed), so its crops are the same in any worker.

    Args:
        images ([`ImageSource`]): Where the images come from.
        random_crops ([`RandomCrops`]): Cuts them.

    An item is a dict: `crops`, for each group uint8 `(number, channels, height, width)`, and `unreadable`, a list of
    messages about images that could not be read. The next readable image replaces an unreadable one, so that batches
    keep their size.
    """

    def __init__(self, images: ImageSource, random_crops: RandomCrops):
        self.images = images
        self.random_crops = random_crops

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        unreadable = []
        for _ in range(min(len(self), MAX_UNREADABLE_IN_A_ROW)):
            try:
                item = self.crop(index, seed)
            except UnreadableImage as problem:
                unreadable.append(str(problem))
                kind = type(problem)
                index = (index + 1) % len(self)
            else:
                return {**item, "unreadable": unreadable}
        raise kind(f"{len(unreadable)} images in a row, the last of them {unreadable[-1]}")

    def crop(self, index: int, seed: int) -> dict:
        """The item of one image, without `unreadable`. Raises `UnreadableImage`."""
        return {"crops": self.random_crops(self.images[index], seed)}


def collate_crops(items: list[dict]) -> dict:
    """Stack items of [`CropsDataset`].

    Returns:
        `dict`: `crops`, for each group uint8 `(number, batch, channels, height, width)`, and `unreadable`, a list of
        messages.
    """
    groups = zip(*(item["crops"] for item in items), strict=True)
    return {
        "crops": tuple(torch.stack(group, dim=1) for group in groups),
        "unreadable": all_unreadable(items),
    }


def all_unreadable(items: list[dict]) -> list[str]:
    """The messages about unreadable images of all items."""
    return [problem for item in items for problem in item["unreadable"]]
