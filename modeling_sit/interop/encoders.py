"""Plain Vision Transformers of transformers and timm (ViT, DeiT, DINO, MAE, MSN, DINOv2) as a SiT's backbone.

The outputs stay the same, up to rounding. A layer that a SiT does not have (layer scale) is folded into its neighbors
if that is exact. If it is not, the encoder is refused, and the message names all that does not fit.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_sit.configuration_sit import SiTConfig
from modeling_sit.interop.plain_vit import VIT_FIELDS
from modeling_sit.interop.timm import from_timm_state_dict
from modeling_sit.modeling_sit import SiTModel, sincos_position_embeddings

# The family's heads are 64 wide; those of its largest members are not.
HEAD_SIZE = 64
NUM_HEADS_OF_LARGE = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
# Of all of timm's vit_*, and of DeiT, DINO and MAE, whose files do not give it.
TIMM_LAYER_NORM_EPS = 1e-6

# Heads, and what is used in training only: the encoder's tokens do not depend on them.
TIMM_HEADS = re.compile(r"(head|head_dist|fc_norm|pre_logits|attn_pool|mask_token|decoder_\w+)(\.|$)")
# Names of register tokens in timm and in DINOv2's own code.
REGISTERS = ("reg_token", "register_tokens")
TRANSFORMERS_HEADS = re.compile(
    r"(pooler|classifier|cls_classifier|distillation_classifier|decoder|embeddings\.mask_token)(\.|$)"
)
# Prefix of an encoder's weights in a model that has heads.
TRANSFORMERS_PREFIXES = {"vit": "vit.", "deit": "deit.", "vit_mae": "vit.", "vit_msn": "vit.", "dinov2": "dinov2."}
UNFIT_TRANSFORMERS = {
    "ijepa": "it has no token in front of the patches",
    "dinov2_with_registers": "it has register tokens, which every other token reads",
    "dinov3_vit": "it has rotary positions and register tokens",
    "beit": "its attention has relative positions",
    "data2vec-vision": "its attention has relative positions",
    "clip_vision_model": "it has a norm in front of its blocks",
    "siglip_vision_model": "it has no token in front of the patches",
}
# DINOv2's names of layers that ViT has too, within a block, and ViT's names.
DINOV2_LAYERS = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
DISTILLATION = "the distillation token is left out, so the features are not exactly those of the distilled model"


@dataclass
class EncoderWeights:
    """
    The weights and settings of an encoder, for a SiT.

    Args:
        settings (`dict`): Fields of [`SiTConfig`].
        weights (`dict[str, torch.Tensor]`): Weights of the backbone, by their names in [`SiTModel`].
        heads (`dict[str, torch.Tensor]`):
            Weights of heads, by their names in [`SiTForPreTraining`]. Only the authors' code has them.
        left_out (`list[str]`): Weights that a SiT has no place for. The features do not depend on them.
        notes (`list[str]`): What the user has to know, a line each.
    """

    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    heads: dict[str, torch.Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def from_timm_network(
    network: Mapping[str, torch.Tensor],
    num_attention_heads: int | None = None,
    image_shape: tuple[int, int] | None = None,
) -> EncoderWeights:
    """
    An encoder by timm's names, which the code of DeiT, DINO, DINOv2 and MAE has too. The shapes of its weights give
    its sizes.

    Args:
        network (`Mapping[str, torch.Tensor]`): The weights, and those of heads.
        num_attention_heads (`int`, *optional*):
            The one size that shapes do not give. Default: heads of 64; the largest models of the family have others.
        image_shape (`tuple[int, int]`, *optional*): Height and width in pixels. Default: a square.

    Raises:
        `ValueError`: If it is no such encoder, or has weights that a SiT has no place for. The message names all of
            them.
    """
    weights = {name: value for name, value in network.items() if not TIMM_HEADS.match(name)}
    left_out = [name for name in network if name not in weights]
    notes = []
    for name in ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in weights:
            raise ValueError(f"it has no {name}, so it is no ViT in timm's layout; it has {name_weights(network)}")
    if weights["patch_embed.proj.weight"].ndim != 4 or weights["pos_embed"].ndim != 3:
        raise ValueError("its patches or positions do not have the shapes of images")
    hidden_size, num_channels, *patch_shape = weights["patch_embed.proj.weight"].shape
    if "dist_token" in weights:
        del weights["dist_token"]
        left_out.append("dist_token")
        notes.append(DISTILLATION)
        weights["pos_embed"] = without_distillation(weights["pos_embed"])
    registers = [name for name in weights if name in REGISTERS]
    if registers:
        raise ValueError(
            f"it has register tokens ({', '.join(registers)}), which every token reads, and a SiT has none"
        )
    grid, weights["pos_embed"] = _fit_positions(weights["pos_embed"], patch_shape, image_shape)
    if num_attention_heads is None:
        num_attention_heads = conventional_num_attention_heads(hidden_size)
        notes.append(
            f"{num_attention_heads} attention heads are assumed, as usual for this width, because the weights do not give "
            "the number"
        )
    settings = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(number) for number in re.findall(r"\bblocks\.(\d+)\.", "\n".join(weights))),
        "num_attention_heads": num_attention_heads,
        "intermediate_size": len(weights["blocks.0.mlp.fc1.weight"]),
        "layer_norm_eps": TIMM_LAYER_NORM_EPS,
        "image_size": _one_if_square(side * patch for side, patch in zip(grid, patch_shape, strict=True)),
        "patch_size": _one_if_square(patch_shape),
        "num_channels": num_channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "position_embedding_type": _position_embedding_type(weights["pos_embed"], grid),
    }
    _fold_layer_scale(weights, {r"ls1\.gamma": "attn.proj", r"ls2\.gamma": "mlp.fc2"})
    weights = from_timm_state_dict(weights, SiTConfig(**settings))
    _check_weights(weights, settings)
    return EncoderWeights(settings, weights, left_out=left_out, notes=notes)


def from_transformers_network(network: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> EncoderWeights:
    """
    An encoder of transformers, or the encoder of a model with heads.

    Args:
        network (`Mapping[str, torch.Tensor]`): The weights, by their names in the folder.
        config (`PreTrainedConfig`): Of type `vit`, `deit`, `vit_mae`, `vit_msn` or `dinov2`.

    Raises:
        `ValueError`: If it is of another type, or has weights that a SiT has no place for. The message names all of
            them.
    """
    check_transformers_config(config)
    prefix = TRANSFORMERS_PREFIXES[config.model_type]
    if not any(name.startswith(prefix) for name in network):
        prefix = ""
    # In folders of MSN's classifier only some of the weights have the prefix.
    names = {name: name.removeprefix(prefix) for name in network if name.startswith((prefix, "encoder."))}
    weights = {ours: network[name] for name, ours in names.items() if not TRANSFORMERS_HEADS.match(ours)}
    left_out = [name for name in network if names.get(name) not in weights]
    notes = []
    if config.model_type == "deit" and "embeddings.distillation_token" in weights:
        del weights["embeddings.distillation_token"]
        left_out.append("embeddings.distillation_token")
        notes.append(DISTILLATION)
        weights["embeddings.position_embeddings"] = without_distillation(weights["embeddings.position_embeddings"])
    settings = {name: getattr(config, name) for name in VIT_FIELDS if name != "intermediate_size"}
    if config.model_type == "dinov2":
        settings["intermediate_size"] = int(config.hidden_size * config.mlp_ratio)
        weights = {_name_of_dinov2(name): value for name, value in weights.items()}
        _fold_layer_scale(
            weights, {r"layer_scale1\.lambda1": "attention.output.dense", r"layer_scale2\.lambda1": "output.dense"}
        )
    else:
        settings["intermediate_size"] = config.intermediate_size
    if "embeddings.position_embeddings" in weights:
        described = SiTConfig(**settings)
        grid = [side // patch for side, patch in zip(described.image_shape, described.patch_shape, strict=True)]
        settings["position_embedding_type"] = _position_embedding_type(weights["embeddings.position_embeddings"], grid)
    _check_weights(weights, settings)
    return EncoderWeights(settings, weights, left_out=left_out, notes=notes)


def check_transformers_config(config: PreTrainedConfig) -> None:
    """Raise `ValueError`, with the reason, if a SiT cannot give the outputs of such a model."""
    check_model_type(config.model_type)
    if getattr(config, "use_swiglu_ffn", False):
        raise ValueError("a SiT cannot be a dinov2 with gated MLPs (use_swiglu_ffn)")


def check_model_type(model_type: str | None) -> None:
    """Raise `ValueError`, with the reason, if a SiT cannot give the outputs of such a model of transformers."""
    if model_type in UNFIT_TRANSFORMERS:
        raise ValueError(f"a SiT cannot be a {model_type}: {UNFIT_TRANSFORMERS[model_type]}")
    if model_type not in TRANSFORMERS_PREFIXES:
        known = ", ".join(TRANSFORMERS_PREFIXES)
        raise ValueError(f"a SiT cannot be a {model_type or 'model of no type'}; it can be a {known}, or timm's vit_*")


def names_of_heads(model: PreTrainedModel) -> set[str]:
    """Names of a classifier's weights. transformers calls CLIP's classifiers and timm's models a backbone as a whole."""
    timm_model = getattr(model, "timm_model", None)
    heads = [getattr(model, "classifier", None), timm_model.get_classifier() if timm_model is not None else None]
    found = {id(weight) for head in heads if isinstance(head, torch.nn.Module) for weight in head.parameters()}
    return {name for name, weight in model.named_parameters() if id(weight) in found}


def conventional_num_attention_heads(hidden_size: int) -> int:
    """How many attention heads a ViT of that width usually has.

    Raises:
        `ValueError`: If the width is no multiple of 64.
    """
    if hidden_size in NUM_HEADS_OF_LARGE:
        return NUM_HEADS_OF_LARGE[hidden_size]
    if hidden_size % HEAD_SIZE:
        raise ValueError(
            f"the weights do not give the number of attention heads, and the width of {hidden_size} is no multiple of "
            f"{HEAD_SIZE}; give `num_attention_heads`"
        )
    return hidden_size // HEAD_SIZE


def without_distillation(positions: torch.Tensor) -> torch.Tensor:
    """Positions without that of DeiT's second token, from `(1, 2 + patches, hidden_size)` to `(1, 1 + patches,
    ...)`."""
    return torch.cat([positions[:, :1], positions[:, 2:]], dim=1)


def name_weights(names: Iterable[str]) -> str:
    """All of these names in one line. Names that differ in a number only become one: `blocks.0-11.norm1.weight`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        form = re.sub(r"\.\d+(?=\.)", ".#", name, count=1)
        numbers.setdefault(form, []).extend(int(number) for number in re.findall(r"\.(\d+)\.", name)[:1])
    return ", ".join(
        form.replace("#", str(found[0]) if len(found) == 1 else f"{min(found)}-{max(found)}") if found else form
        for form, found in numbers.items()
    )


def _fit_positions(
    positions: torch.Tensor, patch_shape: list[int], image_shape: tuple[int, int] | None
) -> tuple[tuple[int, int], torch.Tensor]:
    """Rows and columns of patches, and the positions. If the first token has no position (DeiT III), it gets zeros."""
    count = positions.shape[1]
    grids = []
    if image_shape is not None:
        grids = [tuple(side // patch for side, patch in zip(image_shape, patch_shape, strict=True))]
    grids += [(math.isqrt(patches),) * 2 for patches in (count - 1, count)]
    for grid in grids:
        if count == 1 + math.prod(grid):
            return grid, positions
        if count == math.prod(grid):
            return grid, torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    raise ValueError(
        f"its {count} positions are not those of one token and a square of patches, so its image size is unknown"
    )


def _position_embedding_type(positions: torch.Tensor, grid: Iterable[int]) -> str:
    """`"sincos"` for positions that are SiT's fixed ones, as those of MAE and MoCo v3 are; else `"learnable"`."""
    hidden_size = positions.shape[-1]
    if hidden_size % 4 == 0:
        fixed = sincos_position_embeddings(hidden_size, *grid)
        if fixed.shape == positions.shape and torch.allclose(positions.float(), fixed, atol=1e-4):
            return "sincos"
    return "learnable"


def _fold_layer_scale(weights: dict[str, torch.Tensor], scaled_layers: Mapping[str, str]) -> None:
    """Multiply layers by the layer scales that follow them, in place, and remove the scales.

    Args:
        scaled_layers (`Mapping[str, str]`): The layer's name for the pattern of each scale's name, within a block.
    """
    for scale, layer in scaled_layers.items():
        for name in [name for name in weights if re.search(rf"\.\d+\.{scale}$", name)]:
            scaled = f"{re.sub(rf'{scale}$', '', name)}{layer}"
            factors = weights.pop(name).double()
            for kind in ("weight", "bias"):
                if f"{scaled}.{kind}" in weights:
                    value = weights[f"{scaled}.{kind}"]
                    product = value.double() * (factors[:, None] if kind == "weight" else factors)
                    weights[f"{scaled}.{kind}"] = product.to(value.dtype)


def _name_of_dinov2(name: str) -> str:
    block = re.match(r"encoder\.layer\.\d+\.", name)
    if block is None:
        return name
    inner = name[block.end() :]
    theirs = next((theirs for theirs in DINOV2_LAYERS if inner.startswith(theirs)), "")
    return block.group() + DINOV2_LAYERS.get(theirs, "") + inner.removeprefix(theirs)


def _check_weights(weights: Mapping[str, torch.Tensor], settings: dict[str, Any]) -> None:
    """Raise `ValueError` unless these are all the weights of that backbone, and no others."""
    with torch.device("meta"):
        wanted = SiTModel(SiTConfig(**settings)).state_dict()
    troubles = {
        "lacks": [name for name in wanted if name not in weights],
        "also has": [name for name in weights if name not in wanted],
        "has in other shapes": [
            name for name, value in weights.items() if name in wanted and value.shape != wanted[name].shape
        ],
    }
    said = [f"{trouble} {name_weights(names)}" for trouble, names in troubles.items() if names]
    if said:
        raise ValueError(f"it is no plain ViT of {settings['num_hidden_layers']} blocks: it {' and '.join(said)}")


def _one_if_square(sides: Iterable[int]) -> int | tuple[int, int]:
    height, width = sides
    return height if height == width else (height, width)
