"""The chart that compares runs shows their numbers."""

import pytest

from modeling_sit.visualization.charts import comparison_chart

ACCURACIES = {
    (0.1, "scratch"): [0.5, 0.6],
    (0.1, "pretrained"): [0.8, 0.9],
    (1.0, "scratch"): [0.9, 0.92],
    (1.0, "pretrained"): [0.95, 0.97],
}


def test_bars_are_means_and_dots_are_seeds():
    (axes,) = comparison_chart(ACCURACIES, "share of the labels", "accuracy").axes
    bars = {(round(bar.get_x() + bar.get_width() / 2, 3), round(bar.get_height(), 3)) for bar in axes.patches}
    assert bars == {(-0.2, 55.0), (0.2, 85.0), (0.8, 91.0), (1.2, 96.0)}
    dots = sorted(round(float(value), 3) for line in axes.lines for value in line.get_ydata())
    assert dots == sorted(100 * value for values in ACCURACIES.values() for value in values)


def test_words():
    (axes,) = comparison_chart(ACCURACIES, "share of the labels", "accuracy").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10 %", "100 %"]
    assert axes.get_xlabel() == "share of the labels"
    assert axes.get_ylabel().startswith("accuracy (%)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "pretrained"]
    assert {text.get_text() for text in axes.texts} == {"55.0", "85.0", "91.0", "96.0"}


def test_the_legend_hides_no_bar():
    figure = comparison_chart(ACCURACIES, "share of the labels", "accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().y0 >= axes.bbox.y1


def test_one_seed_and_one_kind(tmp_path):
    figure = comparison_chart({(1.0, "pretrained"): [0.5]}, "share", "accuracy")
    figure.savefig(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [4, 6])
def test_no_kind_is_left_out(count):
    (axes,) = comparison_chart({(1.0, str(kind)): [0.5] for kind in range(count)}, "share", "accuracy").axes
    assert len(axes.patches) == count
