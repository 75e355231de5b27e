"""Decode a file or its bytes to an upright 8-bit image of the mode that the model takes."""

import io
import math
import os
from dataclasses import dataclass
from typing import Any

import PIL.Image
from PIL import ExifTags, ImageOps

from modeling_sit.image_modes import check_num_channels, convert_image


class UnreadableImage(Exception):
    """An image that cannot be decoded. The message names the image and the reason, in one line."""


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
    image: Any, num_channels: int = 3, name: str | None = None, draft_scale: DraftScale | None = None
) -> PIL.Image.Image:
    """Decode an image fully, rotate it according to its EXIF, and convert it to the mode of `num_channels`.

    The first frame or page of a file is read.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `dict` or `PIL.Image.Image`):
            A path, an encoded image, the `{"bytes": ..., "path": ...}` of `datasets.Image(decode=False)`, or a PIL
            image, which is not changed.
        num_channels (`int`, *optional*, defaults to 3): 1 for gray, 3 for RGB, 4 for RGBA.
        name (`str`, *optional*): What to call the image in an error. Default: its path, if it has one.
        draft_scale ([`DraftScale`], *optional*): By how much to shrink it. Default: not at all.

    Returns:
        `PIL.Image.Image`: The image, in memory, in mode "L", "RGB" or "RGBA".

    Raises:
        [`UnreadableImage`]: If there is no image, or it is damaged, cut short, of an unknown format, or of more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels.
        `ValueError`: If `num_channels` is not 1, 3 or 4.
        `TypeError`: If `image` is none of the above.
    """
    check_num_channels(num_channels)
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
        decoded, factor = _decode(image, draft_scale)
        decoded = convert_image(_upright(decoded), num_channels)
        return decoded if factor == 1 else decoded.reduce(factor)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from None
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
    encoded = image["bytes"]
    with PIL.Image.open(image["path"] if encoded is None else io.BytesIO(encoded)) as opened:
        factor = draft_scale.factor(*opened.size)
        return -(-opened.width // factor), -(-opened.height // factor)


def _decode(
    image: str | os.PathLike | bytes | PIL.Image.Image | None, draft_scale: DraftScale | None
) -> tuple[PIL.Image.Image, int]:
    """The image, and the factor by which it must still be reduced."""
    if isinstance(image, PIL.Image.Image):
        image.load()
        return image, 1 if draft_scale is None else draft_scale.factor(*image.size)
    if image is None:
        raise UnreadableImage("there is no image, neither bytes nor a path")
    in_memory = not isinstance(image, (str, os.PathLike))
    if (len(image) if in_memory else os.stat(image).st_size) == 0:
        raise UnreadableImage("it is empty (0 bytes)")
    # An open file, not a path: Pillow may map a file that it opens itself into memory, and keep it open with the image.
    with io.BytesIO(image) if in_memory else open(image, "rb") as file, PIL.Image.open(file) as opened:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        # Pillow itself stops only at twice the limit. Below that it warns, and takes the memory.
        if limit is not None and opened.width * opened.height > limit:
            raise UnreadableImage(f"{opened.width} x {opened.height} pixels are too many (the limit is {limit})")
        factor, full_size = 1 if draft_scale is None else draft_scale.factor(*opened.size), opened.size
        if factor > 1:
            # The decoder of JPEGs shrinks them. Images of other formats keep their size, and are reduced later.
            opened.draft(None, (opened.width // factor, opened.height // factor))
        if opened.size != full_size:
            factor = 1
        opened.load()
    return opened, factor


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF does not mean that the pixels are damaged
        return image


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is damaged, not an image, or of a format that Pillow does not read"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
