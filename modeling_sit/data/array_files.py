"""TIFF and NumPy files as arrays: any number of channels, and all bits of them, where Pillow reads neither."""

import importlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from modeling_sit.data.opening import PNG_SIGNATURE, only_pixels, read_image, too_large
from modeling_sit.image_modes import (
    BITS_PER_SAMPLE,
    MAX_CHANNELS,
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    PixelFormat,
    WrongChannels,
    as_image,
    convert_image,
    to_8_bits,
)

NUMPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMPY, PNG, TIFF = "NumPy", "PNG", "TIFF"
PNG_WITH_CHANNELS = (2, 4, 6)  # its types of color, gray with alpha, and color with alpha
EXTRA = "scientific"
# Numbers of TIFF's tags, and of their values.
WIDTH, HEIGHT, DESCRIPTION, ORIENTATION, SAMPLES, EXTRA_SAMPLES, SAMPLE_FORMAT = 256, 257, 270, 274, 277, 338, 339
RGB, ALPHA, FLOAT = 2, (1, 2), 3
# The descriptions in which microscopes' programs say how many channels lie in pages of their own.
STACKED = (re.compile(r"^channels=(\d+)$", re.MULTILINE), re.compile(r'<Pixels\b[^>]*\bSizeC="(\d+)"'))
# By EXIF's orientation, for arrays `(height, width, channels)`.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: np.rot90(values),
}


class UnfitArray(ValueError):
    """An array or a stack that is sound, but no image."""


class MissingReader(Exception):
    """The package that reads a file is not installed."""


@dataclass(frozen=True)
class ArrayHeader:
    """
    What the header of a file says of the values that it stores.

    Args:
        form (`str`): `NUMPY`, `PNG` or `TIFF`.
        width, height (`int`): In pixels, as they are stored.
        num_channels (`int`): Channels without alpha: 1 is gray, 3 is usually color, others are no colors.
        dtype (`np.dtype`): Type of the values.
        bit_depth (`int`): Bits of a value.
        num_alpha (`int`, *optional*, defaults to 0): Channels of transparency, which come last.
        is_rgb (`bool`, *optional*, defaults to `False`): Whether the first three channels are red, green and blue.
        white_is_zero (`bool`, *optional*, defaults to `False`): Whether the smallest value is white.
        num_samples (`int`, *optional*, defaults to 1): Values of a pixel in a page of the file.
        orientation (`int`, *optional*, defaults to 1): As of EXIF.
        is_stacked (`bool`, *optional*, defaults to `False`): Whether each channel is a page of the file.
    """

    form: str
    width: int
    height: int
    num_channels: int
    dtype: np.dtype
    bit_depth: int
    num_alpha: int = 0
    is_rgb: bool = False
    white_is_zero: bool = False
    num_samples: int = 1
    orientation: int = 1
    is_stacked: bool = False

    @property
    def is_understood(self) -> bool:
        """Whether the stored values are the channels, and no colors of print."""
        return self.is_stacked or self.num_samples == self.num_channels + self.num_alpha


def read_header(file: BinaryIO, of_tiff: bool = True) -> ArrayHeader | None:
    """
    The header of a TIFF or `.npy` file, or of a PNG of 16 bits and several channels. Only that is read.

    Args:
        file (binary file): The file.
        of_tiff (`bool`, *optional*, defaults to `True`): Whether to read that of a TIFF. See [`header_of`].

    Returns:
        [`ArrayHeader`], *optional*: `None` of another file, or a header that cannot be understood.

    Raises:
        [`UnfitArray`]: If an array has other dimensions than an image of 1 to 16 channels, or holds no numbers.
    """
    file.seek(0)
    start = file.read(32)
    if start.startswith(NUMPY_MAGIC):
        return _numpy_header(file)
    if start.startswith(PNG_SIGNATURE) and len(start) > 25 and start[24] == 16 and start[25] in PNG_WITH_CHANNELS:
        width, height = (int.from_bytes(start[place : place + 4], "big") for place in (16, 20))
        colors, alpha = {2: (3, 0), 4: (1, 1), 6: (3, 1)}[start[25]]
        return ArrayHeader(
            PNG, width, height, colors, np.dtype(np.uint16), 16, alpha, colors == 3, num_samples=colors + alpha
        )
    if of_tiff and start.startswith(TIFF_MAGIC):
        try:
            return _tiff_header(_read_tags(file, start))
        except Exception:  # of a damaged file; whoever decodes it will say so
            return None
    return None


def header_of(image: PIL.Image.Image) -> ArrayHeader | None:
    """As [`read_header`], of a TIFF that Pillow has opened and not loaded: it has read the header. `None` of other images."""
    if image.format != "TIFF":
        return None
    try:
        return _tiff_header(image.tag_v2)
    except Exception:  # of a damaged file; loading it will say so
        return None


def _numpy_header(file: BinaryIO) -> ArrayHeader:
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "biuf":
        raise UnfitArray(f"an array of {dtype}, which are no numbers of an image")
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or 0 in shape or min(shape[0], shape[2]) > MAX_CHANNELS:
        raise UnfitArray(f"an array of shape {shape}, and not (height, width) or (height, width, 1 to 16 channels)")
    if shape[0] < shape[2]:  # channels first
        shape = (*shape[1:], shape[0])
    height, width, channels = shape
    depth = 1 if dtype.kind == "b" else 8 * dtype.itemsize
    return ArrayHeader(NUMPY, width, height, channels, dtype, depth, is_rgb=channels == 3, num_samples=channels)


def _read_tags(file: BinaryIO, start: bytes) -> ImageFileDirectory_v2:
    is_big = b"+" in start[2:4]
    # Pillow takes a big-endian BigTIFF for none.
    if start.startswith(b"MM\0+"):
        tags = ImageFileDirectory_v2(b"MM\0*" + start[12:16])
        tags._bigtiff, tags.next = True, int.from_bytes(start[8:16], "big")
    else:
        tags = ImageFileDirectory_v2(start[: 16 if is_big else 8])
    file.seek(tags.next)
    tags.load(file)
    return tags


def _tiff_header(tags: ImageFileDirectory_v2) -> ArrayHeader:
    samples = tags.get(SAMPLES, 1)
    photometric = tags.get(PHOTOMETRIC)
    num_alpha = sum(kind in ALPHA for kind in tags.get(EXTRA_SAMPLES, ()))
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    channels, is_stacked = samples - num_alpha, False
    if photometric not in (0, 1, RGB):  # palettes, and color in other spaces
        channels = 3
    elif samples == 1:
        described = (pattern.search(str(tags.get(DESCRIPTION, ""))) for pattern in STACKED)
        channels = next((int(found[1]) for found in described if found), 1) if tags.next else 1
        is_stacked = channels > 1
    kind = {FLOAT: "f", 2: "i"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "u")
    size = next(size for size in (8, 16, 32, 64) if bits <= size)
    return ArrayHeader(
        TIFF,
        tags[WIDTH],
        tags[HEIGHT],
        channels,
        np.dtype(f"{kind}{max(size, 16 if kind == 'f' else 8) // 8}"),
        bits,
        num_alpha,
        photometric == RGB,
        photometric == WHITE_IS_ZERO,
        samples,
        tags.get(ORIENTATION, 1),
        is_stacked,
    )


def needs_array(header: ArrayHeader, pixel_format: PixelFormat) -> bool:
    """Whether a file must be read as an array: Pillow reads no arrays of NumPy, no channels that are no colors, and of
    several channels 8 bits only, which matters where there is a range."""
    if header.form == NUMPY:
        return True
    wanted = pixel_format.num_channels
    is_cut = header.bit_depth > 8 and header.num_samples > 1 and (header.is_rgb or header.num_channels == 1)
    loses_bits = is_cut and pixel_format.intensity_range is not None
    if header.form == PNG:
        return loses_bits
    if header.is_stacked:
        return wanted != 1  # the first page of a stack is a gray image
    is_color = header.num_channels in (1, 3) or (header.is_rgb and wanted in (1, 3))
    if is_color and (wanted in (1, 3, 4) or wanted != header.num_samples):
        return loses_bits
    return True


def read_array(
    file: BinaryIO, header: ArrayHeader, pixel_format: PixelFormat, max_pixels: int | None
) -> PIL.Image.Image | np.ndarray:
    """
    Decode a file of [`read_header`].

    Args:
        file (binary file): The file.
        header ([`ArrayHeader`]): Its header.
        pixel_format ([`PixelFormat`]): What to decode it to.
        max_pixels (`int`, *optional*): How many pixels may be decoded. `None`: any number.

    Returns:
        `PIL.Image.Image` or `np.ndarray`: Upright, in mode "L", "RGB" or "RGBA", or, of channels that are no colors, uint8
        `(height, width, channels)`.

    Raises:
        [`UnreadableImage`]: If it has too many pixels.
        [`WrongChannels`]: If it has other channels.
        [`MissingReader`]: If tifffile is needed and not installed.
    """
    wanted, depth = pixel_format.num_channels, header.bit_depth if header.bit_depth < 16 else None
    has_alpha = header.num_alpha == 1 and header.num_channels in (1, 3) and wanted in (1, 3, 4)
    drops_more = wanted in (1, 3) and header.is_rgb  # than red, green and blue
    count = header.num_channels if has_alpha else 3 if drops_more else header.num_channels + header.num_alpha
    values = None
    if header.form == NUMPY:  # the dimension of the channels may be the one that is not expected
        values = read_values(file, header, max_pixels, wanted)
        count = values.shape[-1]
    if not (count == wanted or (count in (1, 3) and wanted in (1, 3, 4))):
        raise WrongChannels(header.num_channels, wanted)
    values = read_values(file, header, max_pixels) if values is None else values
    colors = values[..., :count]
    levels = pixel_format.intensity_range
    if levels is not None and len(levels) == 2 * wanted and wanted == 4 and colors.shape[-1] in (1, 3):
        levels = levels[:6]  # alpha, which these images have apart or not at all, has no range
    pixels = to_8_bits(colors, levels, depth)
    if header.white_is_zero:
        pixels = 255 - pixels
    turn = TURNS.get(_orientation(file, header), lambda upright: upright)
    pixels = turn(pixels)
    if has_alpha:
        alpha = turn(to_8_bits(values[..., -1:], None, depth))
        mode = "LA" if pixels.shape[-1] == 1 else "RGBA"
        image = PIL.Image.merge(mode, [*as_image(pixels).split(), as_image(alpha)])
        return convert_image(image, wanted)  # the range is done
    if count in (1, 3):
        return convert_image(as_image(np.ascontiguousarray(pixels)), wanted)  # the range is done
    return np.ascontiguousarray(pixels)


def _orientation(file: BinaryIO, header: ArrayHeader) -> int:
    if header.form != PNG:
        return header.orientation
    try:
        return read_image(file, lambda image: image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not mean that the pixels are damaged
        return 1


def read_values(
    file: BinaryIO, header: ArrayHeader, max_pixels: int | None, num_channels: int | None = None
) -> np.ndarray:
    """The stored values `(height, width, channels)`, with all their bits, not turned upright.

    Args:
        file (binary file): The file.
        header ([`ArrayHeader`]): Its header.
        max_pixels (`int`, *optional*): How many pixels may be decoded. `None`: any number.
        num_channels (`int`, *optional*): Of an array, how many channels are expected, if it is not clear which of its
            dimensions they are.

    Raises:
        [`UnreadableImage`]: If it has too many pixels.
        [`MissingReader`]: If tifffile or imagecodecs is needed and not installed.
    """
    if max_pixels is not None and header.width * header.height > max_pixels:
        raise too_large(header.width, header.height, max_pixels)
    if header.form == NUMPY:
        file.seek(0)
        values = np.load(file, allow_pickle=False)
        if values.ndim == 2:
            return values[..., None]
        first = values.shape[0] < values.shape[2]
        if num_channels in (values.shape[0], values.shape[2]):
            first = values.shape[2] != num_channels
        return np.moveaxis(values, 0, -1) if first else values
    if header.form == PNG:
        return _read_png(file, header)
    return _read_tiff(file, header)


def _reader(package: str, form: str, header: ArrayHeader) -> ModuleType:
    """A package of the extra."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingReader(
            f"a {form} of {header.num_channels} channels of {header.bit_depth} bits, which Pillow does not read: "
            f"pip install 'modeling-sit[{EXTRA}]'"
        ) from error


def _read_png(file: BinaryIO, header: ArrayHeader) -> np.ndarray:
    decode = _reader("imagecodecs", "PNG", header).png_decode
    file.seek(0)
    try:
        return decode(file.read())
    except Exception:  # of what lies beside the pixels, maybe
        bare = only_pixels(file)
        if bare is None:
            raise
        return decode(bare)


def _read_tiff(file: BinaryIO, header: ArrayHeader) -> np.ndarray:
    tifffile = _reader("tifffile", "TIFF", header)
    file.seek(0)
    # A file may name others of its stack: in memory it has no folder in which to look for them.
    with tifffile.TiffFile(io.BytesIO(file.read())) as tiff:
        page = tiff.pages[0]
        if not header.is_stacked:
            return _channels_last(page.asarray(), page.axes)
        series = tiff.series[0]
        axes = series.axes
        if axes.count("C") != 1 or not axes.endswith("YX"):
            raise UnfitArray(f"its pages are stacked as {axes}, which does not say where the channels are")
        place, pages = axes.index("C"), list(series.pages)
        step = math.prod(series.shape[place + 1 : -2])
        if len(pages) > step * (series.shape[place] - 1):
            return np.stack([pages[step * channel].asarray() for channel in range(series.shape[place])], axis=-1)
        stack = series.asarray()  # the pages of a stack without headers of their own
        stack = stack[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]
        return np.moveaxis(stack, 0, -1)


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    """The values of a page: `YX`, `YXS`, or `SYX` where each channel lies by itself. Of a stack within it, the first."""
    while values.ndim > 2 + ("S" in axes):
        place = next(place for place, axis in enumerate(axes) if axis not in "SYX")
        values, axes = values.take(0, place), axes[:place] + axes[place + 1 :]
    if "S" not in axes:
        return values[..., None]
    return np.moveaxis(values, axes.index("S"), -1)
