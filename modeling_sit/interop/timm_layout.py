"""The weights of a SiT by the names that timm's plain Vision Transformers (`vit_*`) have for them, and back.

Both hold the same numbers; timm has one `qkv` layer where SiT, like ViT in transformers, has three. The authors' code of
SiT, DINO and MAE has timm's names too.
"""

from collections.abc import Mapping

import torch

from modeling_sit.configuration_sit import SiTConfig
from modeling_sit.modeling_sit import SiTForImageClassification, SiTPreTrainedModel

# SiT's names in the order of the forward pass.
EMBEDDINGS = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
LAYERS_AROUND_BLOCKS = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
LAYERS_OF_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
ATTENTION_INPUTS = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
FUSED_INPUTS = "attn.qkv"
CLASSIFIER = {"classifier": "head"}


def timm_state_dict(model: SiTPreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The backbone's weights, and a classifier's, by timm's names. timm's model needs `fc_norm=False`, and `global_pool`
    `"token"` or `"avg"` where `config.pooling` is `"token"` or `"mean"`; a classifier on `"token_mean"` fits none of its.

    Args:
        model ([`SiTModel`], [`SiTForImageClassification`] or [`SiTForPreTraining`]): Whose decoder and projection head
            have no names in timm, and are not among the weights.

    Returns:
        `dict[str, torch.Tensor]`: Weights of their own memory, with the model's dtypes and devices.
    """
    backbone = model.base_model.state_dict()
    weights = {
        name: torch.cat([backbone[part] for part in parts]) for name, parts in _timm_names(model.config).items()
    }
    if isinstance(model, SiTForImageClassification):
        for ours, theirs in CLASSIFIER.items():
            for kind, tensor in getattr(model, ours).state_dict().items():
                weights[f"{theirs}.{kind}"] = tensor.clone()
    return weights


def from_timm_state_dict(state_dict: Mapping[str, torch.Tensor], config: SiTConfig) -> dict[str, torch.Tensor]:
    """
    Weights that have timm's names by the names that they have in [`SiTModel`] (no `vit.` in front), and a `head` by that
    of the classifier. Shapes are left as they are, so that positions of another image size pass.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): The weights of a plain `vit_*`, exactly.
        config ([`SiTConfig`]): Of the model that is to have them; says how many blocks there are.

    Returns:
        `dict[str, torch.Tensor]`: Weights of their own memory.

    Raises:
        `ValueError`: If a weight of the backbone is missing, or there are weights that a SiT has no place for. All of them
            are named.
    """
    names = _timm_names(config)
    optional = {f"{theirs}.{kind}" for theirs in CLASSIFIER.values() for kind in ("weight", "bias")}
    missing = [name for name in names if name not in state_dict]
    unexpected = [name for name in state_dict if name not in names and name not in optional]
    if missing or unexpected:
        trouble = [
            f"{what} {', '.join(keys)}" for what, keys in (("lacks", missing), ("also has", unexpected)) if keys
        ]
        raise ValueError(
            f"the state dict is not that of a plain vit_* of {config.num_hidden_layers} blocks: it "
            + (" and ".join(trouble))
        )
    weights = {}
    for name, parts in names.items():
        for part, tensor in zip(parts, state_dict[name].chunk(len(parts)), strict=True):
            weights[part] = tensor.clone(memory_format=torch.contiguous_format)
    for ours, theirs in CLASSIFIER.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state_dict:
                weights[f"{ours}.{kind}"] = state_dict[f"{theirs}.{kind}"].clone()
    return weights


def _timm_names(config: SiTConfig) -> dict[str, tuple[str, ...]]:
    """timm's name of each weight of a backbone, and SiT's names of what it is made of, one after the other."""
    layers = {theirs: (ours,) for ours, theirs in LAYERS_AROUND_BLOCKS.items()}
    for number in range(config.num_hidden_layers):
        block, timm_block = f"encoder.layer.{number}", f"blocks.{number}"
        layers |= {f"{timm_block}.{theirs}": (f"{block}.{ours}",) for ours, theirs in LAYERS_OF_BLOCK.items()}
        layers[f"{timm_block}.{FUSED_INPUTS}"] = tuple(f"{block}.{part}" for part in ATTENTION_INPUTS)
    names = {theirs: (ours,) for ours, theirs in EMBEDDINGS.items()}
    for theirs, parts in layers.items():
        names[f"{theirs}.weight"] = tuple(f"{part}.weight" for part in parts)
        if config.qkv_bias or not theirs.endswith(FUSED_INPUTS):
            names[f"{theirs}.bias"] = tuple(f"{part}.bias" for part in parts)
    return names
