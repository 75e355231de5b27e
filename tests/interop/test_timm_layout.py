"""Weights by timm's names, measured in timm's own model: both directions give equal outputs."""

import pytest
import timm
import torch

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTModel
from modeling_sit.interop.timm_layout import from_timm_state_dict, timm_state_dict

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
def test_there_and_back_every_bit_is_the_same(tiny_config, fields):
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
