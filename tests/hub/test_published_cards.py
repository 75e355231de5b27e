"""The cards of model_cards/: what the programs wrote of the published recipes, with what people added."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from modeling_sit.hub.card_file import Card

FOLDER = Path(__file__).parents[2] / "model_cards"
CARDS = [path for path in sorted(FOLDER.glob("*.md")) if not path.stem.endswith("_template")]
SHOW_NO_IMAGES = {"camvid_classes"}  # whose license allows research only
SECTIONS = ["about", "results", "usage", "training", "license"]


def test_there_are_some():
    assert {path.stem for path in CARDS} >= {"flowers", "fashion_mnist"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
class TestCard:
    def test_the_hub_shows_what_was_measured(self, path):
        data = ModelCard.load(path).data
        assert data.library_name == "transformers" and data.license and data.pipeline_tag
        assert data.eval_results
        rows = Card.parse(path.read_text()).section("results")
        for result in data.eval_results:
            assert re.search(
                rf"{re.escape(result.metric_name)} \| {result.metric_value:.4f}", rows.replace("\\_", "_")
            )

    def test_is_of_the_template(self, path):
        card = Card.parse(path.read_text())
        assert card.sections == SECTIONS
        for heading in ("How to load it", "What was run", "How it went", "Limits", "License", "Citation"):
            assert f"\n## {heading}\n" in card.body

    def test_images_are_there(self, path):
        rendered = MarkdownIt("commonmark").enable("table").render(Card.parse(path.read_text()).body)
        images = re.findall(r'<img src="([^"]+)"', rendered)
        assert len(images) >= 2 - (path.stem in SHOW_NO_IMAGES) and all((FOLDER / image).is_file() for image in images)

    def test_tells_of_no_machine(self, path):
        assert not re.search(r"/(home|tmp|work|root)/", path.read_text())
