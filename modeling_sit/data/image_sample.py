"""Some of a dataset's images, and what their files hold: sizes, modes, bit depths, ranges of values."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import datasets
import numpy as np
import PIL.Image
from PIL import ExifTags

from modeling_sit.data.array_files import ArrayHeader, read_header
from modeling_sit.data.decoding import DraftScale, UnreadableImage, decode_image
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.opening import opened, pillow_reads, read_image
from modeling_sit.data.shard_reading import first_images
from modeling_sit.data.stored_values import read_stored_values
from modeling_sit.image_modes import MAX_CHANNELS

# So many images are decoded, and of a stream no others are read.
NUM_READ_IMAGES = 16
# Of so many in all only the header is read, as long as it takes no more than these seconds.
NUM_SAMPLED_IMAGES = 6 * NUM_READ_IMAGES
MAX_SECONDS = 1.0
# The same for a sample that the user waits for. All of it is decoded.
NUM_SAMPLED_THOROUGH = 5_000
MAX_SECONDS_THOROUGH = 20.0
# Enough pixels to tell gray from color. JPEGs decode several times as fast at a fraction of their size.
REDUCED = DraftScale(views=((32, 1.0),), crop_ratio=(1.0, 1.0))
TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # values of the EXIF tag


@dataclass(frozen=True)
class SampledImage:
    """
    An image of a sample.

    Args:
        height, width (`int`): In pixels, of the upright image.
        mode (`str`): Pillow's mode of the file, such as `"RGB"` or `"I;16"`, or the number of its channels in words.
        bits (`int`): Of each channel in the file: 1, 8, 12, 16 or 32.
        is_float (`bool`): Whether its values are floats.
        has_more (`bool`): Whether the file has more frames or pages than the first, which is read.
        smallest, largest (`float`, *optional*):
            Its finite values as they are stored. `None` for an image that was not decoded.
        num_not_finite (`int`, *optional*, defaults to 0): Of its values, those that are NaN or infinite.
    """

    height: int
    width: int
    mode: str
    bits: int
    is_float: bool = False
    has_more: bool = False
    smallest: float | None = None
    largest: float | None = None
    num_not_finite: int = 0


@dataclass(frozen=True)
class ImageSample:
    """
    Some evenly spaced training images of a dataset, of a stream the first ones.

    Args:
        images (`list[SampledImage]`): Those that can be read.
        problems (`list[str]`): Why others cannot be read.
    """

    images: list[SampledImage]
    problems: list[str]


def first_encoded(images: ImageDatasets) -> list[dict | None]:
    """`NUM_READ_IMAGES` evenly spaced training images, encoded, of a stream the first ones, which are read once. Validation
    images, if there are no others."""
    split = images.train if images.train is not None else images.validation
    if not isinstance(split, datasets.IterableDataset):
        return split.select(_rows(len(split), NUM_READ_IMAGES))["image"][:]
    if images.first_of_stream is None:
        shards = images.train_shards if split is images.train else None
        images.first_of_stream = [image for image, _ in first_images(split, NUM_READ_IMAGES, shards)]
    return images.first_of_stream


def read_sample(images: ImageDatasets, is_thorough: bool = False) -> ImageSample:
    """Read [`first_encoded`], and of a dataset that is no stream the headers of more images between them.

    The first ones are decoded, and as many of more than 8 bits as the time allows.

    Args:
        images ([`ImageDatasets`]): The dataset.
        is_thorough (`bool`, *optional*, defaults to `False`): Whether to take more time for more images, and to decode all
            of them.
    """
    found, problems = [], []
    end = time.monotonic() + (MAX_SECONDS_THOROUGH if is_thorough else MAX_SECONDS)
    for number, image in enumerate(_encoded(images, NUM_SAMPLED_THOROUGH if is_thorough else NUM_SAMPLED_IMAGES)):
        is_late = time.monotonic() > end
        is_first = number < NUM_READ_IMAGES
        if is_late and not is_first:
            break
        try:
            found.append(read_facts(image, is_decoded=is_first or is_thorough, reads_values=not is_late))
        except UnreadableImage as problem:
            problems.append(str(problem))
    return ImageSample(found, problems)


def _encoded(images: ImageDatasets, number: int) -> Iterator[dict | None]:
    yield from first_encoded(images)
    split = images.train if images.train is not None else images.validation
    if isinstance(split, datasets.Dataset):
        read = set(_rows(len(split), NUM_READ_IMAGES))
        rows = _rows(len(split), number)
        # In an order that has seen all parts of the dataset whenever the time is over.
        step = max(1, math.isqrt(len(rows)))
        for row in (row for first in range(step) for row in rows[first::step]):
            if row not in read:
                yield split[row]["image"]  # not all at once, which would read all encoded images of a table


def _rows(number: int, count: int) -> list[int]:
    """Evenly spaced rows."""
    return sorted({place * number // count for place in range(count)}) if number else []


def read_facts(image: dict | None, is_decoded: bool = False, reads_values: bool = False) -> SampledImage:
    """The facts of an image.

    Args:
        image (`dict`, *optional*): Encoded: `bytes` and `path`.
        is_decoded (`bool`, *optional*, defaults to `False`): Whether to decode an image of 8 bits, for its range of values.
        reads_values (`bool`, *optional*, defaults to `False`): Whether to read the range of values of more bits.

    Raises:
        [`UnreadableImage`]: If it cannot be read.
    """
    source = (image or {}).get("path") if (image or {}).get("bytes") is None else image["bytes"]
    smallest, largest, num_not_finite = None, None, 0
    try:
        with opened(source) as file:
            header = read_header(file)
            if header is not None and (header.num_channels not in (1, 3) or not pillow_reads(file)):
                found = _of_array(header)
            else:
                found = read_image(file, partial(_of_pillow, header=header))
    except Exception as error:  # Pillow and its plugins raise nearly everything
        decode_image(image, 3)  # says better what is wrong
        raise UnreadableImage(f"{(image or {}).get('path') or 'image in memory'}: {error}") from error
    # With more than a model can have, decoding says so.
    channels = header.num_channels if header is not None and header.num_channels <= MAX_CHANNELS else 3
    if found.bits > 8:
        stored = read_stored_values(image) if reads_values else None
        if stored is not None:
            smallest, largest, num_not_finite = stored.smallest, stored.largest, stored.num_not_finite
        elif reads_values:
            decode_image(image, channels)  # says what is wrong
    elif is_decoded:
        pixels = np.asarray(decode_image(image, channels, draft_scale=REDUCED))
        smallest, largest = float(pixels.min()), float(pixels.max())
    return replace(found, smallest=smallest, largest=largest, num_not_finite=num_not_finite)


def _of_array(header: ArrayHeader) -> SampledImage:
    height, width = header.height, header.width
    if header.orientation in TURNED_BY_A_QUARTER:
        height, width = width, height
    mode = {1: "L", 3: "RGB"}.get(header.num_channels, f"{header.num_channels} channels")
    return SampledImage(height, width, mode, header.bit_depth, header.dtype.kind == "f")


def _of_pillow(image: PIL.Image.Image, header: ArrayHeader | None) -> SampledImage:
    width, height = image.size
    if _is_turned(image):
        width, height = height, width
    bits = _bits_of(image) if header is None else header.bit_depth
    has_more = getattr(image, "is_animated", False) and not (header is not None and header.is_stacked)
    return SampledImage(height, width, image.mode, bits, image.mode == "F", has_more)


def _is_turned(opened: PIL.Image.Image) -> bool:
    try:
        # Not the method of its class: of a PNG it would read the whole file, for EXIF may stand at the end.
        return PIL.Image.Image.getexif(opened).get(ExifTags.Base.Orientation) in TURNED_BY_A_QUARTER
    except Exception:  # damaged EXIF does not mean that the pixels are damaged
        return False


def _bits_of(opened: PIL.Image.Image) -> int:
    """Bits of each channel in a file. A mode such as `RGB` hides that the file has 16, its raw mode does not."""
    raw = [str(part) for tile in getattr(opened, "tile", ()) for part in np.atleast_1d(np.asarray(tile[3], object))]
    if found := re.search(r";(12|16)", " ".join([opened.mode, *raw])):
        return int(found[1])
    return {"1": 1, "I": 32, "F": 32}.get(opened.mode, 8)
