"""Checkpoints of a run: complete or not there, and known to be undamaged before anything is read from them."""

import hashlib
import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.accelerator import full_state_dict, load_full_state_dict
from modeling_sit.runtime.atomic_files import (
    PROBE,
    TEMPORARY_PREFIX,
    digest,
    finish_files,
    fsync,
    replace_file,
    write_errors,
)
from modeling_sit.runtime.distributed import broadcast_from_main, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import delete_files, find_files

STATE_FILE = "run_state.json"
TEACHER_FILE = "teacher.safetensors"
# The method's own state, such as a center.
METHOD_FILE = "method.safetensors"
# Its name while the checkpoint is deleted: what is left of that is known for one, and is taken for no checkpoint.
DELETED = f".deleted-{STATE_FILE}"
# How to go on, as messages say it.
RESUME = '`resume_from_checkpoint="auto"`'
# The name of a file while safetensors writes it.
SAVING = ".tmp" + "[0-9A-Za-z]" * 6
# What there is in a checkpoint whose list of files is not there or cannot be read. The rest is a user's.
CHECKPOINT_FILES = (
    *("model*.safetensors", "optimizer*.bin", "scheduler*.bin", "sampler*.bin", "dl_state_dict*.bin", "scaler.pt"),
    *("random_states_*.pkl", "custom_checkpoint_*.pkl", "pytorch_model*", "pytorch_model_fsdp_*/*", "optimizer_*/*"),
    *(TEACHER_FILE, METHOD_FILE, "stream-*.json", SAVING),
)


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
    remedy = f"earlier checkpoints are as they were: make room, and go on with {RESUME}"
    with write_errors(path, remedy):
        unfinished = broadcast_from_main(accelerator, lambda: _make_unfinished(path))
    try:
        with sync_errors(accelerator), write_errors(path, remedy):
            accelerator.save_state(str(unfinished))
            teacher_state = full_state_dict(method.teacher.model) if method.teacher is not None else None
            if stream_state is not None:
                (unfinished / stream_file(accelerator.process_index)).write_text(
                    json.dumps(stream_state), encoding="utf-8"
                )
        with sync_errors(accelerator), write_errors(path, remedy):
            if accelerator.is_main_process:
                if teacher_state is not None:
                    save_file(teacher_state, unfinished / TEACHER_FILE)
                if method.own_state_dict():
                    save_file(method.own_state_dict(), unfinished / METHOD_FILE)
                finish_files(unfinished)
                digests = {str(file.relative_to(unfinished)): digest(file) for file in _files_in(unfinished)}
                written = {**asdict(state), "files": digests}
                (unfinished / STATE_FILE).write_text(
                    json.dumps({**written, "digest": _state_digest(written)}, indent=2), encoding="utf-8"
                )
                finish_files(unfinished)
                _put_in_place(unfinished, path)
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _make_unfinished(path: Path) -> Path:
    """Make the folder in which a checkpoint is written, empty, beside its place."""
    number, unfinished = 1, path.with_name(TEMPORARY_PREFIX + path.name)
    delete_checkpoint(unfinished)
    while unfinished.exists():  # with a user's files
        number += 1
        unfinished = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{number}")
    unfinished.mkdir(parents=True)
    return unfinished


def _put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a finished checkpoint; where a user's files are in a folder of its name, put it beside them."""
    delete_checkpoint(path)
    if path.exists():
        # Last the file that makes a checkpoint of it.
        for file in sorted(_files_in(unfinished), key=lambda file: file.name == STATE_FILE):
            place = path / file.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        fsync(path)
    else:
        unfinished.rename(path)
    fsync(path.parent)


def delete_checkpoint(path: Path) -> None:
    """Delete what a run has written in a checkpoint, and the folder, if nothing else is in it.

    A crash leaves no checkpoint, and what it leaves is deleted by [`clear_leftovers`].
    """
    state, renamed = path / STATE_FILE, path / DELETED
    if state.exists():
        state.replace(renamed)
    delete_files(path, _written_files(path, renamed))
    delete_files(path, [renamed])


def _written_files(path: Path, state: Path) -> list[Path]:
    """The files of a checkpoint by the list in its state, or by the names that they have in any."""
    try:
        names = [Path(name) for name in json.loads(state.read_text(encoding="utf-8"))["files"]]
        listed = [path / name for name in names if not name.is_absolute() and ".." not in name.parts]
    except (OSError, ValueError, KeyError, TypeError):
        listed = find_files(path, CHECKPOINT_FILES)
    return [*listed, *find_files(path, [PROBE])]


def delete_old_checkpoints(accelerator: Accelerator, output_dir: Path, limit: int) -> None:
    """Keep the newest `limit` checkpoints (all where it is 0)."""
    with sync_errors(accelerator), naming_what_cannot_be_deleted(output_dir):
        if accelerator.is_main_process and limit > 0:
            for path in list_checkpoints(output_dir)[:-limit]:
                delete_checkpoint(path)


def delete_checkpoints_after(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Delete what a run that goes on from `step` is about to write anew; else the old ones would count as newer."""
    with sync_errors(accelerator), naming_what_cannot_be_deleted(output_dir):
        if accelerator.is_main_process:
            for path in list_checkpoints(output_dir):
                if path.name > checkpoint_path(output_dir, step).name:
                    delete_checkpoint(path)
    accelerator.wait_for_everyone()


def naming_what_cannot_be_deleted(output_dir: Path) -> AbstractContextManager[None]:
    return write_errors(output_dir, "see to its permissions, or choose another `output_dir`")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; damaged ones too, but no folder without a state."""
    return [path for path in checkpoint_folders(output_dir) if (path / STATE_FILE).is_file()]


def checkpoint_folders(output_dir: Path, prefix: str = "") -> list[Path]:
    """All that has the name of a checkpoint, oldest first; not what a user calls `step-00000500-good`.

    Args:
        output_dir (`Path`): The run's folder.
        prefix (`str`, *optional*, defaults to `""`): What is before the names.
    """
    paths = (output_dir / "checkpoints").glob(f"{prefix}step-*")
    return sorted(path for path in paths if path.is_dir() and path.name.removeprefix(f"{prefix}step-").isdecimal())


def clear_leftovers(output_dir: Path) -> None:
    """Delete what a killed process left of checkpoints that it was about to finish or to delete."""
    for prefix in (TEMPORARY_PREFIX, ".deleted-"):  # the second is of earlier versions
        for path in checkpoint_folders(output_dir, prefix):
            delete_checkpoint(path)
    for path in checkpoint_folders(output_dir):
        if (path / DELETED).exists():
            delete_checkpoint(path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; `None` where each is what was written."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
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


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_run_state(path: Path) -> RunState:
    """All of an undamaged checkpoint but the networks and the optimizer."""
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    del state["files"], state["digest"]
    window = state["window"] or {}
    if "num_pictures" in window:  # its name in earlier checkpoints
        window["num_images"] = window.pop("num_pictures")
    return RunState(**state)


def read_stream_state(path: Path, process_index: int) -> dict | None:
    """Where this process's stream of images stood; `None` where the images are not streamed."""
    file = path / stream_file(process_index)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


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
        unfinished.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def read_output_state(output_dir: Path) -> RunState | None:
    """What [`write_run_state`] wrote; `None` where there is none, or it is damaged."""
    try:
        return RunState(**json.loads((output_dir / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
