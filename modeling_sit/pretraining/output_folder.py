"""The output folder of a run: whether it may be used, what of an earlier run is deleted, and who is running there."""

import fcntl
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.checkpoints import (
    CHECKPOINT_FILES,
    RESUME,
    STATE_FILE,
    checkpoint_folders,
    clear_leftovers,
    delete_checkpoint,
    find_damage,
    list_checkpoints,
    naming_what_cannot_be_deleted,
    read_output_state,
)
from modeling_sit.runtime.atomic_files import PROBE, TEMPORARY_PREFIX, delete_temporary
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.locks import LockHeld, take_lock, warn_without_lock
from modeling_sit.runtime.run_folders import (
    MODEL_FILES,
    check_foreign,
    delete_files,
    delete_if_empty,
    find_files,
    is_marked,
    keep_foreign,
)
from modeling_sit.runtime.trackers import PROJECT, read_metrics

PROGRAM = "pretrain"
LOGS = ("metrics.jsonl", "monitors.jsonl")
# What is deleted of a run. What else it writes is replaced by the next one.
RUN_FILES = (
    *LOGS,
    *("model.safetensors", STATE_FILE),
    f"previews/step-{'[0-9]' * 8}.png",
    *(f"exports/step-{'[0-9]' * 8}/{name}" for name in MODEL_FILES),
    *(f"logs/{PROJECT}/{path}" for path in ("events.out.tfevents.*", "*/events.out.tfevents.*", "*/hparams.yml")),
)
# What a killed process leaves.
UNFINISHED_FILES = (
    *(PROBE, f"previews/{PROBE}"),
    *(f"{TEMPORARY_PREFIX}{name}" for name in (*LOGS, STATE_FILE, "README.md", "loss_curve.png")),
    f"previews/{TEMPORARY_PREFIX}step-{'[0-9]' * 8}.png",
)
# What a run would replace of a user's.
REPLACED_FILES = (
    *(*MODEL_FILES, *LOGS, STATE_FILE, "loss_curve.png", f"previews/step-{'[0-9]' * 8}.png"),
    *(f"exports/step-{'[0-9]' * 8}/{name}" for name in MODEL_FILES),
    *(f"checkpoints/step-{'[0-9]' * 8}/{name}" for name in (*CHECKPOINT_FILES, STATE_FILE)),
)
CONSEQUENCE = "a second run in the same folder would not be noticed"


def prepare_output_dir(output_dir: Path, arguments: PretrainingArguments, checkpoint: Path | None) -> None:
    """Make the output folder ready for a run that goes on from what [`check_output_dir`] gave; for the main process.

    What is there of another run is deleted. What no run has written stays, under another name where it is in the way.
    """
    with naming_what_cannot_be_deleted(output_dir):
        if not is_run(output_dir):
            keep_foreign(output_dir, REPLACED_FILES)
        elif not _goes_on(output_dir, arguments, checkpoint):
            delete_pretraining(output_dir)
        clear_leftovers(output_dir)
        for path in output_dir.glob(f"{TEMPORARY_PREFIX}*"):
            delete_temporary(path)
        for path in find_files(output_dir, UNFINISHED_FILES):
            path.unlink()
        output_dir.mkdir(parents=True, exist_ok=True)


def delete_after(output_dir: Path, step: int) -> None:
    """Delete previews and exports of what a run did after the step from which it goes on anew; for the main process."""
    steps = f"step-{'[0-9]' * 8}"
    later = [
        path
        for path in find_files(
            output_dir, (f"previews/{steps}.png", *(f"exports/{steps}/{name}" for name in MODEL_FILES))
        )
        if int((path.stem if path.parent.name == "previews" else path.parent.name).removeprefix("step-")) > step
    ]
    with naming_what_cannot_be_deleted(output_dir):
        delete_files(output_dir, later)


def delete_pretraining(output_dir: Path) -> None:
    """Delete the files of a run, and folders that are empty then."""
    for path in checkpoint_folders(output_dir):
        delete_checkpoint(path)
    delete_if_empty(output_dir / "checkpoints")
    # Last what says that there is a run.
    delete_files(output_dir, sorted(find_files(output_dir, RUN_FILES), key=lambda path: path.name == STATE_FILE))
    for path in (output_dir / "previews", output_dir):
        delete_if_empty(path)


def is_run(output_dir: Path) -> bool:
    """Whether a pretraining run has written in a folder: by its mark, and before there were marks by what it has left."""
    if is_marked(output_dir, PROGRAM) or list_checkpoints(output_dir) or read_output_state(output_dir) is not None:
        return True
    logs = (read_metrics(output_dir / name)[:1] for name in LOGS if (output_dir / name).is_file())
    return any(isinstance(line, dict) and "step" in line for lines in logs for line in lines)


def holds_results(output_dir: Path) -> bool:
    """Whether there is anything of a run to lose."""
    return is_run(output_dir) and bool(list_checkpoints(output_dir) or find_files(output_dir, RUN_FILES))


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
    if not is_run(output_dir) and not arguments.overwrite_output_dir:
        check_foreign(
            output_dir,
            REPLACED_FILES,
            "name another folder, or keep it there under another name with `overwrite_output_dir`",
        )
    if _goes_on(output_dir, arguments, checkpoint) or arguments.overwrite_output_dir or not holds_results(output_dir):
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


def lock_output_dir(output_dir: Path) -> TextIO:
    """Keep other processes of this machine from running in the same folder, as long as the file that this gives is open.

    Raises:
        [`SiTError`]: If one does already.
    """
    name = hashlib.blake2b(str(output_dir.resolve()).encode(), digest_size=8).hexdigest()
    # Not in the folder, which is a model repository; and by a lock that forked dataloader workers do not inherit.
    path = Path(tempfile.gettempdir()) / f"modeling-sit-{os.getuid()}-{name}.lock"
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as problem:
        warn_without_lock(CONSEQUENCE, f"{path}: {problem.strerror}")
        return io.StringIO()
    try:
        take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, CONSEQUENCE, fcntl.lockf)
    except LockHeld as problem:
        file.close()
        raise SiTError(
            f"another process is running in {output_dir}", argument="output_dir", remedy="wait for it, or end it"
        ) from problem
    return file


def _newest_undamaged(output_dir: Path) -> Path | None:
    for path in checkpoint_folders(output_dir, TEMPORARY_PREFIX):
        tqdm.write(f"passed over {path}: it was not finished", file=sys.stderr)
    for path in reversed(checkpoint_folders(output_dir)):
        damage = find_damage(path)
        if damage is None:
            return path
        tqdm.write(f"passed over {path}: {damage}", file=sys.stderr)
    return None
