"""Masks in run-length encoding against pycocotools, to the character."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco

from modeling_sit.run_length_encoding import decode_mask, decode_segmentation, encode_mask


def masks():
    """Random masks of all densities, with short and long runs, and the corner cases."""
    generator = np.random.default_rng(0)
    for number in range(300):
        height, width = generator.integers(1, 30, 2)
        mask = generator.random((height, width)) < generator.choice([0, 0.05, 0.5, 0.95, 1])
        yield np.kron(mask, np.ones((9, 11), dtype=bool)) if number % 2 else mask
    large = np.zeros((1500, 1200), dtype=bool)
    large[3:, 700:1190] = True
    yield from (large, ~large)


def test_equals_pycocotools():
    for mask in masks():
        ours, theirs = encode_mask(mask), coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        for form in (ours, theirs):
            decoded = decode_mask(form)
            assert decoded.dtype == bool
            assert np.array_equal(decoded, mask)


def test_uncompressed_counts():
    mask = decode_mask({"size": [3, 2], "counts": [1, 3, 2]})
    assert mask.tolist() == [[False, True], [True, False], [True, False]]


def test_forms_of_a_segmentation():
    mask = np.zeros((30, 40), dtype=bool)
    mask[10:20, 5:25] = True
    forms = [
        [[5, 10, 25, 10, 25, 20, 5, 20]],
        [[5, 10, 15, 10, 15, 20, 5, 20], np.array([15, 10, 25, 10, 25, 20, 15, 20])],
        encode_mask(mask),
        coco.frPyObjects([[5, 10, 25, 10, 25, 20, 5, 20]], 30, 40)[0],
        {"size": [30, 40], "counts": [160, *[10, 20] * 19, 10, 460]},
        mask,
        torch.from_numpy(mask),
        PIL.Image.fromarray(mask),
    ]
    for form in forms:
        assert np.array_equal(decode_segmentation(form, 30, 40), mask)
    assert not decode_segmentation([], 30, 40).any()


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        (encode_mask(np.ones((40, 30))), "its mask has 30 x 40 pixels, and the image 40 x 30"),
        (np.ones((30, 41)), "its mask has 41 x 30 pixels"),
        ({"size": [30, 40], "counts": [7]}, "do not add up to 1200"),
        ({"size": [30, 40], "counts": "0_"}, "no run-length encoding"),
        ({"size": [30, 40], "counts": "é"}, "no run-length encoding"),
        ({"size": [30, 40], "counts": ""}, "no run-length encoding"),
        ({"counts": [1200]}, "no run-length encoding"),
        ([[1, 2, 3, 4]], "three points or more, got 2 points"),
        ([1, 2, 3, 4, 5, 6], "three points or more, got 1"),
        (None, "it has no segmentation"),
    ],
)
def test_what_is_no_mask_of_the_image(segmentation, problem):
    with pytest.raises(ValueError, match=problem):
        decode_segmentation(segmentation, 30, 40)


def test_only_polygons_need_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    assert decode_segmentation(encode_mask(np.ones((3, 4))), 3, 4).all()
    with pytest.raises(ImportError, match="pip install pycocotools"):
        decode_segmentation([[0, 0, 3, 0, 3, 3]], 3, 4)
