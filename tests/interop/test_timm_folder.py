"""SiT as one of timm's models, built by timm from the folder alone."""

import json

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from modeling_sit import SiTForImageClassification, SiTModel
from modeling_sit.interop.timm_folder import ACTIVATIONS, mlp_ratio, write_timm_folder
from modeling_sit.interop.timm_layout import from_timm_state_dict
from modeling_sit.runtime.errors import SiTError


def load(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "intermediate_size": 41, "pooling": "mean"},
        {"image_size": (16, 24), "patch_size": (8, 4), "num_channels": 1, "pooling": "token_mean"},
        {"image_size": 20, "position_embedding_type": "sincos"},
        {"hidden_size": 192, "num_attention_heads": 3},
    ],
    ids=["plain", "mean", "grey_rectangles", "pixels_left_over", "as_wide_as_a_builder"],
)
def test_backbone_gives_the_same_features(make_model, images, tmp_path, fields):
    model = make_model(SiTModel, **fields)
    write_timm_folder(model, None, tmp_path / "timm")
    theirs = load(tmp_path / "timm")
    with torch.no_grad():
        expected = model(images(model))
        torch.testing.assert_close(
            theirs.forward_features(images(model)), expected.last_hidden_state, rtol=0, atol=2e-5
        )
        pooled = expected.last_hidden_state if model.config.pooling == "token_mean" else expected.pooler_output
        torch.testing.assert_close(theirs(images(model)), pooled, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_classifier_gives_the_same_logits(make_model, images, tmp_path, pooling, hidden_act):
    labels = {0: "daisy", 1: "rose", 2: "tulip"}
    model = make_model(SiTForImageClassification, pooling=pooling, hidden_act=hidden_act, id2label=labels)
    write_timm_folder(model, None, tmp_path / "timm")
    theirs = load(tmp_path / "timm")
    with torch.no_grad():
        torch.testing.assert_close(theirs(images(model)), model(images(model)).logits, rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == list(labels.values())


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_activations_are_the_same_functions(make_model, images, tmp_path, hidden_act):
    model = make_model(SiTModel, hidden_act=hidden_act, num_hidden_layers=1)
    write_timm_folder(model, None, tmp_path / "timm")
    with torch.no_grad():
        expected = model(images(model)).pooler_output
        torch.testing.assert_close(load(tmp_path / "timm")(images(model)), expected, rtol=0, atol=1e-5)


def test_there_and_back_every_bit_is_the_same(make_model, tmp_path):
    model = make_model(SiTForImageClassification, num_labels=3)
    write_timm_folder(model, None, tmp_path / "timm")
    expected = {name.removeprefix("vit."): weight for name, weight in model.state_dict().items()}
    # The file, and what timm has made of it.
    for weights in (load_file(tmp_path / "timm" / "model.safetensors"), load(tmp_path / "timm").state_dict()):
        back = from_timm_state_dict(weights, model.config)
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_prepared_as_before(make_model, make_processor, tmp_path, channels):
    model = make_model(SiTModel, num_channels=channels, image_size=(16, 24))
    processor = make_processor(model)
    write_timm_folder(model, processor, tmp_path / "timm")
    transform = create_transform(**resolve_data_config({}, model=load(tmp_path / "timm")))
    shape = (40, 30, 3) if channels == 3 else (40, 30)
    # A smooth image: the two libraries resize to within a grey level.
    rows = np.linspace(0, 255, 40)[:, None]
    values = np.broadcast_to(rows[..., None] if channels == 3 else rows, shape).astype(np.uint8)
    image = PIL.Image.fromarray(np.ascontiguousarray(values))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = transform(image)
    assert found.shape == expected.shape == (channels, 16, 24)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 / 0.2)
    # Of the model's size already: exactly.
    image = image.resize((24, 16))
    torch.testing.assert_close(
        transform(image), processor(image, return_tensors="pt")["pixel_values"][0], rtol=0, atol=1e-6
    )


def test_what_timm_cannot_hold_is_refused_or_named(make_model, tmp_path):
    with pytest.raises(SiTError, match=r"pooling=token_mean.*--outputs features"):
        write_timm_folder(make_model(SiTForImageClassification, pooling="token_mean"), None, tmp_path / "timm")
    with pytest.raises(SiTError, match="hidden_act=laplace"):
        write_timm_folder(make_model(SiTModel, hidden_act="laplace"), None, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()
    fields = {"layer_norm_eps": 1e-12, "pooling": "token_mean", "drop_path_rate": 0.3, "hidden_dropout_prob": 0.2}
    notes = "\n".join(write_timm_folder(make_model(SiTModel, **fields), None, tmp_path / "timm"))
    for named in ("1e-12", "pooling=token_mean", "drop_path_rate=0.3", "hidden_dropout_prob=0.2"):
        assert named in notes
    model = make_model(SiTForImageClassification, problem_type="multi_label_classification", num_labels=2)
    assert "multi_label" in "\n".join(write_timm_folder(model, None, tmp_path / "labels"))
    assert json.loads((tmp_path / "labels" / "config.json").read_text())["num_classes"] == 2


@pytest.mark.parametrize("hidden_size, widths", [(384, (1536, 1000, 385)), (7 * 12, range(1, 600))])
def test_mlp_is_as_wide_as_it_was(tiny_config, hidden_size, widths):
    for width in widths:
        config = tiny_config(hidden_size=hidden_size, intermediate_size=width)
        assert int(hidden_size * mlp_ratio(config)) == width
