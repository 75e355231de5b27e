"""From a file or its bytes to an upright 8-bit picture of the mode that the model takes."""

import io
import math
import os
from dataclasses import dataclass
from typing import Any

import PIL.Image
from PIL import ExifTags, ImageOps

from modeling_sit.image_modes import check_num_channels, convert_picture


class UnreadablePicture(Exception):
    """A picture that cannot be decoded. The message names it, and the reason, in one line."""


# What libjpeg can leave out while it decodes.
REDUCTIONS = (8, 4, 2)
# Pixels of the smallest crop for each of the view's, in each direction, that a reduced picture still has. At 2, the
# smallest crops of flowers differ from those of the full pictures by 0.7 to 1.2 of 255 on average, and larger crops by
# less; at 1, by 1.6 to 2.4.
PIXELS_FOR_EACH_OF_THE_VIEWS = 2


@dataclass(frozen=True)
class Reduction:
    """
    By how much a large picture shrinks where it is decoded: views are smaller than crops of large photographs, and JPEGs
    decode several times as fast at a half, a quarter or an eighth of their size.

    It hangs on the picture's size and these settings alone, never on a crop that was drawn, so that pictures that are kept
    and those that are decoded anew are the same.

    Args:
        view_side (`int`): The longer side of a view, in pixels.
        smallest_area (`float`): Smallest area of a crop, as share of the picture's.
        crop_ratio (pair of `float`): Range of a crop's width divided by its height.
    """

    view_side: int
    smallest_area: float
    crop_ratio: tuple[float, float]

    def factor(self, width: int, height: int) -> int:
        """1, 2, 4 or 8: what to divide width and height by, so that the smallest crop has enough pixels for a view."""
        low, high = self.crop_ratio
        smallest_side = min(
            math.sqrt(self.smallest_area * width * height * min(low, 1 / high)),
            # Where no crop of the wanted ratio fits, it is the largest that does.
            min(width, height) * min(1, 1 / low, high),
        )
        enough = PIXELS_FOR_EACH_OF_THE_VIEWS * self.view_side
        return next((factor for factor in REDUCTIONS if smallest_side >= factor * enough), 1)


def read_picture(
    picture: Any, num_channels: int = 3, name: str | None = None, reduction: Reduction | None = None
) -> PIL.Image.Image:
    """Decode a picture fully, turn it upright as its EXIF says, and convert it to the mode of `num_channels`.

    Of a file with several frames or pages, the first is read.

    Args:
        picture (`str`, `os.PathLike`, `bytes`, `dict` or `PIL.Image.Image`):
            A path, an encoded picture, the `{"bytes": ..., "path": ...}` that `datasets.Image(decode=False)` gives, or
            a PIL image, which is left as it is.
        num_channels (`int`, *optional*, defaults to 3): 1 for grey, 3 for RGB, 4 for RGBA.
        name (`str`, *optional*): What to call the picture in an error. Default: its path, where it has one.
        reduction ([`Reduction`], *optional*): By how much to shrink it. Default: not at all.

    Returns:
        `PIL.Image.Image`: The picture, in memory, in mode "L", "RGB" or "RGBA".

    Raises:
        [`UnreadablePicture`]: If there is no picture, it is not one, damaged, cut short, or of more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels.
        `ValueError`: If `num_channels` is not 1, 3 or 4.
        `TypeError`: If `picture` is none of the above.
    """
    check_num_channels(num_channels)
    path = None
    if isinstance(picture, dict):
        path, picture = picture.get("path"), picture.get("bytes")
        picture = path if picture is None else picture
    elif isinstance(picture, PIL.Image.Image):
        path = getattr(picture, "filename", None)
    elif isinstance(picture, (str, os.PathLike)):
        path = picture
    elif not isinstance(picture, (bytes, bytearray, memoryview, type(None))):
        raise TypeError(f"a picture is a path, bytes, a dict of them or a PIL image, not {type(picture).__name__}")
    name = name or os.fspath(path or "picture in memory")

    try:
        decoded, factor = _decode(picture, reduction)
        decoded = convert_picture(_upright(decoded), num_channels)
        return decoded if factor == 1 else decoded.reduce(factor)
    except UnreadablePicture as error:
        raise UnreadablePicture(f"{name}: {error}") from None
    # On a damaged file Pillow's plugins raise nearly everything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise UnreadablePicture(f"{name}: {_reason(error)}") from error


def decoded_size(picture: dict | None, reduction: Reduction) -> tuple[int, int]:
    """Width and height in pixels that [`read_picture`] gives, perhaps swapped, from the header alone.

    Raises: Whatever Pillow raises for what is no picture.
    """
    if picture is None:
        raise UnreadablePicture("there is no picture")
    encoded = picture["bytes"]
    with PIL.Image.open(picture["path"] if encoded is None else io.BytesIO(encoded)) as opened:
        factor = reduction.factor(*opened.size)
        return -(-opened.width // factor), -(-opened.height // factor)


def _decode(
    picture: str | os.PathLike | bytes | PIL.Image.Image | None, reduction: Reduction | None
) -> tuple[PIL.Image.Image, int]:
    """The picture, and by what it still is to be reduced."""
    if isinstance(picture, PIL.Image.Image):
        picture.load()
        return picture, 1 if reduction is None else reduction.factor(*picture.size)
    if picture is None:
        raise UnreadablePicture("there is no picture, neither bytes nor a path")
    in_memory = not isinstance(picture, (str, os.PathLike))
    if (len(picture) if in_memory else os.stat(picture).st_size) == 0:
        raise UnreadablePicture("it is empty (0 bytes)")
    # An open file, not a path: what Pillow opens itself it may map into memory, and keep open as long as the picture.
    with io.BytesIO(picture) if in_memory else open(picture, "rb") as file, PIL.Image.open(file) as opened:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        # Pillow itself stops only at twice the limit; up to there it warns, then takes the memory.
        if limit is not None and opened.width * opened.height > limit:
            raise UnreadablePicture(f"{opened.width} x {opened.height} pixels are too many (the limit is {limit})")
        factor, full_size = 1 if reduction is None else reduction.factor(*opened.size), opened.size
        if factor > 1:
            # A JPEG's decoder gives it smaller; others are left as they are.
            opened.draft(None, (opened.width // factor, opened.height // factor))
        if opened.size != full_size:
            factor = 1
        opened.load()
    return opened, factor


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF says nothing about the pixels, which are there
        return image


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is damaged, not a picture, or of a format that Pillow does not read"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
