"""Curves of the growth of the cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from modeling_sit.visualization.palette import COLORS, NEUTRAL_COLOR

PANEL_WIDTH, PANEL_HEIGHT = 3.8, 3.3


def sweeps_figure(sweeps: Sequence[Mapping[str, Any]], subtitle: str) -> Figure:
    """One panel for each sweep, both axes logarithmic: medians with the range of the runs, and the straight line on which
    cost would be proportional to the size.

    Args:
        sweeps (sequence of mappings): `title`, `x_label`, `y_label`, and `points` with `x`, `y`, `low`, `high`, and where
            counted arithmetic grows otherwise than the size, `arithmetic`, on the scale of `y`.
        subtitle (`str`): What was measured, and on what.
    """
    columns = min(2, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * rows + 0.4), layout="constrained")
    figure.suptitle(subtitle, fontsize=8)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(sweeps) :]:
        axes.set_visible(False)
    for axes, sweep in zip(panels, sweeps, strict=False):
        _draw(axes, sweep)
    return figure


def _draw(axes, sweep: Mapping[str, Any]) -> None:
    points = sweep["points"]
    x, y, low, high = (np.array([point[name] for point in points]) for name in ("x", "y", "low", "high"))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(x, y[0] * x / x[0], "--", color=NEUTRAL_COLOR, linewidth=1.4, label="proportional")
    if all(point.get("arithmetic") for point in points):
        arithmetic = [point["arithmetic"] for point in points]
        axes.plot(x, arithmetic, ":", color=COLORS[5], linewidth=1.4, label="counted FLOPs")
    error = np.stack([y - low, high - y])
    axes.errorbar(x, y, error, color=COLORS[0], marker="o", markersize=4, linewidth=1.6, capsize=2, label="measured")
    axes.set_title(sweep["title"], fontsize=10)
    axes.set_xlabel(sweep["x_label"], fontsize=9)
    axes.set_ylabel(sweep["y_label"], fontsize=9)
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
