"""What training images go through before a classifier sees them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torchvision.transforms import InterpolationMode, v2

from modeling_sit.finetuning.arguments import FinetuningArguments

# As in DeiT III's code: a blur whose strength is drawn, and solarization of what is brighter than the middle.
BLUR_SIGMA = (0.1, 2.0)
BLUR_KERNEL_SIZE = 9
SOLARIZE_THRESHOLD = 128


def create_augmentation(
    image_shape: tuple[int, int], arguments: FinetuningArguments, fill: Sequence[int] | int = 0
) -> v2.Compose:
    """From image to image, random by PyTorch's global generator: see [`seeded`].

    Args:
        image_shape (pair of `int`): Height and width of the crop in pixels.
        arguments (`FinetuningArguments`): Which augmentation, how strong.
        fill (`int` or sequence of `int`, *optional*, defaults to 0):
            Value from 0 to 255 of each channel where a rotation or shear by RandAugment leaves nothing.
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
    """DeiT III's 3-Augment (Touvron et al. 2022, section 3): grey, solarization or blur, one of them with equal chances,
    then color jitter.

    Args:
        color_jitter (`float`): Change of brightness, contrast and saturation by up to this share; 0 for none.
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
    """Random erasing (Zhong et al. 2020) of normalized images with normal noise, as DeiT has it; `None` for 0."""
    return v2.RandomErasing(probability, value="random") if probability > 0 else None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from PyTorch's CPU generator inside are those of `seed`; those outside are as if there were none inside."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
