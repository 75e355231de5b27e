"""A SiT as transformers' own ViT: a folder that loads without this package and without remote code."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BaseImageProcessor, PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.interop.plain_processor import plain_processor, processor_notes
from modeling_sit.interop.source import training_settings_left_out
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError

ARCHITECTURE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)


def plain_vit_config(config: SiTConfig, has_classifier: bool) -> ViTConfig:
    """The [`ViTConfig`] of a SiT's backbone, or of its classifier with its labels. The pooler has no activation."""
    fields = {name: getattr(config, name) for name in ARCHITECTURE_FIELDS}
    if has_classifier:
        fields |= {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
        return ViTConfig(**fields, architectures=["ViTForImageClassification"], dtype="float32")
    return ViTConfig(**fields, pooler_act="linear", architectures=["ViTModel"], dtype="float32")


def write_plain_vit(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """
    Write a `ViTForImageClassification` or a `ViTModel` with its image processor.

    ViT's weights in files have SiT's names, so the numbers are copied as they are. ViT's pooler, a linear layer on the
    first token that no SiT has, is written as the identity: `pooler_output` is the contrastive token, and nothing is
    initialized at random on loading.

    Args:
        model ([`SiTModel`] or [`SiTForImageClassification`]): In float32.
        processor (`BaseImageProcessor`, *optional*): SiT's.
        folder (`Path`): New.

    Returns:
        `list[str]`: How to load it, and what it has not.

    Raises:
        [`SiTError`]: If the classifier reads what ViT's does not.
    """
    config = model.config
    has_classifier = isinstance(model, SiTForImageClassification)
    if has_classifier and config.pooling != "token":
        raise SiTError(
            f"--format vit: ViT's classifier reads the token in front, but this one has pooling={config.pooling}; "
            "--outputs features writes the backbone without it"
        )
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if not has_classifier:
        weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
        weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    folder.mkdir()
    plain_vit_config(config, has_classifier).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if processor is not None:
        plain_processor(processor).save_pretrained(folder)

    notes = [f"load it with transformers: {architecture_of(has_classifier)}.from_pretrained({str(folder)!r})"]
    if not has_classifier and config.pooling != "token":
        notes.append(
            f"pooling={config.pooling} is not in it: pooler_output is the contrastive token; last_hidden_state has the patches"
        )
    if config.position_embedding_type == "sincos":
        notes.append("its positions are the fixed sine and cosine ones, but learnable in further training")
    notes += training_settings_left_out(config, kept=("hidden_dropout_prob", "attention_probs_dropout_prob"))
    return notes + processor_notes(processor)


def architecture_of(has_classifier: bool) -> str:
    return "ViTForImageClassification" if has_classifier else "ViTModel"


def load_plain_vit(folder: Path) -> Predict:
    """What transformers' ViT makes of a folder of [`write_plain_vit`].

    Raises:
        `ValueError`: If weights are missing or left over.
    """
    config = ViTConfig.from_pretrained(folder)
    has_classifier = config.architectures == ["ViTForImageClassification"]
    model_class = ViTForImageClassification if has_classifier else ViTModel
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys"):
        if info[what]:
            raise ValueError(f"{what.replace('_', ' ')}: {', '.join(sorted(info[what]))}")
    model.eval()

    def predict(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        output = model(pixel_values)
        if has_classifier:
            return {"logits": output.logits}
        return {"last_hidden_state": output.last_hidden_state, "contrastive_token": output.pooler_output}

    return predict
