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
from transformers import TrainerState

from modeling_sit.evaluation.predictions import PREDICTIONS_FILE
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import MODEL_FILES, delete_files, find_files

WEIGHTS = "training_weights.safetensors"
# The last file that `Trainer` writes: where it is whole, so is the checkpoint.
STATE = "trainer_state.json"
HISTORY = "run_history.json"
# What there is in a checkpoint; anything else is a user's.
CHECKPOINT_FILES = (
    *(*MODEL_FILES, WEIGHTS, STATE, HISTORY, "training_args.bin"),
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
)
# What a run leaves beside its model, its card, its results and its checkpoints.
RUN_FILES = ("training_args.bin", "tuning.json", PREDICTIONS_FILE, "runs/*/events.out.tfevents.*")


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
        # safetensors says of a file that may not be read that there is none.
        with (Path(folder) / WEIGHTS).open("rb"):
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
    return 0 if checkpoint is None else read_state(checkpoint).global_step


def read_state(checkpoint: str | Path) -> TrainerState:
    """What `Trainer` knew at a complete checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint) / STATE))


def is_over(state: TrainerState, num_steps: int, patience: int | None) -> bool:
    """Whether a run of so many steps was over at a checkpoint: after them, or as it had waited long enough for a better result.

    `Trainer` would train one step more, if the last one is amid an epoch.
    """
    return state.global_step >= num_steps or (patience is not None and evaluations_waited(state) >= patience)


def evaluations_waited(state: TrainerState) -> int:
    """How many evaluations a run had waited for a better result."""
    saved = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first; not what a user calls `checkpoint-500-good`."""
    written = [path for path in Path(output_dir).glob("checkpoint-*") if _step(path).isdecimal()]
    return [path for path in sorted(written, key=lambda path: int(_step(path))) if _is_complete(path)]


def delete_old_checkpoints(output_dir: str | Path, limit: int, best: str | None, keeps_newest: bool = True) -> None:
    """Keep so many checkpoints, the newest, and the best one in any case. Files that no run has written stay.

    Args:
        output_dir (`str` or `Path`): The run's folder.
        limit (`int`): How many to keep.
        best (`str`, *optional*): The best checkpoint.
        keeps_newest (`bool`, *optional*, defaults to `True`): Whether the newest one stays beyond the limit too.
    """
    checkpoints = complete_checkpoints(output_dir)
    kept = [path for path in checkpoints if best is not None and path.resolve() == Path(best).resolve()]
    if keeps_newest:
        kept += [path for path in checkpoints[-1:] if path not in kept]
    others = [path for path in checkpoints if path not in kept]
    for path in others[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        delete_checkpoint(path)


def delete_checkpoint(path: Path) -> None:
    """Delete what a run has written in a checkpoint, and the folder, if nothing else is in it."""
    # First what says that it is whole.
    delete_files(path, sorted(find_files(path, CHECKPOINT_FILES), key=lambda file: file.name != STATE))


def delete_finetuning(output_dir: Path) -> None:
    """Delete what a run of fine-tuning has written beside its model, its card and its results."""
    for path in output_dir.glob("checkpoint-*"):
        if _step(path).isdecimal():
            delete_checkpoint(path)
    delete_files(output_dir, find_files(output_dir, RUN_FILES))


def _step(checkpoint: Path) -> str:
    return checkpoint.name.partition("-")[2]


def _is_complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / STATE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
