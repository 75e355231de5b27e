"""A SiT as transformers' own ViT: a folder that loads without this package and without remote code."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.image_processing_pil_sit import CORRUPTION_SETTINGS
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError

# Fields that the configurations of ViT and SiT share.
VIT_FIELDS = (
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
# Fields of the configuration that have an effect in training only.
TRAINING_FIELDS = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
SINCOS_NOTE = "its positions are the fixed sine and cosine ones, but further training changes them"
# Settings of SiT's image processor that ViT's does not have.
ONLY_SIT = (
    *CORRUPTION_SETTINGS,
    "do_corrupt",
    "pad_multiple",
    "do_reduce_labels",
    "auto_map",
    "image_processor_type",
)


def plain_vit_config(config: SiTConfig, has_classifier: bool) -> ViTConfig:
    """The [`ViTConfig`] of a SiT's backbone, or of its classifier and labels. The pooler has no activation."""
    fields = {name: getattr(config, name) for name in VIT_FIELDS}
    if has_classifier:
        fields |= {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
        return ViTConfig(**fields, architectures=["ViTForImageClassification"], dtype="float32")
    return ViTConfig(**fields, pooler_act="linear", architectures=["ViTModel"], dtype="float32")


def write_plain_vit(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """
    Write a `ViTForImageClassification` or a `ViTModel` with its image processor.

    ViT's weights have SiT's names in files, so the numbers are copied as they are. ViT's pooler is a linear layer on
    the first token, which a SiT does not have. It is written as the identity: `pooler_output` is the contrastive
    token, and loading initializes nothing at random.

    Args:
        model ([`SiTModel`] or [`SiTForImageClassification`]): In float32.
        processor (`BaseImageProcessor`, *optional*): SiT's.
        folder (`Path`): New.

    Returns:
        `list[str]`: How to load it, and what it does not hold.

    Raises:
        [`SiTError`]: If the classifier reads other tokens than ViT's does.
    """
    config = model.config
    has_classifier = isinstance(model, SiTForImageClassification)
    if has_classifier and config.pooling != "token":
        raise SiTError(
            f"ViT's classifier reads the first token, but this one has pooling={config.pooling}",
            argument="format",
            remedy='write the backbone alone with `outputs="features"`',
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
            f"not in it: pooling={config.pooling}; pooler_output is the contrastive token, the patches are in "
            "last_hidden_state"
        )
    if config.position_embedding_type == "sincos":
        notes.append(SINCOS_NOTE)
    notes += training_settings_left_out(config, kept=("hidden_dropout_prob", "attention_probs_dropout_prob"))
    return notes + processor_notes(processor)


def architecture_of(has_classifier: bool) -> str:
    return "ViTForImageClassification" if has_classifier else "ViTModel"


def load_plain_vit(folder: Path) -> Predict:
    """The outputs that transformers' ViT gives for a folder of [`write_plain_vit`].

    Raises:
        `ValueError`: If weights are missing or have no place.
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


def plain_processor(processor: BaseImageProcessor) -> ViTImageProcessor:
    """A [`ViTImageProcessor`] that resizes, rescales and normalizes as SiT's image processor does. Unlike SiT's it
    makes no image gray: the caller has to give gray images where the model takes them."""
    settings = {name: value for name, value in processor.to_dict().items() if name not in ONLY_SIT}
    if len(processor.image_mean) == 1:
        settings["do_convert_rgb"] = False
    return ViTImageProcessor(**settings)


def processor_notes(processor: BaseImageProcessor | None) -> list[str]:
    """Lines that say what [`plain_processor`] does not do, if it matters."""
    if processor is None:
        return []
    notes = []
    if len(processor.image_mean) == 1:
        notes.append(
            "its image processor makes no image gray: give it images of mode L (transformers' pipelines give it RGB)"
        )
    return notes + range_notes(processor)


def range_notes(processor: BaseImageProcessor | None) -> list[str]:
    """A line that says how to scale images, where the image processor does it and that of another library does not."""
    intensity_range = getattr(processor, "intensity_range", None)
    if intensity_range is None:
        return []
    pairs = [f"{low} to {high}" for low, high in zip(intensity_range[::2], intensity_range[1::2], strict=True)]
    of_channels = " (one pair for each channel)" if len(pairs) > 1 else ""
    return [f"not in it: intensity_range; scale values from {', '.join(pairs)}{of_channels} to 8 bits first"]


def training_settings_left_out(config: SiTConfig, kept: tuple[str, ...] = ()) -> list[str]:
    """A line that names the settings of training that a format cannot hold, if any of them has an effect.

    Args:
        kept (`tuple[str, ...]`): Those that the format holds.
    """
    settings = {name: getattr(config, name) for name in TRAINING_FIELDS if name not in kept}
    said = [f"{name}={value}" for name, value in settings.items() if value > 0]
    return [f"not in it, of use in training only: {', '.join(said)}"] if said else []
