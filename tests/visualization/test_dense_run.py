"""`visualize detections` and `visualize segmentation` from the command line."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from coco_sets import annotation, content, write_set

from modeling_sit import (
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
)
from modeling_sit.image_modes import PixelFormat
from modeling_sit.visualization.arguments import DenseImagesArguments
from modeling_sit.visualization.dense_run import read_chosen

pytest.importorskip("pycocotools")
HEADS = {"pyramid_size": 8, "box_head_size": 16, "mask_head_num_layers": 1, "detection_threshold": 0.0}


@pytest.fixture
def model(tiny_config, tmp_path):
    """The folder of a model of a class, with random weights."""

    def save(model_class, **fields):
        torch.manual_seed(0)
        names = {"id2label": {0: "early", 1: "late"}, "label2id": {"early": 0, "late": 1}}
        model_class(tiny_config(image_size=32, **{**names, **HEADS, **fields})).save_pretrained(tmp_path / "model")
        processor = SiTImageProcessor(size={"longest_edge": 32}, do_pad=True, patch_size=8)
        processor.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.fixture
def objects(tmp_path):
    return write_set(tmp_path / "objects", content(3, [annotation(), annotation(2, image_id=2, category_id=7)]))


def test_detections(model, objects, run_program, tmp_path, capsys):
    flags = ["detections", "--model_name_or_path", model(SiTForInstanceSegmentation), "--device", "cpu"]
    flags += ["--threshold", 0.4, "--dots_per_inch", 40]
    paths = [tmp_path / "figures" / name for name in ("a.png", "b.png", "c.png")]
    images = [objects / "images" / "0.png", objects / "images" / "1.png"]
    pile = objects / "images"
    sources = [["--dataset", objects], ["--images", *images], ["--dataset", pile, "--num_images", 2]]
    for source, path in zip(sources, paths, strict=True):
        assert run_program("visualize", *flags, *source, "--output", path) == 0
    out = capsys.readouterr().out
    assert out.count("without truth: ") == 1 and f"written to {paths[2]}" in out
    (with_truth, _), *without = (PIL.Image.open(path).size for path in paths)
    assert all(width < 0.7 * with_truth for width, _ in without)


def test_split_of_images_without_truth(save_images, tmp_path):
    dense = SimpleNamespace(processor=None, pixel_format=PixelFormat(3))
    for name, count in (("train", 2), ("test", 3)):
        save_images(tmp_path / "plain" / name, count)
    for argument, name, count in (("train_split", "train", 2), ("validation_split", "test", 3)):
        chosen = DenseImagesArguments(dataset=str(tmp_path / "plain"), **{argument: name})
        shown, _ = read_chosen(dense, "boxes", chosen, 0)
        assert len(shown.images) == count


def test_segmentation(model, run_program, tmp_path):
    folder = tmp_path / "pixels" / "val"
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(2):
        PIL.Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
            folder / "images" / f"{number}.png"
        )
        PIL.Image.fromarray(generator.integers(0, 2, (20, 24), dtype=np.uint8)).save(
            folder / "masks" / f"{number}.png"
        )
    flags = ["segmentation", "--model_name_or_path", model(SiTForSemanticSegmentation), "--dots_per_inch", 40]
    path = tmp_path / "a.png"
    assert run_program("visualize", *flags, "--device", "cpu", "--dataset", folder.parent, "--output", path) == 0
    assert PIL.Image.open(path).size[0] > 200


def test_mistakes(model, objects, one_line_error, tmp_path):
    folder = model(SiTForSemanticSegmentation)
    given = ["--model_name_or_path", folder, "--dataset", objects, "--output", tmp_path / "none.png"]
    error = one_line_error("visualize", "detections", *given)
    assert error.startswith("--model_name_or_path: detections needs masks of objects or boxes, and")
    assert "--threshold: must be from 0 to 1" in one_line_error(
        "visualize", "detections", *given, "--threshold", 2, code=2
    )
    given[1] = model(SiTForInstanceSegmentation)
    assert "--model_name_or_path: segmentation needs a class for each pixel" in one_line_error(
        "visualize", "segmentation", *given
    )
    assert "--train_split: no split none" in one_line_error("visualize", "detections", *given, "--train_split", "none")
    given[1] = model(SiTForImageClassification)
    error = one_line_error("visualize", "detections", *given)
    assert error.endswith("finds neither boxes nor masks; fine-tune it for such a task first")
    assert not (tmp_path / "none.png").exists()
