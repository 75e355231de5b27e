"""What a few of a dataset's images tell about all of them: their size, and whether they are gray."""

import statistics
from dataclasses import dataclass

import numpy as np

from modeling_sit.data.decoding import DraftScale, UnreadableImage, decode_image, decoded_size
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.image_sample import first_encoded

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
        is_gray (`bool`): Whether each of them is gray.
    """

    num_images: int | None
    height: int
    width: int
    is_gray: bool


def read_image_facts(images: ImageDatasets) -> ImageFacts | None:
    """Read some evenly spaced training images, of a stream the first ones.

    Returns:
        [`ImageFacts`], *optional*: `None` if none of them can be read.
    """
    sizes, grays = [], []
    for image in first_encoded(images):
        try:
            reduced = decode_image(image, 3, draft_scale=REDUCED)
            stored = decoded_size(image, FULL_SIZE)
        except UnreadableImage:
            continue
        lies = (stored[0] > stored[1]) != (reduced.width > reduced.height)  # EXIF has it turned by a quarter
        sizes.append(stored[::-1] if lies else stored)
        red, green, blue = np.moveaxis(np.asarray(reduced), -1, 0)
        grays.append(bool((red == green).all() and (green == blue).all()))
    if not sizes:
        return None
    width, height = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    return ImageFacts(images.num_train, height, width, all(grays))
