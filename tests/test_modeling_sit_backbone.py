"""SiTBackbone: its maps, where they come from, and transformers' models on top of it."""

import pytest
import torch
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from modeling_sit import SiTBackbone, SiTConfig, SiTModel


def config(**fields) -> SiTConfig:
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    return SiTConfig(**{**settings, **fields})


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_blocks_outputs(images):
    model = SiTModel(config()).eval()
    backbone = SiTBackbone(config(out_indices=[0, 2, 4])).eval()
    backbone.load_state_dict(model.state_dict())
    with torch.no_grad():
        output = backbone(images)
        encoded = model(images, interpolate_pos_encoding=True, output_hidden_states=True)
    assert len(output.feature_maps) == 3 and output.hidden_states is None
    for number, maps in zip((0, 2, 4), output.feature_maps, strict=True):
        tokens = model.layernorm(encoded.hidden_states[number])[:, 1:]
        assert maps.shape == (2, 32, 8, 12)
        assert torch.equal(maps.flatten(2).transpose(1, 2), tokens)
    assert torch.equal(output.feature_maps[-1].flatten(2).transpose(1, 2), encoded.last_hidden_state[:, 1:])


@pytest.mark.parametrize("size", [(64, 64), (40, 24), (61, 90), (8, 8)])
def test_images_have_any_size(size):
    (maps,) = SiTBackbone(config())(torch.randn(1, 3, *size)).feature_maps
    assert maps.shape == (1, 32, size[0] // 8, size[1] // 8)


def test_what_transformers_asks_a_backbone():
    backbone = AutoBackbone.from_config(config(out_features=["stage2", "stage4"]))
    assert type(backbone) is SiTBackbone
    assert backbone.out_features == ["stage2", "stage4"] and backbone.out_indices == [2, 4]
    assert backbone.channels == [32, 32]
    backbone.out_indices = [1]
    assert backbone.out_features == ["stage1"] and len(backbone(torch.randn(1, 3, 64, 64)).feature_maps) == 1
    assert SiTBackbone(config()).out_indices == [4]


def test_outputs_on_request(images):
    output = SiTBackbone(config())(images, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5 and len(output.attentions) == 4
    maps, hidden_states = SiTBackbone(config())(images, output_hidden_states=True, return_dict=False)
    assert len(maps) == 1 and len(hidden_states) == 5


def test_a_folder_with_other_maps_or_depth(save_tiny_sit, tmp_path):
    save_tiny_sit(tmp_path / "pretrained", num_hidden_layers=3)
    backbone, info = SiTBackbone.from_pretrained(tmp_path / "pretrained", out_indices=[1, 3], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(
        backbone.embeddings.cls_token, SiTModel.from_pretrained(tmp_path / "pretrained").embeddings.cls_token
    )
    backbone.save_pretrained(tmp_path / "backbone")
    again = SiTBackbone.from_pretrained(tmp_path / "backbone")
    assert again.out_indices == [1, 3]
    pixel_values = torch.randn(1, 3, 24, 16)
    for maps, expected in zip(again(pixel_values).feature_maps, backbone(pixel_values).feature_maps, strict=True):
        assert torch.equal(maps, expected)
    shallow = SiTBackbone.from_pretrained(tmp_path / "pretrained", num_hidden_layers=2)
    assert shallow.out_features == ["stage2"]
    _, info = SiTModel.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


SMALL_DECODER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 5,
}


def upernet():
    backbone = config(out_indices=[1, 2, 3, 4])
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=16, num_labels=3)
    )


def mask2former():
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=config(out_indices=[1, 2, 3, 4]),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            num_attention_heads=2,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=5,
        )
    )


def maskformer():
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=config(out_indices=[1, 2, 3, 4]),
            fpn_feature_size=32,
            mask_feature_size=32,
            decoder_config=DetrConfig(**SMALL_DECODER),
        )
    )


def detr():
    return DetrForObjectDetection(DetrConfig(backbone_config=config(), **SMALL_DECODER))


@pytest.mark.parametrize(
    ("make", "output", "shape"),
    [
        (upernet, "logits", (2, 3, 64, 96)),
        (mask2former, "masks_queries_logits", (2, 5, 8, 12)),
        (maskformer, "masks_queries_logits", (2, 5, 8, 12)),
        (detr, "pred_boxes", (2, 5, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_of_transformers(make, output, shape, images, tmp_path):
    model = make()
    assert any(type(module) is SiTBackbone for module in model.modules())
    result = model(images)[output]
    assert result.shape == shape
    result.sum().backward()
    backbone = next(module for module in model.modules() if type(module) is SiTBackbone)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert backbone.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.backbone_config.out_indices == model.config.backbone_config.out_indices
    with torch.no_grad():
        assert torch.allclose(again(images)[output], model(images)[output], atol=1e-6)
