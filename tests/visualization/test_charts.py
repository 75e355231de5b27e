"""Charts show the numbers that they are made of."""

import numpy as np
import PIL.Image
import pytest

from modeling_sit.visualization.charts import MAX_POINTS, averaged, comparison_chart, curves_figure

TITLES = {"loss": "sum", "first_loss": "first", "second_loss": "second"}


def lines(count, **others):
    return [
        {"step": 10 * number, "loss": 2.0 * number, "first_loss": -1.0, **others} for number in range(1, count + 1)
    ]


def drawn(figure):
    return {axes.get_title(): axes.lines[0].get_xydata() for axes in figure.axes}


def test_a_panel_for_each_figure_with_what_was_logged():
    panels = drawn(curves_figure(lines(3), TITLES))
    assert list(panels) == ["sum", "first"]
    np.testing.assert_array_equal(panels["sum"], [[10, 2], [20, 4], [30, 6]])
    np.testing.assert_array_equal(panels["first"], [[10, -1], [20, -1], [30, -1]])


def test_terms_that_were_not_trained_by_have_no_panel():
    assert list(drawn(curves_figure(lines(3, second_loss=0.0), TITLES))) == ["sum", "first"]
    assert curves_figure([], TITLES) is None
    assert curves_figure(lines(3), {"other": "Other"}) is None


def test_lines_that_lack_a_figure():
    mixed = [{"step": 1, "loss": 3.0}, {"step": 1, "first_loss": 5.0}, {"step": 2, "loss": 4.0}]
    panels = drawn(curves_figure(mixed, TITLES))
    np.testing.assert_array_equal(panels["sum"], [[1, 3], [2, 4]])
    np.testing.assert_array_equal(panels["first"], [[1, 5]])


def test_one_point_has_one_tick():
    figure = curves_figure([{"step": 4, "loss": 3.0}], TITLES)
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["4"]


def test_axes_are_named_and_panels_told_apart():
    figure = curves_figure(lines(3, second_loss=1.0), TITLES)
    assert [axes.get_xlabel() for axes in figure.axes] == ["step"] * 3
    colors = {axes.lines[0].get_color() for axes in figure.axes}
    assert len(colors) == 3
    # A figure keeps its color whether or not there are others.
    assert curves_figure(lines(3), {"second_loss": "x", "loss": "sum"}).axes[0].lines[0].get_color() in colors


def test_many_points_are_averaged():
    points = np.stack([np.arange(1000.0), np.random.default_rng(0).normal(size=1000)], axis=1)
    few = averaged(points, 100)
    by_hand = [points[10 * number : 10 * number + 10].mean(axis=0) for number in range(100)]
    np.testing.assert_allclose(few, by_hand)
    np.testing.assert_array_equal(averaged(points, 1000), points)
    uneven = averaged(points[:997], 100)
    assert uneven.shape == (100, 2) and (np.diff(uneven[:, 0]) > 0).all()
    panels = drawn(curves_figure(lines(2 * MAX_POINTS), TITLES))
    assert len(panels["sum"]) == MAX_POINTS
    assert panels["sum"][0] == pytest.approx([15, 3])


def test_can_be_looked_at(tmp_path):
    curves_figure(lines(50), TITLES).savefig(tmp_path / "a.png", dpi=50)
    pixels = np.asarray(PIL.Image.open(tmp_path / "a.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


ACCURACIES = {
    (0.1, "scratch"): [0.5, 0.6],
    (0.1, "pretrained"): [0.8, 0.9],
    (1.0, "scratch"): [0.9, 0.92],
    (1.0, "pretrained"): [0.95, 0.97],
}


def test_bars_are_means_and_dots_are_seeds():
    (axes,) = comparison_chart(ACCURACIES, "fraction of the labels", "accuracy").axes
    bars = {(round(bar.get_x() + bar.get_width() / 2, 3), round(bar.get_height(), 3)) for bar in axes.patches}
    assert bars == {(-0.2, 55.0), (0.2, 85.0), (0.8, 91.0), (1.2, 96.0)}
    dots = sorted(round(float(value), 3) for line in axes.lines for value in line.get_ydata())
    assert dots == sorted(100 * value for values in ACCURACIES.values() for value in values)


def test_words():
    (axes,) = comparison_chart(ACCURACIES, "fraction of the labels", "accuracy").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10 %", "100 %"]
    assert axes.get_xlabel() == "fraction of the labels"
    assert axes.get_ylabel().startswith("accuracy (%)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "pretrained"]
    assert {text.get_text() for text in axes.texts} == {"55.0", "85.0", "91.0", "96.0"}


def test_levels_are_lines_across_their_group():
    levels = {(0.1, "kNN"): 0.7, (0.1, "SVM"): 0.75, (1.0, "kNN"): 0.93, (1.0, "SVM"): 0.94}
    figure = comparison_chart(ACCURACIES, "fraction of the labels", "accuracy", levels)
    (axes,) = figure.axes
    lines = {}
    for collection in axes.collections:
        ((left, height), (right, _)) = collection.get_segments()[0]
        lines[round(float(left + right) / 2), round(float(height), 3)] = collection.get_linestyle()
        assert right - left > 0.8  # over all bars of the group
    assert set(lines) == {(0, 70.0), (0, 75.0), (1, 93.0), (1, 94.0)}
    assert lines[0, 70.0] == lines[1, 93.0] != lines[0, 75.0] == lines[1, 94.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()].count("SVM") == 1
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.bbox.y1


def test_levels_of_the_same_height_are_all_seen():
    levels = {(0.1, name): 0.7 for name in ("kNN", "logistic regression", "SVM")}
    (axes,) = comparison_chart(ACCURACIES, "fraction of the labels", "accuracy", levels).axes
    first, *rest = axes.collections
    assert first.get_linewidth() > rest[0].get_linewidth() > rest[1].get_linewidth()  # the last lies on top
    assert len({tuple(each.get_color()[0]) for each in axes.collections}) == 3


def test_the_legend_hides_no_bar():
    figure = comparison_chart(ACCURACIES, "fraction of the labels", "accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().y0 >= axes.bbox.y1


def test_one_seed_and_one_kind(tmp_path):
    figure = comparison_chart({(1.0, "pretrained"): [0.5]}, "fraction", "accuracy")
    figure.savefig(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [4, 6])
def test_no_kind_is_left_out(count):
    (axes,) = comparison_chart({(1.0, str(kind)): [0.5] for kind in range(count)}, "fraction", "accuracy").axes
    assert len(axes.patches) == count


def test_the_legend_of_many_bars_of_one_fraction_is_whole():
    methods = [f"method {number}" for number in range(9)]
    levels = {
        (0.1, name): 0.9 for name in ("raw pixels, kNN", "raw pixels, logistic regression", "raw pixels, RBF SVM")
    }
    figure = comparison_chart({(0.1, name): [0.1] for name in methods}, "fraction of the labels", "accuracy", levels)
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
