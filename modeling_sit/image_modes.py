"""Convert images of any mode to 8 bits and the mode that the model takes."""

import numpy as np
import PIL.Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def convert_image(image: PIL.Image.Image, num_channels: int = 3) -> PIL.Image.Image:
    """Convert an image to 8 bits and the mode of `num_channels`.

    Transparent pixels become white if the result has no alpha channel, as in transformers' image processors.
    More than 8 bits are scaled down, never clipped: integers from [0, 65535]; floats from [0, 1], [0, 255] or
    [0, 65535], the first of these ranges that contains all of the image's values. An image with values outside these
    ranges is stretched from its smallest value to its largest. Values that are not finite count as 0.

    Args:
        image (`PIL.Image.Image`): An image of any mode. It is not changed.
        num_channels (`int`, *optional*, defaults to 3): 1 for gray, 3 for RGB, 4 for RGBA.

    Returns:
        `PIL.Image.Image`: In mode "L", "RGB" or "RGBA". It is `image` itself, not a copy, if nothing must be changed.

    Raises:
        `ValueError`: If `num_channels` is not 1, 3 or 4.
    """
    check_num_channels(num_channels)
    mode = MODES[num_channels]
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        # Pillow converts premultiplied gray ("La") to nothing but "LA".
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if mode != "RGBA":
            white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = PIL.Image.alpha_composite(white, image)
    elif image.mode == "LAB":  # Pillow converts it to nothing but RGB
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def check_num_channels(num_channels: int) -> None:
    """Raise `ValueError` for a number of channels that no mode has."""
    if num_channels not in MODES:
        raise ValueError(f"num_channels must be 1 (gray), 3 (RGB) or 4 (RGBA), not {num_channels}")


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
