"""What becomes of the values of an image of any mode: 8 bits, and the channels that the model takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_CHANNELS = 16
OTHER_CHANNELS = "it has other channels"
WHITE_IS_ZERO = 0  # TIFF's photometric interpretation
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # numbers of TIFF's tags


class Level:
    """
    One end of an intensity range: a stored value, or a percentile of the image's own values, as text such as `"0.5%"`.

    Args:
        value (`float` or `str`): A number, also as text, or a percentage from `"0%"` to `"100%"`.

    Returns:
        `float` or `str`: The number, or the percentage.

    Raises:
        `ValueError`: If it is neither.
    """

    takes_text = True

    def __new__(cls, value: float | str) -> float | str:
        if not isinstance(value, str) or not value.strip().endswith("%"):
            return float(value)
        percentage = float(value.strip().removesuffix("%"))
        if not 0 <= percentage <= 100:
            raise ValueError(f"a percentage is from 0% to 100%, not {value}")
        return f"{percentage:g}%"


class WrongChannels(ValueError):
    """An image with other channels than the model takes."""

    def __init__(self, found: int, wanted: int):
        channels = f"{found} channel{'s' if found > 1 else ''}"
        super().__init__(f"{OTHER_CHANNELS}: {channels} (`num_channels` {found}), and not {wanted}")


@dataclass(frozen=True)
class PixelFormat:
    """
    What images are decoded to: 8 bits, and so many channels.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            1 for gray, 3 for RGB, 4 for RGBA or four channels that are no colors, 2 and 5 to 16 for channels that are no
            colors.
        intensity_range (sequence of `float` or `str`, *optional*):
            The stored values that become 0 and 255, of images of more than 8 bits: a pair, or a pair for each channel,
            one after the other. Values beyond them are clipped. Images of 8 bits stay as they are, unless a value is a
            percentage, such as `"0.5%"`: that percentile of the image's own values. Default: the range of the type, see
            [`to_8_bits`].

    Raises:
        `ValueError`: If there is no such number of channels, or the range is none.
    """

    num_channels: int = 3
    intensity_range: tuple[float | str, ...] | None = None

    def __post_init__(self):
        if not isinstance(self.num_channels, int) or not 1 <= self.num_channels <= MAX_CHANNELS:
            raise ValueError(
                f"num_channels must be from 1 to {MAX_CHANNELS} (1 gray, 3 RGB, 4 RGBA), not {self.num_channels}"
            )
        if self.intensity_range is not None:
            check_intensity_range(self.intensity_range, self.num_channels)
            # Settings come from JSON as lists, and a format is a key of caches.
            object.__setattr__(self, "intensity_range", tuple(map(Level, self.intensity_range)))

    @classmethod
    def of(cls, format_or_channels: "PixelFormat | int") -> "PixelFormat":
        """The format itself, or that of a number of channels, without a range."""
        return format_or_channels if isinstance(format_or_channels, cls) else cls(format_or_channels)

    @classmethod
    def of_model(cls, config, processor) -> "PixelFormat":
        """What a model reads, by its configuration and its image processor. Those of other models have no range."""
        return cls(getattr(config, "num_channels", 3), getattr(processor, "intensity_range", None))

    @property
    def has_percentiles(self) -> bool:
        """Whether the range depends on the image's own values, so that those of 8 bits follow it too."""
        return has_percentiles(self.intensity_range)

    @property
    def has_mode(self) -> bool:
        """Whether Pillow has a mode of so many channels."""
        return self.num_channels in MODES

    def blank(self, size: tuple[int, int] = (32, 32)) -> "PIL.Image.Image | np.ndarray":
        """A gray image of a width and a height, in place of one that cannot be read."""
        if self.has_mode:
            return PIL.Image.new(MODES[self.num_channels], size, "gray")
        return np.full((size[1], size[0], self.num_channels), 128, np.uint8)


def has_percentiles(intensity_range: Sequence[float | str] | None) -> bool:
    """Whether a range holds percentages, as of [`PixelFormat`]."""
    return any(isinstance(value, str) for value in intensity_range or ())


def check_intensity_range(values: Sequence[float | str], num_channels: int | None = None) -> None:
    """Raise `ValueError` if the values are neither a range nor one for each channel.

    Args:
        values (sequence of `float` or `str`): Pairs, one after the other.
        num_channels (`int`, *optional*): Number of channels. Default: not known yet.
    """
    if isinstance(values, str) or np.ndim(values) != 1 or len(values) < 2 or len(values) % 2:
        raise ValueError(f"intensity_range must be pairs of a low and a high value, got {values}")
    try:
        levels = list(map(Level, values))
    except ValueError as problem:
        raise ValueError(f"intensity_range must be numbers or percentages such as 0.5%, got {values}") from problem
    if len({type(level) for level in levels}) > 1:
        # A stretched image is stretched once more where it meets the image processor, which stored values would not allow.
        raise ValueError(f"intensity_range must be all numbers or all percentages, got {values}")
    ends = np.array([float(level.removesuffix("%")) if isinstance(level, str) else level for level in levels])
    if not np.isfinite(ends).all() or not (ends[::2] < ends[1::2]).all():
        raise ValueError(f"intensity_range must have low values below the high ones, got {values}")
    if num_channels is not None and len(levels) not in (2, 2 * num_channels):
        raise ValueError(
            f"intensity_range must be one pair, or one for each of {num_channels} channels, got {len(levels) // 2} pairs"
        )


def convert_image(
    image: PIL.Image.Image, pixel_format: PixelFormat | int = 3, depth: tuple[int, bool] | None = None
) -> PIL.Image.Image | np.ndarray:
    """Convert an image to 8 bits and the mode of a number of channels.

    Transparent pixels become white if the result has no alpha channel, as in transformers' image processors.
    More than 8 bits are scaled down as [`to_8_bits`] says.

    Args:
        image (`PIL.Image.Image`): An image of any mode. It is not changed.
        pixel_format ([`PixelFormat`] or `int`, *optional*, defaults to 3): Channels, and the range of deep values.
        depth (`tuple[int, bool]`, *optional*): As of [`tiff_depth`], which is the default.

    Returns:
        `PIL.Image.Image`: In mode "L", "RGB" or "RGBA". It is `image` itself, not a copy, if nothing must be changed.
        `np.ndarray`: uint8 `(height, width, 2)` of gray with alpha, if two channels are wanted.

    Raises:
        `ValueError`: If the image has too few channels ([`WrongChannels`]), or there is no such number.
    """
    pixel_format = PixelFormat.of(pixel_format)
    is_scaled = not pixel_format.has_percentiles
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        if not pixel_format.has_mode:
            raise WrongChannels(1, pixel_format.num_channels)
        bit_depth, white_is_zero = depth or tiff_depth(image)
        # Each channel has the gray image by its own range; an alpha channel, which it lacks, does not.
        levels = pixel_format.intensity_range and pixel_format.intensity_range[:6]
        values = to_8_bits(np.asarray(image)[..., None], levels, bit_depth)
        image, is_scaled = as_image(255 - values if white_is_zero else values), True
    if pixel_format.num_channels == 2 and image.mode == "LA":
        return np.asarray(image) if is_scaled else _stretched(image, pixel_format.intensity_range)
    if not pixel_format.has_mode:
        raise WrongChannels(len(image.getbands()), pixel_format.num_channels)
    mode = MODES[pixel_format.num_channels]
    if image.has_transparency_data:
        # Pillow converts premultiplied gray ("La") to nothing but "LA".
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if mode != "RGBA":
            white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = PIL.Image.alpha_composite(white, image)
    elif image.mode == "LAB":  # Pillow converts it to nothing but RGB
        image = image.convert("RGB")
    image = image if image.mode == mode else image.convert(mode)
    return image if is_scaled else _stretched(image, pixel_format.intensity_range)


def _stretched(image: PIL.Image.Image, intensity_range: Sequence[str]) -> PIL.Image.Image | np.ndarray:
    """An 8-bit image by a range of percentiles; its alpha channel stays. Of a stretched image it changes nothing."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    count = pixels.shape[-1] - (image.mode in ("LA", "RGBA"))
    if len(intensity_range) == 2 * pixels.shape[-1]:  # the alpha channel has a pair of its own
        intensity_range = intensity_range[: 2 * count]
    pixels = np.concatenate([to_8_bits(pixels[..., :count], intensity_range), pixels[..., count:]], axis=-1)
    return pixels if image.mode == "LA" else as_image(pixels)


def tiff_depth(image: PIL.Image.Image) -> tuple[int, bool]:
    """Bits of a value, and whether 0 is white, of a gray TIFF as Pillow opened it; 16 bits, and black, of other images.

    Pillow inverts images of 8 bits whose 0 is white, but not deeper ones.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    return (bits if 8 < bits < 16 else 16), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def to_8_bits(
    values: np.ndarray, intensity_range: Sequence[float | str] | None = None, bit_depth: int | None = None
) -> np.ndarray:
    """Scale values of any type to 8 bits.

    With a range, its low values become 0 and its high ones 255; what is beyond is clipped, and what is not a number
    counts as low. Without one, nothing is clipped: integers are scaled from [0, 65535]; floats from [0, 1], [0, 255] or
    [0, 65535], the first of these ranges that contains all of the values. Values outside these ranges are stretched from
    the smallest to the largest. Values that are not finite count as 0. Of more than 256 levels in the range, 256 are left.

    Args:
        values (`np.ndarray` of shape `(height, width, channels)`): Booleans, integers or floats.
        intensity_range (sequence of `float` or `str`, *optional*): As of [`PixelFormat`]. Values of 8 bits follow it only
            if it holds percentages. One pair of percentages is of the values of all channels together, so that colors keep
            their hue. Of values that are all alike, all become 0.
        bit_depth (`int`, *optional*): Bits of an integer. Default: 16.

    Returns:
        `np.ndarray`: uint8, of the same shape; of gray values with several ranges, a channel for each.
    """
    if values.dtype == np.uint8 and not has_percentiles(intensity_range):
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if intensity_range is not None:
        low, high = _ends(values, intensity_range)
        scaled = (np.nan_to_num(values.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf) - low) / (
            high - low
        )
        return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    is_float = values.dtype.kind == "f"
    values = values.astype(np.float32)
    values[~np.isfinite(values)] = 0
    low, high = float(values.min()), float(values.max())
    for full_scale in (1, 255, 65535) if is_float else (2 ** (bit_depth or 16) - 1,):
        if low >= 0 and high <= full_scale:
            break
    else:
        values, full_scale = values.astype(np.float64) - low, (high - low) or 1
    return np.rint(values * (255 / full_scale)).astype(np.uint8)


def _ends(values: np.ndarray, intensity_range: Sequence[float | str]) -> tuple[np.ndarray, np.ndarray]:
    """Low and high values of a range, of all channels `(1,)` or of each `(channels,)`; the high ones are above the low ones."""
    levels = list(map(Level, intensity_range))
    ends = np.empty(len(levels))
    for place, level in enumerate(levels):
        if isinstance(level, str):
            # Values that the image has, so that a stretched image stays as it is.
            method = "lower" if place % 2 == 0 else "higher"
            # Gray values that several pairs make channels of have one channel themselves.
            chosen = values if len(levels) == 2 or values.shape[-1] == 1 else values[..., place // 2]
            finite = chosen[np.isfinite(chosen)]
            level = np.percentile(finite, float(level.removesuffix("%")), method=method) if finite.size else 0
        ends[place] = level
    low, high = ends.reshape(-1, 2).T
    return low, np.where(high > low, high, low + 1)


def as_image(pixels: np.ndarray) -> PIL.Image.Image:
    """An image of uint8 `(height, width, channels)` of 1, 3 or 4 channels."""
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def map_channels(
    pixels: np.ndarray, function: Callable[[PIL.Image.Image], PIL.Image.Image], axis: int = -1
) -> np.ndarray:
    """Do to each channel what Pillow does to a gray image: it knows no image of many channels.

    Args:
        pixels (`np.ndarray`): uint8, or float32, of three dimensions.
        function (callable): From image to image.
        axis (`int`, *optional*, defaults to -1): The dimension of the channels.
    """
    channels = np.moveaxis(pixels, axis, 0)
    mapped = [np.asarray(function(PIL.Image.fromarray(np.ascontiguousarray(channel)))) for channel in channels]
    return np.stack(mapped, axis=axis)


def shown_channels(num_channels: int) -> list[int]:
    """The channels that a figure shows as red, green and blue, from 0: the first three, of two both."""
    return [0] if num_channels == 1 else list(range(min(3, num_channels)))


def as_shown(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    """An image in RGB, to look at. Of many channels the first three are red, green and blue, of two red and green."""
    if isinstance(image, PIL.Image.Image):
        return image.convert("RGB")
    pixels = image[..., shown_channels(image.shape[-1])]
    if pixels.shape[-1] == 2:
        pixels = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
    return as_image(pixels).convert("RGB")
