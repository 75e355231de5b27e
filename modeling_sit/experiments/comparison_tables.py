"""The tables of a comparison, as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.experiments.comparison_runs import STARTS, Choice, FineTuned, OfPixels
from modeling_sit.experiments.report import mean_and_std, over_seeds, with_interval
from modeling_sit.experiments.trials import Trial
from modeling_sit.pretraining.cost import PretrainingCost
from modeling_sit.runtime.markdown import table

Frozen = Mapping[str, Mapping[str, Mapping[str, Any]]]

NONE = "–"
# Protocols with a column of their own, and the classifier of raw pixels that is most like them.
COLUMNS = {"knn": ("kNN", "knn"), "linear": ("linear", "logistic")}
ROWS = {"scratch": "from scratch", "pretrained": "pretrained"}


def main_table(
    test_name: str,
    rows_of: Mapping[str, str],
    fine_tuned: Sequence[FineTuned],
    frozen: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]],
    pixels: Sequence[OfPixels],
    costs: Mapping[str, Sequence[PretrainingCost]],
) -> str:
    """
    A row for each rival and each pretrained model, a column for each way to measure.

    Args:
        test_name (`str`): What was measured.
        rows_of (mapping from `str` to `str`): What the rows are called, by start; `"scratch"` is one of them.
        fine_tuned (sequence of [`FineTuned`]): All of them, from scratch and pretrained.
        frozen (mapping): Results of the frozen features by start, of each seed, by protocol; it may be empty.
        pixels (sequence of [`OfPixels`]): It may be empty.
        costs (mapping from `str` to sequence of [`PretrainingCost`]): Of the pretrained models, by start, of each seed.
    """
    fractions = list(dict.fromkeys(cell.label_fraction for cell in fine_tuned))
    protocols = [name for name in COLUMNS if all(name in results for each in frozen.values() for results in each)]
    protocols = protocols if frozen else []
    metric = fine_tuned[0].metric
    rows = [
        _pixel_row(
            name, {cell.label_fraction: cell for cell in pixels if cell.classifier == name}, protocols, fractions
        )
        for name in CLASSIFIERS
        if any(cell.classifier == name for cell in pixels)
    ]
    if protocols:
        rows.append(["untrained encoder", *_frozen_cells(frozen["scratch"], protocols, metric)])
    for start, title in rows_of.items():
        cells = {cell.label_fraction: mean_and_std(cell.values) for cell in fine_tuned if cell.start == start}
        # From scratch, the frozen features are those of the row above.
        features = [NONE] * len(protocols)
        if start != "scratch" and protocols:
            features = _frozen_cells(frozen[start], protocols, metric)
        rows.append([title, *features, *(cells[fraction] for fraction in fractions), *cost_cells(costs.get(start))])
    header = ["", *(COLUMNS[name][0] for name in protocols), *map(labels, fractions)]
    header += ["epochs", "encoder tokens", "seconds"] if any(costs.values()) else []
    rows = [row + [NONE] * (len(header) - len(row)) for row in rows]
    # With few images it is more than the fraction says: each class has a label.
    numbers = {cell.label_fraction: f"{cell.num_train:,}" for cell in fine_tuned if cell.num_train is not None}
    known = [f"{numbers[fraction]} with {_share(fraction)}" for fraction in fractions if fraction in numbers]
    notes = [f"Labeled images: {', '.join(known)}."] if known else []
    notes += notes_of(pixels, bool(protocols), [cost for each in costs.values() for cost in each])
    num_seeds = max(len(cell.values) for cell in fine_tuned)
    fewest = {start: min(len(cell.values) for cell in fine_tuned if cell.start == start) for start in rows_of}
    notes += [
        f"{rows_of[start]}: {number} of {num_seeds} seeds." for start, number in fewest.items() if number < num_seeds
    ]
    caption = f"{metric.replace('_', ' ').capitalize()} on {test_name}, {over_seeds(num_seeds)}:"
    return "\n\n".join([caption, table(header, rows), " ".join(notes)]).strip()


def frozen_table(frozen: Frozen) -> str:
    """All metrics of the frozen features with their intervals."""
    rows = []
    for protocol, result in frozen[STARTS[0]].items():
        for metric in result["intervals"]:
            measured = [frozen[start][protocol] for start in STARTS]
            cells = [with_interval(result[metric], result["intervals"][metric]) for result in measured]
            rows.append([protocol, metric.replace("_", " "), *cells])
    header = ["protocol", "metric", "untrained", "pretrained"]
    return f"Frozen features, with 95 % intervals over the images:\n\n{table(header, rows)}"


def choices_table(choices: Mapping[tuple[str, float], Choice]) -> str:
    """The rates and lengths of fine-tuning."""
    rows = []
    for (start, fraction), choice in choices.items():
        rate = "usual" if choice.learning_rate is None else f"{choice.learning_rate:g}"
        numbers = [rate, f"{choice.max_steps:,}"]
        value = NONE if choice.value is None else f"{100 * choice.value:.1f} %"
        chosen_on = choice.chosen_on or "before this comparison"
        rows.append([ROWS.get(start, start), labels(fraction), *numbers, value, chosen_on])
    header = ["", "labels", "learning rate", "steps", "held-out value", "chosen on"]
    return f"Fine-tuning, chosen without test images:\n\n{table(header, rows)}"


def tuned_table(tuned: Mapping[str, Trial]) -> str:
    """What was chosen for the pretraining of each method."""
    rows = []
    for method, trial in tuned.items():
        scores = [f"{100 * value:.1f} %" for value in trial.scores.values()]
        rows.append([method, f"{trial.base_learning_rate:g}", trial.export, trial.pooling, *scores])
    header = ["", "learning rate at a batch of 256", "weights", "features", *next(iter(tuned.values())).scores]
    caption = "Pretraining, chosen on a fifth of the labels of train, with the first seed:"
    return f"{caption}\n\n{table(header, rows)}"


def labels(fraction: float) -> str:
    """A fraction of the labels, as a header."""
    return "all labels" if fraction == 1 else f"{_share(fraction)} of the labels"


def _share(fraction: float) -> str:
    return "all" if fraction == 1 else f"{100 * fraction:g} %"


def _pixel_row(
    classifier: str, cells: Mapping[float, OfPixels], protocols: Sequence[str], fractions: Sequence[float]
) -> list[str]:
    """With all labels, a classifier is also in the column of the protocol that it is like."""
    everything = mean_and_std(cells[1.0].values) if 1.0 in cells else NONE
    of_protocols = [everything if COLUMNS[name][1] == classifier else NONE for name in protocols]
    of_fractions = [
        mean_and_std(cells[fraction].values) + ("\\*" if is_partial(cells[fraction]) else "") for fraction in fractions
    ]
    return [f"raw pixels, {CLASSIFIERS[classifier]}", *of_protocols, *of_fractions]


def is_partial(cell: OfPixels) -> bool:
    return any(settings["num_fitted"] < settings["num_labeled"] for settings in cell.settings)


def _frozen_cells(
    results: Sequence[Mapping[str, Mapping[str, Any]]], protocols: Sequence[str], metric: str
) -> list[str]:
    return [mean_and_std([each[name][metric] for each in results]) for name in protocols]


def cost_cells(costs: Sequence[PretrainingCost] | None) -> list[str]:
    """The mean over the seeds."""
    if not costs:
        return []
    epochs = None if any(cost.epochs is None for cost in costs) else mean(cost.epochs for cost in costs)
    cell = NONE if epochs is None else f"{epochs:,.{1 if epochs < 10 else 0}f}"
    seconds = mean(cost.seconds for cost in costs)
    return [cell, _rounded(round(mean(cost.encoder_tokens for cost in costs))), f"{seconds:,.0f}"]


def _rounded(number: int) -> str:
    """Three digits and a unit, such as `12.3 M`."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def notes_of(pixels: Sequence[OfPixels], has_protocols: bool, costs: Sequence[PretrainingCost]) -> list[str]:
    notes = []
    if has_protocols:
        notes.append("kNN and linear: frozen features, all labels.")
    if pixels:
        notes.append("Raw pixels get the same labels as the networks.")
    partial = dict.fromkeys(
        f"\\* {CLASSIFIERS[cell.classifier]} on {settings['num_fitted']:,} of {settings['num_labeled']:,} labels."
        for cell in pixels
        for settings in cell.settings
        if settings["num_fitted"] < settings["num_labeled"]
    )
    notes += partial
    if costs:
        steps = sorted({cost.steps for cost in costs})
        steps = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        hardware = " and ".join(dict.fromkeys(cost.hardware for cost in costs))
        notes.append(
            f"Pretraining: {steps} steps on {hardware}; tokens count the student's three times (forward and "
            "backward), the teacher's once."
        )
    return notes
