"""Tables of an experiment, and the files that report it: `results.md`, `results.json`, `results.png`, `results.csv`."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.runtime.atomic_files import replace_file
from modeling_sit.runtime.errors import SiTError


def mean_and_std(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds of values in [0, 1], such as `93.2 ± 0.4 %`; one value has no deviation."""
    std = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{std} %"


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A value in [0, 1] with its interval, such as `93.2 % (92.1 to 94.0)`."""
    low, high = interval
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def over_seeds(num_seeds: int) -> str:
    """What the values of a table are, for its caption."""
    return f"mean and standard deviation over {num_seeds} seeds" if num_seeds > 1 else "one seed"


def read_report(output_dir: Path) -> dict[str, Any]:
    """The `results.json` of an earlier report; empty if there is none, or it cannot be read."""
    try:
        found = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_report(
    output_dir: Path,
    tables: Sequence[str],
    results: Mapping[str, Any],
    charts: Mapping[str, Figure],
    lines: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the tables, the results and the charts, and print the tables. Each file is replaced as a whole.

    Args:
        output_dir (`Path`): The folder of the experiment.
        tables (sequence of `str`): Markdown, each with its caption.
        results (mapping from `str`): The same values in full, as JSON has them.
        charts (mapping from `str` to `matplotlib.figure.Figure`): The charts, by the names of their files.
        lines (sequence of mappings, *optional*): A line for each value, for `results.csv`; the first has all columns.

    Raises:
        [`SiTError`]: If a file cannot be written.
    """
    texts = {"results.md": "\n\n".join(tables) + "\n", "results.json": json.dumps(results, indent=2) + "\n"}
    if lines is not None:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        texts["results.csv"] = table.getvalue()
    process = f"{os.getpid()}-"
    try:
        for name, text in texts.items():
            with replace_file(output_dir / name, process) as path:
                path.write_text(text, encoding="utf-8")
        for name, chart in charts.items():
            with replace_file(output_dir / name, process) as path:
                chart.savefig(path, dpi=120, format="png")
    except OSError as problem:
        reason = problem.strerror or problem
        raise SiTError(f"{output_dir} cannot be written: {reason}", argument="output_dir") from problem
    finally:
        print("\n" + "\n\n".join(tables))
    names = [*texts, *charts]
    print(f"\nwritten to {output_dir}/{', '.join(names[:-1])} and {names[-1]}")
