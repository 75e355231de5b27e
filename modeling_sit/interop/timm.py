"""A SiT as one of timm's `vit_*`: its names of the weights, and a folder that `timm.create_model("local-dir:...",
pretrained=True)` loads.

Timm's models hold the same numbers; they have one `qkv` layer where SiT, like ViT in transformers, has three. The
authors' code of SiT, DINO and MAE has timm's names too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from safetensors.torch import save_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.interop.plain_vit import SINCOS_NOTE, range_notes, training_settings_left_out
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError

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
# Names of timm's builders. The folder gives every size itself.
ARCHITECTURES = {192: "vit_tiny_patch16_224", 768: "vit_base_patch16_224", 1024: "vit_large_patch16_224"}
OTHER_ARCHITECTURE = "vit_small_patch16_224"
# Timm's names of SiT's poolings. It has none that reads the token and the mean side by side.
GLOBAL_POOLS = {"token": "token", "mean": "avg", "token_mean": ""}
ACTIVATIONS = {
    "gelu": None,  # its default
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# That of its plain layer norms. A file cannot give another.
LAYER_NORM_EPS = 1e-6


def timm_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The backbone's weights, and a classifier's, by timm's names. timm's model needs `fc_norm=False`, and `global_pool`
    `"token"` or `"avg"` where `config.pooling` is `"token"` or `"mean"`; it has none for a classifier on
    `"token_mean"`.

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
    Give weights with timm's names the names that they have in [`SiTModel`] (without `vit.`), and a `head` that of the
    classifier. Shapes stay as they are, so positions of another image size pass.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): The weights of a plain `vit_*`, and no others.
        config ([`SiTConfig`]): Configuration of the model for them. It gives the number of blocks.

    Returns:
        `dict[str, torch.Tensor]`: Weights of their own memory.

    Raises:
        `ValueError`: If a weight of the backbone is missing, or there are weights that a SiT has no place for. All of
            them are named.
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


def write_timm_folder(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """
    Write weights by timm's names with the configuration that builds their model.

    Args:
        model ([`SiTModel`] or [`SiTForImageClassification`]): In float32.
        processor (`BaseImageProcessor`, *optional*): SiT's; timm's configuration holds its mean, standard deviation
            and resizing.
        folder (`Path`): New.

    Returns:
        `list[str]`: How to load it, and what it does not hold.

    Raises:
        [`SiTError`]: If timm has no such classifier or activation.
    """
    config = model.config
    has_classifier = isinstance(model, SiTForImageClassification)
    if has_classifier and config.pooling == "token_mean":
        raise SiTError(
            "no classifier of timm's vit_* reads token and mean side by side, as one with pooling=token_mean does",
            argument="format",
            remedy='write the backbone alone with `outputs="features"`',
        )
    if config.hidden_act not in ACTIVATIONS:
        raise SiTError(
            f"timm's vit_* have no activation hidden_act={config.hidden_act}, only {', '.join(ACTIVATIONS)}",
            argument="format",
        )
    folder.mkdir()
    described = timm_config(config, has_classifier, processor)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_file(timm_state_dict(model), folder / "model.safetensors", metadata={"format": "pt"})

    notes = [f'load it with timm: timm.create_model("local-dir:{folder}", pretrained=True)']
    if not has_classifier and config.pooling == "token_mean":
        notes.append("not in it: pooling=token_mean; the model gives all tokens, the contrastive one first")
    if config.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"its layer norms have an epsilon of {LAYER_NORM_EPS}, not {config.layer_norm_eps}")
    if config.position_embedding_type == "sincos":
        notes.append(SINCOS_NOTE)
    if has_classifier and config.problem_type not in (None, "single_label_classification"):
        notes.append(f"not in it: problem_type={config.problem_type}")
    return notes + training_settings_left_out(config) + range_notes(processor)


def timm_config(config: SiTConfig, has_classifier: bool, processor: BaseImageProcessor | None) -> dict[str, Any]:
    """Timm's `config.json`: how to build the model, and how to prepare images."""
    input_size = [config.num_channels, *config.image_shape]
    num_classes = config.num_labels if has_classifier else 0
    global_pool = GLOBAL_POOLS[config.pooling]
    model_args = {
        "img_size": list(config.image_shape),
        "patch_size": list(config.patch_shape),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "global_pool": global_pool,
        "fc_norm": False,
    }
    if ACTIVATIONS[config.hidden_act] is not None:
        model_args["act_layer"] = ACTIVATIONS[config.hidden_act]
    pretrained_cfg = {
        "input_size": input_size,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "custom_load": False,
        **timm_preprocessing(processor),
    }
    described = {
        "architecture": ARCHITECTURES.get(config.hidden_size, OTHER_ARCHITECTURE),
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": global_pool,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }
    if has_classifier:
        described["label_names"] = [config.id2label[label] for label in range(num_classes)]
    return described


def mlp_ratio(config: SiTConfig) -> float:
    """The factor by which timm multiplies the width, rounding down, to get the MLP's width."""
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) == config.intermediate_size:
        return ratio
    return (config.intermediate_size + 0.5) / config.hidden_size


def timm_preprocessing(processor: BaseImageProcessor | None) -> dict[str, Any]:
    """Timm's settings for the resizing of SiT's image processor, which ignores the image's aspect ratio, and for its
    normalization."""
    if processor is None:
        return {}
    resized = {"interpolation": Resampling(processor.resample).name.lower(), "crop_pct": 1.0, "crop_mode": "squash"}
    if not processor.do_normalize:
        return {**resized, "mean": [0.0] * len(processor.image_mean), "std": [1.0] * len(processor.image_std)}
    return {**resized, "mean": list(processor.image_mean), "std": list(processor.image_std)}


def load_timm_folder(folder: Path) -> Predict:
    """The outputs that timm gives for a folder of [`write_timm_folder`]."""
    import timm  # an extra

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def predict(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if model.num_classes > 0:
            return {"logits": model(pixel_values)}
        tokens = {"last_hidden_state": model.forward_features(pixel_values)}
        return tokens if model.global_pool == "" else {**tokens, "pooler_output": model(pixel_values)}

    return predict
