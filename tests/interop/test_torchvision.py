"""SiT as torchvision's VisionTransformer, with its weights loaded strictly."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models import VisionTransformer, vit_b_16

from modeling_sit import SiTConfig, SiTForImageClassification, SiTModel
from modeling_sit.interop.torchvision import (
    BUILDERS,
    check_fits_torchvision,
    load_torchvision,
    torchvision_state_dict,
    write_torchvision,
)
from modeling_sit.runtime.errors import SiTError


def load(path, model, num_classes):
    config = model.config
    theirs = VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=config.intermediate_size,
        num_classes=num_classes,
    )
    theirs.load_state_dict(load_file(path), strict=True)
    return theirs.eval()


@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False}, {"position_embedding_type": "sincos", "intermediate_size": 40}]
)
def test_gives_the_same_logits_or_the_contrastive_token(make_model, images, tmp_path, fields):
    classifier = make_model(SiTForImageClassification, num_labels=3, **fields)
    write_torchvision(classifier, None, tmp_path / "classifier.safetensors")
    theirs = load(tmp_path / "classifier.safetensors", classifier, num_classes=3)
    with torch.no_grad():
        expected = classifier(images(classifier)).logits
        torch.testing.assert_close(theirs(images(classifier)), expected, rtol=0, atol=1e-5)

    backbone = make_model(SiTModel, **fields)
    write_torchvision(backbone, None, tmp_path / "backbone.safetensors")
    theirs = load(tmp_path / "backbone.safetensors", backbone, num_classes=16)
    with torch.no_grad():
        expected = backbone(images(backbone)).last_hidden_state[:, 0]
        torch.testing.assert_close(theirs(images(backbone)), expected, rtol=0, atol=1e-5)


def test_the_file_says_what_it_is(make_model, make_processor, images, tmp_path):
    model = make_model(SiTForImageClassification, id2label={0: "daisy", 1: "rose"})
    path = tmp_path / "weights.safetensors"
    notes = write_torchvision(model, make_processor(model), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["id2label"]) == {"0": "daisy", "1": "rose"}
    assert json.loads(metadata["preprocessor_config"])["image_mean"] == [0.3, 0.4, 0.5]
    # The line that says how to load it does.
    theirs = VisionTransformer(**json.loads(metadata["VisionTransformer"]))
    assert (
        f"VisionTransformer({', '.join(f'{k}={v}' for k, v in json.loads(metadata['VisionTransformer']).items())})"
        in (notes[0])
    )
    theirs.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images(model)), load_torchvision(path)(images(model))["logits"])


def test_sizes_that_are_not_those_of_vit_b_16_are_named(make_model, tmp_path):
    notes = write_torchvision(make_model(SiTModel, patch_size=16), None, tmp_path / "weights.safetensors")
    (sizes,) = [note for note in notes if "vit_b_16" in note]
    assert "hidden_dim 16 (not 768)" in sizes and "num_layers 2 (not 12)" in sizes and "mlp_dim 64 (not 3072)" in sizes
    assert "patch_size" not in sizes


def test_has_the_weights_of_vit_b_16():
    config = SiTConfig(hidden_size=768, num_attention_heads=12, num_labels=1000)
    with torch.device("meta"):
        model, theirs = SiTForImageClassification(config), vit_b_16()
        found = torchvision_state_dict(model)
    assert {name: weight.shape for name, weight in found.items()} == {
        name: weight.shape for name, weight in theirs.state_dict().items()
    }
    sizes = (16, config.num_hidden_layers, config.num_attention_heads, config.hidden_size, config.intermediate_size)
    assert BUILDERS["vit_b_16"] == sizes


def test_everything_that_does_not_fit_is_named(tiny_config):
    config = tiny_config(image_size=(16, 24), patch_size=(8, 4), num_channels=1, hidden_act="relu", pooling="mean")
    with pytest.raises(SiTError) as error:
        check_fits_torchvision(config, has_classifier=True)
    for named in ("16x24", "8x4", "num_channels=1", "hidden_act=relu", "pooling=mean"):
        assert named in str(error.value)
    with pytest.raises(SiTError, match="whole patches"):
        check_fits_torchvision(tiny_config(image_size=20), has_classifier=False)
    check_fits_torchvision(tiny_config(pooling="mean"), has_classifier=False)
