"""The metrics of the protocols, shipped as `evaluate` modules so that no evaluation needs the network."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def load_metric(name: str, config_name: str | None = None) -> "evaluate.EvaluationModule":
    """
    Load one of this package's metrics, as `evaluate.load` does from its file.

    `evaluate.load` copies the file into the cache of Hugging Face, and makes a folder there for predictions. This metric is
    imported, and keeps its predictions in memory: it needs no cache, and any number of processes can each have one
    without locks. It knows only its own process: gather predictions before adding them.

    Args:
        name (`str`): Name of the metric: that of its file in this folder, such as `"accuracy"`.
        config_name (`str`, *optional*): `"multilabel"` for a metric of labels where an image can have several; `"masks"`
            for COCO's average precision of masks.

    Returns:
        `evaluate.EvaluationModule`: The metric; `metric.compute(predictions=..., references=...)` returns a `dict`.

    Raises:
        `ValueError`: If there is no such metric here.
    """
    module = metric_module(name)
    (metric,) = (
        each for each in vars(module).values() if isinstance(each, type) and issubclass(each, module.evaluate.Metric)
    )
    # Even a metric that keeps all in memory makes its folder, unless it is told another place.
    in_memory = type(metric.__name__, (metric,), {"_build_data_dir": lambda self: os.devnull})
    return in_memory(config_name=config_name, keep_in_memory=True)


def metric_module(name: str) -> ModuleType:
    """The module of one of this package's metrics, for its functions.

    Raises:
        `ValueError`: If there is no such metric here.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r} here, only {', '.join(METRICS)}")
    _import_evaluate()
    return importlib.import_module(f"{__name__}.{name}")


def _import_evaluate() -> None:
    """Import the library `evaluate`, found by its distribution. A program called `evaluate.py` hides it from `import`."""
    if "evaluate" not in sys.modules:
        package = Path(importlib.metadata.distribution("evaluate").locate_file("evaluate"))
        spec = importlib.util.spec_from_file_location(
            "evaluate", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        # Under its name, for the library and the metrics import it by that.
        sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["evaluate"])
