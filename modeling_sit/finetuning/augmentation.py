"""Training and validation images for a classifier: augmentation, and batches of them."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from modeling_sit.data.decoding import Image
from modeling_sit.data.labeled import LabeledImageDataset
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.sampling import seeded
from modeling_sit.runtime.errors import SiTError

# As in DeiT III's code: a blur of random strength, and solarization of what is brighter than the middle.
BLUR_SIGMA = (0.1, 2.0)
BLUR_KERNEL_SIZE = 9
SOLARIZE_THRESHOLD = 128
# Width of a crop divided by its height, as a multiple of the model's input's.
CROP_RATIO = (3 / 4, 4 / 3)
# Numbers of channels that transforms of colors know: gray and RGB.
WITH_COLOR = (1, 3)


def as_they_are(processor: Any) -> dict[str, Any]:
    """Settings of a call of an image processor for images that were read by its range of values: percentiles of an augmented image
    would stretch it once more."""
    return {} if getattr(processor, "intensity_range", None) is None else {"intensity_range": None}


def create_augmentation(
    image_shape: tuple[int, int],
    arguments: FinetuningArguments,
    fill: Sequence[int] | int = 0,
    num_channels: int = 3,
) -> v2.Compose:
    """A transform from image to image, random by PyTorch's global generator: see [`seeded`].

    Args:
        image_shape (pair of `int`): Height and width of the crop in pixels.
        arguments (`FinetuningArguments`): Kind and strength of the augmentation.
        fill (`int` or sequence of `int`, *optional*, defaults to 0):
            Value from 0 to 255 of each channel in the corners that a rotation or shear of RandAugment leaves empty.
        num_channels (`int`, *optional*, defaults to 3): Channels of the images. What is of colors is left out of channels
            that are none.

    Raises:
        [`SiTError`]: If RandAugment is asked for, and the channels are no colors.
    """
    height, width = image_shape
    steps = [
        v2.RandomResizedCrop(
            image_shape,
            scale=tuple(arguments.crop_scale),
            ratio=(CROP_RATIO[0] * width / height, CROP_RATIO[1] * width / height),
            interpolation=InterpolationMode.BICUBIC,
        ),
        v2.RandomHorizontalFlip(arguments.horizontal_flip_probability),
    ]
    if arguments.vertical_flip_probability > 0:  # with 0 it would use up random numbers
        steps.append(v2.RandomVerticalFlip(arguments.vertical_flip_probability))
    if arguments.augmentation == "3-augment":
        steps += three_augment(arguments.color_jitter, num_channels)
    elif arguments.augmentation == "randaugment":
        if num_channels not in WITH_COLOR:
            raise SiTError(
                f"it changes colors, and {num_channels} channels have none",
                argument="augmentation",
                remedy="choose 3-augment or plain",
            )
        steps.append(
            v2.RandAugment(
                arguments.randaugment_num_ops,
                arguments.randaugment_magnitude,
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    return v2.Compose(steps)


def three_augment(color_jitter: float, num_channels: int = 3) -> list[v2.Transform]:
    """DeiT III's 3-Augment (Touvron et al. 2022, section 3): one of grayscale, solarization and blur with equal
    probabilities, then color jitter. Of channels that are no colors: blur with the same probability, then brightness and
    contrast.

    Args:
        color_jitter (`float`): Change of brightness, contrast and saturation by up to this fraction; 0 for none.
        num_channels (`int`, *optional*, defaults to 3): Channels of the images.
    """
    blur = v2.GaussianBlur(BLUR_KERNEL_SIZE, BLUR_SIGMA)
    if num_channels not in WITH_COLOR:
        return [v2.RandomApply([blur], p=1 / 3), ChannelJitter(color_jitter)]
    one_of_three = v2.RandomChoice(
        [
            v2.RandomGrayscale(1.0),
            v2.RandomSolarize(SOLARIZE_THRESHOLD, p=1.0),
            blur,
        ]
    )
    return [one_of_three, v2.ColorJitter(color_jitter, color_jitter, color_jitter)]


class ChannelJitter(v2.Transform):
    """
    Random brightness and contrast of images of any number of channels, one factor each for all channels of an image.

    Args:
        strength (`float`): Factors are drawn from 1 - `strength` to 1 + `strength`. Contrast is to the mean of the channel.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list) -> dict[str, float]:
        brightness, contrast = (1 + self.strength * (2 * torch.rand(2) - 1)).clamp(min=0).tolist()
        return {"brightness": brightness, "contrast": contrast}

    def transform(
        self, inpt: torch.Tensor | PIL.Image.Image, params: dict[str, float]
    ) -> torch.Tensor | PIL.Image.Image:
        if isinstance(inpt, PIL.Image.Image):  # with transparency
            return v2.functional.to_pil_image(self.transform(v2.functional.pil_to_tensor(inpt), params), inpt.mode)
        values = inpt.float().mul_(params["brightness"]).clamp_(0, 255)
        means = values.mean(dim=(-2, -1), keepdim=True)
        jittered = torch.lerp(means, values, params["contrast"]).clamp_(0, 255).round_().to(torch.uint8)
        return tv_tensors.wrap(jittered, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else jittered


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
            image = self.augmentation(as_tensor(item["image"]))
            return {**item, "image": image, "seed": torch.randint(2**62, ()).item()}


def as_tensor(image: Image) -> PIL.Image.Image | tv_tensors.Image:
    """An image for torchvision's transforms: of Pillow, or uint8 `(channels, height, width)`."""
    if isinstance(image, PIL.Image.Image):
        return image
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))


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
        settings = {"return_tensors": "pt", **as_they_are(self.processor)}
        crops = (
            getattr(self.processor, "do_center_crop", False) or getattr(self.processor, "crop_pct", None) is not None
        )
        if "seed" in items[0] and crops:
            # An augmented image has the model's size already. Its edges would be cut off.
            settings |= {"do_resize": False, "do_center_crop": False}
        pixel_values = self.processor([item["image"] for item in items], **settings)["pixel_values"]
        if self.erasing is not None and "seed" in items[0]:
            pixel_values = torch.stack(
                [self._erase(image, item["seed"]) for image, item in zip(pixel_values, items, strict=True)]
            )
        return {"pixel_values": pixel_values, "labels": torch.stack([torch.as_tensor(i["label"]) for i in items])}

    def _erase(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            return self.erasing(image)
