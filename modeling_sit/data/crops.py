"""Two random crops of each picture, cut where pictures are decoded."""

import torch
from datasets import Dataset
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.sources import read_row
from modeling_sit.data.views import ViewArguments

# A whole run of unreadable pictures means that something else is wrong than a few damaged files.
MAX_UNREADABLE_IN_A_ROW = 100


class TwoRandomCrops:
    """
    Cuts two random crops out of a picture, which depend on the picture and the seed alone.

    Args:
        image_shape (pair of `int`): Height and width of the crops in pixels.
        arguments (`ViewArguments`): Ranges of the crops' area and ratio.
    """

    def __init__(self, image_shape: tuple[int, int], arguments: ViewArguments):
        self.random_crop = RandomResizedCrop(
            image_shape,
            scale=tuple(arguments.crop_scale),
            ratio=tuple(arguments.crop_ratio),
            interpolation=InterpolationMode.BICUBIC,
        )

    def __call__(self, picture: Image.Image, seed: int) -> torch.Tensor:
        """Two crops of the picture, uint8 `(2, channels, height, width)`."""
        # torchvision draws from PyTorch's global generator; seeding its CPU half alone leaves devices in peace.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([F.pil_to_tensor(self.random_crop(picture)) for _ in range(2)])


class TwoCropsDataset(torch.utils.data.Dataset):
    """
    Pictures as two random crops each. An item is asked for by (index, seed), so its crops are the same in any worker.

    Args:
        pictures (`datasets.Dataset`): Column `image` of encoded pictures.
        image_shape (pair of `int`): Height and width of the crops in pixels.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        arguments (`ViewArguments`): Ranges of the crops' area and ratio.

    An item is a dict: `crops`, uint8 `(2, channels, height, width)`, and `unreadable`, a list of what could not be read
    on the way: the next readable picture takes an unreadable one's place, so that batches keep their size.
    """

    def __init__(self, pictures: Dataset, image_shape: tuple[int, int], num_channels: int, arguments: ViewArguments):
        self.pictures = pictures
        self.num_channels = num_channels
        self.two_crops = TwoRandomCrops(image_shape, arguments)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        unreadable = []
        for _ in range(min(len(self), MAX_UNREADABLE_IN_A_ROW)):
            try:
                picture, _ = read_row(self.pictures, index, self.num_channels)
            except UnreadablePicture as problem:
                unreadable.append(str(problem))
                index = (index + 1) % len(self)
            else:
                return {"crops": self.two_crops(picture, seed), "unreadable": unreadable}
        raise UnreadablePicture(f"{len(unreadable)} pictures in a row, the last of them {unreadable[-1]}")


def collate_crops(items: list[dict]) -> dict:
    """Stack items of [`TwoCropsDataset`]: `crops` `(2, batch, channels, height, width)`, and all that was unreadable."""
    return {
        "crops": torch.stack([item["crops"] for item in items], dim=1),
        "unreadable": [problem for item in items for problem in item["unreadable"]],
    }
