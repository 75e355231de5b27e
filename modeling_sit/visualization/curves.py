"""Curves of a run: how its losses, or other figures, went from step to step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from modeling_sit.visualization.palette import COLORS

# More than this many are drawn as means of neighbours: nobody sees them apart, and lines of noise hide the trend.
MAX_POINTS = 300
PANEL_WIDTH, PANEL_HEIGHT = 3.4, 2.7


def curves_figure(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure | None:
    """One panel for each figure, against the step, side by side: they differ in scale, and no legend has to be looked up.

    Args:
        lines (sequence of mappings): Of `metrics.jsonl`: each has a `step`, and some of the figures.
        titles (mapping from `str` to `str`): Names of the figures in the lines, and what stands above their panels.

    Returns:
        `matplotlib.figure.Figure`, *optional*: `None` if no figure has a value; those that have none, or only zeros, as
        losses that a run does not train by, have no panel.
    """
    drawn = {}
    for name in titles:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if any(value != 0 for _, value in points):
            drawn[name] = np.array(points, dtype=np.float64)
    if not drawn:
        return None
    width = PANEL_WIDTH * len(drawn)
    figure = Figure(figsize=(width, PANEL_HEIGHT))
    # In inches: a layout that measures the labels would draw everything twice.
    edges = {
        "left": 0.6 / width,
        "right": 1 - 0.15 / width,
        "bottom": 0.5 / PANEL_HEIGHT,
        "top": 1 - 0.3 / PANEL_HEIGHT,
    }
    panels = figure.subplots(1, len(drawn), squeeze=False, gridspec_kw={**edges, "wspace": 0.24})[0]
    for axes, (name, points) in zip(panels, drawn.items(), strict=True):
        steps, values = averaged(points, MAX_POINTS).T
        few = len(steps) <= 30
        color = COLORS[list(titles).index(name) % len(COLORS)]
        axes.plot(steps, values, color=color, linewidth=1.6, marker="o" if few else None, markersize=3)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def averaged(points: np.ndarray, max_points: int) -> np.ndarray:
    """At most `max_points` of the rows `(n, 2)`, each the mean of as many neighbours as it takes."""
    if len(points) <= max_points:
        return points
    return np.stack([block.mean(axis=0) for block in np.array_split(points, max_points)])
