"""From a file or its bytes to an upright 8-bit picture of the mode that the model takes."""

import io
import os
from typing import Any

import PIL.Image
from PIL import ExifTags, ImageOps

from modeling_sit.picture_modes import check_num_channels, convert_picture


class UnreadablePicture(Exception):
    """A picture that cannot be decoded. The message names it, and the reason, in one line."""


def read_picture(picture: Any, num_channels: int = 3, name: str | None = None) -> PIL.Image.Image:
    """Decode a picture fully, turn it upright as its EXIF says, and convert it to the mode of `num_channels`.

    Of a file with several frames or pages, the first is read.

    Args:
        picture (`str`, `os.PathLike`, `bytes`, `dict` or `PIL.Image.Image`):
            A path, an encoded picture, the `{"bytes": ..., "path": ...}` that `datasets.Image(decode=False)` gives, or
            a PIL image, which is left as it is.
        num_channels (`int`, *optional*, defaults to 3): 1 for grey, 3 for RGB, 4 for RGBA.
        name (`str`, *optional*): What to call the picture in an error. Default: its path, where it has one.

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
        return convert_picture(_upright(_decode(picture)), num_channels)
    except UnreadablePicture as error:
        raise UnreadablePicture(f"{name}: {error}") from None
    # On a damaged file Pillow's plugins raise nearly everything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise UnreadablePicture(f"{name}: {_reason(error)}") from error


def _decode(picture: str | os.PathLike | bytes | PIL.Image.Image | None) -> PIL.Image.Image:
    if isinstance(picture, PIL.Image.Image):
        picture.load()
        return picture
    if picture is None:
        raise UnreadablePicture("there is no picture, neither bytes nor a path")
    in_memory = not isinstance(picture, (str, os.PathLike))
    if (len(picture) if in_memory else os.stat(picture).st_size) == 0:
        raise UnreadablePicture("it is empty (0 bytes)")
    # An open file, not a path: what Pillow opens itself it may map into memory, and keep open as long as the picture.
    with io.BytesIO(picture) if in_memory else open(picture, "rb") as file, PIL.Image.open(file) as image:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        # Pillow itself stops only at twice the limit; up to there it warns, then takes the memory.
        if limit is not None and image.width * image.height > limit:
            raise UnreadablePicture(f"{image.width} x {image.height} pixels are too many (the limit is {limit})")
        image.load()
    return image


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
