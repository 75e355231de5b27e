"""Learning rates by depth."""

import pytest
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_sit import SiTForImageClassification
from modeling_sit.finetuning.layer_decay import blocks_of, depth_of, layer_decay_groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.fixture(params=["sit", "vit"])
def model(request, tiny_config):
    if request.param == "sit":
        return SiTForImageClassification(tiny_config(num_hidden_layers=3))
    return ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=24))


def settings_by_name(model, *arguments) -> dict[str, tuple[float, float]]:
    groups = layer_decay_groups(model, *arguments)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(settings)
    return {name: settings[id(p)] for name, p in model.named_parameters() if id(p) in settings}


def test_rates_fall_from_the_classifier_to_the_embeddings(model):
    found = settings_by_name(model, 1.0, 0.05, 0.5)
    assert len(found) == len(list(model.named_parameters()))
    for name, (rate, _) in found.items():
        if "embeddings" in name:
            expected = 0.5**4
        elif "layer.0." in name or "layers.0." in name:
            expected = 0.5**3
        elif "layer.1." in name or "layers.1." in name:
            expected = 0.5**2
        elif "layer.2." in name or "layers.2." in name:
            expected = 0.5
        else:
            assert name.startswith(("classifier.", "vit.layernorm."))
            expected = 1.0
        assert rate == expected, name


def test_blocks_in_stages_are_one_after_the_other():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[2, 1], layer_type="basic")
    rates = {
        name: rate
        for name, (rate, _) in settings_by_name(ResNetForImageClassification(config), 1.0, 0.05, 0.5).items()
    }
    assert {rate for name, rate in rates.items() if "embedder." in name} == {0.5**4}
    for place, rate in (("stages.0.layers.0.", 0.5**3), ("stages.0.layers.1.", 0.5**2), ("stages.1.layers.0.", 0.5)):
        assert {found for name, found in rates.items() if place in name} == {rate}
    assert rates["classifier.1.weight"] == 1


TIMM_SIZES = {"img_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8}


def of_timm(name: str, **model_args):
    config = TimmWrapperConfig(architecture=name, num_labels=2, model_args={**TIMM_SIZES, **model_args})
    return TimmWrapperForImageClassification(config)


@pytest.mark.parametrize(
    "model",
    [
        lambda: of_timm("vit_tiny_patch16_224", reg_tokens=2, pre_norm=True),
        lambda: of_timm("eva02_tiny_patch14_224"),
    ],
)
def test_what_timm_has_in_front_of_the_blocks_learns_most_slowly(model):
    model = model()
    assert len(blocks_of(model)) == 3
    found = settings_by_name(model, 1.0, 0.05, 0.5)
    for name, (rate, decay) in found.items():
        short = name.removeprefix("timm_model.")
        if short.startswith("blocks."):
            expected = 0.5 ** (3 - int(short.split(".")[1]))
        else:
            expected = 1.0 if short.startswith(("norm.", "fc_norm.", "head.")) else 0.5**4
        assert rate == expected, name
        if short in ("cls_token", "reg_token", "pos_embed"):
            assert decay == 0, name
    assert {"timm_model.cls_token", "timm_model.pos_embed", "timm_model.patch_embed.proj.weight"} <= set(found)


def test_what_stands_between_stages_belongs_to_the_next_block():
    config = ConvNextConfig(hidden_sizes=[8] * 2, depths=[2, 1], num_stages=2)
    rates = {
        name: rate
        for name, (rate, _) in settings_by_name(ConvNextForImageClassification(config), 1.0, 0.05, 0.5).items()
    }
    between = [rate for name, rate in rates.items() if "stages.1.downsampling_layer" in name]
    assert between and set(between) == {rate for name, rate in rates.items() if "stages.1.layers.0." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".embeddings." in name} == {0.5**4}


def test_the_norm_in_front_of_clips_blocks():
    vision = {**SIZES, "intermediate_size": 24}
    model = CLIPForImageClassification(CLIPConfig(vision_config=vision, text_config={**SIZES, "vocab_size": 9}))
    found = settings_by_name(model, 1.0, 0.05, 0.5)
    assert found["vision_model.pre_layrnorm.weight"][0] == 0.5**4
    assert found["vision_model.post_layernorm.weight"][0] == 1


def test_stages_of_what_embeds_the_patches_are_no_blocks():
    assert depth_of("timm_model.patch_embed.backbone.stages.2.blocks.1.conv1.weight", [(0, 0), (0, 1)]) == 3


def test_biases_norms_tokens_and_positions_do_not_decay(model):
    for name, (_, decay) in settings_by_name(model, 1.0, 0.05, 0.5).items():
        is_free = name.endswith(("bias", "cls_token", "position_embeddings")) or "norm" in name
        assert decay == (0 if is_free else 0.05), name


def test_one_rate(model):
    groups = layer_decay_groups(model, 0.1, 0.05, 1.0)
    assert {group["lr"] for group in groups} == {0.1}


def test_full_rate_comes_first(model):
    assert layer_decay_groups(model, 0.1, 0.05, 0.5)[0]["lr"] == 0.1


def test_what_is_frozen_is_left_out(model):
    model.base_model.requires_grad_(False)
    assert settings_by_name(model, 1.0, 0.05, 0.5) == {"classifier.weight": (1, 0.05), "classifier.bias": (1, 0)}
