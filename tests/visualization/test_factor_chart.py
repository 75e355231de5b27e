"""A chart of a factor shows every seed, their means, and what they are compared with."""

import numpy as np
import pytest

from modeling_sit.visualization.factor_chart import Panel, factor_chart

VALUES = ["0.1", "0.5", "0.9"]
SERIES = {"noise": {"0.1": [50.0, 54.0], "0.5": [60.0, 62.0]}, "replace": {"0.9": [70.0, 72.0]}}


def lines_of(axes) -> dict[str, np.ndarray]:
    """Lines that the legend names."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


def test_every_seed_and_the_means_are_drawn():
    levels = {"raw pixels": dict.fromkeys(VALUES, 40.0), "untrained encoder": {"0.1": 30.0, "0.9": 35.0}}
    figure = factor_chart(
        "ratio", VALUES, [Panel("kNN", "accuracy (%)", SERIES, levels)] * 2, "How much?", "dots: seeds"
    )
    assert len(figure.axes) == 2 and "How much?" in figure.get_suptitle() and "dots: seeds" in figure.get_suptitle()
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("ratio", "accuracy (%)", "kNN")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == VALUES
    named = lines_of(axes)
    np.testing.assert_array_equal(named["noise"][:, 1], [52, 61])
    np.testing.assert_array_equal(named["replace"][:, 1], [71])
    assert [round(place) for place in named["noise"][:, 0]] == [0, 1] and round(named["replace"][0, 0]) == 2
    dots = sorted(float(y) for line in axes.lines if line.get_label().startswith("_") for y in line.get_ydata())
    assert dots == [50, 54, 60, 62, 70, 72]
    np.testing.assert_array_equal(named["raw pixels"][:, 1], [40, 40])
    assert named["raw pixels"][0, 0] < 0 and named["raw pixels"][1, 0] > 2  # across the panel
    np.testing.assert_array_equal(named["untrained encoder"], [[0, 30], [2, 35]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*SERIES, *levels]


@pytest.mark.parametrize(
    ("values", "joined"), [(VALUES, True), (["25 %", "50 %"], True), (["zeros", "1 to 2"], False)]
)
def test_means_of_numbers_are_joined(values, joined):
    series = {"": {value: [float(number)] for number, value in enumerate(values)}}
    (axes,) = factor_chart("factor", values, [Panel("t", "y", series)], "Q").axes
    assert (axes.lines[-1].get_linestyle() == "-") == joined


def test_a_line_looks_the_same_in_every_panel():
    panels = [Panel("a", "y", {"": {"0.1": [1.0]}}, {"one": {"0.1": 1.0}, "two": {"0.1": 2.0}})]
    panels.append(Panel("b", "y", {"": {"0.1": [1.0]}}, {"two": {"0.1": 3.0}}))
    first, second = factor_chart("factor", VALUES, panels, "Q").axes
    styles = [{line.get_label(): line.get_linestyle() for line in axes.lines} for axes in (first, second)]
    assert styles[0]["two"] == styles[1]["two"] != styles[0]["one"]
