"""Training and validation images for a classifier: augmentation, and batches of them."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from modeling_sit.data.labeled import LabeledImageDataset
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.sampling import seeded

# As in DeiT III's code: a blur of random strength, and solarization of what is brighter than the middle.
BLUR_SIGMA = (0.1, 2.0)
BLUR_KERNEL_SIZE = 9
SOLARIZE_THRESHOLD = 128


def create_augmentation(
    image_shape: tuple[int, int], arguments: FinetuningArguments, fill: Sequence[int] | int = 0
) -> v2.Compose:
    """A transform from image to image, random by PyTorch's global generator: see [`seeded`].

    Args:
        image_shape (pair of `int`): Height and width of the crop in pixels.
        arguments (`FinetuningArguments`): Kind and strength of the augmentation.
        fill (`int` or sequence of `int`, *optional*, defaults to 0):
            Value from 0 to 255 of each channel in the corners that a rotation or shear of RandAugment leaves empty.
    """
    steps = [
        v2.RandomResizedCrop(image_shape, scale=tuple(arguments.crop_scale), interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(arguments.horizontal_flip_probability),
    ]
    if arguments.augmentation == "3-augment":
        steps += three_augment(arguments.color_jitter)
    elif arguments.augmentation == "randaugment":
        steps.append(
            v2.RandAugment(
                arguments.randaugment_num_ops,
                arguments.randaugment_magnitude,
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    return v2.Compose(steps)


def three_augment(color_jitter: float) -> list[v2.Transform]:
    """DeiT III's 3-Augment (Touvron et al. 2022, section 3): one of grayscale, solarization and blur with equal
    probabilities, then color jitter.

    Args:
        color_jitter (`float`): Change of brightness, contrast and saturation by up to this fraction; 0 for none.
    """
    one_of_three = v2.RandomChoice(
        [
            v2.RandomGrayscale(1.0),
            v2.RandomSolarize(SOLARIZE_THRESHOLD, p=1.0),
            v2.GaussianBlur(BLUR_KERNEL_SIZE, BLUR_SIGMA),
        ]
    )
    return [one_of_three, v2.ColorJitter(color_jitter, color_jitter, color_jitter)]


def create_erasing(probability: float) -> v2.RandomErasing | None:
    """Random erasing (Zhong et al. 2020) of normalized images with normal noise, as in DeiT; `None` for 0."""
    return v2.RandomErasing(probability, value="random") if probability > 0 else None


class AugmentedImages(torch.utils.data.Dataset):
    """
    Labeled images to train on. The key of an item is a pair (index, seed); the seed alone makes it random.

    Args:
        images ([`LabeledImageDataset`]): The images as they are.
        augmentation (callable): From image to image, random by PyTorch's global generator.

    An item is one of [`LabeledImageDataset`] with the augmented image, and with `seed` for the randomness of later steps.
    """

    def __init__(self, images: LabeledImageDataset, augmentation: v2.Transform):
        self.images = images
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        item = self.images[index]
        with seeded(seed):
            image = self.augmentation(item["image"])
            return {**item, "image": image, "seed": torch.randint(2**62, ()).item()}


class Collator:
    """
    Turns items into `pixel_values` `(batch, channels, height, width)` and `labels` `(batch,)` or `(batch, num_labels)`.
    Prints a line for each image that could not be read.

    Args:
        processor: The model's image processor.
        erasing (callable, *optional*): Transform of the normalized images of [`AugmentedImages`], random by their seeds.
    """

    def __init__(self, processor: Any, erasing: v2.Transform | None = None):
        self.processor = processor
        self.erasing = erasing

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        for item in items:
            if item["unreadable"] is not None:
                print(f"skipped an unreadable image: {item['unreadable']}", file=sys.stderr, flush=True)
        pixel_values = self.processor([item["image"] for item in items], return_tensors="pt")["pixel_values"]
        if self.erasing is not None and "seed" in items[0]:
            pixel_values = torch.stack(
                [self._erase(image, item["seed"]) for image, item in zip(pixel_values, items, strict=True)]
            )
        return {"pixel_values": pixel_values, "labels": torch.stack([torch.as_tensor(i["label"]) for i in items])}

    def _erase(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            return self.erasing(image)
