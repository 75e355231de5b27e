"""The formats that a SiT is written in: what each is, who writes it, who reads it back."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling_sit.interop.graphs import load_exported, write_exported
from modeling_sit.interop.onnx import load_onnx, write_onnx
from modeling_sit.interop.plain_vit import load_plain_vit, write_plain_vit
from modeling_sit.interop.sit import load_safetensors, load_sit_folder, write_safetensors, write_sit_folder
from modeling_sit.interop.timm_folder import load_timm_folder, write_timm_folder
from modeling_sit.interop.torchvision_layout import load_torchvision, write_torchvision
from modeling_sit.interop.verification import Predict
from modeling_sit.runtime.errors import SiTError


@dataclass(frozen=True)
class Format:
    """
    One format.

    Args:
        library (`str`): Who reads it.
        write (`Callable`):
            Writes a model, with its image processor if there is one, to a path that is new. Gives lines for the user: how
            to load it, and what it cannot hold.
        load (`Callable`): Reads it back in that library, and gives what predicts outputs from images.
        suffix (`str`, *optional*): Of its file. `None`: it is a folder.
        tolerance (`float`): The largest difference of an output that rounding explains.
        keeps_heads (`bool`): Whether it can hold the heads of pretraining.
        packages (`tuple[str, ...]`): What has to be installed beyond the package's own needs.
        extra (`str`, *optional*): The extra that installs them.
    """

    library: str
    write: Callable[..., list[str]]
    load: Callable[[Path], Predict]
    suffix: str | None = None
    tolerance: float = 1e-5
    keeps_heads: bool = False
    packages: tuple[str, ...] = ()
    extra: str | None = None

    def check_installed(self, name: str) -> None:
        """Raise [`SiTError`] if a package that this format, called `name`, needs is not there."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise SiTError(
                f"--format {name} needs {', '.join(missing)}, not installed here: pip install 'modeling-sit[{self.extra}]'"
            )


FORMATS = {
    "sit": Format("modeling_sit", write_sit_folder, load_sit_folder, keeps_heads=True),
    "safetensors": Format("modeling_sit", write_safetensors, load_safetensors, ".safetensors", keeps_heads=True),
    "vit": Format("transformers", write_plain_vit, load_plain_vit),
    "timm": Format("timm", write_timm_folder, load_timm_folder, packages=("timm",), extra="timm"),
    "torchvision": Format("torchvision", write_torchvision, load_torchvision, ".safetensors"),
    "torch_export": Format("PyTorch", write_exported, load_exported, ".pt2"),
    "onnx": Format(
        "ONNX Runtime",
        write_onnx,
        load_onnx,
        ".onnx",
        tolerance=1e-4,
        packages=("onnx", "onnxruntime", "onnxscript"),
        extra="onnx",
    ),
}
