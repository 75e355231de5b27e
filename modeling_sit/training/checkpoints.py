"""Checkpoints of a run: complete or not there."""

import json
import shutil
import tempfile
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from modeling_sit.cli.errors import UserError
from modeling_sit.training.arguments import PretrainingArguments
from modeling_sit.training.teacher import Teacher

STATE_FILE = "run_state.json"
TEACHER_FILE = "teacher.safetensors"
RUN_FILES = ("metrics.jsonl", "checkpoints", "previews", "model.safetensors")


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    accelerator: Accelerator, teacher: Teacher | None, output_dir: Path, step: int, settings: dict
) -> Path:
    """Write a checkpoint beside its place and rename it into it.

    Args:
        accelerator (`Accelerator`): Has prepared the student and the optimiser.
        teacher (`Teacher`, *optional*): The teacher, where the run has one.
        output_dir (`Path`): The run's folder.
        step (`int`): Steps done.
        settings (`dict`): The run's arguments, kept for whoever reads the checkpoint.
    """
    path = checkpoint_path(output_dir, step)
    unfinished = path.with_name(path.name + ".unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if teacher is not None:
            save_file(teacher.model.state_dict(), unfinished / TEACHER_FILE)
        (unfinished / STATE_FILE).write_text(json.dumps({"step": step, "settings": settings}, indent=2))
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
    accelerator.wait_for_everyone()
    return path


def delete_old_checkpoints(accelerator: Accelerator, output_dir: Path, limit: int) -> None:
    """Keep the newest `limit` checkpoints (all where it is 0)."""
    if accelerator.is_main_process and limit > 0:
        for path in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(path)


def delete_checkpoints_after(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Delete what a run that goes on from `step` is about to write anew; else the old ones would count as newer."""
    if accelerator.is_main_process:
        for path in list_checkpoints(output_dir):
            if path.name > checkpoint_path(output_dir, step).name:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = (output_dir / "checkpoints").glob(f"step-*/{STATE_FILE}")
    return sorted(path.parent for path in found if not path.parent.name.endswith(".unfinished"))


def prepare_output_dir(output_dir: Path, arguments: PretrainingArguments, is_main_process: bool) -> Path | None:
    """Make the output folder ready.

    Returns:
        `Path`, *optional*: The checkpoint to go on from, as `--resume_from_checkpoint` says; `None` for a run from the
        start.

    Raises:
        [`UserError`]: If the folder cannot be written, holds a run that nothing was said about, or the checkpoint is
            not there or not complete.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as problem:
        raise UserError(f"--output_dir {output_dir} cannot be written: {problem.strerror}") from problem
    asked = arguments.resume_from_checkpoint
    if asked == "auto":
        return (list_checkpoints(output_dir) or [None])[-1]
    if asked is not None:
        if not (Path(asked) / STATE_FILE).exists():
            raise UserError(f"--resume_from_checkpoint {asked}: not a complete checkpoint (it has no {STATE_FILE})")
        return Path(asked)
    if is_main_process:
        old_run = [output_dir / name for name in RUN_FILES if (output_dir / name).exists()]
        if old_run and not arguments.overwrite_output_dir:
            raise UserError(
                f"--output_dir {output_dir} holds a run already: --resume_from_checkpoint auto goes on with it, "
                "--overwrite_output_dir starts anew"
            )
        for path in old_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def load_checkpoint(accelerator: Accelerator, teacher: Teacher | None, path: Path) -> int:
    """Restore the student, the optimiser and the teacher; returns the number of steps done."""
    try:
        accelerator.load_state(str(path))
        if teacher is not None:
            teacher.model.load_state_dict(load_file(path / TEACHER_FILE))
        return json.loads((path / STATE_FILE).read_text())["step"]
    # Damaged files make their readers raise nearly everything.
    except Exception as problem:
        raise UserError(
            f"checkpoint {path} cannot be loaded, so it is damaged or of another model: "
            f"{(str(problem) or type(problem).__name__).splitlines()[0]}"
        ) from problem
