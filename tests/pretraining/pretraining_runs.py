"""Runs of a fraction of a second: their arguments, and what they leave in their folder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.resolve import settings_of_others

HEADS = {"decoder_hidden_size": 16, "projection_hidden_size": 16, "projection_size": 16}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **HEADS}


def arguments_of(output_dir: Path, *, channels: int = 1, overrides: dict | None = None, **arguments) -> dict[str, Any]:
    """Arguments of a run on digits: a model of two narrow blocks on images of four patches, without previews and monitors.

    Args:
        output_dir (`Path`): The run's folder.
        channels (`int`, *optional*, defaults to 1): Of the images.
        overrides (`dict`, *optional*): Fields of the configuration.
        arguments: Arguments of `pretrain`.
    """
    others = settings_of_others(METHODS.get(arguments.get("method"), METHODS["sit"]))
    fields = {name: value for name, value in TINY.items() if name not in others}
    fields |= {"num_channels": channels, **(overrides or {})}
    return {
        "dataset": "digits",
        "output_dir": output_dir,
        "preset": "paper",
        "image_size": 16,
        "patch_size": 8,
        "config_overrides": ",".join(f"{name}={value}" for name, value in fields.items()),
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "preview_steps": 0,
        "monitor_steps": 0,
        "logging_steps": 1,
        **arguments,
    }


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses_of(folder: Path) -> list[tuple]:
    """What of the log does not depend on the machine's speed."""
    speeds = ("images_per_second", "data_wait")
    return [tuple(value for name, value in line.items() if name not in speeds) for line in lines_of(folder)]


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def checkpoints_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path if path.suffix else path / "model.safetensors")


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], prefix: str = "") -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        if name.startswith(prefix):
            assert torch.equal(value, others[name]), name


def is_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return all(torch.equal(value, others[name]) for name, value in weights.items() if name.startswith(prefix))


# Settings of views that are nothing but the whole image, scaled: of images with the ratio 1.2.
OFF = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.2, 1.2],
    "horizontal_flip_probability": 0,
    "vertical_flip_probability": 0,
    "color_jitter": [0, 0, 0, 0],
    "color_jitter_probability": 0,
    "grayscale_probability": 0,
    "blur_probability": [0, 0],
    "blur_sigma": [14.0, 14.0],  # one pixel of these views
    "solarize_probability": [0, 0],
    "solarize_threshold": 0.5,
}


class RecordedRun:
    """What a run wrote, and, batch by batch, what its student was given and gave."""

    def __init__(self, folder: Path, batches: list[dict]):
        self.folder = folder
        self.batches = batches
        self.log = lines_of(folder)

    def logged(self, name: str) -> list[float]:
        return [line[name] for line in self.log]
