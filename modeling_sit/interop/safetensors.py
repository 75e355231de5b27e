"""A SiT in one file of safetensors. Its metadata holds what the other files of a folder hold; every head is kept."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import (
    SiTConfig,
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
    SiTModel,
)
from modeling_sit.interop.verification import Predict, outputs_of
from modeling_sit.runtime.errors import SiTError

MODEL_CLASSES = {
    model_class.__name__: model_class
    for model_class in (
        SiTModel,
        SiTForPreTraining,
        SiTForImageClassification,
        SiTForSemanticSegmentation,
        SiTForObjectDetection,
        SiTForInstanceSegmentation,
    )
}
CONFIG, ARCHITECTURE, PREPROCESSOR = "config.json", "architecture", "preprocessor_config.json"


def is_sit_file(path: Path) -> bool:
    """Whether [`write_safetensors`] wrote a file."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return {CONFIG, ARCHITECTURE} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False


def read_processor_settings(path: Path) -> dict[str, Any]:
    """Settings of the image processor in a file of [`write_safetensors`]; empty where it has none."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata().get(PREPROCESSOR, "{}"))


def read_sit_file(path: Path) -> tuple[PreTrainedModel, BaseImageProcessor | None]:
    """The model, with all its weights, and the image processor, if it has one, of a file of [`write_safetensors`].

    Raises:
        `ValueError`: If a weight is missing, has no place or has another shape.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    described = read_processor_settings(path)
    try:
        config = SiTConfig.from_dict(json.loads(metadata[CONFIG]))
        with torch.random.fork_rng(devices=[]):
            model = MODEL_CLASSES[metadata[ARCHITECTURE]](config)
        model.load_state_dict(load_file(path), strict=True)
    except (ValueError, KeyError, RuntimeError) as problem:
        raise ValueError(" ".join(str(problem).split())) from problem
    return model, SiTImageProcessor(**described) if described else None


def check_describes_itself(network: str | None, num_attention_heads: int | None) -> None:
    """Raise [`SiTError`] if an argument for other files of weights is given for a file of [`write_safetensors`]."""
    for argument, value in (("network", network), ("num_attention_heads", num_attention_heads)):
        if value is not None:
            raise SiTError(f"{value} is for other files of weights: this one says that itself", argument=argument)


def write_safetensors(model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path) -> list[str]:
    """Write the weights by SiT's names, which are ViT's, into one file. Its metadata has `config.json`, the
    `architecture` and, if there is an image processor, `preprocessor_config.json`.

    Returns:
        `list[str]`: How to load it.
    """
    metadata = {
        "format": "pt",
        ARCHITECTURE: type(model).__name__,
        CONFIG: model.config.to_json_string(use_diff=False),
    }
    if processor is not None:
        metadata[PREPROCESSOR] = processor.to_json_string()
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, path, metadata=metadata)
    return [
        f"load it with safetensors.torch: {type(model).__name__}(config).load_state_dict(load_file({str(path)!r})); "
        f"{', '.join(name for name in metadata if name.endswith('.json'))} are in its metadata"
    ]


def load_safetensors(path: Path) -> Predict:
    """The outputs that this package gives for a file of [`write_safetensors`]."""
    model = read_sit_file(path)[0].eval()
    return lambda pixel_values: outputs_of(model, pixel_values)
