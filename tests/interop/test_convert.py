"""Conversion: what is written is there as a whole or not at all, and replaces nothing by mistake."""

import datasets
import PIL.Image
import pytest
import torch

from modeling_sit import (
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
    SiTModel,
)
from modeling_sit.interop.convert import check_destination, choose_model, convert, staged
from modeling_sit.interop.formats import FORMATS
from modeling_sit.runtime.errors import SiTError


def test_a_file_and_what_lies_beside_it_appear_at_the_end(tmp_path):
    destination = tmp_path / "new" / "model.onnx"
    with staged(destination) as unfinished:
        assert unfinished.name == "model.onnx"
        unfinished.write_text("graph")
        (unfinished.parent / "model.onnx.data").write_text("weights")
        assert not destination.exists()
    assert {path.name: path.read_text() for path in destination.parent.iterdir()} == {
        "model.onnx": "graph",
        "model.onnx.data": "weights",
    }


def test_a_folder_takes_its_place_beside_what_is_there(tmp_path):
    destination = tmp_path / "vit"
    for turn in ("first", "second"):
        with staged(destination) as unfinished:
            unfinished.mkdir()
            (unfinished / "config.json").write_text(turn)
        (destination / "notes.txt").touch()
    assert (destination / "config.json").read_text() == "second"
    assert sorted(path.name for path in destination.iterdir()) == ["config.json", "notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


@pytest.mark.parametrize("was_there", [True, False])
def test_after_an_error_all_is_as_before(tmp_path, was_there):
    destination = tmp_path / "weights.safetensors"
    if was_there:
        destination.write_text("old")
    with pytest.raises(ZeroDivisionError), staged(destination) as unfinished:
        unfinished.write_text("new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == (["weights.safetensors"] if was_there else [])
    assert not was_there or destination.read_text() == "old"


def test_nothing_is_overwritten_unasked(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    file, folder, empty = tmp_path / "model.onnx", tmp_path / "folder", tmp_path / "empty"
    file.touch()
    folder.mkdir()
    (folder / "config.json").touch()
    empty.mkdir()
    for destination, suffix in ((file, ".onnx"), (folder, None)):
        with pytest.raises(SiTError, match="`overwrite_output_dir`") as error:
            check_destination(str(source), destination, suffix, overwrite=False)
        assert error.value.argument == "destination"
        check_destination(str(source), destination, suffix, overwrite=True)
    check_destination(str(source), empty, None, overwrite=False)
    check_destination("a/repository", tmp_path / "new.onnx", ".onnx", overwrite=False)
    for overwrite in (False, True):
        with pytest.raises(SiTError, match="is the source"):
            check_destination(str(source), tmp_path / "empty" / ".." / "source", None, overwrite)
        with pytest.raises(SiTError, match=r"ends in \.onnx"):
            check_destination(str(source), tmp_path / "model", ".onnx", overwrite)
        with pytest.raises(SiTError, match="this is a file"):
            check_destination(str(source), file, None, overwrite)
    (tmp_path / "odd.onnx").mkdir()
    with pytest.raises(SiTError, match="this is a folder"):
        check_destination(str(source), tmp_path / "odd.onnx", ".onnx", overwrite=True)


def test_heads_that_stay_behind_are_named(make_model):
    pretrained = make_model(SiTForPreTraining)
    assert choose_model(pretrained, None, FORMATS["sit"]) == (pretrained, [])
    for outputs, name in ((None, "onnx"), ("features", "sit")):
        chosen, (note,) = choose_model(pretrained, outputs, FORMATS[name])
        assert chosen is pretrained.vit
        decoder = sum(weight.numel() for weight in pretrained.decoder.parameters())
        assert f"decoder ({decoder:,} parameters)" in note and "projection_head" in note
        assert "rotation_head" not in note  # it has none
    with pytest.raises(SiTError, match="no classifier"):
        choose_model(pretrained, "logits", FORMATS["vit"])

    classifier = make_model(SiTForImageClassification)
    for outputs in (None, "logits"):
        assert choose_model(classifier, outputs, FORMATS["vit"]) == (classifier, [])
    chosen, (note,) = choose_model(classifier, "features", FORMATS["vit"])
    assert chosen is classifier.vit and "classifier (34 parameters)" in note
    empty = make_model(SiTForImageClassification, num_labels=0)
    assert choose_model(empty, None, FORMATS["vit"])[0] is empty.vit
    assert choose_model(empty, None, FORMATS["sit"])[0] is empty


SMALL = {"pyramid_size": 8, "box_head_size": 8, "mask_head_num_layers": 1}


def test_heads_of_dense_tasks(make_model):
    segmenter = make_model(SiTForSemanticSegmentation, **SMALL)
    for name in ("sit", "safetensors", "onnx", "torch_export"):
        assert choose_model(segmenter, None, FORMATS[name]) == choose_model(segmenter, "logits", FORMATS[name])
        assert choose_model(segmenter, None, FORMATS[name]) == (segmenter, [])
    chosen, (note,) = choose_model(segmenter, None, FORMATS["timm"])
    assert chosen is segmenter.vit and "pyramid" in note and "segmentation_head" in note
    with pytest.raises(SiTError, match=r"timm has no model like a SiTForSemanticSegmentation.*`outputs=") as error:
        choose_model(segmenter, "logits", FORMATS["timm"])
    assert error.value.argument == "format"

    for model_class in (SiTForObjectDetection, SiTForInstanceSegmentation):
        detector = make_model(model_class, **SMALL)
        assert choose_model(detector, None, FORMATS["sit"]) == (detector, [])
        assert choose_model(detector, None, FORMATS["vit"])[0] is detector.vit
        for name in ("onnx", "torch_export"):
            assert choose_model(detector, "features", FORMATS[name])[0] is detector.vit
            with pytest.raises(SiTError, match=r"depends on what it finds.*`outputs=") as error:
                choose_model(detector, None, FORMATS[name])
            assert error.value.argument == "format" and model_class.__name__ in str(error.value)


STREAM = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (16, 16))]}).to_iterable_dataset()


class TestConvert:
    """The Python function. Each format is tested with its file, the command with the program."""

    def test_gives_what_the_command_says(self, save_tiny_sit, save_images, tmp_path):
        source = save_tiny_sit(tmp_path / "source")
        images = save_images(tmp_path / "images", 3)
        result = convert(str(source), tmp_path / "vit", format="vit", dataset=str(images), num_images=2)
        assert result.destination == tmp_path / "vit" and (tmp_path / "vit" / "model.safetensors").is_file()
        assert result.differences.keys() == {"last_hidden_state", "contrastive_token"}
        assert max(result.differences.values()) <= result.tolerance == 1e-5
        assert any("decoder" in note for note in result.notes) and all(note in result.summary for note in result.notes)
        assert f"on 2 images of {images}" in result.summary

    @pytest.mark.parametrize(
        ("model_class", "format", "outputs"),
        [
            (SiTForSemanticSegmentation, "sit", {"logits"}),
            (SiTForInstanceSegmentation, "sit", {"scores", "pred_labels", "pred_boxes", "pred_masks"}),
            (SiTForObjectDetection, "safetensors", {"scores", "pred_labels", "pred_boxes"}),
        ],
    )
    def test_dense_tasks(self, tiny_config, tmp_path, model_class, format, outputs):
        """The images of the comparison are as large as the pyramid wants, though the model was made for 16 pixels."""
        torch.manual_seed(0)
        model_class(tiny_config(**SMALL, detections_per_image=3)).save_pretrained(tmp_path / "source")
        SiTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "source")
        suffix = FORMATS[format].suffix or ""
        result = convert(str(tmp_path / "source"), tmp_path / f"to{suffix}", format=format, num_images=2)
        assert result.differences.keys() == outputs and max(result.differences.values()) <= 1e-5

    @pytest.mark.parametrize(
        ("keywords", "argument"),
        [
            ({"source": "/nowhere/at/all"}, "source"),
            ({"format": "caffe"}, "format"),
            ({"destination": "model.txt", "format": "onnx"}, "destination"),
            ({"opset": 18}, "opset"),
            ({"outputs": "logits"}, "outputs"),
            ({"network": "teacher"}, "network"),
            ({"num_images": 0}, "num_images"),
            ({"tolerance": float("nan")}, "tolerance"),
            ({"image_column": "photo"}, "image_column"),
            ({"dataset": "digits", "train_split": "train", "validation_split": "test"}, "train_split"),
            ({"label_column": "label"}, "label_column"),
            ({"intensity_range": [0, 1023]}, "intensity_range"),
            ({"dataset": STREAM}, "dataset"),
        ],
    )
    def test_names_the_argument_that_is_wrong(self, save_tiny_sit, tmp_path, keywords, argument):
        source = save_tiny_sit(tmp_path / "source")
        usual = {"source": str(source), "destination": str(tmp_path / "to"), "format": "vit"}
        with pytest.raises(SiTError) as error:
            convert(**{**usual, **keywords})
        assert error.value.argument == argument
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    @pytest.mark.parametrize(
        ("format", "intensity_range"),
        [("vit", [0, 4095, 10, 1023]), ("timm", [0, 4095]), ("torch_export", [0, 4095])],
    )
    def test_names_the_range_that_other_libraries_do_not_read(self, tiny_config, tmp_path, format, intensity_range):
        if format == "timm":
            pytest.importorskip("timm")
        torch.manual_seed(0)
        channels = len(intensity_range) // 2
        SiTModel(tiny_config(num_channels=channels)).save_pretrained(tmp_path / "source")
        settings = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, "intensity_range": intensity_range}
        SiTImageProcessor(size={"height": 16, "width": 16}, **settings).save_pretrained(tmp_path / "source")
        suffix = FORMATS[format].suffix or ""
        result = convert(str(tmp_path / "source"), tmp_path / f"to{suffix}", format=format)
        (note,) = (note for note in result.notes if "intensity_range" in note)
        assert all(str(value) in note for value in intensity_range)

    def test_an_unknown_keyword(self, tmp_path):
        with pytest.raises(TypeError, match=r"num_image.*did you mean num_images"):
            convert("a", tmp_path / "b", format="vit", num_image=3)
