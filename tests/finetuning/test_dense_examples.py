"""Examples of what a finished model finds: which images are drawn, and when there are none."""

import logging

import pytest
import torch
from dense_sets import write_halves, write_squares

from modeling_sit import SiTForObjectDetection, SiTForSemanticSegmentation, SiTImageProcessor
from modeling_sit.data.dense.loading import open_dense
from modeling_sit.finetuning.dense_examples import draw_examples

pytest.importorskip("pycocotools")
CPU = torch.device("cpu")
HEADS = {"pyramid_size": 8, "box_head_size": 16, "detections_per_image": 5}


@pytest.fixture
def model(tiny_config, tmp_path):
    """The folder of a model of a class, with random weights."""

    def save(model_class):
        names = {"id2label": {0: "blue", 1: "red"}, "label2id": {"blue": 0, "red": 1}}
        model_class(tiny_config(image_size=32, **names, **HEADS)).save_pretrained(tmp_path / "model")
        SiTImageProcessor(size={"longest_edge": 64}, do_pad=True, patch_size=8).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def captions(figure) -> set[str]:
    return {text.get_text() for text in figure.texts if text.get_text().startswith("test")}


def test_images_with_objects_are_chosen(model, tmp_path):
    """The third image of the set has none."""
    folder = model(SiTForObjectDetection)
    rows = open_dense(write_squares(tmp_path / "squares", test=5), "boxes").read("test")
    assert captions(draw_examples(folder, rows.select(range(4)), ["blue", "red"], CPU, 0)) == {
        "test0",
        "test1",
        "test3",
    }
    drawn = [captions(draw_examples(folder, rows, ["blue", "red"], CPU, seed)) for seed in range(8)]
    assert all(len(each) == 3 and "test2" not in each for each in drawn) and len({*map(frozenset, drawn)}) > 1
    assert draw_examples(folder, rows.select([2]), ["blue", "red"], CPU, 0) is None


def test_nothing_that_can_be_read(model, tmp_path, caplog):
    rows = open_dense(write_halves(tmp_path / "halves", test=1), "pixels").read("test")
    (tmp_path / "halves" / "test" / "images" / "0.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        assert draw_examples(model(SiTForSemanticSegmentation), rows, ["blue", "red"], CPU, 0) is None
    assert "the card shows no examples" in caplog.text
