"""Tables of an experiment, and the files that report it: `results.md`, `results.json` and `results.png`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

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


def write_report(output_dir: Path, tables: Sequence[str], results: Mapping[str, Any], chart: Figure) -> None:
    """Write the tables, the results and the chart, and print the tables.

    Args:
        output_dir (`Path`): The folder of the experiment.
        tables (sequence of `str`): Markdown, each with its caption.
        results (mapping from `str`): The same values in full, as JSON has them.
        chart (`matplotlib.figure.Figure`): The chart.

    Raises:
        [`SiTError`]: If a file cannot be written.
    """
    try:
        (output_dir / "results.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        chart.savefig(output_dir / "results.png", dpi=120)
    except OSError as problem:
        reason = problem.strerror or problem
        raise SiTError(f"{output_dir} cannot be written: {reason}", argument="output_dir") from problem
    finally:
        print("\n" + "\n\n".join(tables))
    print(f"\nwritten to {output_dir}/results.md, results.json and results.png")
