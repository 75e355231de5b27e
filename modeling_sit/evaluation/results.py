"""`eval_results.json`: what was measured, by protocol, across runs."""

import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from modeling_sit.evaluation.metric_results import ProtocolResult
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.markdown import escaped, table

RESULTS_FILE = "eval_results.json"
# What a result says of the weights that were measured: their fingerprint.
WEIGHTS = "weights_fingerprint"


class EvaluationResults(dict):
    """
    Results by protocol, as `eval_results.json` has them. A notebook shows their metrics as a table.

    Args:
        results (`dict[str, dict[str, Any]]`): The results.
        protocols (`dict[str, ProtocolResult]`): What they were made of.
    """

    def __init__(self, results: dict[str, dict[str, Any]], protocols: dict[str, ProtocolResult]):
        super().__init__(results)
        self._rows = table_rows(protocols)

    def _repr_markdown_(self) -> str:
        header, *rows = self._rows
        return table(header, [[escaped(cell) for cell in row] for row in rows])


def as_result(protocol: ProtocolResult) -> dict[str, Any]:
    """A protocol's result as `eval_results.json` has it: each metric by its name, the ends of the 95 % intervals, if any, in
    `intervals`, the standard deviations over draws, if any, in `std`, the values by chance in `chance`, and the
    settings. What is not a number is `None`, for JSON knows no such number."""
    result: dict[str, Any] = {metric.name: metric.value for metric in protocol.metrics}
    intervals = {metric.name: list(metric.interval) for metric in protocol.metrics if metric.interval is not None}
    std = {metric.name: metric.std for metric in protocol.metrics if metric.std is not None}
    chance = {metric.name: metric.chance for metric in protocol.metrics if metric.chance is not None}
    return _without_nan(
        {
            **result,
            **({"intervals": intervals} if intervals else {}),
            **({"std": std} if std else {}),
            **({"chance": chance} if chance else {}),
            **protocol.settings,
        }
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def table_rows(protocols: dict[str, ProtocolResult]) -> list[tuple[str, ...]]:
    """The results of protocols, by name, as the header and the rows of a table: a row for each metric that is a number, and a
    column for what any of them has, besides the protocol, the metric and the value."""
    rows = [("protocol", "metric", "value", "95 % interval", "std", "chance")]
    for name, protocol in protocols.items():
        for metric in protocol.metrics:
            if math.isnan(metric.value):
                continue
            interval = "" if metric.interval is None else "{:.4f} to {:.4f}".format(*metric.interval)
            std = "" if metric.std is None else f"{metric.std:.4f}"
            chance = "" if metric.chance is None else f"{metric.chance:.4f}"
            rows.append((name, metric.name, f"{metric.value:.4f}", interval, std, chance))
    *always, interval, std, chance = zip(*rows, strict=True)
    columns = [*always, *(column for column in (interval, std, chance) if any(column[1:]))]
    return list(zip(*columns, strict=True))


def as_table(protocols: dict[str, ProtocolResult]) -> str:
    """The [`table_rows`] of the results as text."""
    rows = table_rows(protocols)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def read_results(output_dir: str | os.PathLike) -> dict[str, Any]:
    """The results of earlier runs in a folder; none if there is no file.

    Raises:
        [`SiTError`]: If there is a file of this name that holds no results.
    """
    path = Path(output_dir) / RESULTS_FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise SiTError(f"{path} cannot be read ({problem})", remedy="repair it or move it away") from problem
    if not isinstance(results, dict):
        raise SiTError(f"{path} holds no results by protocol", remedy="move it away")
    return results


def drop_results(output_dir: str | os.PathLike, names: Collection[str]) -> None:
    """Delete results of weights that are about to be replaced, by protocol, if there are any."""
    try:
        results = read_results(output_dir)
    except SiTError:
        return  # a file of a user
    if results.keys() & set(names):
        kept = {name: result for name, result in results.items() if name not in names}
        write_results(output_dir, kept, keep_others=False)


def of_other_weights(results: dict[str, Any], weights: str) -> list[str]:
    """Names of the results of other weights than those of a fingerprint. Results that do not say theirs are not among them."""
    return [
        name
        for name, result in results.items()
        if isinstance(result, dict) and result.get(WEIGHTS, weights) != weights
    ]


def write_results(output_dir: str | os.PathLike, results: dict[str, dict[str, Any]], keep_others: bool = True) -> Path:
    """Add results to those in the folder. They replace earlier ones of the same protocols.

    Args:
        output_dir (`str` or `os.PathLike`): The folder; it is created if it is missing.
        results (`dict[str, dict[str, Any]]`): Metrics and settings of each protocol.
        keep_others (`bool`, *optional*, defaults to `True`): Whether results of other protocols stay.

    Returns:
        `Path`: The file. It is replaced as a whole.

    Raises:
        [`SiTError`]: If the folder cannot be written to, or its file of this name holds no results.
    """
    path = Path(output_dir) / RESULTS_FILE
    merged = {**read_results(output_dir), **results} if keep_others else results
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as problem:
        raise SiTError(
            f"{output_dir} cannot be written to ({problem.strerror or problem})", argument="output_dir"
        ) from problem
    return path
