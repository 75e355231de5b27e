"""Decode a file or its bytes to an upright 8-bit image with the channels that the model takes."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageOps

from modeling_sit.data.array_files import (
    ArrayHeader,
    MissingReader,
    UnfitArray,
    header_of,
    needs_array,
    read_array,
    read_header,
)
from modeling_sit.data.opening import (
    PIXEL_LIMIT,
    TOO_LARGE,
    UnfitImage,
    UnreadableImage,
    load_pixels,
    max_image_pixels,
    opened,
    read_image,
    too_large,
)
from modeling_sit.image_modes import (
    OTHER_CHANNELS,
    PixelFormat,
    WrongChannels,
    convert_image,
    map_channels,
    tiff_depth,
)
from modeling_sit.runtime.waiting import WaitStopped

Image = PIL.Image.Image | np.ndarray
"""An 8-bit image: of Pillow, or of channels that are no colors uint8 `(height, width, channels)`."""

# Reasons begin with one of these where something can be done about it: `remedy` knows what.
DAMAGED, NOT_SUPPORTED = "it is damaged", "it is not supported"
REMEDIES = {
    DAMAGED: "repair or remove the damaged files",
    TOO_LARGE: f"cut such images into smaller ones, or raise the limit with the environment variable {PIXEL_LIMIT}",
    NOT_SUPPORTED: "convert such files, for example to PNG with 8 bits, or remove them",
    OTHER_CHANNELS: "the files are sound: choose the channels with `config_overrides`, such as num_channels=12",
}
# What Pillow's plugins and tifffile say of sound files that they cannot decode.
NOT_SUPPORTED_BY_READERS = re.compile(
    r"unknown (pixel mode|data organi[sz]ation|compression|image mode|color|colour|raw mode)|unsupported|not supported|"
    r"cannot handle|unimplemented|not (installed|available|implemented|identified by this driver)|samples per pixel|"
    r"requires the '\w+' package",
    re.IGNORECASE,
)
DRAFTED_FORMATS = ("JPEG", "MPO")
# Factors by which libjpeg can shrink an image while it decodes.
DRAFT_FACTORS = (8, 4, 2)
# A reduced image has at least this many pixels of the smallest crop for each pixel of the view, in each direction. With
# 2, the smallest crops of flowers differ from those of the full images by 0.7 to 1.2 of 255 on average, and larger crops
# by less; with 1, by 1.6 to 2.4.
PIXELS_FOR_EACH_OF_THE_VIEWS = 2


@dataclass(frozen=True)
class DraftScale:
    """
    By how much a large image shrinks while it is decoded. Views are smaller than crops of large photographs, and JPEGs
    decode several times as fast at a half, a quarter or an eighth of their size.

    The factor depends only on the image's size and these settings, never on a crop that was drawn, so that cached images
    and newly decoded ones are the same.

    Args:
        views (`tuple` of pairs): For each size of views its longer side, in pixels, and the smallest area of a crop for it,
            as a fraction of the image's.
        crop_ratio (pair of `float`): Range of a crop's width divided by its height.
    """

    views: tuple[tuple[int, float], ...]
    crop_ratio: tuple[float, float]

    def factor(self, width: int, height: int) -> int:
        """1, 2, 4 or 8: what to divide width and height by, so that the smallest crop has enough pixels for its view."""
        return min(self._factor(width, height, *view) for view in self.views)

    def _factor(self, width: int, height: int, view_side: int, smallest_area: float) -> int:
        low, high = self.crop_ratio
        smallest_side = min(
            math.sqrt(smallest_area * width * height * min(low, 1 / high)),
            # If no crop of the requested ratio fits, torchvision takes the largest that does.
            min(width, height) * min(1, 1 / low, high),
        )
        enough = PIXELS_FOR_EACH_OF_THE_VIEWS * view_side
        return next((factor for factor in DRAFT_FACTORS if smallest_side >= factor * enough), 1)


def decode_image(
    image: Any,
    pixel_format: PixelFormat | int = 3,
    name: str | None = None,
    draft_scale: DraftScale | None = None,
    max_pixels: int | None = None,
) -> Image:
    """Decode an image fully, rotate it according to its EXIF, and convert it to 8 bits and the channels of a format.

    The first frame or page of a file is read; all pages, where a microscope's description of a TIFF says that they are the
    channels. A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size, the largest of
    these that the limit allows. Texts, color profiles and the like in a file may be of any size.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `dict` or `PIL.Image.Image`):
            A path, an encoded image, the `{"bytes": ..., "path": ...}` of `datasets.Image(decode=False)`, or a PIL
            image, which is not changed. Encoded in a format that Pillow reads, as TIFF, or as `.npy`.
        pixel_format ([`PixelFormat`] or `int`, *optional*, defaults to 3):
            The channels, and the range of values of more than 8 bits. A number is one of channels.
        name (`str`, *optional*): What to call the image in an error. Default: its path, if it has one.
        draft_scale ([`DraftScale`], *optional*): By how much to shrink it. Default: not at all.
        max_pixels (`int`, *optional*): How many pixels may be decoded. Default: [`max_image_pixels`].

    Returns:
        `PIL.Image.Image`: The image, in memory, in mode "L", "RGB" or "RGBA".
        `np.ndarray`: uint8 `(height, width, channels)`, of channels that are no colors: 2, or 5 to 16, or 4 of a file
            without color.

    Raises:
        [`UnfitImage`]: If it has other channels, or the package that reads them is not installed.
        [`UnreadableImage`]: If there is no image, or it is damaged, cut short, of an unknown format, or too large.
        `ValueError`: If there is no such number of channels.
        `TypeError`: If `image` is none of the above.
    """
    pixel_format = PixelFormat.of(pixel_format)
    path = None
    if isinstance(image, dict):
        path, image = image.get("path"), image.get("bytes")
        image = path if image is None else image
    elif isinstance(image, PIL.Image.Image):
        path = getattr(image, "filename", None)
    elif isinstance(image, (str, os.PathLike)):
        path = image
    elif not isinstance(image, (bytes, bytearray, memoryview, type(None))):
        raise TypeError(f"an image is a path, bytes, a dict of them or a PIL image, not {type(image).__name__}")
    name = name or os.fspath(path or "image in memory")

    try:
        decoded, factor = _decode(image, draft_scale, pixel_format, max_pixels or max_image_pixels())
        return decoded if factor == 1 else _reduced(decoded, factor)
    except (WrongChannels, MissingReader) as error:
        raise UnfitImage(f"{name}: {error}") from error
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from None
    except WaitStopped:  # a signal ends the run, and not only this image
        raise
    # On a damaged file Pillow's plugins raise nearly everything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise UnreadableImage(f"{name}: {_reason(error)}") from error


def decoded_size(image: dict | None, draft_scale: DraftScale) -> tuple[int, int]:
    """Width and height, in pixels, of the image that [`decode_image`] gives. Only the header is read.

    Where EXIF has the image turned by a quarter, the two are swapped.

    Raises:
        `Exception`: Of any kind, as Pillow raises it, if there is no readable image.
    """
    if image is None:
        raise UnreadableImage("there is no image")

    def size(image: PIL.Image.Image) -> tuple[int, int]:
        factor = _draft(image, draft_scale, max_image_pixels())
        return -(-image.width // factor), -(-image.height // factor)

    with opened(image["path"] if image["bytes"] is None else image["bytes"]) as file:
        header = read_header(file)
        if header is None:
            return read_image(file, size)
    max_pixels = max_image_pixels()
    if max_pixels is not None and header.width * header.height > max_pixels:
        raise too_large(header.width, header.height, max_pixels)
    factor = draft_scale.factor(header.width, header.height)
    return -(-header.width // factor), -(-header.height // factor)


def _decode(
    image: str | os.PathLike | bytes | PIL.Image.Image | None,
    draft_scale: DraftScale | None,
    pixel_format: PixelFormat,
    max_pixels: int | None,
) -> tuple[Image, int]:
    """The image, and the factor by which it must still be reduced."""
    if isinstance(image, PIL.Image.Image):
        image.load()
        factor = 1 if draft_scale is None else draft_scale.factor(*image.size)
        return convert_image(_upright(image), pixel_format, tiff_depth(image)), factor
    if image is None:
        raise UnreadableImage("there is no image, neither bytes nor a path")
    # An open file, not a path: Pillow may map a file that it opens itself into memory, and keep it open with the image.
    with opened(image) as file:
        header = read_header(file, of_tiff=False)
        if header is None or not needs_array(header, pixel_format):
            decoded = _decode_by_pillow(file, draft_scale, pixel_format, max_pixels)
            if not isinstance(decoded, ArrayHeader):
                return decoded
            header = decoded
        decoded = read_array(file, header, pixel_format, max_pixels)
        height, width = np.asarray(decoded).shape[:2]
        return decoded, 1 if draft_scale is None else draft_scale.factor(width, height)


def _decode_by_pillow(
    file: BinaryIO, draft_scale: DraftScale | None, pixel_format: PixelFormat, max_pixels: int | None
) -> tuple[Image, int] | ArrayHeader:
    """As [`_decode`], or the header of a file that must be read as an array. That of a TIFF is parsed once, by Pillow."""

    def load(image: PIL.Image.Image) -> tuple[PIL.Image.Image, int, tuple[int, bool]] | ArrayHeader:
        header = header_of(image)
        if header is not None and needs_array(header, pixel_format):
            return header
        factor, depth = _draft(image, draft_scale, max_pixels), tiff_depth(image)
        load_pixels(image)
        return image, factor, depth

    try:
        loaded = read_image(file, load)
    except Exception as error:
        header = read_header(file)
        if header is None:
            raise
        is_unknown = isinstance(error, PIL.UnidentifiedImageError) and header.is_understood
        if not (is_unknown or needs_array(header, pixel_format)):
            raise
        return header
    if isinstance(loaded, ArrayHeader):
        return loaded
    image, factor, depth = loaded
    return convert_image(_upright(image), pixel_format, depth), factor


def _draft(opened: PIL.Image.Image, draft_scale: DraftScale | None, max_pixels: int | None) -> int:
    """Ask the decoder to shrink the image, and give the factor by which it must be reduced after that.

    The decoder of JPEGs does as it is asked. Images of other formats keep their size.
    """
    full_size = width, height = opened.size
    factor = asked = 1 if draft_scale is None else draft_scale.factor(width, height)
    if opened.format in DRAFTED_FORMATS and max_pixels is not None:
        while asked < max(DRAFT_FACTORS) and -(-width // asked) * -(-height // asked) > max_pixels:
            asked *= 2
    if asked > 1:
        opened.draft(None, (max(1, width // asked), max(1, height // asked)))
    # Pillow itself stops only at twice the limit. Below that it warns, and takes the memory.
    if max_pixels is not None and opened.width * opened.height > max_pixels:
        raise too_large(width, height, max_pixels)
    return factor if opened.size == full_size else 1


def _reduced(image: Image, factor: int) -> Image:
    if isinstance(image, PIL.Image.Image):
        return image.reduce(factor)
    return map_channels(image, lambda channel: channel.reduce(factor))


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF does not mean that the pixels are damaged
        return image


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PIL.UnidentifiedImageError) and not str(error):
        return "it is no image, damaged from its first byte on, or of a format that is not read"
    if isinstance(error, (PIL.Image.DecompressionBombError, MemoryError)):
        return f"{TOO_LARGE}: {reason}"
    # Pillow looks unknown numbers of a compression up in a dictionary.
    is_sound = isinstance(error, (KeyError, NotImplementedError, UnfitArray)) or NOT_SUPPORTED_BY_READERS.search(
        reason
    )
    return f"{NOT_SUPPORTED if is_sound else DAMAGED}: {reason}"


def remedy(problem: str) -> str | None:
    """What to do about images that cannot be read, from the messages of [`UnreadableImage`]; `None` if that is clear."""
    return "; ".join(remedy for reason, remedy in REMEDIES.items() if f": {reason}" in problem) or None
