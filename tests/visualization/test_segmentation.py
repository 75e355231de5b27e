"""Label maps beside their images: each class in its color, and every text on the page."""

import numpy as np
import PIL.Image
from matplotlib.colors import to_rgb

from modeling_sit.visualization.palette import AREAS
from modeling_sit.visualization.segmentation import NOT_LABELED, OPACITY, ImageWithPixels, segmentation_figure

NAMES = ["sky", "road", "a class that is nowhere"]


def example(truth: bool = True, width: int = 30, height: int = 20) -> ImageWithPixels:
    image = PIL.Image.new("RGB", (width, height), "gray")
    found, true = np.zeros((height, width), int), np.zeros((height, width), int)
    found[10:], true[12:], true[:, :5] = 1, 1, 255
    return ImageWithPixels(image, "a.png", found, true if truth else None)


def test_maps_in_the_colors_of_the_legend(texts_on, assert_texts_stay_on_the_page):
    figure = segmentation_figure([example(), example(width=40)], NAMES)
    assert_texts_stay_on_the_page(figure)
    texts = texts_on(figure)
    assert {"image", "truth", "prediction", "sky", "road", NOT_LABELED} <= set(texts) and NAMES[2] not in texts
    assert len(texts["90.0% of the pixels are right"]) == 2  # of those with a label
    _, true, found, *_ = figure.axes
    painted = found.images[1].get_array()
    assert np.allclose(painted[0, 0], (*to_rgb(AREAS[0]), OPACITY)) and np.allclose(
        painted[-1, -1, :3], to_rgb(AREAS[1])
    )
    assert len(true.collections) == 1 and not found.collections  # hatched


def test_without_truth(texts_on, assert_texts_stay_on_the_page):
    figure = segmentation_figure([example(truth=False)], NAMES)
    assert_texts_stay_on_the_page(figure)
    assert "truth" not in texts_on(figure) and NOT_LABELED not in texts_on(figure)


def test_of_many_classes_those_that_are_shown_have_colors_of_their_own():
    assert len(set(AREAS)) == len(AREAS)
    image = example()
    image.found, image.truth = np.where(image.found, 3 + len(AREAS), 3), np.full(image.found.shape, 255)
    figure = segmentation_figure([image], [f"class {number}" for number in range(100)])
    painted = figure.axes[2].images[1].get_array()
    assert not np.allclose(painted[0, 0], painted[-1, -1])
