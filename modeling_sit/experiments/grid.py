"""The folder of an experiment: it belongs to one experiment, and a run that is finished there is not run again.

Each run has a folder below the experiment's, with its results in `eval_results.json`.
"""

import json
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_sit.evaluation.results import RESULTS_FILE, read_results
from modeling_sit.finetuning.checkpoints import delete_finetuning
from modeling_sit.hub.card_file import CARD_FILE
from modeling_sit.hub.card_writing import EXAMPLES, LOSS_CURVE
from modeling_sit.pretraining.output_folder import delete_pretraining
from modeling_sit.runtime.atomic_files import is_of_full_disk, replace_file
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.run_folders import (
    MARK,
    MODEL_FILES,
    check_foreign,
    delete_files,
    find_files,
    is_marked,
    keep_foreign,
    mark_run,
)
from modeling_sit.runtime.signals import unanswered_signal

SETTINGS_FILE = "settings.json"
MAKE_ROOM = "make room, and start the same command again: it goes on"
PIXEL_PREDICTIONS = "predictions-*.csv"  # of the classifiers of raw pixels
# Settings that folders of earlier versions do not say.
LATER_SETTINGS = ("images", "files", "device", "configuration")
# What an experiment leaves beside its runs.
REPORT_FILES = (SETTINGS_FILE, "results.md", "results.json", "results.png")


def claim_folder(
    output_dir: Path,
    settings: Mapping[str, Any],
    run_folders: Collection[str],
    overwrite: bool = False,
    report_files: Collection[str] = (),
) -> None:
    """Make the folder of an experiment, or check that the runs in it belong to the same experiment.

    Args:
        output_dir (`Path`): The folder.
        settings (mapping from `str`): All that the results depend on, as JSON has it. More seeds only add runs, so seeds
            are not among them.
        run_folders (collection of `str`): Patterns of the names of the runs' folders, such as `finetuned-*`.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to delete what the runs that are there have written.
        report_files (collection of `str`, *optional*): Patterns of files of the report, beside those of every experiment.

    Raises:
        [`SiTError`]: If the folder holds runs with other settings, or files that the experiment would replace, or cannot be
            written.
    """
    path = output_dir / SETTINGS_FILE
    try:
        runs = [run for pattern in run_folders for run in output_dir.glob(pattern) if _is_run(run)]
        if not runs and not is_marked(output_dir, "experiment"):
            if overwrite:
                keep_foreign(output_dir, (*REPORT_FILES, *report_files))
            else:
                check_foreign(output_dir, (*REPORT_FILES, *report_files))
        if runs and overwrite:
            for run in runs:
                delete_run(run)
        elif runs:
            earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            known = [name for name in settings if name in earlier or name not in LATER_SETTINGS]
            differing = [name for name in known if earlier.get(name) != settings[name]]
            if differing:
                raise SiTError(
                    f"{output_dir} holds runs with another {', another '.join(differing)}",
                    argument="output_dir",
                    remedy="name another folder, or delete those runs with `overwrite_output_dir=True`",
                )
        mark_run(output_dir, "experiment")
        # Whole at any time: another process may read it, and a full disk must not cost the runs that are there.
        with replace_file(path, f"{os.getpid()}-") as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise SiTError(f"{output_dir} cannot be used: {problem}", argument="output_dir") from problem


def check_writable(output_dir: Path) -> None:
    """Raise [`SiTError`] if a folder cannot be written, or be made where there is none."""
    nearest = next(folder for folder in (output_dir, *output_dir.absolute().parents) if os.path.exists(folder))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise SiTError(f"{nearest} is no folder that can be written", argument="output_dir")


def refuse_launcher() -> None:
    """Raise [`SiTError`] if a launcher started several processes, which train together: they would not agree which run is next, and
    cannot find one another for many runs in turn."""
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    if num_launched > 1:
        raise SiTError(
            f"{num_launched} processes were launched to train together, and an experiment of many runs is one process",
            remedy="start the command without a launcher",
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder is one of a run, finished or just begun, and not a user's of such a name."""
    if not folder.is_dir():
        return False
    if is_marked(folder):  # by another program alone: a user's own model
        return is_marked(folder, "experiment")
    return (folder / RESULTS_FILE).is_file() or next(folder.iterdir(), None) is None


def delete_run(run_dir: Path) -> None:
    """Delete what a run of pretraining, fine-tuning or evaluation has written, and its folder, if nothing else is in it."""
    delete_pretraining(run_dir)
    delete_finetuning(run_dir)
    delete_files(
        run_dir, find_files(run_dir, (*MODEL_FILES, LOSS_CURVE, EXAMPLES, CARD_FILE, RESULTS_FILE, PIXEL_PREDICTIONS))
    )
    # Last: as long as there is something of the run, it is one.
    delete_files(run_dir, [run_dir / MARK])


def results_of(run_dir: Path, names: Collection[str], run: Callable[[list[str]], Any]) -> dict[str, dict[str, Any]]:
    """Results of a run, from its folder, or after running what is missing there.

    Args:
        run_dir (`Path`): The folder of the run.
        names (collection of `str`): Results that are wanted, such as `finetune` or the names of protocols.
        run (callable): Called with the names that are missing. It leaves their results in `eval_results.json`. If it drops
            others there, as they are of other weights, it is called with these too.

    Returns:
        `dict[str, dict[str, Any]]`: The results by name.
    """
    missing = [name for name in names if name not in read_results(run_dir)]
    if missing:
        mark_run(run_dir, "experiment")
        run(missing)
        dropped = [name for name in names if name not in missing and name not in read_results(run_dir)]
        if dropped:
            run(dropped)
    results = read_results(run_dir)
    return {name: results[name] for name in names}


@contextmanager
def going_on(run_dir: Path) -> Iterator[None]:
    """Say in [`TrainingInterrupted`], and in the [`SiTError`] of a full disk, that the comparison goes on where it stopped. The first is
    raised, too, where a signal came so late that the run went on to its end."""
    unanswered_signal()  # of what was before
    message = f"stopped in {run_dir}; the same comparison goes on there when it starts again"
    try:
        yield
    except TrainingInterrupted as interruption:
        raise TrainingInterrupted(interruption.signal, message) from interruption
    except KeyboardInterrupt as interruption:  # in what has no checkpoints
        raise TrainingInterrupted(signal.SIGINT, message) from interruption
    except (SiTError, OSError) as error:
        if not is_of_full_disk(error):
            raise
        problem = error.problem if isinstance(error, SiTError) else f"{run_dir} cannot be written: {error.strerror}"
        raise SiTError(problem, argument="output_dir", remedy=MAKE_ROOM) from error
    stopped_by = unanswered_signal()
    if stopped_by is not None:
        raise TrainingInterrupted(stopped_by, message)
