"""What a few of a dataset's images tell about all of them: their size, and their channels."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modeling_sit.data.array_files import read_header
from modeling_sit.data.decoding import DraftScale, UnreadableImage, decode_image, decoded_size
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.image_sample import first_encoded
from modeling_sit.data.opening import opened
from modeling_sit.image_modes import PixelFormat

# Of a channel that is nearly the same everywhere.
LEAST_STD = 0.01
FULL_SIZE = DraftScale(views=((10**9, 1.0),), crop_ratio=(1.0, 1.0))
# Enough pixels to tell gray from color. JPEGs decode several times as fast at a fraction of their size.
REDUCED = DraftScale(views=((32, 1.0),), crop_ratio=(1.0, 1.0))


@dataclass(frozen=True)
class ImageFacts:
    """
    The images of a dataset.

    Args:
        num_images (`int`, *optional*): Number of images to train on; `None` for a stream of unknown length.
        height, width (`int`): Medians of the images that were read, in pixels.
        num_channels (`int`): 1 if each of them is gray, 3 if they are gray and color, or the number of channels that most of
            them have if these are no colors.
        mean, std (`tuple` of `float`, *optional*): Of each channel, of values in [0, 1], if the channels are no colors.
    """

    num_images: int | None
    height: int
    width: int
    num_channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def is_gray(self) -> bool:
        """Whether each image is gray."""
        return self.num_channels == 1


def read_image_facts(images: ImageDatasets, intensity_range: Sequence[float | str] | None = None) -> ImageFacts | None:
    """Read some evenly spaced training images, of a stream the first ones.

    Args:
        images ([`ImageDatasets`]): The images.
        intensity_range (sequence of `float` or `str`, *optional*): As of [`PixelFormat`].

    Returns:
        [`ImageFacts`], *optional*: `None` if none of them can be read.
    """
    sizes, channels, moments = [], [], []
    for image in first_encoded(images):
        try:
            number = _channels_without_color(image)
            if number is not None:
                sizes.append(decoded_size(image, FULL_SIZE))
                channels.append(number)
                moments.append(_moments(image, number, intensity_range))
                continue
            reduced = decode_image(image, 3, draft_scale=REDUCED)
            stored = decoded_size(image, FULL_SIZE)
        except (UnreadableImage, OSError, ValueError):
            continue
        lies = (stored[0] > stored[1]) != (reduced.width > reduced.height)  # EXIF has it turned by a quarter
        sizes.append(stored[::-1] if lies else stored)
        red, green, blue = np.moveaxis(np.asarray(reduced), -1, 0)
        channels.append(1 if (red == green).all() and (green == blue).all() else 3)
    if not sizes:
        return None
    width, height = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    most = Counter(channels).most_common(1)[0][0]
    if most in (1, 3):
        return ImageFacts(images.num_train, height, width, 3 if 3 in channels else 1)
    moments = [both for both in moments if both is not None and len(both[0]) == most]
    if not moments:  # whoever decodes them will say why
        return ImageFacts(images.num_train, height, width, most)
    first, second = np.mean(moments, axis=0)
    std = np.sqrt(second - first**2).clip(LEAST_STD)
    return ImageFacts(images.num_train, height, width, most, _rounded(first), _rounded(std))


def _moments(image: dict, num_channels: int, intensity_range: Sequence[float | str] | None) -> np.ndarray | None:
    """The means `(2, channels)` of the values in [0, 1] of an image, and of their squares; `None` if it cannot be read."""
    try:
        pixels = np.asarray(decode_image(image, PixelFormat(num_channels, intensity_range))) / 255
    except (UnreadableImage, ValueError):
        return None
    return np.stack([pixels.mean((0, 1)), (pixels**2).mean((0, 1))])


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _channels_without_color(image: dict | None) -> int | None:
    """The number of channels of an encoded image, if they are no colors."""
    if image is None:
        return None
    with opened(image["path"] if image["bytes"] is None else image["bytes"]) as file:
        header = read_header(file)
    return None if header is None or header.num_channels in (1, 3) else header.num_channels
