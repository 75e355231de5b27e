"""SiT as one of timm's models: a folder that timm loads alone, and weights by timm's names in timm's own model."""

import json

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTModel
from modeling_sit.interop.timm import ACTIVATIONS, from_timm_state_dict, mlp_ratio, timm_state_dict, write_timm_folder
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
    with pytest.raises(SiTError, match="pooling=token_mean"):
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


POOLS = {"token": "token", "mean": "avg"}


@pytest.fixture
def make_timm():
    """A `vit_*` of timm with the sizes of a configuration, and weights that are nowhere zero."""

    def make(config, num_classes=0, pooling="token"):
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=config.image_shape,
            patch_size=config.patch_shape,
            in_chans=config.num_channels,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            qkv_bias=config.qkv_bias,
            num_classes=num_classes,
            global_pool=POOLS[pooling],
            fc_norm=False,
        )
        return randomize(model)

    return make


def randomize(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model.eval()


def images(config, count=3):
    return torch.randn(count, config.num_channels, *config.image_shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "fields",
    [{}, {"qkv_bias": False}, {"image_size": (16, 24), "patch_size": (8, 4), "num_channels": 1}],
    ids=["plain", "without_qkv_bias", "grey_rectangles"],
)
def test_backbone_gives_the_same_tokens_in_timm(tiny_config, make_timm, fields):
    config = tiny_config(**fields)
    model = randomize(SiTModel(config))
    theirs = make_timm(config)
    theirs.load_state_dict(timm_state_dict(model), strict=True)
    with torch.no_grad():
        expected = model(images(config)).last_hidden_state
        torch.testing.assert_close(theirs.forward_features(images(config)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLS)
def test_classifier_gives_the_same_logits_in_timm(tiny_config, make_timm, pooling):
    config = tiny_config(pooling=pooling, num_labels=5)
    model = randomize(SiTForImageClassification(config))
    theirs = make_timm(config, num_classes=5, pooling=pooling)
    theirs.load_state_dict(timm_state_dict(model), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images(config)), model(images(config)).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLS)
def test_a_model_of_timm_gives_the_same_logits_here(tiny_config, make_timm, pooling):
    config = tiny_config(pooling=pooling, num_labels=5)
    theirs = make_timm(config, num_classes=5, pooling=pooling)
    weights = from_timm_state_dict(theirs.state_dict(), config)
    classifier = {name: weights.pop(name) for name in list(weights) if name.startswith("classifier.")}
    model = SiTForImageClassification(config).eval()
    model.vit.load_state_dict(weights, strict=True)
    model.load_state_dict(classifier, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(images(config)).logits, theirs(images(config)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"position_embedding_type": "sincos"}], ids=["learnable", "sincos"])
def test_weights_there_and_back_are_the_same_to_the_bit(tiny_config, fields):
    model = SiTForPreTraining(tiny_config(**fields))
    there = timm_state_dict(model)
    back = from_timm_state_dict(there, model.config)
    expected = model.vit.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], weight) for name, weight in expected.items())
    # Nothing shares memory with the model, or with another weight: safetensors refuses that.
    before = {name: weight.clone() for name, weight in expected.items()}
    for weight in (*there.values(), *back.values()):
        assert weight.is_contiguous()
        weight.zero_()
    assert all(torch.equal(expected[name], weight) for name, weight in before.items())


def test_every_key_that_does_not_fit_is_named(tiny_config):
    config = tiny_config()
    weights = timm_state_dict(SiTModel(config))
    weights["blocks.0.ls1.gamma"] = weights["reg_token"] = torch.ones(1)
    del weights["norm.bias"], weights["blocks.1.attn.qkv.weight"]
    with pytest.raises(ValueError) as error:
        from_timm_state_dict(weights, config)
    for name in ("blocks.0.ls1.gamma", "reg_token", "norm.bias", "blocks.1.attn.qkv.weight", "2 blocks"):
        assert name in str(error.value)
