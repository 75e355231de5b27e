"""Charts that compare runs."""

import itertools
from statistics import mean

from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7")


def comparison_chart(figures: dict[tuple[float, str], list[float]], x_label: str, figure_name: str) -> Figure:
    """Bars of a mean figure with a dot for each seed.

    Args:
        figures (`dict`): Figures in [0, 1], one a seed, by (share in (0, 1], what is compared).
        x_label (`str`): What the shares are shares of.
        figure_name (`str`): What was measured, such as accuracy.

    Returns:
        `matplotlib.figure.Figure`: One group of bars a share, one color for each thing compared.
    """
    shares = list(dict.fromkeys(share for share, _ in figures))
    kinds = list(dict.fromkeys(kind for _, kind in figures))
    width = 0.8 / len(kinds)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, (kind, color) in enumerate(zip(kinds, itertools.cycle(COLORS), strict=False)):
        for group, share in enumerate(shares):
            values = [100 * value for value in figures[share, kind]]
            place = group + (number - (len(kinds) - 1) / 2) * width
            axes.bar(place, mean(values), width, color=color, label=kind if group == 0 else None)
            axes.text(place, 2, f"{mean(values):.1f}", ha="center", color="white")
            axes.plot([place] * len(values), values, "o", color="black", markersize=3)
    axes.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    axes.set(xlabel=x_label, ylabel=f"{figure_name} (%), dots: seeds", ylim=(0, 100))
    # Above the panel, where no bar is.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(kinds), frameon=False)
    return figure
