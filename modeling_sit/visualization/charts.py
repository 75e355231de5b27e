"""Charts: how the values of one run change with the step, and how runs compare."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_sit.visualization.palette import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More points than this are drawn as means of neighbors: nobody sees them apart, and noise hides the trend.
MAX_POINTS = 300
# Style, width and color of lines in the order they are drawn: where two have the same height, both are seen.
LINES = (("-", 3.6, "#AAAAAA"), ("--", 2.0, "#666666"), (":", 1.4, "black"))
PANEL_WIDTH, PANEL_HEIGHT = 3.4, 2.7
# With more bars than this side by side, each is narrow.
FEW_KINDS, BAR_INCHES = 3, 0.32
# The legend of many bars has four columns. In a bar that is lower than this, in %, its number has no room.
WIDE_LEGEND_INCHES, LOW_BAR = 9, 20


def curves_figure(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> "Figure | None":
    """One panel for each metric, against the step, side by side: each has its own scale, and no legend is needed.

    Args:
        lines (sequence of mappings): Lines of `metrics.jsonl`: each has a `step`, and some of the metrics.
        titles (mapping from `str` to `str`): Names of the metrics in the lines, and the titles of their panels.

    Returns:
        `matplotlib.figure.Figure`, *optional*: `None` if no metric has a value. A metric without values, or with zeros
        alone, such as a loss that the run does not use, has no panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

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
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True) if len(steps) > 1 else FixedLocator(steps))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def averaged(points: np.ndarray, max_points: int) -> np.ndarray:
    """At most `max_points` rows of the rows `(n, 2)`, each the mean of some neighbors."""
    if len(points) <= max_points:
        return points
    return np.stack([block.mean(axis=0) for block in np.array_split(points, max_points)])


def comparison_chart(
    values: dict[tuple[float, str], list[float]],
    x_label: str,
    metric: str,
    levels: Mapping[tuple[float, str], float] | None = None,
) -> "Figure":
    """Bars of a metric's mean with a dot for each seed, and lines at the levels of others.

    Args:
        values (`dict`): Values in [0, 1], one a seed, by (fraction in (0, 1], what is compared).
        x_label (`str`): What the fractions are fractions of.
        metric (`str`): Name of the metric, such as accuracy.
        levels (mapping, *optional*): Values in [0, 1] of what the bars should exceed, by (fraction, name).

    Returns:
        `matplotlib.figure.Figure`: One group of bars a fraction, one color for each thing compared, and across each group a
        line for each level.
    """
    from matplotlib.figure import Figure

    levels = levels or {}
    fractions = list(dict.fromkeys(fraction for fraction, _ in values))
    kinds = list(dict.fromkeys(kind for _, kind in values))
    width = 0.8 / len(kinds)
    is_wide = len(kinds) > FEW_KINDS
    least = WIDE_LEGEND_INCHES if is_wide else 5
    size = (max(least, BAR_INCHES * len(kinds) * len(fractions)), 3.5 + 0.25 * len({name for _, name in levels}))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for number, (kind, color) in enumerate(zip(kinds, itertools.cycle(COLORS), strict=False)):
        hatch = "//" if number >= len(COLORS) else None
        for group, fraction in enumerate(fractions):
            percentages = [100 * value for value in values[fraction, kind]]
            place = group + (number - (len(kinds) - 1) / 2) * width
            label = kind if group == 0 else None
            axes.bar(place, mean(percentages), width, color=color, label=label, hatch=hatch, edgecolor="white")
            text, is_low = f"{mean(percentages):.1f}", mean(percentages) < LOW_BAR
            bottom, color_of_text = (max(percentages) + 3, "black") if is_low else (2, "white")
            # A box of the bar's color, so that hatching does not run through the figure.
            box = {"facecolor": "none" if is_low or hatch is None else color, "edgecolor": "none", "pad": 1}
            axes.text(place, bottom, text, ha="center", color=color_of_text, rotation=90 if is_wide else 0, bbox=box)
            axes.plot([place] * len(percentages), percentages, "o", color="black", markersize=3)
    styles = dict(zip(dict.fromkeys(name for _, name in levels), itertools.cycle(LINES), strict=False))
    labeled = set()
    for (fraction, name), level in levels.items():
        group = fractions.index(fraction)
        label = None if name in labeled else name
        style, line_width, color = styles[name]
        axes.hlines(100 * level, group - 0.45, group + 0.45, color, style, label=label, linewidth=line_width)
        labeled.add(name)
    axes.set_xticks(range(len(fractions)), [f"{100 * fraction:g} %" for fraction in fractions])
    axes.set(xlabel=x_label, ylabel=f"{metric} (%), dots: seeds", ylim=(0, 100))
    # Above the panel, where no bar is.
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=min(4 if is_wide else 2, len(kinds) + len(styles)),
        frameon=False,
    )
    return figure
