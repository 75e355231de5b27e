"""Masks in COCO's run-length encoding (RLE), in NumPy: no other package is needed to read and write it."""

from collections.abc import Mapping
from importlib import import_module

import numpy as np

# Of a character of compressed counts, 48 above its value: 5 bits of a number, the lowest first, and whether more follow.
OFFSET, BITS, MORE, SIGN = 48, 5, 0x20, 0x10
MAX_CHARACTERS = 7  # of a number of 32 bits


def encode_mask(mask: np.ndarray) -> dict:
    """Write a mask as compressed RLE, to the character as pycocotools does.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): Not zero where the object is.

    Returns:
        `dict`: `{"size": [height, width], "counts": str}`; it can be written to JSON.
    """
    mask = np.asarray(mask) != 0
    return {"size": list(mask.shape), "counts": write_counts(_count_runs(mask))}


def decode_mask(rle: Mapping) -> np.ndarray:
    """Read a mask of compressed or uncompressed RLE.

    Args:
        rle (mapping): `{"size": [height, width], "counts": ...}`; the counts are a list of the lengths of runs, or a
            string or bytes of them, compressed.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`.

    Raises:
        `ValueError`: If it is no RLE, or its runs are not as long as the mask.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        counts = read_counts(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, dtype=np.int64)
    except (KeyError, TypeError, ValueError, IndexError, UnicodeError) as problem:
        raise ValueError("it is no run-length encoding with `size` and `counts`") from problem
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"the runs of a mask of {width} x {height} pixels do not add up to {width * height}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


def decode_segmentation(segmentation, height: int, width: int) -> np.ndarray:
    """Read the mask of an object in any form of COCO's annotations.

    Args:
        segmentation (`list`, mapping, `np.ndarray`, tensor or `PIL.Image.Image`):
            Polygons, each a list of x and y in pixels, one after the other (pycocotools draws them); RLE, see
            [`decode_mask`]; or a mask of shape `(height, width)` itself.
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`.

    Raises:
        `ValueError`: If it has none of these forms, or another size than the image.
        `ImportError`: If there are polygons, and no pycocotools.
    """
    if isinstance(segmentation, Mapping):
        mask = decode_mask(segmentation)
    elif isinstance(segmentation, (list, tuple)):
        mask = _draw_polygons(segmentation, height, width)
    elif segmentation is None:
        raise ValueError("it has no segmentation")
    else:
        mask = np.asarray(segmentation) != 0
    if mask.shape != (height, width):
        size = " x ".join(map(str, mask.shape[::-1]))
        raise ValueError(f"its mask has {size} pixels, and the image {width} x {height}")
    return mask


def _draw_polygons(polygons: list, height: int, width: int) -> np.ndarray:
    for polygon in polygons:
        is_list = isinstance(polygon, (list, tuple, np.ndarray))
        if not is_list or len(polygon) < 6 or len(polygon) % 2:
            found = f"{len(polygon) // 2} points" if is_list else repr(polygon)
            raise ValueError(f"a polygon needs x and y of three points or more, got {found}")
    try:
        # By name, so that code that a checkpoint brings along does not demand the package.
        coco = import_module("pycocotools.mask")
    except ImportError as problem:
        raise ImportError(
            "polygons need the package pycocotools, which is not installed: pip install pycocotools"
        ) from problem
    polygons = [[float(number) for number in polygon] for polygon in polygons]
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)


def _count_runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of a mask, column by column; the first is of zeros, and may be empty."""
    pixels = mask.T.ravel()
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0] if len(pixels) == 0 or not pixels[0] else [0, 0]
    return np.diff(np.concatenate([first, starts, [len(pixels)]]))


def write_counts(counts: np.ndarray) -> str:
    """Compress the lengths of runs, `(runs,)`, to the characters of pycocotools."""
    # From the fourth on, a run is written as what it is longer than the one before the last.
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = np.zeros((len(values), MAX_CHARACTERS), dtype=np.uint8)
    is_open = np.ones(len(values), dtype=bool)
    lengths = np.zeros(len(values), dtype=np.int64)
    for place in range(MAX_CHARACTERS):
        bits = values & (MORE - 1)
        values = values >> BITS
        has_sign = (bits & SIGN) != 0
        ends = np.where(has_sign, values == -1, values == 0)
        characters[:, place] = bits + OFFSET + np.where(ends, 0, MORE)
        lengths += is_open
        is_open = is_open & ~ends
    return characters[np.arange(MAX_CHARACTERS) < lengths[:, None]].tobytes().decode("ascii")


def read_counts(text: str | bytes) -> np.ndarray:
    """The lengths of runs, int64 `(runs,)`, in compressed counts.

    Raises:
        `ValueError`: If these are no counts.
    """
    text = text.encode("ascii") if isinstance(text, str) else text
    characters = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - OFFSET
    has_more = (characters & MORE) != 0
    if len(characters) == 0 or has_more[-1] or (characters < 0).any() or (characters >= 2 * MORE).any():
        raise ValueError("the counts are cut off, or hold other characters")
    starts = np.flatnonzero(np.concatenate([[True], ~has_more[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(characters)]]))
    shifts = BITS * (np.arange(len(characters)) - np.repeat(starts, lengths))
    if lengths.max() > MAX_CHARACTERS:
        raise ValueError("the counts hold a number of more than 32 bits")
    values = np.add.reduceat((characters & (MORE - 1)) << shifts, starts)
    is_negative = (characters[starts + lengths - 1] & SIGN) != 0
    counts = values - (is_negative.astype(np.int64) << (BITS * lengths))
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
