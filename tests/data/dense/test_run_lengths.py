import numpy as np
import pytest

from modeling_sit.data.dense.run_lengths import (
    BadMask,
    box_of_mask,
    compress,
    decode_masks,
    num_bad_polygons,
)

mask = pytest.importorskip("pycocotools.mask")


def slow_runs(pixels: np.ndarray) -> list[int]:
    """Runs down the columns, of zeros and of ones by turns."""
    runs, value = [0], 0
    for pixel in pixels.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.fixture
def pixels():
    return (np.random.default_rng(0).random((3, 37, 41)) < 0.4).astype(np.uint8)


def test_all_three_forms_give_the_same_mask(pixels):
    square = np.zeros((37, 41), np.uint8)
    square[5:15, 10:30] = 1
    compressed = mask.encode(np.asfortranarray(square))
    forms = [
        [[10, 5, 30, 5, 30, 15, 10, 15]],
        [[[10, 5], [30, 5], [30, 15], [10, 15]]],
        [10, 5, 30, 5, 30, 15, 10, 15],
        {"size": [37, 41], "counts": slow_runs(square)},
        {"size": [37, 41], "counts": compressed["counts"].decode()},
        compressed,
    ]
    for form in forms:
        found, area = compress(form, 37, 41)
        np.testing.assert_array_equal(decode_masks([found], 37, 41), square[None])
        assert box_of_mask(found) == [10, 5, 20, 10] and area == 200
    masks = [compress({"size": [37, 41], "counts": slow_runs(each)}, 37, 41)[0] for each in pixels]
    np.testing.assert_array_equal(decode_masks(masks, 37, 41), pixels)
    assert decode_masks([], 37, 41).shape == (0, 37, 41)


def test_several_polygons_are_one_mask():
    parts = [[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 14, 10, 14, 14, 10, 14]]
    mask, area = compress(parts, 20, 20)
    assert area == 32 and decode_masks([mask], 20, 20).sum() == 32


def test_polygons_of_two_points():
    assert compress([[1, 1, 5, 5]], 10, 10) is None
    assert num_bad_polygons([[1, 1, 5, 5], [0, 0, 4, 0, 4, 4], [0, 0, 4, 0, 4, 4, 1]]) == 2
    # Of pycocotools it would be a box.
    assert compress([[1, 1, 5, 5], [0, 0, 4, 0, 4, 4, 0, 4]], 10, 10)[1] == 16


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ("a.png", "neither polygons nor run lengths"),
        ([["a", "b", 1, 2, 3, 4]], "no numbers"),
        ([[0, 0, float("nan"), 0, 4, 4]], "no numbers"),
        ({"size": [10, 10]}, "lack"),
        ({"size": 10, "counts": [100]}, "not height and width"),
        ({"size": [5, 20], "counts": [100]}, "of 20 x 5 pixels, and the image of 10 x 10"),
        ({"size": [10, 10], "counts": [50, 20]}, "of 70 pixels, and the image has 100"),
        ({"size": [10, 10], "counts": [-50, 150]}, "100 pixels"),
        ({"size": [10, 10], "counts": ["a"]}, "damaged"),
        ({"size": [10, 10], "counts": "00"}, "of 0 pixels, and the image has 100"),
        ({"size": [10, 10], "counts": "\u00ff\u00ff"}, "damaged"),
        ({"size": [10, 10], "counts": "T"}, "damaged"),
    ],
)
def test_bad_masks(segmentation, problem):
    with pytest.raises(BadMask, match=problem):
        compress(segmentation, 10, 10)
