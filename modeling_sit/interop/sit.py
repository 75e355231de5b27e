"""A SiT as SiT: a repository folder, or one file of safetensors; both keep every head."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig
from modeling_sit.interop.source import MODEL_CLASSES, load_source
from modeling_sit.interop.verification import Predict, outputs_of

CONFIG, ARCHITECTURE, PREPROCESSOR = "config.json", "architecture", "preprocessor_config.json"


def write_sit_folder(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """Write weights, configuration, image processor and the code to load them without this package."""
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return [f"load it with this package: {type(model).__name__}.from_pretrained({str(folder)!r})"]


def load_sit_folder(folder: Path) -> Predict:
    """What this package makes of a folder of [`write_sit_folder`]."""
    model = load_source(str(folder)).model
    return lambda pixel_values: outputs_of(model, pixel_values)


def write_safetensors(model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path) -> list[str]:
    """Write the weights by SiT's names, which are ViT's, into one file; its metadata has `config.json`, the
    `architecture`, and `preprocessor_config.json`."""
    metadata = {
        "format": "pt",
        ARCHITECTURE: type(model).__name__,
        CONFIG: model.config.to_json_string(use_diff=False),
    }
    if processor is not None:
        metadata[PREPROCESSOR] = processor.to_json_string()
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, path, metadata=metadata)
    return [
        f"load it with safetensors: {type(model).__name__}(config).load_state_dict(load_file({str(path)!r})); config.json is "
        "in its metadata"
    ]


def load_safetensors(path: Path) -> Predict:
    """What this package makes of a file of [`write_safetensors`], strictly."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    config = SiTConfig.from_dict(json.loads(metadata[CONFIG]))
    with torch.random.fork_rng(devices=[]):
        model = MODEL_CLASSES[metadata[ARCHITECTURE]](config)
    model.load_state_dict(load_file(path), strict=True)
    model.eval()
    return lambda pixel_values: outputs_of(model, pixel_values)
