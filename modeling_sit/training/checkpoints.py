"""Checkpoints of a run: complete or not there, and known to be undamaged before anything is read from them."""

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from modeling_sit.cli.errors import UserError
from modeling_sit.training.arguments import PretrainingArguments
from modeling_sit.training.durable_files import UNFINISHED, flush, flush_files, naming_what_cannot_be_written
from modeling_sit.training.engines import full_state_dict, load_full_state_dict
from modeling_sit.training.processes import fail_together
from modeling_sit.training.teacher import Teacher

STATE_FILE = "run_state.json"
# The checksum of every other file; the last to be written.
MANIFEST_FILE = "files.json"
TEACHER_FILE = "teacher.safetensors"
DELETED = ".deleted-"
RUN_FILES = ("metrics.jsonl", "monitors.jsonl", "checkpoints", "previews", "logs", "model.safetensors")


@dataclass
class RunState:
    """
    What of a run is neither in its networks nor in its optimiser.

    Args:
        step (`int`): Steps done.
        settings (`dict`): The flags' values, for whoever reads the checkpoint.
        determined_by (`dict`): What the run's outcome follows from, as [`run_settings.determining_settings`] gives it.
        window (`dict`): What was counted since the last line of the log, as `RunProgress.state_dict` gives it.
        unreadable (`list` of `str`): Pictures that could not be read, and why.
        seconds (`float`): How long the run has taken, all its starts together.
    """

    step: int
    settings: dict[str, Any]
    determined_by: dict[str, Any]
    window: dict[str, Any]
    unreadable: list[str]
    seconds: float


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step-{step:08d}"


def stream_file(process_index: int) -> str:
    return f"stream-{process_index}.json"


def save_checkpoint(
    accelerator: Accelerator,
    teacher: Teacher | None,
    output_dir: Path,
    state: RunState,
    stream_state: dict | None = None,
) -> Path:
    """Write a checkpoint beside its place, have it on the disk, and rename it. Every process must call this.

    Args:
        accelerator (`Accelerator`): Has prepared the student and the optimiser.
        teacher (`Teacher`, *optional*): The teacher, where the run has one.
        output_dir (`Path`): The run's folder.
        state (`RunState`): All else.
        stream_state (`dict`, *optional*): Where this process's stream of pictures stands, if it is streamed.

    Raises:
        [`UserError`]: If it cannot be written, because the disk is full for instance. Earlier ones are as they were.
    """
    path = checkpoint_path(output_dir, state.step)
    unfinished = path.with_name(UNFINISHED + path.name)
    remedy = "earlier checkpoints are as they were; make room, and go on with --resume_from_checkpoint auto"
    with fail_together(accelerator), naming_what_cannot_be_written(path, remedy):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    try:
        with fail_together(accelerator), naming_what_cannot_be_written(path, remedy):
            accelerator.save_state(str(unfinished))
            teacher_state = full_state_dict(teacher.model) if teacher is not None else None
            if stream_state is not None:
                (unfinished / stream_file(accelerator.process_index)).write_text(json.dumps(stream_state))
        with fail_together(accelerator), naming_what_cannot_be_written(path, remedy):
            if accelerator.is_main_process:
                if teacher is not None:
                    save_file(teacher_state, unfinished / TEACHER_FILE)
                (unfinished / STATE_FILE).write_text(json.dumps(asdict(state), indent=2))
                digests = {str(file.relative_to(unfinished)): digest(file) for file in _files_in(unfinished)}
                (unfinished / MANIFEST_FILE).write_text(json.dumps(digests, indent=2))
                flush_files(unfinished)
                delete_checkpoint(path)
                unfinished.rename(path)
                flush(path.parent)
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
    return path


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint, if it is there, so that what a crash leaves of it is not taken for one."""
    if path.exists():
        deleted = path.with_name(DELETED + path.name)
        shutil.rmtree(deleted, ignore_errors=True)
        path.rename(deleted)
        shutil.rmtree(deleted)


def delete_old_checkpoints(accelerator: Accelerator, output_dir: Path, limit: int) -> None:
    """Keep the newest `limit` checkpoints (all where it is 0)."""
    if accelerator.is_main_process and limit > 0:
        for path in list_checkpoints(output_dir)[:-limit]:
            delete_checkpoint(path)


def delete_checkpoints_after(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Delete what a run that goes on from `step` is about to write anew; else the old ones would count as newer."""
    if accelerator.is_main_process:
        for path in list_checkpoints(output_dir):
            if path.name > checkpoint_path(output_dir, step).name:
                delete_checkpoint(path)
    accelerator.wait_for_everyone()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step-*"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; `None` where each is what was written."""
    try:
        digests = dict(json.loads((path / MANIFEST_FILE).read_text()))
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST_FILE} is damaged"
    for name, expected in digests.items():
        try:
            found = digest(path / name)
        except OSError as problem:
            return f"{name}: {problem.strerror}"
        if found != expected:
            return f"{name} is not what was written"
    return None


def digest(path: Path) -> str:
    """Checksum of a file (BLAKE2b, 16 bytes, hexadecimal)."""
    checksum = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def prepare_output_dir(output_dir: Path, arguments: PretrainingArguments) -> Path | None:
    """Make the output folder ready; for the main process.

    With `--resume_from_checkpoint auto` damaged and half-written checkpoints are passed over, with a line that says so.

    Returns:
        `Path`, *optional*: The checkpoint to go on from, as `--resume_from_checkpoint` says; `None` for a run from the
        start.

    Raises:
        [`UserError`]: If the folder cannot be written, holds a run that nothing was said about, or there is no
            undamaged checkpoint where one was asked for.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as problem:
        raise UserError(f"--output_dir {output_dir} cannot be written: {problem.strerror}") from problem
    asked = arguments.resume_from_checkpoint
    if asked is not None and asked != "auto":
        damage = find_damage(Path(asked))
        if damage is not None:
            raise UserError(f"--resume_from_checkpoint {asked}: no checkpoint, or a damaged one: {damage}")
        return Path(asked)
    if asked == "auto":
        checkpoint = _newest_undamaged(output_dir)
        # Without a model a run has not come to its first checkpoint, and can start again.
        if checkpoint is not None or not (output_dir / "model.safetensors").exists():
            _clear_leftovers(output_dir)
            return checkpoint
    old_run = [output_dir / name for name in RUN_FILES if (output_dir / name).exists()]
    if old_run and not arguments.overwrite_output_dir:
        if asked == "auto":
            raise UserError(
                f"--output_dir {output_dir} holds a run without an undamaged checkpoint to go on from; "
                "--overwrite_output_dir starts anew"
            )
        raise UserError(
            f"--output_dir {output_dir} holds a run already: --resume_from_checkpoint auto goes on with it, "
            "--overwrite_output_dir starts anew"
        )
    for path in old_run:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _clear_leftovers(output_dir)
    return None


def _newest_undamaged(output_dir: Path) -> Path | None:
    for path in sorted((output_dir / "checkpoints").glob(f"{UNFINISHED}step-*")):
        tqdm.write(f"passed over {path}: a checkpoint that was not finished", file=sys.stderr)
    for path in reversed(list_checkpoints(output_dir)):
        damage = find_damage(path)
        if damage is None:
            return path
        tqdm.write(f"passed over {path}: {damage}", file=sys.stderr)
    return None


def _clear_leftovers(output_dir: Path) -> None:
    """Delete what a killed process left behind of files that it was about to finish or to delete."""
    for folder in (output_dir, output_dir / "checkpoints", output_dir / "previews"):
        for prefix in (UNFINISHED, DELETED):
            for path in folder.glob(f"{prefix}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_run_state(path: Path) -> RunState:
    """All of an undamaged checkpoint but the networks and the optimiser."""
    return RunState(**json.loads((path / STATE_FILE).read_text()))


def read_stream_state(path: Path, process_index: int) -> dict:
    """Where this process's stream of pictures stood."""
    return json.loads((path / stream_file(process_index)).read_text())


def load_checkpoint(accelerator: Accelerator, teacher: Teacher | None, path: Path) -> None:
    """Restore the student, the optimiser and the teacher from an undamaged checkpoint. Every process must call this.

    Raises:
        [`UserError`]: If it does not fit them.
    """
    try:
        accelerator.load_state(str(path))
        if teacher is not None:
            load_full_state_dict(teacher.model, load_file(path / TEACHER_FILE))
    # The readers raise nearly everything.
    except Exception as problem:
        raise UserError(
            f"checkpoint {path} cannot be loaded, so it is of another model: "
            f"{(str(problem) or type(problem).__name__).splitlines()[0]}"
        ) from problem
