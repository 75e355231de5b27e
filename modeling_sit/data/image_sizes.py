"""Sizes of images and masks by their headers, as they are when decoded."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
from PIL import ExifTags

from modeling_sit.data.array_files import read_header
from modeling_sit.data.image_sample import TURNED_BY_A_QUARTER
from modeling_sit.data.opening import opened, read_image

# Of so many images, evenly spaced, the headers are read beforehand. Those of others are checked when they are decoded.
MAX_CHECKED_IMAGES = 5000


def upright_size(image: dict[str, Any] | None) -> tuple[int, int] | None:
    """Width and height of an encoded image in pixels, turned as its EXIF says; `None` if it cannot be read.

    Args:
        image (`dict`): `{"bytes": ..., "path": ...}`.
    """
    if image is None:
        return None

    def size(opened_image: PIL.Image.Image) -> tuple[int, int]:
        turned = opened_image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED_BY_A_QUARTER
        return opened_image.size[::-1] if turned else opened_image.size

    try:
        with opened(image["path"] if image["bytes"] is None else image["bytes"]) as file:
            header = read_header(file)
            if header is None:
                return read_image(file, size)
            stored = (header.width, header.height)
            return stored[::-1] if header.orientation in TURNED_BY_A_QUARTER else stored
    except Exception:  # whatever it is, whoever decodes the image will say so
        return None


def some_rows(number: int, limit: int = MAX_CHECKED_IMAGES) -> range:
    """At most about `limit` evenly spaced rows of so many."""
    return range(0, number, max(1, -(-number // limit)))


def is_turned(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one size is the other with width and height exchanged."""
    return tuple(size) == tuple(other)[::-1] and size[0] != size[1]
