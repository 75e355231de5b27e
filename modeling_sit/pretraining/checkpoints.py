"""Checkpoints of a run: complete or not there, and known to be undamaged before anything is read from them."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.accelerator import full_state_dict, load_full_state_dict
from modeling_sit.runtime.atomic_files import (
    TEMPORARY_PREFIX,
    digest,
    fsync,
    fsync_files,
    replace_file,
    write_errors,
)
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError

STATE_FILE = "run_state.json"
TEACHER_FILE = "teacher.safetensors"
# The method's own state, such as a center.
METHOD_FILE = "method.safetensors"
DELETED = ".deleted-"
# How to go on, as messages say it.
RESUME = '`resume_from_checkpoint="auto"`'
RUN_FILES = ("metrics.jsonl", "monitors.jsonl", "checkpoints", "previews", "logs", "model.safetensors", STATE_FILE)


@dataclass
class RunState:
    """
    The state of a run beside its networks and its optimizer.

    Args:
        settings (`dict`): The arguments' values, for whoever reads the checkpoint.
        determined_by (`dict`): What the run's outcome follows from, as [`run_fingerprint`] gives it.
        step (`int`, *optional*, defaults to 0): Steps done.
        window (`dict`, *optional*): What [`MetricLogger.state_dict`] gave.
        unreadable (`list` of `str`, *optional*): Images that could not be read, and why.
        seconds (`float`, *optional*, defaults to 0): How long the run has taken, all its starts together.
        starts (`list` of `dict`, *optional*): Its starts, as `describe_start` gives them, oldest first.
        crops_on_device (`bool`, *optional*): Whether its crops are cut on the device, which rounds otherwise than the host.
            `None` before that is known.
        chosen (`dict`, *optional*): What the run's preset chose, by name, so that a run that goes on has the same.
        exported (`str`, *optional*): Whose weights the folder of a finished run has, `"teacher"` or `"student"`; `None`
            before it is finished.
    """

    settings: dict[str, Any]
    determined_by: dict[str, Any]
    step: int = 0
    window: dict[str, Any] | None = None
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0
    starts: list[dict[str, Any]] = field(default_factory=list)
    crops_on_device: bool | None = None
    exported: str | None = None
    chosen: dict[str, Any] = field(default_factory=dict)


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step-{step:08d}"


def stream_file(process_index: int) -> str:
    return f"stream-{process_index}.json"


def save_checkpoint(
    accelerator: Accelerator,
    method: Method,
    output_dir: Path,
    state: RunState,
    stream_state: dict | None = None,
) -> Path:
    """Write a checkpoint beside its place, have it on the disk, and rename it. Every process must call this.

    Args:
        accelerator (`Accelerator`): Has prepared the student and the optimizer.
        method ([`Method`]): Has the teacher, and perhaps a state of its own.
        output_dir (`Path`): The run's folder.
        state (`RunState`): All else.
        stream_state (`dict`, *optional*): Where this process's stream of images stands.

    Raises:
        [`SiTError`]: If it cannot be written, because the disk is full for instance. Earlier ones are as they were.
    """
    path = checkpoint_path(output_dir, state.step)
    unfinished = path.with_name(TEMPORARY_PREFIX + path.name)
    remedy = f"earlier checkpoints are as they were: make room, and go on with {RESUME}"
    with sync_errors(accelerator), write_errors(path, remedy):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    try:
        with sync_errors(accelerator), write_errors(path, remedy):
            accelerator.save_state(str(unfinished))
            teacher_state = full_state_dict(method.teacher.model) if method.teacher is not None else None
            if stream_state is not None:
                (unfinished / stream_file(accelerator.process_index)).write_text(json.dumps(stream_state))
        with sync_errors(accelerator), write_errors(path, remedy):
            if accelerator.is_main_process:
                if teacher_state is not None:
                    save_file(teacher_state, unfinished / TEACHER_FILE)
                if method.own_state_dict():
                    save_file(method.own_state_dict(), unfinished / METHOD_FILE)
                fsync_files(unfinished)
                digests = {str(file.relative_to(unfinished)): digest(file) for file in _files_in(unfinished)}
                written = {**asdict(state), "files": digests}
                (unfinished / STATE_FILE).write_text(
                    json.dumps({**written, "digest": _state_digest(written)}, indent=2)
                )
                fsync_files(unfinished)
                delete_checkpoint(path)
                unfinished.rename(path)
                fsync(path.parent)
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
    with sync_errors(accelerator), _naming_what_cannot_be_deleted(output_dir):
        if accelerator.is_main_process and limit > 0:
            for path in list_checkpoints(output_dir)[:-limit]:
                delete_checkpoint(path)


def delete_checkpoints_after(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Delete what a run that goes on from `step` is about to write anew; else the old ones would count as newer."""
    with sync_errors(accelerator), _naming_what_cannot_be_deleted(output_dir):
        if accelerator.is_main_process:
            for path in list_checkpoints(output_dir):
                if path.name > checkpoint_path(output_dir, step).name:
                    delete_checkpoint(path)
    accelerator.wait_for_everyone()


def _naming_what_cannot_be_deleted(output_dir: Path) -> AbstractContextManager[None]:
    return write_errors(output_dir, "see to its permissions, or choose another `output_dir`")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; not what a user calls `step-00000500-good`, which is the user's."""
    paths = (output_dir / "checkpoints").glob("step-*")
    return sorted(path for path in paths if path.name.removeprefix("step-").isdecimal())


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; `None` where each is what was written."""
    try:
        state = json.loads((path / STATE_FILE).read_text())
        is_as_written = state.pop("digest") == _state_digest(state)
        files = state["files"]
    except FileNotFoundError:
        return f"it has no {STATE_FILE}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_FILE} is damaged"
    if not is_as_written:
        return f"{STATE_FILE} is not what was written"
    for name, expected in files.items():
        try:
            found = digest(path / name)
        except OSError as problem:
            return f"{name}: {problem.strerror}"
        if found != expected:
            return f"{name} is not what was written"
    return None


def _state_digest(state: dict[str, Any]) -> str:
    """Checksum of what is in the file that holds the checksums of the others."""
    return hashlib.blake2b(json.dumps(state).encode(), digest_size=16).hexdigest()


def prepare_output_dir(output_dir: Path, arguments: PretrainingArguments, checkpoint: Path | None) -> None:
    """Make the output folder ready for a run that goes on from what [`check_output_dir`] gave; for the main process.

    What is there of another run is deleted.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if not _goes_on(output_dir, arguments, checkpoint):
        _delete(output_dir, _old_run(output_dir))
    _clear_leftovers(output_dir)


def check_output_dir(output_dir: Path, arguments: PretrainingArguments) -> Path | None:
    """Which checkpoint a run in the output folder goes on from; changes nothing. For the main process.

    With `resume_from_checkpoint="auto"` damaged and half-written checkpoints are passed over, with a line that says so.

    Returns:
        `Path`, *optional*: The checkpoint to go on from; `None` for a run from the start.

    Raises:
        [`SiTError`]: If the folder cannot be written, or holds a run and nothing was said about it, or there is no
            undamaged checkpoint where one was asked for.
    """
    existing = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as problem:
        raise SiTError(f"{output_dir} cannot be written: {problem.strerror}", argument="output_dir") from problem
    asked, checkpoint = arguments.resume_from_checkpoint, None
    if asked == "auto":
        checkpoint = _newest_undamaged(output_dir)
    elif asked is not None:
        checkpoint = Path(asked)
        damage = find_damage(checkpoint)
        if damage is not None:
            raise SiTError(f"{asked} is no checkpoint, or a damaged one: {damage}", argument="resume_from_checkpoint")
    if _goes_on(output_dir, arguments, checkpoint) or arguments.overwrite_output_dir or not _old_run(output_dir):
        return checkpoint
    if asked == "auto":
        raise SiTError(
            f"{output_dir} holds a run without an undamaged checkpoint to go on from",
            argument="output_dir",
            remedy="`overwrite_output_dir` starts again",
        )
    which = "" if asked is None else f", and the checkpoint {asked} is not of this run"
    raise SiTError(
        f"{output_dir} holds a run already{which}",
        argument="output_dir",
        remedy=f"{RESUME} goes on with it, `overwrite_output_dir` starts again",
    )


def _goes_on(output_dir: Path, arguments: PretrainingArguments, checkpoint: Path | None) -> bool:
    """Whether the folder may be used as it is: it holds the run that goes on, or nothing that would be lost."""
    has_model = (output_dir / "model.safetensors").exists()
    if arguments.resume_from_checkpoint is None:
        return False
    if arguments.resume_from_checkpoint == "auto":
        # Without a model a run has not come to its first checkpoint, and can start again.
        return checkpoint is not None or not has_model
    is_its_own = checkpoint.resolve().is_relative_to((output_dir / "checkpoints").resolve())
    # Of another run there is nothing to lose before its first checkpoint.
    return is_its_own or not (list_checkpoints(output_dir) or has_model)


def _old_run(output_dir: Path) -> list[Path]:
    return [output_dir / name for name in RUN_FILES if (output_dir / name).exists()]


def lock_output_dir(output_dir: Path) -> TextIO:
    """Keep other processes of this machine from running in the same folder, as long as the file that this gives is open.

    Raises:
        [`SiTError`]: If one does already.
    """
    name = hashlib.blake2b(str(output_dir.resolve()).encode(), digest_size=8).hexdigest()
    # Not in the folder, which is a model repository; and by a lock that forked dataloader workers do not inherit.
    file = open(Path(tempfile.gettempdir()) / f"modeling-sit-{os.getuid()}-{name}.lock", "w")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        file.close()
        raise SiTError(
            f"another process is running in {output_dir}", argument="output_dir", remedy="wait for it, or end it"
        ) from problem
    return file


def _newest_undamaged(output_dir: Path) -> Path | None:
    for path in sorted((output_dir / "checkpoints").glob(f"{TEMPORARY_PREFIX}step-*")):
        tqdm.write(f"passed over {path}: it was not finished", file=sys.stderr)
    for path in reversed(list_checkpoints(output_dir)):
        damage = find_damage(path)
        if damage is None:
            return path
        tqdm.write(f"passed over {path}: {damage}", file=sys.stderr)
    return None


def _clear_leftovers(output_dir: Path) -> None:
    """Delete what a killed process left behind of files that it was about to finish or to delete."""
    folders = (output_dir, output_dir / "checkpoints", output_dir / "previews")
    _delete(
        output_dir,
        [path for folder in folders for prefix in (TEMPORARY_PREFIX, DELETED) for path in folder.glob(f"{prefix}*")],
    )


def _delete(output_dir: Path, paths: list[Path]) -> None:
    with _naming_what_cannot_be_deleted(output_dir):
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_run_state(path: Path) -> RunState:
    """All of an undamaged checkpoint but the networks and the optimizer."""
    state = json.loads((path / STATE_FILE).read_text())
    del state["files"], state["digest"]
    window = state["window"] or {}
    if "num_pictures" in window:  # its name in earlier checkpoints
        window["num_images"] = window.pop("num_pictures")
    return RunState(**state)


def read_stream_state(path: Path, process_index: int) -> dict | None:
    """Where this process's stream of images stood; `None` where the images are not streamed."""
    file = path / stream_file(process_index)
    return json.loads(file.read_text()) if file.exists() else None


def load_checkpoint(accelerator: Accelerator, method: Method, path: Path) -> None:
    """Restore the networks, the method's own state and the optimizer from an undamaged checkpoint. Every process must call
    this.

    Raises:
        [`SiTError`]: If it does not fit them.
    """
    try:
        accelerator.load_state(str(path))
        # It counts batches, of which another run's steps may have had another number; a checkpoint lies between steps.
        accelerator.step = 0
        if method.teacher is not None:
            load_full_state_dict(method.teacher.model, load_file(path / TEACHER_FILE))
        own_state = path / METHOD_FILE
        method.load_own_state_dict(load_file(own_state) if own_state.exists() else {})
    # The readers raise nearly everything.
    except Exception as problem:
        raise SiTError(
            f"checkpoint {path} cannot be loaded, so it is of another model: "
            f"{(str(problem) or type(problem).__name__).splitlines()[0]}",
            argument="resume_from_checkpoint",
        ) from problem


def write_run_state(output_dir: Path, state: RunState) -> None:
    """Write `run_state.json` of the output folder: what the model in it is of. For the main process.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    path = output_dir / STATE_FILE
    with write_errors(path, f"make room, and go on with {RESUME}"), replace_file(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(state), indent=2) + "\n")


def read_output_state(output_dir: Path) -> RunState | None:
    """What [`write_run_state`] wrote; `None` where there is none, or it is damaged."""
    try:
        return RunState(**json.loads((output_dir / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
