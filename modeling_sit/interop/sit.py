"""A SiT as SiT: a repository folder, or one file of safetensors; both keep every head."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.interop.sit_file import ARCHITECTURE, CONFIG, PREPROCESSOR, read_sit_file
from modeling_sit.interop.source import load_source
from modeling_sit.interop.verification import Predict, outputs_of


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
        f"load it with safetensors.torch: {type(model).__name__}(config).load_state_dict(load_file({str(path)!r})); "
        f"{', '.join(name for name in metadata if name.endswith('.json'))} in its metadata"
    ]


def load_safetensors(path: Path) -> Predict:
    """What this package makes of a file of [`write_safetensors`]."""
    model = read_sit_file(path)[0].eval()
    return lambda pixel_values: outputs_of(model, pixel_values)
