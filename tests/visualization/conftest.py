"""What must be true of every figure: no text leaves the page, nor lies on another."""

import itertools

import matplotlib.text
import pytest
from matplotlib.figure import Figure


def _texts_on(figure: Figure) -> dict[str, list[matplotlib.text.Text]]:
    """What is written on a figure, once it is laid out."""
    figure.draw_without_rendering()
    found: dict[str, list[matplotlib.text.Text]] = {}
    for text in figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text) and artist.get_visible()):
        if text.get_text().strip():
            found.setdefault(text.get_text(), []).append(text)
    return found


def _assert_texts_stay_on_the_page(figure: Figure) -> None:
    texts = list(itertools.chain(*_texts_on(figure).values()))
    assert texts
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    page = figure.bbox
    for name, box in boxes:
        assert box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1, name
    for (name, box), (other_name, other) in itertools.combinations(boxes, 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert width <= 1 or height <= 1, (name, other_name)


@pytest.fixture
def texts_on():
    """What is written on a figure, by what it says."""
    return _texts_on


@pytest.fixture
def assert_texts_stay_on_the_page():
    """No text leaves the page, nor lies on another."""
    return _assert_texts_stay_on_the_page
