"""The program that writes checkpoints in other formats: what it writes, what it says, and what it leaves when it fails."""

import dataclasses
import importlib.util
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from authors_network import random_network, save_checkpoint
from transformers import ViTModel

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.interop.formats import FORMATS

SUFFIXES = {"safetensors": ".safetensors", "torchvision": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}
LABELS = {0: "daisy", 1: "rose", 2: "tulip"}

# Runs where this package cannot be imported.
WITHOUT_THE_PACKAGE = """
import sys

sys.modules["modeling_sit"] = None
import PIL.Image
import torch
from transformers import pipeline

vit, program, image, pixel_values, logits = sys.argv[1:]
labels = [row["label"] for row in pipeline("image-classification", model=vit, device="cpu")(image)]
found = torch.export.load(program).module()(pixel_values=torch.load(pixel_values))["logits"]
torch.testing.assert_close(found, torch.load(logits), rtol=0, atol=1e-5)
order = found[0].argsort(descending=True).tolist()
assert labels == [("daisy", "rose", "tulip")[label] for label in order], labels
"""


@pytest.fixture
def save_classifier(tiny_config):
    """Write a fine-tuned model's folder as `scripts/finetune.py` leaves it, with random weights."""

    def save(folder, **fields):
        torch.manual_seed(0)
        SiTForImageClassification(tiny_config(id2label=LABELS, **fields)).save_pretrained(folder)
        SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8).save_pretrained(folder)
        return folder

    return save


def snapshot(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", FORMATS)
def test_a_pretrained_model_in_every_format(save_tiny_sit, run_program, capsys, tmp_path, name):
    source = save_tiny_sit(tmp_path / "source", num_hidden_layers=1)
    (source / "README.md").write_text("# A card")
    before = snapshot(source)
    destination = tmp_path / f"written{SUFFIXES.get(name, '')}"
    assert run_program("convert_checkpoint", source, destination, "--format", name) == 0
    said = capsys.readouterr().out
    assert (
        "largest difference in" in said
        and "on 4 random images" in said
        and f"(tolerance {'0.0001' if name == 'onnx' else '1e-05'})" in said
    )
    assert f"written to {destination}" in said
    assert ".unfinished" not in said
    assert "not copied: README.md" in said
    # A pretrained model has heads, which two formats keep, and the others must not drop in silence.
    if name in ("sit", "safetensors"):
        assert re.search(r"reconstruction [0-9.e-]+, projection [0-9.e-]+ ", said) and "not in it" not in said
    else:
        assert "not in it, because its outputs are features: decoder (" in said and "projection_head (" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", destination.name])
    assert destination.is_file() == (name in SUFFIXES)
    assert snapshot(source) == before
    if name == "sit":
        expected = SiTForPreTraining.from_pretrained(source).state_dict()
        found = SiTForPreTraining.from_pretrained(destination).state_dict()
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())


def test_outputs_are_those_of_real_images(save_classifier, save_images, run_program, capsys, tmp_path):
    source = save_classifier(tmp_path / "source")
    images = save_images(tmp_path / "images", 3)
    (images / "01.png").write_bytes(b"no image")
    flags = ("--format", "vit", "--dataset", images, "--num_images", 2)
    assert run_program("convert_checkpoint", source, tmp_path / "vit", *flags) == 0
    said, warned = capsys.readouterr()
    assert f"on 2 images of {images}: logits " in said
    assert "01.png" in warned


def test_outputs_can_be_chosen(save_classifier, save_tiny_sit, run_program, one_line_error, capsys, tmp_path):
    source = save_classifier(tmp_path / "source", pooling="token_mean")
    error = one_line_error("convert_checkpoint", source, tmp_path / "timm", "--format", "timm")
    assert "pooling=token_mean" in error and "--outputs features" in error
    assert not (tmp_path / "timm").exists()
    flags = ("--format", "timm", "--outputs", "features")
    assert run_program("convert_checkpoint", source, tmp_path / "timm", *flags) == 0
    said = capsys.readouterr().out
    assert "classifier (99 parameters)" in said and "last_hidden_state" in said
    pretrained = save_tiny_sit(tmp_path / "pretrained")
    flags = ("--format", "sit", "--outputs", "logits")
    assert "no classifier" in one_line_error("convert_checkpoint", pretrained, tmp_path / "sit", *flags)
    assert (
        run_program("convert_checkpoint", pretrained, tmp_path / "sit", "--format", "sit", "--outputs", "features")
        == 0
    )
    _, info = SiTModel.from_pretrained(tmp_path / "sit", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("was_there", [True, False])
def test_nothing_is_left_of_what_gives_other_outputs(save_tiny_sit, one_line_error, monkeypatch, tmp_path, was_there):
    source = save_tiny_sit(tmp_path / "source")
    destination = tmp_path / "weights.safetensors"
    if was_there:
        destination.write_text("old")
    before = snapshot(tmp_path)
    usual = FORMATS["torchvision"]

    def write(model, processor, path):
        spoiled = SiTModel(model.config)
        spoiled.load_state_dict(model.state_dict())
        spoiled.layernorm.bias.data[0] += 1e-4
        return usual.write(spoiled, processor, path)

    monkeypatch.setitem(FORMATS, "torchvision", dataclasses.replace(usual, write=write))
    flags = ("--format", "torchvision", "--overwrite_output_dir")
    error = one_line_error("convert_checkpoint", source, destination, *flags)
    assert "contrastive_token differs by" in error and "tolerance of 1e-05" in error
    assert snapshot(tmp_path) == before

    # What cannot be loaded there, neither.
    def write_half(model, processor, path):
        usual.write(model, processor, path)
        path.write_bytes(path.read_bytes()[:1000])

    monkeypatch.setitem(FORMATS, "torchvision", dataclasses.replace(usual, write=write_half))
    assert "does not work in torchvision" in one_line_error("convert_checkpoint", source, destination, *flags)
    assert snapshot(tmp_path) == before


def test_what_is_there_stays(save_tiny_sit, run_program, one_line_error, tmp_path):
    source = save_tiny_sit(tmp_path / "source")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("mine")
    (tmp_path / "vit" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    assert "--overwrite_output_dir" in one_line_error(
        "convert_checkpoint", source, tmp_path / "vit", "--format", "vit"
    )
    assert "this is the source" in one_line_error(
        "convert_checkpoint", source, source, "--format", "vit", "--overwrite_output_dir"
    )
    assert snapshot(tmp_path) == before
    flags = ("--format", "vit", "--overwrite_output_dir")
    assert run_program("convert_checkpoint", source, tmp_path / "vit", *flags) == 0
    assert "ViTModel" in (tmp_path / "vit" / "config.json").read_text()
    assert (tmp_path / "vit" / "notes.txt").read_text() == "mine"


def test_mistakes_are_told_in_one_line(save_tiny_sit, one_line_error, monkeypatch, tmp_path):
    source = save_tiny_sit(tmp_path / "source")
    for flags, named in (
        ((), "--format"),
        (("--format", "caffe"), "caffe"),
        (("--format", "vit", "--opset", 18), "--opset"),
        (("--format", "onnx", "--opset", 11), "--opset: must be at least 18"),
        (("--format", "vit", "--num_images", 0), "--num_images"),
        (("--format", "vit", "--tolerance", "nan"), "--tolerance"),
        (("--format", "vit", "--train_split", "train"), "--train_split"),
        (("--format", "vit", "--frobnicate"), "--frobnicate"),
        (("--format", "vit", "--network", "pupil"), "--network"),
    ):
        assert named in one_line_error("convert_checkpoint", source, tmp_path / "to", *flags, code=2)
    assert "TO" in one_line_error("convert_checkpoint", source, "--format", "vit", code=2)
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in one_line_error("convert_checkpoint", nowhere, tmp_path / "to", "--format", "vit")
    flags = ("--format", "vit", "--num_attention_heads", 2)
    assert "--num_attention_heads: 2 is for a `source`" in one_line_error(
        "convert_checkpoint", source, tmp_path / "to", *flags
    )
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find_spec(name, *rest)
    )
    error = one_line_error("convert_checkpoint", source, tmp_path / "to.onnx", "--format", "onnx")
    assert "pip install 'modeling-sit[onnx]'" in error and "onnxruntime" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_is_written_needs_no_package(save_classifier, run_program, tmp_path):
    source = save_classifier(tmp_path / "source")
    for name, destination in (("vit", "vit"), ("torch_export", "model.pt2")):
        assert run_program("convert_checkpoint", source, tmp_path / destination, "--format", name) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "image.png")
    processor = SiTImageProcessor.from_pretrained(source)
    pixel_values = processor(PIL.Image.open(tmp_path / "image.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = SiTForImageClassification.from_pretrained(source)(pixel_values).logits
    torch.save(pixel_values, tmp_path / "pixel_values.pt")
    torch.save(logits, tmp_path / "logits.pt")
    names = ("vit", "model.pt2", "image.png", "pixel_values.pt", "logits.pt")
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_authors_checkpoint_goes_into_other_formats(run_program, capsys, tmp_path):
    """Which one it is has to be said, and each step is compared: what timm has at the end is what the authors' had."""
    teacher = random_network(1)
    checkpoint = save_checkpoint(tmp_path / "checkpoint.pth", random_network(0), teacher)
    flags = ("--format", "sit", "--num_attention_heads", teacher.heads)
    assert run_program("convert_checkpoint", checkpoint, tmp_path / "sit", *flags) == 0
    said = capsys.readouterr().out
    assert "its teacher is used" in said and "projection " in said
    assert run_program("convert_checkpoint", tmp_path / "sit", tmp_path / "timm", "--format", "timm") == 0
    assert run_program("convert_checkpoint", tmp_path / "timm", tmp_path / "vit", "--format", "vit") == 0
    vit = ViTModel.from_pretrained(tmp_path / "vit").eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tokens = teacher(images)[0]
        torch.testing.assert_close(vit(images).last_hidden_state, tokens, rtol=0, atol=1e-5 * tokens.abs().max())
