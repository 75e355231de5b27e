"""What an ablation has found so far, read from the folders of its runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modeling_sit.evaluation.predictions import PREDICTIONS_FILE, hits_of
from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.evaluation.results import read_results
from modeling_sit.experiments.ablation_runs import AblationRuns, encoder_key
from modeling_sit.experiments.comparison_runs import OfPixels, metric_of
from modeling_sit.experiments.comparison_tables import COLUMNS, labels
from modeling_sit.experiments.plan import Cell
from modeling_sit.experiments.pretraining_runs import DIVERGED, PRETRAINING, cost_of
from modeling_sit.experiments.verdict import Side
from modeling_sit.pretraining.cost import PretrainingCost

# Of `results.csv`, beside the factors.
COLUMNS_OF_LINES = ("cell", "seed", "measure", "metric", "value", "test_images", "steps", "seconds", "model")

# What a monitor calls its value, where it is another name.
MONITOR_VALUES = {"knn": "knn_accuracy", "linear": "linear_accuracy"}


@dataclass(frozen=True)
class Measure:
    """
    A number that is measured of every cell.

    Args:
        name (`str`): Such as `"knn"`, `"fine-tuned 10%"` or `"rankme"`.
        title (`str`): Header of its column.
        metric (`str`): What the number is, such as `"accuracy"`.
        is_fraction (`bool`, *optional*, defaults to `True`): Whether it is in [0, 1], and written in %.
        classifiers (sequence of `str`, *optional*): Classifiers of raw pixels that it is compared with.
        label_fraction (`float`, *optional*, defaults to 1): With which part of the labels.
        num_images (`int`, *optional*): Test images that it was measured on.
    """

    name: str
    title: str
    metric: str
    is_fraction: bool = True
    classifiers: Sequence[str] = ()
    label_fraction: float = 1.0
    num_images: int | None = None


@dataclass
class Row:
    """
    What is known of a cell, or of an encoder without training.

    Args:
        name (`str`): Its name.
        cell ([`Cell`], *optional*): The cell.
        encoder (`str`, *optional*): [`encoder_key`] of its models.
        values (`dict`): By the measure's name and the seed.
        costs (`dict`): What pretraining has cost, by seed.
        models (`dict`): The folder of the model, by seed.
        problems (`dict`): Why there is nothing of a seed.
        predictions (`dict`): Files of what fine-tuned models said of each test image, by the measure's name and the seed.
    """

    name: str
    cell: Cell | None = None
    encoder: str | None = None
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    costs: dict[int, PretrainingCost] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    predictions: dict[str, dict[int, Path]] = field(default_factory=dict)

    def of(self, measure: Measure, seeds: Sequence[int] | None = None) -> list[float]:
        """The values of a measure, in the order of the seeds; of some seeds only, if they are given."""
        found = self.values.get(measure.name, {})
        return [value for seed, value in sorted(found.items()) if seeds is None or seed in seeds]

    def side(self, measure: Measure, seeds: Sequence[int]) -> Side:
        """A measure of some seeds, to be compared."""
        files = self.predictions.get(measure.name, {})
        return Side(self.of(measure, seeds), hits_of([file for seed, file in sorted(files.items()) if seed in seeds]))


@dataclass(frozen=True)
class Findings:
    """
    What an ablation has found so far.

    Args:
        measures (`list[Measure]`): Of which there is a value.
        cells (`list[Row]`): A row for each cell of the plan.
        untrained (`list[Row]`): One for each kind of encoder; also what is fine-tuned from scratch.
        pixels (`list[OfPixels]`): Classifiers of raw pixels; it may be empty.
        failed (`dict`): What else has failed, and why.
    """

    measures: list[Measure]
    cells: list[Row]
    untrained: list[Row]
    pixels: list[OfPixels]
    failed: dict[str, str]

    @property
    def problems(self) -> dict[str, str]:
        """Why cells have failed, by their names, with the seeds; and what else has."""
        found = {}
        for row in self.cells:
            for seed, problem in row.problems.items():
                found[f"{row.name}, seed {seed}"] = problem
        return {**found, **self.failed}

    @property
    def seeds(self) -> list[int]:
        """Seeds of which every cell that has any value has all values."""
        rows = [row for row in self.cells if row.values]
        found = [set(values) for row in rows for values in row.values.values()]
        return sorted(set.intersection(*found)) if found else []

    def levels(self, measure: Measure) -> dict[str, float]:
        """Means of the classifiers of raw pixels that a measure is compared with, by their names."""
        return {
            f"raw pixels, {CLASSIFIERS[each.classifier]}": sum(each.values) / len(each.values)
            for each in self.pixels
            if each.classifier in measure.classifiers and each.label_fraction == measure.label_fraction
        }


def collect(ablation: AblationRuns, pixels: Sequence[OfPixels]) -> Findings:
    """Read what there is.

    Args:
        ablation ([`AblationRuns`]): The runs.
        pixels (sequence of [`OfPixels`]): Classifiers of raw pixels.
    """
    reader = _Reader(ablation)
    cells = [reader.cell(cell) for cell in ablation.plan.cells]
    encoders = dict.fromkeys(row.encoder for row in cells if row.encoder is not None)
    untrained = [
        reader.untrained(key, [row for row in cells if row.encoder == key], len(encoders)) for key in encoders
    ]
    names = [row.name for row in cells]
    others = {f"{name}, seed {seed}": text for (name, seed), text in ablation.failed.items() if name not in names}
    order = [measure for name, measure in reader.measures.items()]
    order.sort(key=lambda measure: reader.order.index(measure.name))
    return Findings(order, cells, untrained, list(pixels), others)


class _Reader:
    """Reads the results of runs, and notes which measures there are."""

    def __init__(self, ablation: AblationRuns):
        self.ablation = ablation
        self.measures: dict[str, Measure] = {}
        wanted = ablation.measures
        self.monitored = [MONITOR_VALUES.get(name, name) for name in ablation.plan.monitors]
        self.order = [*wanted.protocols, *map(_finetuned, wanted.label_fractions), *self.monitored]

    def cell(self, cell: Cell) -> Row:
        ablation, row = self.ablation, Row(cell.name, cell)
        pretraining = ablation.pretrainings.of(cell)
        for seed in ablation.measures.seeds:
            run_dir = ablation.pretrainings.run_dir(pretraining, seed)
            results = read_results(run_dir)
            if PRETRAINING in results:
                row.encoder = encoder_key(run_dir)
                row.models[seed] = str(pretraining.model_of(cell, run_dir))
                self._read(row, cell.name, seed)
                for name, value in self._monitored(run_dir, pretraining.step_of(cell)):
                    self._note(row, Measure(name, name, name, is_fraction=False), seed, value)
                cost = cost_of(run_dir)
                if cost is not None:
                    row.costs[seed] = _part_of(cost, pretraining.step_of(cell) / pretraining.num_steps)
            problem = results.get(DIVERGED, {}).get("problem") or ablation.failed.get((cell.name, seed))
            if problem is not None:
                row.problems[seed] = problem
        return row

    def untrained(self, key: str, cells: Sequence[Row], num_encoders: int) -> Row:
        """The encoder that some cells had before their training."""
        row = Row("untrained encoder" + (f" of {cells[0].name}" if num_encoders > 1 else ""), encoder=key)
        for seed in self.ablation.measures.seeds:
            cell = next((each for each in cells if seed in each.models), None)
            if cell is not None:
                run_dir = self.ablation.pretrainings.run_dir(self.ablation.pretrainings.of(cell.cell), seed)
                self._read(row, self.ablation.untrained(run_dir, seed), seed)
        return row

    def _read(self, row: Row, start: str, seed: int) -> None:
        """The measures of a start with a seed, as far as there are any."""
        runs, wanted = self.ablation.runs, self.ablation.measures
        results = read_results(runs.frozen_dir(start, seed))
        for protocol in wanted.protocols:
            result = results.get(protocol)
            if result is not None:
                metric = metric_of(result) if protocol in COLUMNS else next(iter(result))
                title, *rivals = COLUMNS.get(protocol, (protocol,))
                number = result.get("num_validation")
                measure = Measure(protocol, title, metric, classifiers=rivals, num_images=number)
                self._note(row, measure, seed, result[metric])
        for fraction in wanted.label_fractions:
            result = read_results(runs.finetuned_dir(start, fraction, seed)).get("finetune")
            if result is not None:
                name, metric = _finetuned(fraction), metric_of(result)
                number, rivals = result["num_validation"], tuple(CLASSIFIERS)
                measure = Measure(name, f"fine-tuned, {labels(fraction)}", metric, True, rivals, fraction, number)
                self._note(row, measure, seed, result[metric])
                predictions = runs.finetuned_dir(start, fraction, seed) / PREDICTIONS_FILE
                row.predictions.setdefault(name, {})[seed] = predictions

    def _note(self, row: Row, measure: Measure, seed: int, value: float | None) -> None:
        if value is not None:
            self.measures.setdefault(measure.name, measure)
            row.values.setdefault(measure.name, {})[seed] = value

    def _monitored(self, run_dir: Path, step: int) -> Iterator[tuple[str, float]]:
        """The values of the plan's monitors after a step."""
        path = run_dir / "monitors.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in map(json.loads, lines):
            if line["step"] == step:
                yield from ((name, line[name]) for name in self.monitored if name in line)


def _finetuned(fraction: float) -> str:
    return f"fine-tuned {100 * fraction:g}%"


def _part_of(cost: PretrainingCost, part: float) -> PretrainingCost:
    """What a part of a run has cost."""
    if part == 1:
        return cost
    epochs = None if cost.epochs is None else cost.epochs * part
    tokens = round(cost.encoder_tokens * part)
    return replace(
        cost, steps=round(cost.steps * part), epochs=epochs, encoder_tokens=tokens, seconds=cost.seconds * part
    )


def as_lines(findings: Findings, factors: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each value, for `results.csv`.

    Args:
        findings ([`Findings`]): What was found.
        factors (mapping): The plan's.
        seeds (sequence of `int`): The seeds that drew labels for raw pixels.
    """
    # A factor may be called as another column is. Where it is the only one, and names the cells, their names are there already.
    names = [] if list(factors) == ["cell"] else list(factors)
    titles = {name: f"factor {name}" if name in COLUMNS_OF_LINES else name for name in names}
    lines = []
    for row in [*findings.cells, *findings.untrained]:
        place = row.cell.place if row.cell is not None else {}
        for measure in findings.measures:
            for seed, value in sorted(row.values.get(measure.name, {}).items()):
                cost = row.costs.get(seed)
                lines.append(
                    {
                        "cell": row.name,
                        **{title: place.get(name, "") for name, title in titles.items()},
                        "seed": seed,
                        "measure": measure.name,
                        "metric": measure.metric,
                        "value": value,
                        "test_images": measure.num_images,
                        "steps": cost.steps if cost else None,
                        "seconds": round(cost.seconds, 1) if cost else None,
                        "model": row.models.get(seed),
                    }
                )
    for each in findings.pixels:
        drawn = [None] if each.label_fraction == 1 else seeds
        for seed, value in zip(drawn, each.values, strict=True):
            name, measure = f"raw pixels, {CLASSIFIERS[each.classifier]}", f"with {labels(each.label_fraction)}"
            lines.append({"cell": name, "seed": seed, "measure": measure, "value": value})
    return lines
