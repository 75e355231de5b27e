"""What benchmarks share that measure how much a model has learned: held-out training images, so that nothing is decided on
test images, and views for gray ones."""

import io

import datasets
import PIL.Image

from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import select_label_fraction, train_validation_split
from modeling_sit.runtime.errors import SiTError

# The draw is the same for all runs of a benchmark, whatever their own seeds.
SEED = 0
NUM_LOOKED_AT = 16
GRAY_MODES = ("1", "L", "I", "I;16", "F")
# A small part of a gray digit, or its mirror image, is another digit or none, and nothing has colors.
GRAY_VIEWS = {
    "crop_scale": [0.6, 1.0],
    "horizontal_flip_probability": 0,
    "color_jitter_probability": 0,
    "grayscale_probability": 0,
    "blur_probability": [0, 0],
    "solarize_probability": [0, 0],
}


def hold_out(dataset: str, fraction: float = 0.2, max_images: int | None = None) -> datasets.DatasetDict:
    """
    The labeled training images of a dataset in two parts, `train` and `validation`. Test images are not used.

    Args:
        dataset (`str`): As `modeling_sit.pretrain` takes it, with labels.
        fraction (`float`, *optional*, defaults to 0.2): Part of each class that is held out, in (0, 1).
        max_images (`int`, *optional*): Use this many images of both parts together, the same fraction of each class. Default:
            all.

    Raises:
        [`SiTError`]: If there is no such dataset, or it has no training images with labels.
    """
    images = load_images(dataset, labels="required")
    if images.train is None:
        raise SiTError(f"{images.name} has no split called train", argument="dataset")
    train = images.train
    if max_images is not None and max_images < len(train):
        train = select_label_fraction(train, max_images / len(train), SEED)
    rest, held_out = train_validation_split(train, fraction, SEED)
    return datasets.DatasetDict({"train": rest, "validation": held_out})


def look_at(images: datasets.Dataset) -> tuple[int, int]:
    """Side in pixels and number of channels of the images: the median of the shorter sides of the first ones, and 1 if those
    are gray, else 3."""
    first = images.select(range(min(NUM_LOOKED_AT, len(images))))
    opened = [
        PIL.Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) for image in first["image"]
    ]
    sides = sorted(min(image.size) for image in opened)
    return sides[len(sides) // 2], 1 if all(image.mode in GRAY_MODES for image in opened) else 3


def short_name(dataset: str) -> str:
    """A dataset's name for tables and folders: the last part of its path."""
    return dataset_name(dataset).rstrip("/").rpartition("/")[2]
