"""The depth and the range of the values that a file stores, before anything scales them to 8 bits."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import PIL.Image

from modeling_sit.data.array_files import ArrayHeader, read_header, read_values
from modeling_sit.data.opening import load_pixels, max_image_pixels, opened, pillow_reads, read_image, too_large


@dataclass(frozen=True)
class StoredValues:
    """
    What a file stores.

    Args:
        num_channels (`int`): Channels, without alpha.
        bit_depth (`int`): Bits of a value, as the file says: 16 of 12-bit data in a 16-bit file.
        is_float (`bool`): Whether the values are floats, whose range no type tells.
        smallest, largest (`float`): Of all values that are finite, without alpha.
        num_not_finite (`int`, *optional*, defaults to 0): Values that are NaN or infinite, without alpha.
    """

    num_channels: int
    bit_depth: int
    is_float: bool
    smallest: float
    largest: float
    num_not_finite: int = 0


def read_stored_values(image: str | os.PathLike | bytes | dict | None) -> StoredValues | None:
    """
    The range and the depth of the values of an image, before it is scaled to 8 bits.

    Deep files are decoded once: milliseconds for a megapixel. Of files of 8 bits only the header is read, and the range
    is that of the type.

    Args:
        image (`str`, `os.PathLike`, `bytes` or `dict`):
            A path, an encoded image, or the `{"bytes": ..., "path": ...}` of `datasets.Image(decode=False)`.

    Returns:
        [`StoredValues`], *optional*: `None` if the image cannot be read.
    """
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    try:
        with opened(image) as file:
            header = read_header(file)
            if header is not None and header.bit_depth <= 8:
                return StoredValues(header.num_channels, header.bit_depth, False, 0, 2**header.bit_depth - 1)
            if header is None or (header.num_samples == 1 and not header.is_stacked and pillow_reads(file)):
                return _stored_by_pillow(file, header)
            values = read_values(file, header, max_image_pixels())
            return _range_of(values[..., : header.num_channels], header.bit_depth)
    except Exception:  # whatever it is, whoever decodes the image will say so
        return None


def _stored_by_pillow(file: BinaryIO, header: ArrayHeader | None) -> StoredValues:
    def stored(image: PIL.Image.Image) -> StoredValues:
        if not (image.mode in ("I", "F") or image.mode.startswith("I;")):
            colors = len(image.getbands()) - image.has_transparency_data
            return StoredValues(3 if image.mode == "P" else max(1, colors), 8, False, 0, 255)
        max_pixels = max_image_pixels()
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise too_large(image.width, image.height, max_pixels)
        load_pixels(image)
        return _range_of(np.asarray(image), header.bit_depth if header else 32 if image.mode == "F" else 16)

    return read_image(file, stored)


def _range_of(values: np.ndarray, bit_depth: int) -> StoredValues:
    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values
    channels = values.shape[2] if values.ndim == 3 else 1
    num_not_finite = values.size - finite.size
    if finite.size == 0:
        return StoredValues(channels, bit_depth, is_float, 0.0, 0.0, num_not_finite)
    return StoredValues(channels, bit_depth, is_float, float(finite.min()), float(finite.max()), num_not_finite)
