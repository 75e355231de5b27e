"""Models with the head of a dense task from a folder to `eval_results.json`, against loops over single images."""

import json
import logging

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from coco_sets import annotation, content, write_set
from label_maps import slow_figures
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
    SwinConfig,
)

from modeling_sit import (
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
)
from modeling_sit.data.dense.loading import open_dense
from modeling_sit.data.dense.rows import pixel_features
from modeling_sit.evaluation.coco_evaluation import CocoEvaluation
from modeling_sit.evaluation.dense_models import load_dense_model, match_labels
from modeling_sit.evaluation.dense_protocols import measure_dense
from modeling_sit.evaluation.run import evaluate
from modeling_sit.runtime.errors import SiTError

pytest.importorskip("pycocotools")
CLASSES = {"id2label": {0: "early", 1: "late"}, "label2id": {"early": 0, "late": 1}}
HEADS = {"pyramid_size": 8, "box_head_size": 16, "mask_head_num_layers": 1, "detection_threshold": 0.0}
PADDED = {"size": {"longest_edge": 48}, "do_pad": True, "patch_size": 8}


@pytest.fixture(autouse=True)
def own_accelerator(forget_accelerators):
    return


@pytest.fixture
def save_sit(tiny_config, tmp_path):
    """Write the folder of a SiT with a head, with random weights."""

    def save(model_class, **fields):
        torch.manual_seed(0)
        folder = tmp_path / model_class.__name__
        model_class(tiny_config(image_size=32, **{**CLASSES, **HEADS, **fields})).save_pretrained(folder)
        SiTImageProcessor(**PADDED).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def objects(tmp_path):
    """A COCO folder of five images, two of them higher than wide; the last has no object."""
    written = content(5)
    for number, size in ((0, (20, 40)), (3, (20, 40))):
        written["images"][number] |= dict(zip(("width", "height"), size, strict=True))
    for number in range(4):
        image = written["images"][number]
        # Where a model without training finds something: around the middle.
        for category, left, top in ((3, image["width"] // 4, image["height"] // 4), (7, number, 3)):
            width, height = image["width"] // 2, image["height"] // 2
            right, bottom = left + width, top + height
            square = [left, top, right, top, right, bottom, left, bottom]
            id = len(written["annotations"]) + 1
            box = {"bbox": [left, top, width, height], "segmentation": [square]}
            written["annotations"].append(annotation(id, image_id=number + 1, category_id=category, **box))
    folder = write_set(tmp_path / "objects", written, "val.json")
    for number in (0, 3):
        path = folder / "images" / f"{number}.png"
        PIL.Image.open(path).resize((20, 40)).save(path)
    return folder


@pytest.fixture
def pixels(tmp_path):
    """A folder of four images with label maps of two classes."""
    generator = np.random.default_rng(0)
    for split in ("images", "masks"):
        (tmp_path / "pixels" / "val" / split).mkdir(parents=True)
    (tmp_path / "pixels" / "classes.txt").write_text("late\nearly\n")
    for number, shape in enumerate([(20, 24), (33, 17), (20, 24), (9, 30)]):
        image, mask = generator.integers(0, 256, (*shape, 3), dtype=np.uint8), generator.integers(0, 2, shape)
        mask[generator.random(shape) < 0.2] = 255
        PIL.Image.fromarray(image).save(tmp_path / "pixels" / "val" / "images" / f"{number}.png")
        PIL.Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "pixels" / "val" / "masks" / f"{number}.png")
    return tmp_path / "pixels"


@pytest.fixture
def detr(tmp_path):
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    sizes = {f"{part}_{name}": 16 for part in ("encoder", "decoder") for name in ("ffn_dim",)}
    sizes |= {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    # Classes in another order than the dataset's, and one that it does not have.
    names = {0: "N/A", 1: "Late", 2: "early"}
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, d_model=16, num_queries=12, id2label=names, **sizes
    )
    DetrForObjectDetection(config).save_pretrained(tmp_path / "detr")
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(tmp_path / "detr")
    return tmp_path / "detr"


def test_a_detr_as_image_by_image(detr, objects):
    results = evaluate(detr, objects, protocols="detection", device="cpu")
    alone = evaluate(detr, objects, protocols="detection", device="cpu", per_device_eval_batch_size=1)
    figures = ("map", "map_50", "mar_100", "map_small")
    for name in figures:  # the batch changes nothing
        assert alone["detection"][name] == pytest.approx(results["detection"][name], abs=1e-6)
    assert 0 < results["detection"]["map_50"] < 1
    model, processor = DetrForObjectDetection.from_pretrained(detr).eval(), DetrImageProcessor.from_pretrained(detr)
    dataset = open_dense(objects, "boxes")
    rows = dataset.read("val")
    names = ["N/A", "late", "early"]
    evaluation = CocoEvaluation(rows, dataset.label_names)
    for number, row in enumerate(rows):
        image = PIL.Image.open(objects / "images" / f"{number}.png")
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (found,) = processor.post_process_object_detection(outputs, 0.0, [image.size[::-1]])
        labels = [dataset.label_names.index(names[label]) if label else -1 for label in found["labels"].tolist()]
        evaluation.add(row["image_id"], found["boxes"], found["scores"], labels)
    expected = evaluation.compute()
    for name in figures:
        assert results["detection"][name] == pytest.approx(expected[name], abs=1e-6)
    assert results["detection"]["map_large"] is None and results["detection"]["num_objects"] == 8
    assert results["detection"]["classes"]["late"] == {
        "num_objects": 4,
        "map": pytest.approx(expected["map_late"], abs=1e-6),
        "mar_100": pytest.approx(expected["mar_100_late"], abs=1e-6),
    }
    assert json.loads((detr / "eval_results.json").read_text()) == alone


def test_a_sit_of_instances_gives_boxes_and_masks_in_one_pass(save_sit, objects):
    results = evaluate(save_sit(SiTForInstanceSegmentation), objects, protocols="detection,segmentation", device="cpu")
    assert list(results) == ["detection", "segmentation"]
    assert 0 <= results["detection"]["map"] <= 1 and 0 <= results["segmentation"]["mask_map"] <= 1
    assert results["segmentation"]["num_validation"] == 5 and results["segmentation"]["split"] == "val"
    assert "pooling" not in results["detection"]


def test_a_sit_of_pixels_as_image_by_image(save_sit, pixels):
    folder = save_sit(SiTForSemanticSegmentation)
    results = evaluate(folder, pixels, protocols="segmentation", device="cpu", bootstrap_resamples=20)
    model, processor = (
        SiTForSemanticSegmentation.from_pretrained(folder).eval(),
        SiTImageProcessor.from_pretrained(folder),
    )
    predictions, references = [], []
    for number in range(4):
        image = PIL.Image.open(pixels / "val" / "images" / f"{number}.png")
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (found,) = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])
        predictions.append(1 - found.numpy())  # the dataset has its classes in the other order
        references.append(np.asarray(PIL.Image.open(pixels / "val" / "masks" / f"{number}.png")))
    expected = slow_figures(predictions, references, 2)
    measured = results["segmentation"]
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert measured[name] == pytest.approx(expected[name], abs=1e-3)  # a pixel of 1600 may fall on the other side
        assert measured["intervals"][name][0] <= measured[name] <= measured["intervals"][name][1]
    assert measured["classes"]["early"]["iou"] == pytest.approx(expected["iou_1"], abs=1e-3)


def test_a_universal_model_measures_what_the_dataset_has(objects, pixels, tmp_path):
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(embed_dim=4, depths=[1] * 4, num_heads=[1] * 4, image_size=32, out_features=stages)
    sizes = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32)
    sizes |= dict.fromkeys(("dim_feedforward", "encoder_feedforward_dim"), 8)
    config = Mask2FormerConfig(
        backbone_config=swin,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        **sizes,
        **CLASSES,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "universal")
    Mask2FormerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "universal")
    of_objects = evaluate(tmp_path / "universal", objects, protocols="segmentation", device="cpu")
    assert 0 <= of_objects["segmentation"]["mask_map"] <= 1
    of_pixels = evaluate(tmp_path / "universal", pixels, protocols="segmentation", device="cpu")
    assert 0 <= of_pixels["segmentation"]["mean_iou"] <= 1


def test_an_image_that_cannot_be_read(save_sit, objects, caplog):
    (objects / "images" / "2.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        results = evaluate(save_sit(SiTForInstanceSegmentation), objects, protocols="detection", device="cpu")
    assert results["detection"]["skipped"] == 1 and results["detection"]["num_validation"] == 4
    assert "skipped" in caplog.text and "2.png" in caplog.text


def test_a_label_map_that_cannot_be_measured(save_sit, pixels, caplog):
    masks = pixels / "val" / "masks"
    PIL.Image.fromarray(np.zeros((33, 17), np.uint8)).save(masks / "0.png")
    (masks / "2.png").write_bytes(b"no image")
    folder = save_sit(SiTForSemanticSegmentation)
    rows = open_dense(pixels, "pixels")
    with pytest.raises(SiTError):  # the reader looks at some masks, and says so
        rows.read("val")
    dense = load_dense_model(str(folder))
    broken = datasets.Dataset.from_dict(
        {
            column: [{"bytes": None, "path": str(pixels / "val" / name / f"{number}.png")} for number in range(4)]
            for column, name in (("image", "images"), ("label", "masks"))
        },
        features=pixel_features(),
    )
    with caplog.at_level(logging.WARNING):
        measurement = measure_dense(dense, broken, ["late", "early"], ("pixels",), Accelerator(cpu=True))
    assert measurement.num_images == 2 and sorted(measurement.skipped) == [0, 2]
    assert "24 x 20 pixels, and its labels are for 17 x 33" in caplog.text and "cannot be read" in caplog.text


class TestMistakes:
    def error(self, *arguments, **keywords) -> SiTError:
        with pytest.raises(SiTError) as error:
            evaluate(*arguments, device="cpu", **keywords)
        return error.value

    def test_of_protocols(self, save_sit, objects, pixels):
        error = self.error("x", "y", protocols="knn,detection")
        assert error.argument == "protocols" and "one after the other" in error.remedy
        semantic = save_sit(SiTForSemanticSegmentation)
        error = self.error(semantic, pixels, protocols="detection")
        assert error.argument == "protocols" and "gives a class for each pixel" in error.problem
        error = self.error(save_sit(SiTForImageClassification), objects, protocols="detection")
        assert error.argument == "model_name_or_path" and "finds neither boxes nor masks" in error.problem
        assert error.remedy == "fine-tune it for such a task first, or take other `protocols`"
        error = self.error(semantic, pixels, protocols="segmentation", from_scratch=True, output_dir="out")
        assert error.argument == "from_scratch"

    def test_of_images(self, save_sit, objects, pixels):
        semantic = save_sit(SiTForSemanticSegmentation)
        assert self.error(semantic, objects, protocols="segmentation").argument == "dataset"
        error = self.error(semantic, pixels, protocols="segmentation", validation_split="test")
        assert error.argument == "validation_split" and "only val" in error.problem
        names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
        error = self.error(save_sit(SiTForInstanceSegmentation, **names), objects, protocols="detection")
        assert error.argument == "dataset" and "cat, dog" in error.problem

    def test_of_weights(self, save_sit, objects, tmp_path):
        folder = save_sit(SiTForInstanceSegmentation)
        config = json.loads((folder / "config.json").read_text())
        config["mask_head_num_layers"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        error = self.error(folder, objects, protocols="detection")
        assert error.argument == "model_name_or_path" and "weights are missing" in error.problem


def test_matching_of_classes(caplog):
    assert match_labels({0: "N/A", 1: "Traffic_Light", 3: "car"}, ["car", "traffic light"]).tolist() == [-1, 1, -1, 0]
    letters = {0: "A", 1: "B", 2: "a", 3: "b"}
    assert match_labels(letters, list(letters.values())).tolist() == [0, 1, 2, 3] and not caplog.text
    assert match_labels(letters, ["B", "A"]).tolist() == [1, 0, -1, -1]
    one_pair = {0: "Car", 1: "car", 2: "Traffic_Light"}
    assert match_labels(one_pair, ["traffic light", "car"]).tolist() == [-1, 1, 0] and not caplog.text
    assert match_labels({0: "sky", 1: "road"}, ["0", "1"]).tolist() == [0, 1] and not caplog.text
    # Numbers are names, where the model knows all of the dataset's: there is none of 1 in it.
    assert (
        match_labels({0: "0", 1: "1", 2: "2", 3: "3"}, ["0", "2", "3"]).tolist() == [0, -1, 1, 2] and not caplog.text
    )
    assert match_labels({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, ["sky", "road"]).tolist() == [0, 1, -1]
    assert "the model has 3 classes and the dataset 2" in caplog.text
    with caplog.at_level(logging.WARNING):
        assert match_labels({0: "sky"}, ["road", "sky"]).tolist() == [1]
    assert "does not know 1 of the dataset's classes: road" in caplog.text


def test_splits_with_nothing_to_measure(save_sit, objects, pixels, caplog):
    path = next(objects.rglob("val.json"))
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "annotations": []}))
    for mask in (pixels / "val" / "masks").iterdir():
        PIL.Image.fromarray(np.full_like(np.asarray(PIL.Image.open(mask)), 255)).save(mask)
    for model_class, images, protocol, what in (
        (SiTForInstanceSegmentation, objects, "detection", "objects"),
        (SiTForSemanticSegmentation, pixels, "segmentation", "labeled pixels"),
    ):
        with caplog.at_level(logging.WARNING):
            results = evaluate(save_sit(model_class), images, protocols=protocol, device="cpu")
        assert f"split val has no {what}, so there is nothing to measure" in caplog.text
        assert results._repr_markdown_().splitlines()[0] == "| protocol | metric | value |"
