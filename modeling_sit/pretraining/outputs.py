"""What a run leaves in its folder beside logs and checkpoints: the model repository, and previews."""

from pathlib import Path

import torch
from accelerate import Accelerator

from modeling_sit.pretraining.checkpoints import RESUME
from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.accelerator import full_state_dict
from modeling_sit.runtime.atomic_files import replace_file, replace_files, write_errors
from modeling_sit.runtime.distributed import sync_errors


def export_model(accelerator: Accelerator, method: Method, output_dir: Path, export: str) -> None:
    """Write weights, configuration, processor and code into the output folder. Every process must call this.

    Args:
        accelerator (`Accelerator`): The processes.
        method ([`Method`]): Has the networks.
        output_dir (`Path`): The folder.
        export (`str`): `"teacher"` or `"student"`: whose weights. Without a teacher it is the student.

    Raises:
        [`SiTError`]: If they cannot be written; what was there stays as it was.
    """
    state_dict = full_state_dict(method.exported(export))
    remedy = "the model and the checkpoints in the folder are as they were: make room, and go on from there"
    with sync_errors(accelerator), write_errors(output_dir, remedy):
        if accelerator.is_main_process:
            with replace_files(output_dir) as unfinished:
                method.plain_model().save_pretrained(unfinished, state_dict=state_dict)
                method.processor.save_pretrained(unfinished)


def export_path(output_dir: Path, step: int) -> Path:
    """Where the model of a step lies, of a run with `export_steps`."""
    return output_dir / "exports" / f"step-{step:08d}"


def preview_path(output_dir: Path, step: int) -> Path:
    """Where the preview of a step lies."""
    return output_dir / "previews" / f"step-{step:08d}.png"


def save_preview(accelerator: Accelerator, method: Method, crops: torch.Tensor, path: Path, seed: int) -> None:
    """Save the method's preview as a PNG, if it has one. Every process must call this.

    Args:
        accelerator (`Accelerator`): The processes.
        method ([`Method`]): Makes the preview.
        crops (`torch.Tensor` of shape `(images, channels, height, width)`): uint8.
        path (`Path`): The file.
        seed (`int`): The same seed gives the same corruption.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    sheet = method.preview(crops, seed)  # in all of them, for a sharded model needs them all
    with sync_errors(accelerator), write_errors(path, f"make room, and go on with {RESUME}"):
        if sheet is not None and accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as unfinished:
                sheet.save(unfinished)
