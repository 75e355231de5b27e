"""A chart of what one factor changes: a mean and every seed for each of its values, and lines for what that is compared with."""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_sit.visualization.palette import COLORS, MARKERS, shortened

# In inches, of a panel: at least, for each value, and for each character of the values' names beyond a few.
LEAST_WIDTH, WIDTH_OF_A_VALUE, PANEL_HEIGHT = 3.2, 0.62, 3.0
# Names of values are turned, if together they are longer than this for each inch.
CHARACTERS_OF_AN_INCH = 9
LONGEST_NAME = 28
# All series of a value lie within this part of the distance to the next one.
SPREAD = 0.5
LEVEL_STYLES = ("--", ":", "-.", (0, (7, 2)), (0, (1, 3)), (0, (3, 1, 1, 1, 1, 1)))
LEVEL_COLORS = ("#000000", "#777777")


@dataclass(frozen=True)
class Panel:
    """
    One measure.

    Args:
        title (`str`): What is measured, with the number of images.
        y_label (`str`): With its unit.
        series (mapping from `str` to mapping from `str` to sequence of `float`): For each series, by the factor's values, what was
            measured with each seed. A value that a series lacks is left out.
        levels (mapping from `str` to mapping from `str` to `float`, *optional*): Lines to compare with, by the factor's values.
    """

    title: str
    y_label: str
    series: Mapping[str, Mapping[str, Sequence[float]]]
    levels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def factor_chart(factor: str, values: Sequence[str], panels: Sequence[Panel], title: str, note: str = "") -> Figure:
    """Draw a panel for each measure, side by side, each with a scale of its own.

    Args:
        factor (`str`): Name of the factor.
        values (sequence of `str`): Names of its values, in the order of the axis. Means of numbers are joined by lines.
        panels (sequence of [`Panel`]): The measures.
        title (`str`): What the chart answers.
        note (`str`, *optional*): What marks and numbers are, in small letters below the title.

    Returns:
        `matplotlib.figure.Figure`: With a legend below the panels.
    """
    names = [shortened(value, LONGEST_NAME) for value in values]
    width = max(LEAST_WIDTH, WIDTH_OF_A_VALUE * len(values))
    is_turned = sum(map(len, names)) + 2 * len(names) > CHARACTERS_OF_AN_INCH * width
    below = 0.07 * max(map(len, names)) * 0.7 if is_turned else 0
    size = (max(width * len(panels), 5.5), PANEL_HEIGHT + below + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    levels = dict.fromkeys(name for panel in panels for name in panel.levels)
    looks = itertools.cycle((style, color) for color in LEVEL_COLORS for style in LEVEL_STYLES)
    looks = dict(zip(levels, looks, strict=False))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_series(axes, values, panel)
        _draw_levels(axes, values, panel, looks)
        axes.set_xticks(
            range(len(values)), names, rotation=30 if is_turned else 0, ha="right" if is_turned else "center"
        )
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_xlabel(factor, fontsize=9)
        axes.set_ylabel(panel.y_label, fontsize=9)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.08)
    characters = int(size[0] * 11)
    text = "\n".join([*textwrap.wrap(title, characters), *textwrap.wrap(note, int(characters * 1.1))])
    figure.suptitle(text, fontsize=9.5)
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        columns = max(1, min(len(handles), int(size[0] / (0.6 + 0.075 * max(map(len, handles))))))
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
    return figure


def _draw_series(axes: Axes, values: Sequence[str], panel: Panel) -> None:
    is_line = len(values) > 1 and all(_is_number(value) for value in values)
    inches = axes.get_figure().get_size_inches()[0] / len(axes.get_figure().axes)
    room = 0.75 * 72 * inches / len(values) * SPREAD / max(1, len(panel.series))  # of a mark, in points
    styles = itertools.cycle(itertools.product(MARKERS, COLORS))
    for number, ((name, points), (marker, color)) in enumerate(zip(panel.series.items(), styles, strict=False)):
        shift = SPREAD * ((number + 0.5) / len(panel.series) - 0.5)
        found = [(values.index(value) + shift, seeds) for value, seeds in points.items() if seeds]
        for place, seeds in found:
            dots = {"markersize": 3.6, "alpha": 0.6, "markeredgewidth": 0.4, "markeredgecolor": "white", "zorder": 4}
            axes.plot([place] * len(seeds), seeds, marker, color=color, **dots)
        places, means = [place for place, _ in found], [mean(seeds) for _, seeds in found]
        if is_line:
            axes.plot(places, means, "-", color=color, marker=marker, markersize=6, linewidth=1.5, label=name or None)
        else:
            axes.plot(
                places, means, "_", color=color, markersize=min(16, room), markeredgewidth=2.4, label=name or None
            )


def _draw_levels(axes: Axes, values: Sequence[str], panel: Panel, looks: Mapping[str, tuple[Any, str]]) -> None:
    """Lines across the panel, or along what they are for each value."""
    for name, levels in panel.levels.items():
        style, color = looks[name]
        known = [(place, levels[value]) for place, value in enumerate(values) if value in levels]
        if not known:
            continue
        places, heights = map(list, zip(*known, strict=True))
        if len(set(heights)) == 1:
            places, heights = [-0.6, len(values) - 0.4], [heights[0]] * 2
        axes.plot(places, heights, linestyle=style, color=color, linewidth=1.2, label=name)


def _is_number(text: str) -> bool:
    """Whether a name is a number, perhaps with a unit."""
    return re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?(\s*[%\w]{0,6})?", text) is not None
