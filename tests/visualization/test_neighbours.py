"""Nearest images, against a search one by one."""

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.colors import to_hex

from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.neighbours import (
    EmbeddedImages,
    ShownImage,
    draw_neighbours,
    nearest_images,
    neighbours_figure,
)
from modeling_sit.visualization.page import FRAME_COLOR
from modeling_sit.visualization.palette import AGREES, DIFFERS

GENERATOR = torch.Generator().manual_seed(0)
QUERIES, GALLERY = torch.randn(4, 8, generator=GENERATOR), 3 * torch.randn(20, 8, generator=GENERATOR)


def slow_nearest(query: torch.Tensor, count: int, without: int | None = None) -> list[int]:
    cosines = [float(query @ other / query.norm() / other.norm()) for other in GALLERY]
    rows = [row for row in range(len(GALLERY)) if row != without]
    return sorted(rows, key=lambda row: -cosines[row])[:count]


def test_nearest_against_a_slow_search():
    similarities, rows = nearest_images(QUERIES, GALLERY, 5)
    for query, found, cosines in zip(QUERIES, rows.tolist(), similarities, strict=True):
        assert found == slow_nearest(query, 5)
        expected = torch.stack([torch.cosine_similarity(query, GALLERY[row], dim=0) for row in found])
        torch.testing.assert_close(cosines, expected)


def test_a_query_of_the_gallery_is_not_its_own_neighbour():
    own = [7, 0, 19]
    similarities, rows = nearest_images(GALLERY[own], GALLERY, 19, own)
    for row, found in zip(own, rows.tolist(), strict=True):
        assert found == slow_nearest(GALLERY[row], 19, without=row)
    assert similarities.isfinite().all()


@pytest.mark.parametrize(("count", "own", "most"), [(21, None, 20), (20, [0, 1, 2, 3], 19), (0, None, 20)])
def test_more_neighbours_than_images(count, own, most):
    with pytest.raises(SiTError, match=f"num_neighbours: must be from 1 to {most}.*got {count}"):
        nearest_images(QUERIES, GALLERY, count, own)


@pytest.mark.parametrize(
    ("query", "neighbour", "agrees"),
    [
        (("a",), ("a",), True),
        (("a",), ("b",), False),
        (("a", "b"), ("b", "c"), True),
        ((), (), True),
        (("a",), (), False),
        (None, ("a",), None),
        (("a",), None, None),
    ],
)
def test_agreement_is_a_shared_class(query, neighbour, agrees):
    image = PIL.Image.new("RGB", (8, 8))
    assert ShownImage(image, neighbour, 0.5).agrees_with(ShownImage(image, query)) is agrees


def test_figure(texts_on, tmp_path):
    def shown(labels, similarity=None, size=(20, 10)):
        return ShownImage(PIL.Image.new("RGB", size, "red"), labels, similarity)

    long = "a class whose name is far too long"
    figure = neighbours_figure(
        [
            (shown(("a",)), [shown(("a",), 0.9), shown((long,), 0.8), shown(None, 0.7)]),
            (shown((), size=(10, 20)), [shown(("a",), 0.9), shown((), 0.8), shown(("$1", "$2"), 0.7)]),
        ]
    )
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 8 and {axes.get_window_extent().width for axes in panels} == {panels[0].bbox.width}
    assert all(abs(np.ptp(axes.get_xlim())) == abs(np.ptp(axes.get_ylim())) == 20 for axes in panels)  # not stretched
    frames = [[to_hex(frame.get_edgecolor()).upper() for frame in axes.patches] for axes in panels]
    # What has no frame has a thin line at the image's edge.
    line = to_hex(FRAME_COLOR).upper()
    assert frames == [[line], [AGREES], [DIFFERS], [line], [line], [DIFFERS], [AGREES], [DIFFERS]]
    assert panels[4].patches[0].get_bbox().bounds == (0, 0, 10, 20)
    texts = set(texts_on(figure))
    assert {"a", "0.900", "0.700", "none", "$1 + $2", "query", "shares a class with the query", "does not"} <= texts
    assert long not in texts and any("…" in text for text in texts)
    styles = {frame.get_linestyle() for axes in panels for frame in axes.patches if frame.get_linewidth() > 1}
    assert len(styles) == 2  # not by color alone
    figure.savefig(tmp_path / "figure.png", dpi=30)


@pytest.mark.parametrize("num_queries", [1, 3, 8])
@pytest.mark.parametrize("num_neighbours", [1, 3])
@pytest.mark.parametrize("labels", [None, ("iris",), ("a class whose name is very long", "w" * 40, "c")])
def test_texts_stay_on_the_page(num_queries, num_neighbours, labels, assert_texts_stay_on_the_page):
    image = PIL.Image.new("RGB", (8, 8), "white")
    neighbours = [ShownImage(image, labels, -0.125)] * (num_neighbours - 1) + [ShownImage(image, labels, 1.0)]
    figure = neighbours_figure([(ShownImage(image, labels), neighbours)] * num_queries)
    assert_texts_stay_on_the_page(figure)


def test_classes_that_are_shared_come_first(texts_on):
    image = PIL.Image.new("RGB", (8, 8))
    query = ShownImage(image, ("rose", "tulip"))
    figure = neighbours_figure([(query, [ShownImage(image, ("aster", "daffodil", "tulip"), 0.5)])])
    assert "tulip + aster + daffodil" in texts_on(figure)


def test_draws_the_nearest_images_with_their_labels_and_cosines(texts_on):
    """From lists of images."""
    images = [PIL.Image.new("RGB", (8, 8), (10 * number, 0, 0)) for number in range(20)]
    gallery = EmbeddedImages(GALLERY, [(f"class {number}",) for number in range(20)], images.__getitem__)
    queries = EmbeddedImages(QUERIES, [None] * 4, images.__getitem__)
    figure = draw_neighbours(queries, gallery, num_neighbours=2)
    similarities, rows = nearest_images(QUERIES, GALLERY, 2)
    reds = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes if axes.images]
    assert reds == [10 * number for query, found in enumerate(rows.tolist()) for number in (query, *found)]
    texts = texts_on(figure)
    assert {f"class {row}" for row in rows.flatten().tolist()} <= set(texts)
    assert {f"{value:.3f}" for value in similarities.flatten().tolist()} <= set(texts)
