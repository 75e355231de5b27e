"""What a report says of values that are known."""

from dataclasses import replace

import numpy as np
import pytest

from modeling_sit.evaluation.predictions import Predictions
from modeling_sit.experiments.ablation_report import draw_charts, in_words, main_table, trouble
from modeling_sit.experiments.ablation_results import Findings, Measure, Row, as_lines
from modeling_sit.experiments.comparison_runs import OfPixels
from modeling_sit.experiments.plan import Cell, Plan

KNN = Measure("knn", "kNN", "accuracy", classifiers=("knn",), num_images=1000)
TUNED = Measure("fine-tuned 10%", "fine-tuned, 10 % of the labels", "accuracy", True, ("svm",), 0.1, 1000)
RANK = Measure("rankme", "rankme", "rankme", is_fraction=False)
CELLS = [
    Cell(f"{kind}/{side}", {"kind": kind, "side": side}) for kind in ("noise", "replace") for side in ("4 px", "8 px")
]
PLAN = Plan("mine", "Which?", None, {}, {}, [], CELLS)


@pytest.fixture
def findings():
    """Four cells with two seeds, of which one has failed with the second; encoders of two sizes; raw pixels."""
    rows = []
    for number, cell in enumerate(CELLS):
        values = {
            "knn": {0: 0.5 + number / 10, 1: 0.52 + number / 10},
            "fine-tuned 10%": {0: 0.6, 1: 0.62},
            "rankme": {0: 5.0, 1: 7.0},
        }
        models = {0: "a", 1: "b"}
        rows.append(Row(cell.name, cell, encoder=cell.place["side"], values=values, models=models))
    for values in rows[0].values.values():
        del values[1]
    del rows[0].models[1]
    rows[0].problems[1] = "loss not finite"
    untrained = [
        Row(
            f"untrained encoder of {side}",
            encoder=side,
            values={"knn": {0: value, 1: value}, "fine-tuned 10%": {0: 0.3}},
        )
        for side, value in (("4 px", 0.4), ("8 px", 0.2))
    ]
    settings = [{"num_fitted": 10, "num_labeled": 10}]
    pixels = [OfPixels(1.0, "knn", [0.45], settings), OfPixels(0.1, "svm", [0.3, 0.34], settings * 2)]
    return Findings([KNN, TUNED, RANK], rows, untrained, pixels, {})


def test_table(findings):
    text = main_table(findings, PLAN, "1,000 images of test", [0, 1])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert rows["raw pixels, kNN"] == "| raw pixels, kNN | 45.0 % | – | – | – | – | – |"
    assert rows["raw pixels, RBF SVM"] == "| raw pixels, RBF SVM | – | 32.0 ± 2.8 % | – | – | – | – |"
    assert rows["untrained encoder of 4 px"] == "| untrained encoder of 4 px | 40.0 ± 0.0 % | – | – | – | – | – |"
    assert rows["from scratch of 8 px"] == "| from scratch of 8 px | – | 30.0 % | – | – | – | – |"
    assert rows["noise/4 px"] == "| noise/4 px | 50.0 % | 60.0 % | 5 | – | – | – |"
    assert rows["replace/8 px"] == "| replace/8 px | 81.0 ± 1.4 % | 61.0 ± 1.4 % | 6 ± 1.4 | – | – | – |"
    assert "Accuracy on 1,000 images of test, mean and standard deviation over seeds 0, 1:" in text
    assert text.endswith("noise/4 px: 1 of 2 seeds.")


def test_words_compare_the_seeds_that_all_cells_have(findings):
    knn, tuned = in_words(findings)
    assert knn.startswith("kNN: replace/8 px is best on these test images: 80.0 %. There is one seed")
    names = "noise/4 px, noise/8 px, replace/4 px, replace/8 px"
    assert tuned.startswith(f"fine-tuned, 10 % of the labels: {names} are best on these test images: 60.0 %. There is")
    findings.cells[0].values[TUNED.name][0] = 0.61
    _, tuned = in_words(findings)
    others = "noise/8 px, replace/4 px, replace/8 px are not clearly worse"
    assert tuned.startswith("fine-tuned, 10 % of the labels: noise/4 px is best") and others in tuned


def test_fine_tuned_models_are_compared_image_by_image(findings, tmp_path):
    """All err on the same images but for a few, so a small difference is clear."""
    labels = np.zeros(1000, dtype=int)
    for row in findings.cells:
        row.predictions = {TUNED.name: {0: tmp_path / f"{row.name.replace('/', ' ')}.csv"}}
        num_right = 620 if row.name == "replace/8 px" else 600
        row.values[TUNED.name] = {0: num_right / 1000}
        predicted = (np.arange(1000) >= num_right).astype(int)
        Predictions(np.arange(1000), labels, predicted).write(row.predictions[TUNED.name][0], ["a", "b"])
    assert "not clearly worse" not in in_words(findings)[1]
    del findings.cells[0].predictions[TUNED.name]
    assert "noise/4 px is not clearly worse" in in_words(findings)[1]


def test_trouble_is_named(findings):
    findings.cells[1].values, findings.cells[1].models = {}, {}
    failed, missing, elsewhere = trouble(findings, [("replace/4 px", 1)])
    assert "noise/4 px, seed 1: loss not finite" in failed
    assert missing == "Not run yet: noise/8 px." and "replace/4 px (seed 1)" in elsewhere


def test_every_value_has_a_line(findings):
    lines = as_lines(findings, PLAN.factors, [0, 1])
    assert len(lines) == 3 * (3 * 2) + 3 + 2 * 3 + 1 + 2
    (line,) = [each for each in lines if (each["cell"], each["measure"], each["seed"]) == ("replace/4 px", "knn", 1)]
    assert (line["kind"], line["side"], line["value"], line["model"]) == ("replace", "4 px", 0.72, "b")
    assert [(each["cell"], each["seed"], each["value"]) for each in lines[-3:]] == [
        ("raw pixels, kNN", None, 0.45),
        ("raw pixels, RBF SVM", 0, 0.3),
        ("raw pixels, RBF SVM", 1, 0.34),
    ]


def levels_of(axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_charts_draw_the_encoder_that_each_series_began_as(findings):
    charts = draw_charts(findings, PLAN, [0, 1], "1,000 images of test")
    assert list(charts) == ["results-kind.png", "results-side.png"]
    of_kind = levels_of(charts["results-kind.png"].axes[0])
    assert of_kind["side: 4 px"] == pytest.approx([50, 71]) and of_kind["side: 8 px"] == pytest.approx([61, 81])
    assert of_kind["untrained encoder, side: 4 px"] == pytest.approx([40, 40])
    assert of_kind["untrained encoder, side: 8 px"] == pytest.approx([20, 20])
    of_side = levels_of(charts["results-side.png"].axes[0])
    assert of_side["untrained encoder"] == pytest.approx([40, 20]) and of_side["raw pixels, kNN"] == pytest.approx(
        [45, 45]
    )
    tuned, rank = (levels_of(axes) for axes in charts["results-side.png"].axes[1:])
    assert tuned["from scratch"] == [30, 30] and tuned["raw pixels, RBF SVM"] == pytest.approx([32, 32])
    assert rank["kind: replace"] == [6, 6] and "raw pixels, kNN" not in rank
    assert "n = 1,000" in charts["results-side.png"].axes[0].get_title()
    assert "2 seeds (0, 1)" in charts["results-side.png"].get_suptitle()


@pytest.mark.parametrize(
    ("factors", "columns"),
    [(["cell"], ()), (["cell", "steps"], ("factor cell", "factor steps")), (["kind"], ("kind",))],
)
def test_factors_that_are_called_as_other_columns(findings, factors, columns):
    for row in findings.cells:
        row.cell = replace(row.cell, place=dict.fromkeys(factors, "x"))
    lines = as_lines(findings, dict.fromkeys(factors), [0, 1])
    assert {line["cell"] for line in lines if line["measure"] == "knn"} == {
        *(row.name for row in findings.cells),
        *(row.name for row in findings.untrained),
    }
    assert list(lines[0])[1 : 2 + len(columns)] == [*columns, "seed"] and all(
        lines[0][name] == "x" for name in columns
    )
