"""From a file or its bytes to an upright 8-bit picture of the mode that the model takes."""

import io
import os
from typing import Any

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageOps

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


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
    _check_num_channels(num_channels)
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


def convert_picture(image: PIL.Image.Image, num_channels: int = 3) -> PIL.Image.Image:
    """Convert a picture to 8 bits and the mode of `num_channels`.

    What is transparent shows white when there is no alpha channel to keep it, as in transformers' image processors.
    More than 8 bits are scaled down, never cut off: integers from [0, 65535]; floats from [0, 1], [0, 255] or
    [0, 65535], the first of these that holds all of the picture's values. A picture that leaves these ranges is
    stretched from its smallest value to its largest. Values that are not finite count as 0.

    Args:
        image (`PIL.Image.Image`): A picture of any mode. It is not changed.
        num_channels (`int`, *optional*, defaults to 3): 1 for grey, 3 for RGB, 4 for RGBA.

    Returns:
        `PIL.Image.Image`: In mode "L", "RGB" or "RGBA"; `image` itself, not a copy, where nothing is to be done.

    Raises:
        `ValueError`: If `num_channels` is not 1, 3 or 4.
    """
    _check_num_channels(num_channels)
    mode = MODES[num_channels]
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        # Pillow converts premultiplied grey ("La") to nothing but "LA".
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if mode != "RGBA":
            white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = PIL.Image.alpha_composite(white, image)
    elif image.mode == "LAB":  # Pillow converts it to nothing but RGB
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _check_num_channels(num_channels: int) -> None:
    if num_channels not in MODES:
        raise ValueError(f"num_channels must be 1 (grey), 3 (RGB) or 4 (RGBA), not {num_channels}")


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


def _scale_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(image).astype(np.float32)
    values[~np.isfinite(values)] = 0
    low, high = float(values.min()), float(values.max())
    for full_scale in (1, 255, 65535) if image.mode == "F" else (65535,):
        if low >= 0 and high <= full_scale:
            break
    else:
        values, full_scale = values.astype(np.float64) - low, (high - low) or 1
    return PIL.Image.fromarray(np.rint(values * (255 / full_scale)).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is damaged, not a picture, or of a format that Pillow does not read"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
