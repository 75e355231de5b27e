"""A SiT as one of timm's `vit_*`: a folder that `timm.create_model("local-dir:...", pretrained=True)` loads."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from safetensors.torch import save_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.interop.source import training_settings_left_out
from modeling_sit.interop.timm_layout import timm_state_dict
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError

# Names of timm's builders; every size of theirs is given anew.
ARCHITECTURES = {192: "vit_tiny_patch16_224", 768: "vit_base_patch16_224", 1024: "vit_large_patch16_224"}
OTHER_ARCHITECTURE = "vit_small_patch16_224"
# What SiT's poolings are called there. What reads the token and the mean side by side, timm has not.
GLOBAL_POOLS = {"token": "token", "mean": "avg", "token_mean": ""}
ACTIVATIONS = {
    "gelu": None,  # its default
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Its plain layer norms have this one, and no name in a file for another.
LAYER_NORM_EPS = 1e-6


def write_timm_folder(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """
    Write weights by timm's names with the configuration that builds their model.

    Args:
        model ([`SiTModel`] or [`SiTForImageClassification`]): In float32.
        processor (`BaseImageProcessor`, *optional*): SiT's; timm's configuration has its mean, deviation and resizing.
        folder (`Path`): New.

    Returns:
        `list[str]`: How to load it, and what it has not.

    Raises:
        [`SiTError`]: If timm has no such classifier or activation.
    """
    config = model.config
    has_classifier = isinstance(model, SiTForImageClassification)
    if has_classifier and config.pooling == "token_mean":
        raise SiTError(
            "--format timm: no classifier of timm's vit_* reads token and mean side by side, as pooling=token_mean has it; "
            "--outputs features writes the backbone without it"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise SiTError(
            f"--format timm: its vit_* have no activation like hidden_act={config.hidden_act}, of {', '.join(ACTIVATIONS)}"
        )
    folder.mkdir()
    described = timm_config(config, has_classifier, processor)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    save_file(timm_state_dict(model), folder / "model.safetensors", metadata={"format": "pt"})

    notes = [f'load it with timm: timm.create_model("local-dir:{folder}", pretrained=True)']
    if not has_classifier and config.pooling == "token_mean":
        notes.append("pooling=token_mean is not in it: the model gives all tokens, the contrastive one first")
    if config.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"its layer norms have an epsilon of {LAYER_NORM_EPS}, not {config.layer_norm_eps}")
    if config.position_embedding_type == "sincos":
        notes.append("its positions are the fixed sine and cosine ones, but learnable in further training")
    if has_classifier and config.problem_type not in (None, "single_label_classification"):
        notes.append(f"not in it: problem_type={config.problem_type}")
    return notes + training_settings_left_out(config)


def timm_config(config: SiTConfig, has_classifier: bool, processor: BaseImageProcessor | None) -> dict[str, Any]:
    """What `config.json` says to timm: how to build the model, and how to prepare images."""
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
    """What timm multiplies the width by, and cuts to a whole number, for the MLP's width."""
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) == config.intermediate_size:
        return ratio
    return (config.intermediate_size + 0.5) / config.hidden_size


def timm_preprocessing(processor: BaseImageProcessor | None) -> dict[str, Any]:
    """Resizing to the model's size without regard to the image's shape, as SiT's image processor does it, and its
    normalization."""
    if processor is None:
        return {}
    resized = {"interpolation": Resampling(processor.resample).name.lower(), "crop_pct": 1.0, "crop_mode": "squash"}
    if not processor.do_normalize:
        return {**resized, "mean": [0.0] * len(processor.image_mean), "std": [1.0] * len(processor.image_std)}
    return {**resized, "mean": list(processor.image_mean), "std": list(processor.image_std)}


def load_timm_folder(folder: Path) -> Predict:
    """What timm makes of a folder of [`write_timm_folder`]."""
    import timm  # an extra

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def predict(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if model.num_classes > 0:
            return {"logits": model(pixel_values)}
        tokens = {"last_hidden_state": model.forward_features(pixel_values)}
        return tokens if model.global_pool == "" else {**tokens, "pooler_output": model(pixel_values)}

    return predict
