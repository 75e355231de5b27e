"""Objects on their images: each in its color, none below the threshold, and every text on the page."""

import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from modeling_sit.run_length_encoding import encode_mask
from modeling_sit.visualization.detections import (
    CROWD,
    ImageWithObjects,
    ShownObjects,
    detections_figure,
    draw_objects,
    styles_of,
    text_color,
)
from modeling_sit.visualization.palette import ON_IMAGES

NAMES = ["cell", "a class with a name that is much longer than there is space for"]


def noise(width: int = 80, height: int = 60) -> PIL.Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def mask(top: int, left: int, size: int = 10, shape: tuple[int, int] = (60, 80)) -> dict:
    dense = np.zeros(shape, bool)
    dense[top : top + size, left : left + size] = True
    return encode_mask(dense)


def boxes(*corners: float) -> np.ndarray:
    return np.array([[corner, corner, corner + 10, corner + 20] for corner in corners])


def drawn_boxes(figure: Figure) -> list[tuple]:
    """Corner, size and color of each box that is drawn on an image."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()).upper())
        for axes in figure.axes
        for patch in axes.patches
        if isinstance(patch, Rectangle) and axes.images
    ]


def test_boxes_in_the_colors_of_their_classes(texts_on, assert_texts_stay_on_the_page):
    truth = ShownObjects([NAMES[0], NAMES[0]], boxes(0, 30))
    found = ShownObjects([NAMES[1], NAMES[0], NAMES[0]], boxes(1, 5, 40), scores=[0.9, 0.3, 0.5])
    figure = detections_figure([ImageWithObjects(noise(), "a.jpg", found, truth)] * 2, NAMES, 0.5)
    assert_texts_stay_on_the_page(figure)
    one, other = ON_IMAGES[:2]
    expected = [(0, 0, 10, 20, one), (30, 30, 10, 20, one), (40, 40, 10, 20, one), (1, 1, 10, 20, other)]
    assert drawn_boxes(figure) == expected * 2
    texts = texts_on(figure)
    assert {"image", "truth", "prediction (score ≥ 0.5)", "a.jpg", "cell", "0.90", "0.50"} <= set(texts)
    assert "0.30" not in texts and texts["2 objects: 2 cell"]


def test_boxes_have_a_dark_rim():
    """Light blue on white: what is darker than the color itself is the rim."""
    figure = Figure(figsize=(1, 1), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 60), ylim=(60, 0))
    axes.set_axis_off()
    draw_objects(axes, ShownObjects([NAMES[0]], boxes(20)), {NAMES[0]: ("#56B4E9", "solid")}, are_few=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    brightness = np.asarray(canvas.buffer_rgba())[..., :3].mean(axis=-1)
    assert brightness.min() < 150 < np.mean([0x56, 0xB4, 0xE9]) and brightness[0, 0] == 255


def test_texts_are_read_on_their_color():
    assert [text_color(color) for color in ("#FFFFFF", "#56B4E9", "#E69F00", "#0072B2", "#000000")] == [
        *("black", "black", "black", "white", "white")
    ]


def test_masks_and_crowds(texts_on, assert_texts_stay_on_the_page):
    truth = ShownObjects(["cell", "cell"], boxes(0, 30), [mask(5, 5), mask(30, 30)], is_crowd=[False, True])
    found = ShownObjects(["cell", "cell"], None, [mask(6, 6), mask(0, 0, 0)], [0.8, 0.7])  # the second one is empty
    figure = detections_figure([ImageWithObjects(noise(), "", found, truth)], ["cell"])
    assert_texts_stay_on_the_page(figure)
    assert CROWD in texts_on(figure) and "1 object" in texts_on(figure) and not drawn_boxes(figure)
    _, true_panel, found_panel, *_ = figure.axes
    overlay, found_overlay = true_panel.images[1], found_panel.images[1]
    assert list(overlay.get_extent()) == [4, 16, 16, 4] and list(found_overlay.get_extent()) == [5, 17, 17, 5]
    assert overlay.get_array()[..., 3].astype(bool).sum() == 100
    assert len(true_panel.collections) == 2  # an outline each


def test_without_truth_and_without_objects(texts_on, assert_texts_stay_on_the_page):
    images = [
        ImageWithObjects(noise(), "a.jpg", ShownObjects([], boxes().reshape(0, 4), scores=[])),
        ImageWithObjects(noise(20, 90), "b.jpg", ShownObjects([NAMES[1]], boxes(3), scores=[0.75])),
    ]
    figure = detections_figure(images, NAMES)
    assert_texts_stay_on_the_page(figure)
    assert "truth" not in texts_on(figure) and "0 objects" in texts_on(figure)
    assert len(drawn_boxes(figure)) == 1


def test_many_classes_have_their_names_beside_them(texts_on, assert_texts_stay_on_the_page):
    names = [f"class {number}" for number in range(40)]
    found = ShownObjects(names[:7], boxes(*range(0, 49, 7)), scores=[0.9] * 7)
    figure = detections_figure([ImageWithObjects(noise(), "", found)], names)
    assert "class 3 0.90" in texts_on(figure)
    everything = detections_figure(
        [ImageWithObjects(noise(), "", ShownObjects(names, boxes(*range(40)), scores=[0.9] * 40))], names
    )
    assert_texts_stay_on_the_page(everything)
    assert "and 11 more classes" in texts_on(
        everything
    ) and "40 objects: 1 class 0, 1 class 1, 38 more classes" in texts_on(everything)


def test_a_class_keeps_its_color_where_others_are_missing():
    names = ["a", "b", "c"]
    one, other = ShownObjects(["c"], boxes(0)), ShownObjects(["a", "c", "another"], boxes(0, 1, 2))
    assert styles_of([one], names)["c"] == styles_of([other], names)["c"]
    assert len(set(styles_of([other], names).values())) == 3
    many = [f"{number}" for number in range(100)]
    shown = styles_of([ShownObjects(["7", "25", "43"], boxes(0, 1, 2))], many)
    assert len(set(shown.values())) == 3  # their places among all have one color and one line


def test_a_threshold_above_all(texts_on):
    found = ShownObjects(["cell"], boxes(0), scores=[0.2])
    figure = detections_figure([ImageWithObjects(noise(), "", found)], ["cell"], 0.5)
    assert not drawn_boxes(figure) and "0 objects" in texts_on(figure) and "cell" not in texts_on(figure)
