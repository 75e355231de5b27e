"""`eval_results.json`: what was measured, by protocol, across runs."""

import json
import os
from pathlib import Path
from typing import Any

from modeling_sit.evaluation.metric_results import Measurement
from modeling_sit.runtime.errors import SiTError

RESULTS_FILE = "eval_results.json"


def as_result(measurement: Measurement) -> dict[str, Any]:
    """A measurement as `eval_results.json` has it: each figure by its name, the ends of their 95 % intervals in `intervals`,
    the standard deviations over draws, if any, in `spread`, what chance gives in `chance`, and the settings."""
    result: dict[str, Any] = {figure.name: figure.value for figure in measurement.figures}
    result["intervals"] = {figure.name: list(figure.interval) for figure in measurement.figures}
    spread = {figure.name: figure.spread for figure in measurement.figures if figure.spread is not None}
    chance = {figure.name: figure.chance for figure in measurement.figures if figure.chance is not None}
    return {
        **result,
        **({"spread": spread} if spread else {}),
        **({"chance": chance} if chance else {}),
        **measurement.settings,
    }


def as_table(measurements: dict[str, Measurement]) -> str:
    """Measurements as a table to read, a line for each figure."""
    rows = [("protocol", "figure", "value", "95 % interval", "spread", "chance")]
    for protocol, measurement in measurements.items():
        for figure in measurement.figures:
            low, high = figure.interval
            spread = "" if figure.spread is None else f"{figure.spread:.4f}"
            chance = "" if figure.chance is None else f"{figure.chance:.4f}"
            rows.append((protocol, figure.name, f"{figure.value:.4f}", f"{low:.4f} to {high:.4f}", spread, chance))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def read_results(output_dir: str | os.PathLike) -> dict[str, Any]:
    """Results of the runs so far; none if there is no file yet.

    Raises:
        [`SiTError`]: If the file is there and is not one of results.
    """
    path = Path(output_dir) / RESULTS_FILE
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise SiTError(f"{path} cannot be read ({problem}); mend it or move it away") from problem
    if not isinstance(results, dict):
        raise SiTError(f"{path} holds no results by protocol; move it away")
    return results


def write_results(output_dir: str | os.PathLike, results: dict[str, dict[str, Any]]) -> Path:
    """Add results to those in the folder, in place of earlier ones of the same protocols.

    Args:
        output_dir (`str` or `os.PathLike`): The folder, made if it is not there.
        results (`dict[str, dict[str, Any]]`): For each protocol, what was measured and under which settings.

    Returns:
        `Path`: The file, which at any moment holds the results either before or after.

    Raises:
        [`SiTError`]: If the folder cannot be written to, or holds a file of that name which is not one of results.
    """
    path = Path(output_dir) / RESULTS_FILE
    merged = {**read_results(output_dir), **results}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(merged, indent=2) + "\n")
        unfinished.replace(path)
    except OSError as problem:
        raise SiTError(f"--output_dir {output_dir}: cannot be written to ({problem.strerror or problem})") from problem
    return path
