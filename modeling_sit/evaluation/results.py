"""`eval_results.json`: what was measured, by protocol, across runs."""

import json
import os
from pathlib import Path
from typing import Any

from modeling_sit.cli.errors import UserError

RESULTS_FILE = "eval_results.json"


def read_results(output_dir: str | os.PathLike) -> dict[str, Any]:
    """Results of the runs so far; none if there is no file yet.

    Raises:
        [`UserError`]: If the file is there and is not one of results.
    """
    path = Path(output_dir) / RESULTS_FILE
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({problem}); mend it or move it away") from problem
    if not isinstance(results, dict):
        raise UserError(f"{path} holds no results by protocol; move it away")
    return results


def write_results(output_dir: str | os.PathLike, results: dict[str, dict[str, Any]]) -> Path:
    """Add results to those in the folder, in place of earlier ones of the same protocols.

    Args:
        output_dir (`str` or `os.PathLike`): The folder, made if it is not there.
        results (`dict[str, dict[str, Any]]`): For each protocol, what was measured and under which settings.

    Returns:
        `Path`: The file, which at any moment holds the results either before or after.

    Raises:
        [`UserError`]: If the folder cannot be written to, or holds a file of that name which is not one of results.
    """
    path = Path(output_dir) / RESULTS_FILE
    merged = {**read_results(output_dir), **results}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(merged, indent=2) + "\n")
        unfinished.replace(path)
    except OSError as problem:
        raise UserError(
            f"--output_dir {output_dir}: cannot be written to ({problem.strerror or problem})"
        ) from problem
    return path
