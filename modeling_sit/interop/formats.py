"""The formats that a SiT can be written in: what each is, what writes it, and what reads it back."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTForImageClassification, SiTForObjectDetection
from modeling_sit.interop.graphs import (
    NO_DETECTOR,
    WITH_LOGITS,
    load_exported,
    load_onnx,
    write_exported,
    write_onnx,
)
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.interop.plain_vit import load_plain_vit, write_plain_vit
from modeling_sit.interop.safetensors import MODEL_CLASSES, load_safetensors, write_safetensors
from modeling_sit.interop.timm import load_timm_folder, write_timm_folder
from modeling_sit.interop.torchvision import load_torchvision, write_torchvision
from modeling_sit.interop.verification import Predict, outputs_of
from modeling_sit.runtime.errors import SiTError


@dataclass(frozen=True)
class Format:
    """
    One format.

    Args:
        library (`str`): The library that reads it.
        write (`Callable`):
            Writes a model, and its image processor if there is one, to a new path. Returns lines for the user: how to
            load it, and what it cannot hold.
        load (`Callable`): Reads it back in that library. Returns a function from images to outputs.
        suffix (`str`, *optional*): Suffix of the file. `None`: the format is a folder.
        tolerance (`float`): The largest difference of an output that rounding explains.
        classes (`tuple[type, ...]`): What it holds with the heads. Of other classes it holds the backbone.
        refusals (mapping from `type` to `str`): Why it holds no model of a class, not the backbone either unless that is
            asked for.
        packages (`tuple[str, ...]`): Packages that it needs beyond those that this package requires.
        extra (`str`, *optional*): The extra that installs them.
    """

    library: str
    write: Callable[..., list[str]]
    load: Callable[[Path], Predict]
    suffix: str | None = None
    tolerance: float = 1e-5
    classes: tuple[type, ...] = (SiTForImageClassification,)
    refusals: Mapping[type, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    extra: str | None = None

    def check_installed(self, name: str) -> None:
        """Raise [`SiTError`] if a package that this format, called `name`, needs is not installed."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise SiTError(
                f"{name} needs {', '.join(missing)}, not installed here",
                argument="format",
                remedy=f"pip install 'modeling-sit[{self.extra}]'",
            )


def write_sit_folder(model: PreTrainedModel, processor: BaseImageProcessor | None, folder: Path) -> list[str]:
    """Write weights, configuration, image processor and the code to load them without this package.

    Returns:
        `list[str]`: How to load it.
    """
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return [f"load it with this package: {type(model).__name__}.from_pretrained({str(folder)!r})"]


def load_sit_folder(folder: Path) -> Predict:
    """The outputs that this package gives for a folder of [`write_sit_folder`]."""
    model = load_checkpoint(str(folder)).model
    return lambda pixel_values: outputs_of(model, pixel_values)


EVERY_CLASS = tuple(MODEL_CLASSES.values())
NO_GRAPH = {SiTForObjectDetection: NO_DETECTOR}
FORMATS = {
    "sit": Format("modeling_sit", write_sit_folder, load_sit_folder, classes=EVERY_CLASS),
    "safetensors": Format("modeling_sit", write_safetensors, load_safetensors, ".safetensors", classes=EVERY_CLASS),
    "vit": Format("transformers", write_plain_vit, load_plain_vit),
    "timm": Format("timm", write_timm_folder, load_timm_folder, packages=("timm",), extra="timm"),
    "torchvision": Format("torchvision", write_torchvision, load_torchvision, ".safetensors"),
    "torch_export": Format("PyTorch", write_exported, load_exported, ".pt2", classes=WITH_LOGITS, refusals=NO_GRAPH),
    "onnx": Format(
        "ONNX Runtime",
        write_onnx,
        load_onnx,
        ".onnx",
        tolerance=1e-4,
        classes=WITH_LOGITS,
        refusals=NO_GRAPH,
        packages=("onnx", "onnxruntime", "onnxscript"),
        extra="onnx",
    ),
}
