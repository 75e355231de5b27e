"""The folder of an experiment: it belongs to one experiment, and a run that is finished there is not run again.

Each run has a folder below the experiment's, with its results in `eval_results.json`.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from modeling_sit.evaluation.results import read_results
from modeling_sit.runtime.errors import SiTError

SETTINGS_FILE = "settings.json"


def claim_folder(
    output_dir: Path, settings: Mapping[str, Any], run_folders: Collection[str], overwrite: bool = False
) -> None:
    """Make the folder of an experiment, or check that the runs in it belong to the same experiment.

    Args:
        output_dir (`Path`): The folder.
        settings (mapping from `str`): All that the results depend on, as JSON has it. More seeds only add runs, so seeds
            are not among them.
        run_folders (collection of `str`): Patterns of the names of the runs' folders, such as `finetuned-*`.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to delete the runs that are there.

    Raises:
        [`SiTError`]: If the folder holds runs with other settings, or cannot be written.
    """
    path = output_dir / SETTINGS_FILE
    try:
        runs = [run for pattern in run_folders for run in output_dir.glob(pattern)]
        if runs and overwrite:
            for run in runs:
                shutil.rmtree(run)
        elif runs:
            earlier = json.loads(path.read_text()) if path.is_file() else {}
            differing = [name for name in settings if earlier.get(name) != settings[name]]
            if differing:
                raise SiTError(
                    f"{output_dir} holds runs with another {', another '.join(differing)}",
                    argument="output_dir",
                    remedy="name another folder, or delete those runs with `overwrite_output_dir=True`",
                )
        output_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    except (OSError, ValueError) as problem:
        raise SiTError(f"{output_dir} cannot be used: {problem}", argument="output_dir") from problem


def results_of(run_dir: Path, names: Collection[str], run: Callable[[list[str]], Any]) -> dict[str, dict[str, Any]]:
    """Results of a run, from its folder, or after running what is missing there.

    Args:
        run_dir (`Path`): The folder of the run.
        names (collection of `str`): Results that are wanted, such as `finetune` or the names of protocols.
        run (callable): Called with the names that are missing. It leaves their results in `eval_results.json`.

    Returns:
        `dict[str, dict[str, Any]]`: The results by name.
    """
    missing = [name for name in names if name not in read_results(run_dir)]
    if missing:
        run(missing)
    results = read_results(run_dir)
    return {name: results[name] for name in names}
