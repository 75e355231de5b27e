"""A SiT in one file of safetensors, whose metadata has what the files of a folder have."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel

MODEL_CLASSES = {
    model_class.__name__: model_class for model_class in (SiTModel, SiTForPreTraining, SiTForImageClassification)
}
CONFIG, ARCHITECTURE, PREPROCESSOR = "config.json", "architecture", "preprocessor_config.json"


def is_sit_file(path: Path) -> bool:
    """Whether a file is of [`~interop.sit.write_safetensors`]."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return {CONFIG, ARCHITECTURE} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False


def read_sit_file(path: Path) -> tuple[PreTrainedModel, BaseImageProcessor | None]:
    """The model, with all its weights, and the image processor of a file of [`~interop.sit.write_safetensors`].

    Raises:
        `ValueError`: If a weight is missing, left over or of another shape.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    try:
        config = SiTConfig.from_dict(json.loads(metadata[CONFIG]))
        with torch.random.fork_rng(devices=[]):
            model = MODEL_CLASSES[metadata[ARCHITECTURE]](config)
        model.load_state_dict(load_file(path), strict=True)
    except (ValueError, KeyError, RuntimeError) as problem:
        raise ValueError(" ".join(str(problem).split())) from problem
    described = metadata.get(PREPROCESSOR)
    return model, SiTImageProcessor(**json.loads(described)) if described is not None else None
