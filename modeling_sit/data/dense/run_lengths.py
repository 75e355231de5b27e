"""Masks of objects as COCO's run lengths (RLE), from polygons and from both kinds of run lengths.

A compressed mask is `{"size": [height, width], "counts": str}`. Its runs go down the columns, and begin with one of zeros.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from modeling_sit.run_length_encoding import decode_mask, read_counts, write_counts
from modeling_sit.runtime.errors import SiTError

# A triangle.
LEAST_COORDINATES = 6


class BadMask(ValueError):
    """A mask that is none. The message says why, in a few words."""


def coco_masks() -> ModuleType:
    """`pycocotools.mask`.

    Raises:
        [`SiTError`]: If pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise SiTError(
            "polygons need pycocotools, which is not installed",
            remedy="install it: pip install 'pycocotools>=2.0.8'",
        ) from error
    return mask


def compress(segmentation: Any, height: int, width: int) -> tuple[dict[str, Any], int] | None:
    """The compressed run lengths of a mask in any of COCO's three forms, and its number of pixels.

    Args:
        segmentation (`list` or `dict`): Polygons, each a flat list of coordinates x, y or one of pairs; or run lengths, as
            numbers or compressed.
        height, width (`int`): Of the image, in pixels.

    Returns:
        `tuple[dict, int]`, *optional*: `None` if none of the polygons has three points.

    Raises:
        [`BadMask`]: If it is none of these, or of another size than the image.
        [`SiTError`]: If pycocotools is not installed.
    """
    if isinstance(segmentation, dict):
        return _compress_runs(segmentation, height, width)
    if not isinstance(segmentation, (list, tuple, np.ndarray)):
        raise BadMask(f"its segmentation is neither polygons nor run lengths, but {type(segmentation).__name__}")
    polygons = [polygon for polygon in map(_flat, _polygons(segmentation)) if is_polygon(polygon)]
    if not polygons:
        return None
    masks = coco_masks()
    merged = masks.merge(masks.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}, int(masks.area(merged))


def num_bad_polygons(segmentation: Any) -> int:
    """How many of the polygons have fewer than three points, or half a point. 0 for run lengths."""
    if not isinstance(segmentation, (list, tuple)):
        return 0
    return sum(not is_polygon(_flat(polygon)) for polygon in _polygons(segmentation))


def is_polygon(coordinates: Sequence[float]) -> bool:
    """Whether flat coordinates are of three points or more. pycocotools takes two points for a box, silently."""
    return len(coordinates) >= LEAST_COORDINATES and len(coordinates) % 2 == 0


def _polygons(segmentation: Sequence) -> Sequence:
    # Some programs write a single polygon without the list around it.
    is_single = len(segmentation) > 0 and all(isinstance(value, (int, float)) for value in segmentation)
    return [segmentation] if is_single else segmentation


def _flat(polygon: Any) -> list[float]:
    try:
        values = np.asarray(polygon, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise BadMask("a polygon has coordinates that are no numbers")
    return values.tolist()


def _compress_runs(segmentation: dict, height: int, width: int) -> tuple[dict[str, Any], int]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size is None or counts is None:
        raise BadMask("its run lengths lack `size` or `counts`")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise BadMask(f"the size of its run lengths is {size!r}, not height and width")
    size = [int(side) for side in size]
    if size != [height, width]:
        raise BadMask(f"its mask is of {size[1]} x {size[0]} pixels, and the image of {width} x {height}")
    try:
        runs = read_counts(counts) if isinstance(counts, (str, bytes)) else np.array([int(each) for each in counts])
    except (TypeError, ValueError, UnicodeError):
        raise BadMask("its run lengths are damaged") from None
    # pycocotools reads beyond its memory where they do not fit.
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadMask(f"its run lengths are of {runs.sum():,} pixels, and the image has {height * width:,}")
    area = int(runs[1::2].sum())
    return {"size": size, "counts": counts if isinstance(counts, str) else write_counts(runs)}, area


def decode_masks(masks: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Compressed masks of one image as pixels: uint8 `(masks, height, width)`, 0 or 1."""
    pixels = np.zeros((len(masks), height, width), np.uint8)
    for place, mask in zip(pixels, masks, strict=True):
        place[:] = decode_mask(mask)
    return pixels


def box_of_mask(mask: dict[str, Any]) -> list[float]:
    """The smallest box around a compressed mask that has pixels: x, y, width, height."""
    pixels = decode_mask(mask)
    (left, right), (top, bottom) = (np.flatnonzero(pixels.any(axis=axis))[[0, -1]].tolist() for axis in (0, 1))
    return [float(left), float(top), float(right + 1 - left), float(bottom + 1 - top)]
