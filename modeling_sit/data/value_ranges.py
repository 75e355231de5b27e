"""What is wrong with the values of a sample of images: few gray levels are left, or some are clipped or are no numbers."""

from collections.abc import Iterator, Sequence

from modeling_sit.data.image_sample import SampledImage
from modeling_sit.image_modes import has_percentiles

MAX_16_BIT, MAX_8_BIT = 65535, 255
# A 16-bit image of so many bits or fewer, of which 64 gray levels or fewer are left, and an 8-bit one that looks black.
FEW_OF_16_BITS, FEW_OF_8_BITS = 14, 4


def warnings_of_ranges(images: Sequence[SampledImage], intensity_range: Sequence[float | str] | None) -> Iterator[str]:
    """Warnings, each a line.

    Args:
        images (sequence of [`SampledImage`]): A sample of a dataset.
        intensity_range (sequence of `float` or `str`, *optional*): As of [`~modeling_sit.image_modes.PixelFormat`].
    """
    seen = [image for image in images if image.largest is not None]
    deep = [image for image in seen if image.bits > 8]
    narrow = [image.largest for image in seen if image.bits == 8]
    if narrow and int(largest := max(narrow)).bit_length() <= FEW_OF_8_BITS:
        yield (
            f"warning: the largest value in {len(narrow)} images is {largest:g} of {MAX_8_BIT}: they look black; are they "
            "masks, or scaled to 1?"
        )
    yield from _not_finite(deep, intensity_range)
    if intensity_range is None:
        yield from _without_range(deep)
    else:
        yield from _clipped(deep, intensity_range)


def _not_finite(deep: Sequence[SampledImage], intensity_range: Sequence[float | str] | None) -> Iterator[str]:
    found = [image.num_not_finite for image in deep if image.num_not_finite]
    if found:
        become = "each counts as 0"
        if intensity_range is not None:
            become = "each becomes black, and positive infinity white"
        yield (
            f"warning: {len(found)} of {len(deep)} images hold values that are not finite (NaN or infinite), "
            f"{sum(found):,} in all; {become}"
        )


def _clipped(deep: Sequence[SampledImage], intensity_range: Sequence[float | str]) -> Iterator[str]:
    if has_percentiles(intensity_range):  # they clip on purpose
        return
    # Each channel may have a range of its own, but of a sample only the values of all channels are known.
    low, high = min(intensity_range[::2]), max(intensity_range[1::2])
    smallest = min((image.smallest for image in deep), default=low)
    largest = max((image.largest for image in deep), default=high)
    beyond = [f"down to {smallest:,.4g}"] if smallest < low else []
    beyond += [f"up to {largest:,.4g}"] if largest > high else []
    if beyond:
        yield f"warning: values {' and '.join(beyond)} are beyond the intensity range, and clipped"


def _without_range(deep: Sequence[SampledImage]) -> Iterator[str]:
    signed = [image for image in deep if image.smallest < 0]
    if signed:
        smallest, largest = min(image.smallest for image in deep), max(image.largest for image in deep)
        yield (
            f"warning: {len(signed)} of {len(deep)} images have values below 0; each of them is scaled by its own values, so "
            f"equal values become different gray levels without intensity_range {smallest:.6g} {largest:.6g}"
        )
        return
    largest = _largest_of_few_bits(deep)
    if largest is not None:
        wide = [image for image in deep if not image.is_float]
        levels = round(largest * MAX_8_BIT / MAX_16_BIT) + 1
        yield (
            f"warning: the largest value in {len(wide)} images of 16 bits is {largest:,.0f} of {MAX_16_BIT:,} "
            f"({int(largest).bit_length()} bits in 16): {levels} of 256 gray levels are left without "
            f"intensity_range 0 {largest:.0f}"
        )
    floats = [image for image in deep if image.is_float]
    ranges = {_range_of_floats(image) for image in floats}
    if len(ranges) > 1:
        yield (
            f"warning: {len(floats)} images of floats are scaled each by its own values "
            f"({', '.join(sorted(ranges))}), so equal values become different gray levels without intensity_range"
        )


def _largest_of_few_bits(deep: Sequence[SampledImage]) -> float | None:
    """The largest value in images of 16 bits that use few of them, and have no values below 0; `None` of others."""
    wide = [image.largest for image in deep if not image.is_float]
    if not wide or any(image.smallest < 0 for image in deep):
        return None
    largest = max(wide)
    return largest if 0 < largest <= MAX_16_BIT and int(largest).bit_length() <= FEW_OF_16_BITS else None


def range_of_dark(images: Sequence[SampledImage], intensity_range: Sequence[float | str] | None) -> str | None:
    """The range that [`warnings_of_ranges`] names for images that are nearly black without it, such as `0 4095`; `None` of others.

    Args:
        images, intensity_range: As for [`warnings_of_ranges`].
    """
    deep = [image for image in images if image.largest is not None and image.bits > 8]
    largest = _largest_of_few_bits(deep) if intensity_range is None else None
    return None if largest is None else f"0 {largest:.0f}"


def _range_of_floats(image: SampledImage) -> str:
    """Which range of values `convert_image` takes an image of floats for."""
    for largest in (1, MAX_8_BIT, MAX_16_BIT):
        if image.smallest >= 0 and image.largest <= largest:
            return f"0 to {largest}"
    return "its own smallest to its largest"
