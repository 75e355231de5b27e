"""The report of an ablation: tables, what they say in words, every value, and a chart for each factor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.experiments.ablation_results import Findings, Measure, Row, as_lines
from modeling_sit.experiments.ablation_runs import AblationRuns
from modeling_sit.experiments.comparison_runs import OfPixels
from modeling_sit.experiments.comparison_tables import NONE, cost_cells, is_partial, notes_of
from modeling_sit.experiments.plan import Plan
from modeling_sit.experiments.report import mean_and_std, read_report, write_report
from modeling_sit.experiments.verdict import ONE_SEED, against, best_of
from modeling_sit.runtime.markdown import escaped, table
from modeling_sit.runtime.run_folders import find_files
from modeling_sit.visualization.factor_chart import Panel, factor_chart

SCRATCH = "from scratch"
# Of charts of an earlier state of the plan.
CHARTS = "results-*.png"


def report(
    ablation: AblationRuns, findings: Findings, output_dir: Path, profile: str
) -> tuple[list[str], dict[str, Figure]]:
    """Write `results.md`, `results.json`, `results.csv`, and a chart for each factor that has several values.

    Args:
        ablation ([`AblationRuns`]): The runs.
        findings ([`Findings`]): What they found.
        output_dir (`Path`): The folder of the report.
        profile (`str`): `"smoke"` is said in it.

    Returns:
        `tuple`: The tables, and the charts by the names of their files.

    Raises:
        [`SiTError`]: If a file cannot be written.
    """
    plan, seeds = ablation.plan, ablation.measures.seeds
    numbers = [measure.num_images for measure in findings.measures if measure.num_images is not None]
    test_name = ablation.images.measured_name(min(numbers, default=len(ablation.images.test)))
    words, measured = in_words(findings), f"{test_name} ({ablation.dataset})"
    words += [] if ablation.images.copies is None else [f"{ablation.images.copies}."]
    head = [f"# {escaped(plan.name)}", f"**Question.** {escaped(plan.question)}"]
    head += [f"**Claim of the paper.** {escaped(plan.claim)}"] if plan.claim else []
    if profile != "full":
        head.append(f"Profile {profile}: a tiny model, a few steps and a few images. The results mean nothing.")
    tables = [*head, main_table(findings, plan, measured, seeds)]
    tables += ["\n".join(f"- {line}" for line in words)] if words else []
    tables += trouble(findings, ablation.elsewhere)
    charts = draw_charts(findings, plan, seeds, measured)
    results = {
        "plan": plan.name,
        "question": plan.question,
        "claim": plan.claim,
        "profile": profile,
        "dataset": ablation.dataset,
        "test": test_name,
        "seeds": seeds,
        "measures": [asdict(measure) for measure in findings.measures],
        "cells": [_as_json(row) for row in findings.cells],
        "untrained": [_as_json(row) for row in findings.untrained],
        "raw_pixels": [asdict(each) for each in findings.pixels],
        "words": words,
        "failed": findings.problems,
        "charts": list(charts),
    }
    earlier = read_report(output_dir).get("charts", [])
    for path in find_files(output_dir, [CHARTS]):
        if path.name in earlier and path.name not in charts:
            path.unlink()
    write_report(output_dir, tables, results, charts, as_lines(findings, plan.factors, seeds))
    return tables, charts


def _as_json(row: Row) -> dict[str, Any]:
    cell = {} if row.cell is None else {**asdict(row.cell), "place": dict(row.cell.place)}
    costs = {seed: asdict(cost) for seed, cost in row.costs.items()}
    return {
        **cell,
        "name": row.name,
        "values": row.values,
        "models": row.models,
        "costs": costs,
        "failed": row.problems,
    }


def main_table(findings: Findings, plan: Plan, test_name: str, seeds: Sequence[int]) -> str:
    """Rows: raw pixels, encoders without training, from scratch, the cells. Columns: the measures, and what pretraining took."""
    measures = findings.measures
    rows = [
        _pixel_row(name, findings) for name in CLASSIFIERS if any(each.classifier == name for each in findings.pixels)
    ]
    is_frozen = {measure.name: measure.name in _protocols(measures) for measure in measures}
    for row in findings.untrained:
        for name, wanted in ((row.name, True), (row.name.replace("untrained encoder", SCRATCH), False)):
            cells = [_cell(row, measure) if is_frozen[measure.name] == wanted else NONE for measure in measures]
            if set(cells) != {NONE}:
                rows.append([name, *cells])
    for row in findings.cells:
        cost = cost_cells(list(row.costs.values()))
        rows.append([escaped(row.name), *(_cell(row, measure) for measure in measures), *cost])
    header = ["", *(measure.title for measure in measures), "epochs", "encoder tokens", "seconds"]
    rows = [row + [NONE] * (len(header) - len(row)) for row in rows]
    metrics = dict.fromkeys(measure.metric.replace("_", " ") for measure in measures if measure.is_fraction)
    of_seeds = f"mean and standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else "one seed"
    caption = (
        f"{', '.join(metrics).capitalize()} on {test_name}, {of_seeds}:" if metrics else "Nothing is measured yet:"
    )
    every_cost = [cost for row in findings.cells for cost in row.costs.values()]
    notes = notes_of(findings.pixels, bool(_protocols(measures)), every_cost)
    few = [
        f"{escaped(row.name)}: {len(row.models)} of {len(seeds)} seeds."
        for row in findings.cells
        if 0 < len(row.models) < len(seeds)
    ]
    return "\n\n".join([caption, table(header, rows), " ".join([*notes, *few])]).strip()


def _protocols(measures: Sequence[Measure]) -> list[str]:
    return [each.name for each in measures if each.is_fraction and not each.name.startswith("fine-tuned")]


def _cell(row: Row, measure: Measure) -> str:
    values = row.of(measure)
    if not values:
        return "failed" if row.problems and not row.values else NONE
    if measure.is_fraction:
        return mean_and_std(values)
    return f"{mean(values):.3g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _pixel_row(classifier: str, findings: Findings) -> list[str]:
    cells = []
    for measure in findings.measures:
        found = _pixels_of(findings, measure, classifier)
        cells.append(NONE if found is None else mean_and_std(found.values) + ("\\*" if is_partial(found) else ""))
    return [f"raw pixels, {CLASSIFIERS[classifier]}", *cells]


def _pixels_of(findings: Findings, measure: Measure, classifier: str) -> OfPixels | None:
    fitting = (
        each
        for each in findings.pixels
        if each.classifier == classifier
        and classifier in measure.classifiers
        and each.label_fraction == measure.label_fraction
    )
    return next(fitting, None)


def in_words(findings: Findings) -> list[str]:
    """For each measure in [0, 1], which cell is best, which are not clearly worse, and what it is compared with; from the seeds
    that all cells have."""
    lines, seeds = [], findings.seeds
    for measure in findings.measures:
        rivals = {row.name: row.side(measure, seeds) for row in findings.cells if row.of(measure, seeds)}
        if not (measure.is_fraction and seeds and rivals and measure.num_images):
            continue
        text = f"{measure.title}: {best_of(rivals, measure.num_images)}"
        if len(findings.untrained) == 1:
            untrained = findings.untrained[0].side(measure, seeds)
            name = "Untrained encoder" if measure.name in _protocols([measure]) else "From scratch"
            if len(untrained.values) == len(seeds):
                text += f" {against(name, rivals, untrained, measure.num_images)}"
        lines.append(text + (ONE_SEED if len(seeds) == 1 else ""))
    return lines


def trouble(findings: Findings, elsewhere: Sequence[tuple[str, int]]) -> list[str]:
    """What is not there, and why."""
    parts = []
    if findings.problems:
        lines = "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in findings.problems.items())
        parts.append(f"Failed:\n\n{lines}")
    missing = [
        row.name for row in findings.cells if not row.problems and (not row.values or not row.models) and row.name
    ]
    if missing:
        parts.append(f"Not run yet: {escaped(', '.join(missing))}.")
    if elsewhere:
        names = ", ".join(f"{name} (seed {seed})" for name, seed in elsewhere)
        parts.append(f"Other processes are at: {escaped(names)}.")
    return parts


def draw_charts(findings: Findings, plan: Plan, seeds: Sequence[int], test_name: str) -> dict[str, Figure]:
    """A chart for each factor that has several values, by the name of its file. The other factors are series."""
    charts = {}
    for factor, values in plan.factors.items():
        measured = [row for row in findings.cells if row.values]
        if len(values) < 2 or not measured:
            continue
        panels = [_panel(findings, measure, factor, measured) for measure in findings.measures]
        each = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else "one seed"
        note = f"Large marks: means; dots: {each}. Measured on {test_name}."
        name = re.sub(r"[^\w+.-]+", "_", factor).strip("_") or "factor"
        charts[f"results-{name}.png"] = factor_chart(factor, values, panels, plan.question, note)
    return charts


def _panel(findings: Findings, measure: Measure, factor: str, rows: Sequence[Row]) -> Panel:
    scale = 100 if measure.is_fraction else 1
    series: dict[str, dict[str, list[float]]] = {}
    untrained: dict[str, dict[str, float]] = {}
    for row in rows:
        place = row.cell.place[factor]
        others = ", ".join(f"{name}: {label}" for name, label in row.cell.place.items() if name != factor)
        series.setdefault(others, {})[place] = [scale * value for value in row.of(measure)]
        before = next((each.of(measure) for each in findings.untrained if each.encoder == row.encoder), [])
        if before:
            untrained.setdefault(others, {})[place] = scale * mean(before)
    levels: dict[str, Mapping[str, float]] = {}
    name = "untrained encoder" if measure.name in _protocols([measure]) else SCRATCH
    known = [(place, value) for each in untrained.values() for place, value in each.items()]
    if len(set(known)) == len({place for place, _ in known}):  # all series begin as the same encoder
        levels |= {name: dict(known)} if known else {}
    else:
        levels |= {f"{name}, {others}": each for others, each in untrained.items()}
    places = list(dict.fromkeys(row.cell.place[factor] for row in rows))
    for name, value in findings.levels(measure).items():
        levels[name] = dict.fromkeys(places, scale * value)
    number = f", n = {measure.num_images:,}" if measure.num_images else ""
    label = measure.metric.replace("_", " ") + (" (%)" if measure.is_fraction else "")
    return Panel(f"{measure.title}{number}", label, series, levels)
