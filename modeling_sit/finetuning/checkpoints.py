"""Checkpoints of fine-tuning: which ones there are, and every weight, by the name it has in training.

transformers' `Trainer` reads a checkpoint's model file into the live model and passes over names that do not fit. Models
that transformers saves under other names than they have in memory, such as its ViT, would keep a random encoder.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modeling_sit.runtime.errors import SiTError

WEIGHTS = "training_weights.safetensors"
# The last file that `Trainer` writes: where it is whole, so is the checkpoint.
STATE = "trainer_state.json"


def save_weights(folder: str | Path, model: nn.Module, average: dict[str, torch.Tensor] | None) -> None:
    """Write the live weights, and their moving average if there is one, into a checkpoint's folder."""
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    weights |= {f"average.{name}": weight for name, weight in (average or {}).items()}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, Path(folder) / WEIGHTS)


def load_weights(folder: str | Path, model: nn.Module, average: dict[str, torch.Tensor] | None) -> None:
    """Read all of them back, in place.

    Raises:
        [`SiTError`]: If the file is missing or damaged, or its weights are not those of this model and this average.
    """
    try:
        saved = load_file(Path(folder) / WEIGHTS)
    except (OSError, SafetensorError) as problem:
        raise SiTError(
            f"{Path(folder) / WEIGHTS} cannot be read: {problem}", argument="resume_from_checkpoint"
        ) from problem
    live = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    live |= {f"average.{name}": weight for name, weight in (average or {}).items()}
    for name in sorted(live.keys() ^ saved.keys()):
        where = "lacks" if name in live else "has"
        raise SiTError(
            f"{folder} {where} {name}, so its run had another model, `lora_rank` or `ema_decay`",
            argument="resume_from_checkpoint",
            remedy="give the arguments of that run",
        )
    with torch.no_grad():
        for name, weight in live.items():
            if weight.shape != saved[name].shape:
                raise SiTError(
                    f"in {folder}, {name} has shape {tuple(saved[name].shape)}, not {tuple(weight.shape)}, so its run had "
                    "another model or other labels",
                    argument="resume_from_checkpoint",
                    remedy="give the arguments of that run",
                )
            weight.copy_(saved[name])


def find_checkpoint(output_dir: str | Path, asked: str | None) -> str | None:
    """The checkpoint to resume from: `asked`, or with `"auto"` the newest of the output folder, if any.

    Raises:
        [`SiTError`]: If `asked` is no checkpoint, or if it is `None` and the output folder has checkpoints of another run.
    """
    complete = complete_checkpoints(output_dir)
    if asked == "auto":
        return str(complete[-1]) if complete else None
    if asked is not None and not _is_complete(Path(asked)):
        raise SiTError(f"{asked} is no checkpoint: it has no whole {STATE}", argument="resume_from_checkpoint")
    if asked is None and complete:
        raise SiTError(
            f"{output_dir} holds the checkpoints of a run",
            argument="output_dir",
            remedy='resume it with `resume_from_checkpoint="auto"`, remove them, or name another folder',
        )
    return asked


def step_of(checkpoint: str | None) -> int:
    """Steps done at a complete checkpoint; 0 without one."""
    return json.loads((Path(checkpoint) / STATE).read_text())["global_step"] if checkpoint is not None else 0


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first."""
    written = sorted(Path(output_dir).glob("checkpoint-*"), key=_number)
    return [path for path in written if _is_complete(path)]


def _number(checkpoint: Path) -> int:
    step = checkpoint.name.partition("-")[2]
    return int(step) if step.isdecimal() else -1


def _is_complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / STATE).read_text()), dict)
    except (OSError, ValueError):
        return False
