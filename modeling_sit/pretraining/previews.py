"""The images that show how a run's reconstructions come along."""

from pathlib import Path

import torch
from accelerate import Accelerator

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.visualization.reconstructions import preview_sheet


def preview_path(output_dir: Path, step: int) -> Path:
    return output_dir / "previews" / f"step-{step:08d}.png"


def save_preview(
    accelerator: Accelerator,
    model: SiTForPreTraining,
    processor: SiTImageProcessor,
    crops: torch.Tensor,
    path: Path,
    seed: int,
) -> None:
    """Save a [`preview_sheet`] as a PNG, if the model reconstructs. Every process must call this.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    sheet = preview_sheet(model, processor, crops, seed)  # in all of them, for a sharded model needs them all
    remedy = "make room, and go on with --resume_from_checkpoint auto"
    with sync_errors(accelerator), write_errors(path, remedy):
        if sheet is not None and accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as unfinished:
                sheet.save(unfinished)
