import datasets
import numpy as np
import pytest

from modeling_sit.data.dense.annotations import AnnotatedObject
from modeling_sit.data.dense.rows import object_columns, object_features
from modeling_sit.finetuning.anchors import STRIDES, describe_anchors, fitting_anchors, misfit, object_sizes


def rows(boxes, size=(200, 100), crowds=()):
    objects = [
        AnnotatedObject(number, (0.0, 0.0, *map(float, box)), 0, 1.0, int(number in crowds), None)
        for number, box in enumerate(boxes)
    ]
    columns = object_columns([1, 2], [size, size], [objects, []])
    features = {name: feature for name, feature in object_features(["a"]).items() if name != "image"}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_sizes_are_of_the_resized_image_without_crowds():
    sizes = object_sizes(rows([(10, 40), (50, 50), (90, 90)], crowds=[2]), longest_edge=100)
    np.testing.assert_allclose(sizes, [10, 25])
    assert len(object_sizes(rows([]), 100)) == 0


def test_misfit_is_in_doublings():
    assert misfit(np.array([16.0, 32.0, 64.0]), [16, 32, 64]) == 0
    assert misfit(np.array([8.0, 128.0]), [16, 32, 64]) == pytest.approx(1)
    assert misfit(np.array([16.0, 64.0, 128.0, 16.0]), [16, 32, 64]) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("sizes", "factor"),
    [
        ([16, 32, 64, 128, 256], 4.0),
        ([4, 8], 1.0),  # only the smallest anchors reach such small objects
        ([256, 500], 8.0),
        ([], 4.0),
        (np.geomspace(16, 256, 500), 4.0),
    ],
)
def test_fitting_anchors(sizes, factor):
    assert fitting_anchors(np.array(sizes, dtype=float)) == [factor * stride for stride in STRIDES]


def test_description():
    sizes = np.linspace(10, 20, 101)
    (line,) = describe_anchors(sizes, [8, 16, 32, 64, 128], 160, is_chosen=True)
    assert "anchors of 8 16 32 64 128 pixels, chosen for objects of 10.5 to 19.5 pixels, 15 in the middle" in line
    _, warning = describe_anchors(sizes, [64, 128, 256, 512, 1024], 160, is_chosen=False)
    assert warning.startswith("warning: 100 % of the objects are less than half as large")
    assert "no objects" in describe_anchors(np.zeros(0), [8.0] * 5, 160, is_chosen=True)[0]
