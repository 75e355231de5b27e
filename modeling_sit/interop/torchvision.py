"""A SiT as torchvision's `VisionTransformer`, the class of `vit_b_16`: a file of weights for `load_state_dict`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.interop.plain_vit import SINCOS_NOTE, plain_processor, range_notes, training_settings_left_out
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError

AROUND_BLOCKS = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "encoder.pos_embedding",
    "embeddings.patch_embeddings.projection.weight": "conv_proj.weight",
    "embeddings.patch_embeddings.projection.bias": "conv_proj.bias",
    "layernorm.weight": "encoder.ln.weight",
    "layernorm.bias": "encoder.ln.bias",
}
LAYERS_OF_BLOCK = {
    "layernorm_before": "ln_1",
    "attention.output.dense": "self_attention.out_proj",
    "layernorm_after": "ln_2",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.3",
}
ATTENTION_INPUTS = ("query", "key", "value")
# The sizes of vit_b_16 and its siblings, at 224 pixels unless one says otherwise.
BUILDERS = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}
SIZES = ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim")
LAYER_NORM_EPS = 1e-6


def torchvision_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The weights of a SiT by torchvision's names. Torchvision's model always has a head and biases in its attention: a
    head that the SiT lacks is the identity, biases that it lacks are zeros.

    Args:
        model ([`SiTModel`] or [`SiTForImageClassification`]): A classifier has to read the contrastive token.
    """
    backbone, config = model.base_model.state_dict(), model.config
    weights = {theirs: backbone[ours].clone() for ours, theirs in AROUND_BLOCKS.items()}
    for number in range(config.num_hidden_layers):
        block, their_block = f"encoder.layer.{number}", f"encoder.layers.encoder_layer_{number}"
        for ours, theirs in LAYERS_OF_BLOCK.items():
            for kind in ("weight", "bias"):
                weights[f"{their_block}.{theirs}.{kind}"] = backbone[f"{block}.{ours}.{kind}"].clone()
        inputs = [f"{block}.attention.attention.{part}" for part in ATTENTION_INPUTS]
        fused = f"{their_block}.self_attention.in_proj"
        weights[f"{fused}_weight"] = torch.cat([backbone[f"{part}.weight"] for part in inputs])
        if config.qkv_bias:
            weights[f"{fused}_bias"] = torch.cat([backbone[f"{part}.bias"] for part in inputs])
        else:
            weights[f"{fused}_bias"] = weights[f"{fused}_weight"].new_zeros(3 * config.hidden_size)
    if isinstance(model, SiTForImageClassification):
        head_weight, head_bias = model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()
    else:
        head_weight, head_bias = torch.eye(config.hidden_size), torch.zeros(config.hidden_size)
    return {**weights, "heads.head.weight": head_weight, "heads.head.bias": head_bias}


def write_torchvision(model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path) -> list[str]:
    """
    Write a safetensors file with torchvision's names. Its metadata has the sizes, the labels and the image processor.

    Returns:
        `list[str]`: How to load it, which sizes differ from vit_b_16's, and what it does not hold.

    Raises:
        [`SiTError`]: If torchvision's class cannot have these sizes or outputs. The message names all reasons.
    """
    config = model.config
    has_classifier = isinstance(model, SiTForImageClassification)
    check_fits_torchvision(config, has_classifier)
    settings = torchvision_settings(config, has_classifier)
    metadata = {"format": "pt", "VisionTransformer": json.dumps(settings)}
    if has_classifier:
        metadata["id2label"] = json.dumps(config.id2label)
    if processor is not None:
        metadata["preprocessor_config"] = plain_processor(processor).to_json_string()
    save_file(torchvision_state_dict(model), path, metadata=metadata)

    builder = next(
        (name for name, sizes in BUILDERS.items() if sizes == tuple(settings[size] for size in SIZES)), None
    )
    notes = []
    if builder is None:
        usual = dict(zip(SIZES, BUILDERS["vit_b_16"], strict=True))
        others = [f"{name} {settings[name]} (not {usual[name]})" for name in SIZES if settings[name] != usual[name]]
        notes.append(f"other sizes than vit_b_16, and than all of torchvision's models by name: {', '.join(others)}")
    constructed = {name: value for name, value in settings.items() if builder is None or name not in SIZES}
    arguments = ", ".join(f"{name}={value}" for name, value in constructed.items())
    made = f"torchvision.models.{builder or 'VisionTransformer'}({arguments})"
    notes.insert(0, f"load it with torchvision: {made}.load_state_dict(safetensors.torch.load_file({str(path)!r}))")
    if not has_classifier:
        notes.append("its head is the identity, so its output is the contrastive token")
        if config.pooling != "token":
            notes.append(f"not in it: pooling={config.pooling}")
    if config.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"its layer norms have an epsilon of {LAYER_NORM_EPS}, not {config.layer_norm_eps}")
    if config.position_embedding_type == "sincos":
        notes.append(SINCOS_NOTE)
    return notes + training_settings_left_out(config) + range_notes(processor)


def torchvision_settings(config: SiTConfig, has_classifier: bool) -> dict[str, Any]:
    """Arguments of [`VisionTransformer`] for a SiT of square images and patches."""
    return {
        "image_size": config.image_shape[0],
        "patch_size": config.patch_shape[0],
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "hidden_dim": config.hidden_size,
        "mlp_dim": config.intermediate_size,
        "num_classes": config.num_labels if has_classifier else config.hidden_size,
    }


def check_fits_torchvision(config: SiTConfig, has_classifier: bool) -> None:
    """Raise [`SiTError`], with all reasons, if torchvision's class cannot be like a SiT of this configuration."""
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    unfit = []
    if height != width:
        unfit.append(f"its images are square, not image_size={height}x{width}")
    if patch_height != patch_width:
        unfit.append(f"its patches are square, not patch_size={patch_height}x{patch_width}")
    elif height % patch_height or width % patch_width:
        unfit.append(f"its images are made of whole patches, not {height}x{width} of patches of {patch_height}")
    if config.num_channels != 3:
        unfit.append(f"its images have 3 channels, not num_channels={config.num_channels}")
    if config.hidden_act != "gelu":
        unfit.append(f"its activation is gelu, not hidden_act={config.hidden_act}")
    if has_classifier and config.pooling != "token":
        unfit.append(
            f"its classifier reads the first token, not pooling={config.pooling} "
            '(`outputs="features"` writes the backbone)'
        )
    if unfit:
        raise SiTError(f"torchvision's VisionTransformer cannot hold it: {'; '.join(unfit)}", argument="format")


def load_torchvision(path: Path) -> Predict:
    """The outputs that torchvision gives for a file of [`write_torchvision`]."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    model = VisionTransformer(**json.loads(metadata["VisionTransformer"]))
    model.load_state_dict(load_file(path), strict=True)
    model.eval()
    gives = "logits" if "id2label" in metadata else "contrastive_token"
    return lambda pixel_values: {gives: model(pixel_values)}
