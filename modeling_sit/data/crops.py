"""Two random crops of each image, cut where images are decoded or kept."""

from typing import Protocol

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomResizedCrop

from modeling_sit.data.decoding import DraftScale, UnreadableImage
from modeling_sit.data.sources import read_row
from modeling_sit.data.views import ViewArguments

# A whole run of unreadable images means that something else is wrong than a few damaged files.
MAX_UNREADABLE_IN_A_ROW = 100


class TwoCropsTransform:
    """
    Cuts two random crops out of an image, which depend on the image and the seed alone.

    Args:
        image_shape (pair of `int`): Height and width of the crops in pixels.
        arguments (`ViewArguments`): Ranges of the crops' area and ratio.
    """

    def __init__(self, image_shape: tuple[int, int], arguments: ViewArguments):
        self.image_shape = list(image_shape)
        self.random_crop = RandomResizedCrop(
            image_shape, scale=tuple(arguments.crop_scale), ratio=tuple(arguments.crop_ratio)
        )
        self.reduction = DraftScale(max(image_shape), arguments.crop_scale[0], tuple(arguments.crop_ratio))

    def draw_boxes(self, height: int, width: int, seed: int) -> list[tuple[int, int, int, int]]:
        """Two boxes in an image of this size: top, left, height and width, in pixels."""
        size = torch.empty(1, height, width, device="meta")  # torchvision wants an image, and looks at its size alone
        # torchvision draws from PyTorch's global generator; seeding its CPU half alone leaves devices in peace.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            boxes = [self.random_crop.make_params([size]) for _ in range(2)]
        return [(box["top"], box["left"], box["height"], box["width"]) for box in boxes]

    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        """Two crops, uint8 `(2, channels, height, width)`, of an image, uint8 `(height, width, channels)`."""
        height, width, _ = image.shape
        return torch.stack([self._cut(image, *box) for box in self.draw_boxes(height, width, seed)])

    def _cut(self, image: np.ndarray, top: int, left: int, height: int, width: int) -> torch.Tensor:
        # PyTorch's kernel for 8 bits is four times as fast as Pillow's, and does the same to 2 of 255. A copy, for what
        # it is cut from may be read-only, which PyTorch does not know.
        crop = torch.from_numpy(image[top : top + height, left : left + width].copy()).permute(2, 0, 1)
        return F.interpolate(crop[None], self.image_shape, mode="bicubic", antialias=True)[0]


class ImageSource(Protocol):
    """Where pixels come from: decoded anew each time, or kept."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """An image, upright, uint8 `(height, width, channels)`; raises `UnreadableImage`, naming it."""


class DecodedImages:
    """
    Images that are decoded each time that one is asked for.

    Args:
        dataset (`datasets.Dataset`): Column `image` of encoded images.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        reduction (`DraftScale`): By how much large ones shrink.
    """

    def __init__(self, dataset: datasets.Dataset, num_channels: int, reduction: DraftScale):
        self.dataset = dataset
        self.num_channels = num_channels
        self.reduction = reduction

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        image, _ = read_row(self.dataset, index, self.num_channels, self.reduction)
        return as_pixels(image)


def as_pixels(image) -> np.ndarray:
    """The pixels of a PIL image, uint8 `(height, width, channels)`."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class TwoCropsDataset(torch.utils.data.Dataset):
    """
    Images as two random crops each. An item is asked for by (index, seed), so its crops are the same in any worker.

    Args:
        images (`ImageSource`): Where the images come from.
        two_crops (`TwoCropsTransform`): Cuts them.

    An item is a dict: `crops`, uint8 `(2, channels, height, width)`, and `unreadable`, a list of what could not be read
    on the way: the next readable image takes an unreadable one's place, so that batches keep their size.
    """

    def __init__(self, images: ImageSource, two_crops: TwoCropsTransform):
        self.images = images
        self.two_crops = two_crops

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
                index = (index + 1) % len(self)
            else:
                return {**item, "unreadable": unreadable}
        raise UnreadableImage(f"{len(unreadable)} images in a row, the last of them {unreadable[-1]}")

    def crop(self, index: int, seed: int) -> dict:
        """What an item says of one image. Raises `UnreadableImage`."""
        return {"crops": self.two_crops(self.images[index], seed)}


def collate_crops(items: list[dict]) -> dict:
    """Stack items of [`TwoCropsDataset`]: `crops` `(2, batch, channels, height, width)`, and all that was unreadable."""
    return {
        "crops": torch.stack([item["crops"] for item in items], dim=1),
        "unreadable": all_unreadable(items),
    }


def all_unreadable(items: list[dict]) -> list[str]:
    return [problem for item in items for problem in item["unreadable"]]
