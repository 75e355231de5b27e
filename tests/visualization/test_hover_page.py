"""The page needs nothing from anywhere, and shows every point with its image."""

import html.parser
import json
import re

import numpy as np
import pytest

from modeling_sit.visualization.embeddings import FeatureMap
from modeling_sit.visualization.hover_page import PANEL_SIDE, hover_page
from modeling_sit.visualization.palette import style_groups

CLASSES = ["a", "</script><b>", None, "a"] * 3
POINTS = np.random.default_rng(0).normal(size=(12, 2))


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the texts of scripts by their id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = data

    def handle_endtag(self, tag):
        self.inside = None

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def text() -> str:
    return hover_page(
        [
            FeatureMap("before", POINTS, ("x", "y")),
            FeatureMap("after <i>", 2 * POINTS, ("x", "y"), "a note", "accuracy < 9%"),
        ],
        style_groups(CLASSES),
        "class",
        names=[f"{number} </script>.png" for number in range(12)],
        images=[f"data:image/png;base64,{number}" for number in range(12)],
        title="images & <b>",
        subtitle="of a folder.",
    )


def test_nothing_is_loaded_from_anywhere(text):
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "//" not in re.sub(r"//.*", "", text)
    assert not page.all("link") and "url(" not in text and "import" not in text
    assert not any("src" in attributes for _, attributes in page.tags)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'") and "img-src data:;" in policy


def test_every_point_is_in_every_map_in_its_place(text):
    marks = [mark for mark in Page(text).all("path") if "data-i" in mark]
    assert [int(mark["data-i"]) for mark in marks[:12]] == [int(mark["data-i"]) for mark in marks[12:]]
    assert sorted(int(mark["data-i"]) for mark in marks[:12]) == list(range(12))
    places = {int(m["data-i"]): tuple(map(float, re.findall(r"[\d.]+", m["data-at"]))) for m in marks[:12]}
    xs, ys = np.array([places[number] for number in range(12)]).T
    assert np.argsort(xs).tolist() == np.argsort(POINTS[:, 0]).tolist()
    assert np.argsort(-ys).tolist() == np.argsort(POINTS[:, 1]).tolist()  # up is up
    assert xs.min() > 0 and max(xs.max(), ys.max()) < PANEL_SIDE


def test_points_have_their_image_name_and_class(text):
    points = json.loads(Page(text).scripts["points"])
    assert [point["image"] for point in points] == [f"data:image/png;base64,{number}" for number in range(12)]
    assert [point["name"] for point in points] == [f"{number} </script>.png" for number in range(12)]
    assert [point["group"] for point in points[:4]] == ["a", "</script><b>", "no label", "a"]


def test_names_are_text_and_not_markup(text):
    page = Page(text)
    assert not page.all("b") and not page.all("i")
    assert text.count("<script") == text.count("</script>") == 2
    assert "images &amp; &lt;b&gt;" in text and "after &lt;i&gt;" in text and ">accuracy &lt; 9%<" in text


def test_legend_looks_like_the_points(text):
    page = Page(text)
    paths = page.all("path")
    for number in range(3):
        looks = {(path["d"], path.get("fill")) for path in paths if path.get("data-g") == str(number)}
        assert len(looks) == 1
        assert looks <= {(path["d"], path.get("fill")) for path in paths if "data-g" not in path}
    assert [button["data-g"] for button in page.all("button")] == ["0", "1", "2"]
