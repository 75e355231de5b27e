"""Tiny checkpoints that are no SiT's folders, as other libraries and other commands write them."""

from collections.abc import Callable
from pathlib import Path

import torch
from authors_network import AuthorsNetwork
from transformers import (
    ConvNextImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from modeling_sit import SiTConfig, SiTForImageClassification, SiTImageProcessor
from modeling_sit.interop.safetensors import write_safetensors

SIDES = {"height": 32, "width": 32}
NAMES = {"id2label": {0: "red", 1: "blue"}, "label2id": {"red": 0, "blue": 1}}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}


def _saved(model: PreTrainedModel, processor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _of_resnet() -> ConvNextImageProcessor:
    return ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)


def save_detr(folder: Path, backbone: PreTrainedConfig | None = None) -> Path:
    """A DETR, whose encoder knows no patches."""
    sizes = {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    backbone = backbone or ResNetConfig(**RESNET, out_features=["stage2"])
    config = DetrConfig(backbone_config=backbone, use_timm_backbone=False, d_model=16, num_queries=4, **sizes, **NAMES)
    return _saved(
        DetrForObjectDetection(config), DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), folder
    )


def save_yolos(folder: Path) -> Path:
    """A YOLOS: a ViT with more tokens than the image's and the patches'."""
    sizes = {**TINY, "image_size": [32, 32], "intermediate_size": 16, "num_detection_tokens": 3}
    return _saved(YolosForObjectDetection(YolosConfig(**sizes, **NAMES)), YolosImageProcessor(size=SIDES), folder)


def save_upernet(folder: Path) -> Path:
    """An UperNet on a SiT. There is no UperNet without a head."""
    backbone = SiTConfig(**{**TINY, "num_hidden_layers": 4}, out_indices=[1, 2, 3, 4])
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=16, **NAMES)
    return _saved(UperNetForSemanticSegmentation(config), SegformerImageProcessor(size=SIDES), folder)


def save_resnet_classifier(folder: Path) -> Path:
    """A classifier without tokens."""
    return _saved(ResNetForImageClassification(ResNetConfig(**RESNET, **NAMES)), _of_resnet(), folder)


def save_resnet(folder: Path) -> Path:
    """An encoder that gives maps, and no tokens."""
    return _saved(ResNetModel(ResNetConfig(**RESNET)), _of_resnet(), folder)


def save_mae(folder: Path) -> Path:
    """A MAE of transformers with its own decoder, which reads some patches alone."""
    decoder = {f"decoder_{name}": 16 for name in ("hidden_size", "intermediate_size")}
    decoder |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return _saved(ViTMAEForPreTraining(ViTMAEConfig(**TINY, **decoder)), ViTImageProcessor(size=SIDES), folder)


def save_authors_file(folder: Path) -> Path:
    """A file of the authors' code."""
    network = AuthorsNetwork(width=64, heads=1, size=32).state_dict()
    torch.save({"student": network, "teacher": network, "epoch": 3}, folder.with_suffix(".pth"))
    return folder.with_suffix(".pth")


def save_classifier_file(folder: Path) -> Path:
    """A file of `modeling-sit convert --format safetensors`."""
    model = SiTForImageClassification(SiTConfig(**TINY, **NAMES))
    write_safetensors(model, SiTImageProcessor(size=SIDES, patch_size=8), folder.with_suffix(".safetensors"))
    return folder.with_suffix(".safetensors")


# What each predicts, and what it cannot do.
FOREIGN: dict[Callable[[Path], Path], tuple[str | None, set[str]]] = {
    save_detr: ("detection", {"encode", "reconstruct"}),
    save_yolos: ("detection", {"reconstruct"}),
    save_upernet: ("segmentation", {"encode", "reconstruct"}),
    save_resnet_classifier: ("classification", {"encode", "reconstruct"}),
    save_mae: (None, {"predict", "reconstruct"}),
    save_authors_file: (None, {"predict"}),
    save_classifier_file: ("classification", {"reconstruct"}),
}
