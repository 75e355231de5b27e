"""The metrics of the protocols, shipped as `evaluate` modules so that no evaluation needs the network."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load_metric(name: str, config_name: str | None = None) -> "evaluate.EvaluationModule":
    """
    Load one of this package's metrics with `evaluate`, from the file that came with the package.

    The metric keeps its predictions in memory rather than in a cache file, so any number of processes can each have one
    without locks. It knows only its own process: gather predictions before adding them.

    Args:
        name (`str`): Name of the metric: that of its file in this folder, such as `"accuracy"`.
        config_name (`str`, *optional*): `"multilabel"` for a metric of labels that is to take several an image.

    Returns:
        `evaluate.EvaluationModule`: The metric; `metric.compute(predictions=..., references=...)` returns a `dict`.

    Raises:
        `ValueError`: If there is no such metric here.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r} here, only {', '.join(METRICS)}")
    path = str(Path(__file__).with_name(f"{name}.py"))
    return _evaluate_library().load(path, config_name, keep_in_memory=True)


def _evaluate_library():
    """The library `evaluate`. Python puts a program's folder first on the path, and scripts/ has an `evaluate.py` too."""
    path = sys.path
    sys.path = [entry for entry in path if not Path(entry, "evaluate.py").is_file()]
    try:
        import evaluate
    finally:
        sys.path = path
    return evaluate
