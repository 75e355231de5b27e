"""Which setting is better, on these images? Every cell of a plan is pretrained with every seed, and measured in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.data.description import told
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.splits import select_label_fraction
from modeling_sit.evaluation.results import read_results
from modeling_sit.experiments.ablation_arguments import (
    PROFILES,
    AblationArguments,
    settle_measures,
)
from modeling_sit.experiments.ablation_report import CHARTS, report
from modeling_sit.experiments.ablation_results import Findings, collect
from modeling_sit.experiments.ablation_runs import CONSEQUENCE, LOCKS, RUN_FOLDERS, AblationRuns
from modeling_sit.experiments.compared_images import TEST_SEED, ComparedImages, compared_images
from modeling_sit.experiments.grid import check_writable, claim_folder, refuse_launcher
from modeling_sit.experiments.plan import Cell, choose_cells, read_plan
from modeling_sit.experiments.pretraining_runs import PRETRAINING
from modeling_sit.experiments.progress import Progress
from modeling_sit.hub.provenance import describe_duration
from modeling_sit.pretraining.cost import pretraining_cost
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import argument_names
from modeling_sit.runtime.fingerprints import dataset_fingerprint
from modeling_sit.runtime.locks import taken
from modeling_sit.runtime.notebook import show
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.words import counted


@dataclass(frozen=True)
class AblationResult:
    """
    What an ablation has found.

    Args:
        findings ([`Findings`]): Every value, by cell, measure and seed; `None` after a dry run.
        failed (`dict[str, str]`): Why cells have failed, by their names and seeds. The other cells are there.
        tables (`list[str]`): Markdown, as in `results.md`; after a dry run what it says.
        charts (`dict[str, Figure]`): A chart for each factor, by the name of its file.
        output_dir (`Path`): The folder of the report.
    """

    findings: Findings | None
    failed: dict[str, str]
    tables: list[str]
    charts: dict[str, Figure]
    output_dir: Path

    def _ipython_display_(self) -> None:
        """In a notebook: the tables and the charts."""
        show(*self.tables, *self.charts.values())


@quiet_transformers()
def ablate(plan: str | Path, dataset: Any, output_dir: str | Path, **arguments: Any) -> AblationResult:
    """Pretrain and measure each cell of a plan, and write one table, and a chart for each factor.

    Runs that are finished are not run again: an ablation goes on where it stopped, and cells and seeds can be added. Several
    processes, of one or several machines, may work in the same folder: each takes what nobody is at. A cell that fails is named,
    and the others go on.

    Args:
        plan (`str` or `Path`): A YAML file, or the name of a shipped plan, such as `corruption_kind`.
        dataset (`str` or `datasets.DatasetDict`): Labeled images, as in [`DatasetArguments`].
        output_dir (`str` or `Path`): Folder for the runs, and for `results.md`, `results.json`, `results.csv` and the charts.
        arguments: Fields of [`AblationArguments`], such as `seeds=[0, 1]` and `profile="smoke"`.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If the plan has something that cannot be, the folder holds another ablation, or the disk is full.
        [`TrainingInterrupted`]: If a signal ended a run.
    """
    given = {**arguments, "plan": plan, "dataset": dataset, "output_dir": output_dir}
    return run_ablation(*build_arguments((AblationArguments,), given, function="ablate"))


def run_ablation(arguments: AblationArguments) -> AblationResult:
    """Run what is missing, and write the report. Raises as [`ablate`]."""
    refuse_launcher()
    output_dir = Path(arguments.output_dir)
    plan = read_plan(arguments.plan)
    measures = settle_measures(arguments, plan)
    cells = choose_cells(plan, arguments.cells)
    check_outside_dataset(output_dir, arguments.dataset)
    # What is wrong with the folder of a run is wrong with the argument that names it.
    of_runs = {} if arguments.runs_dir is None else {"output_dir": "runs_dir"}
    with argument_names(**of_runs):
        check_writable(arguments.runs)
        check_outside_dataset(arguments.runs, arguments.dataset)
    images = _part_of(compared_images(arguments), arguments.profile)
    ablation = AblationRuns(plan, arguments, measures, images)
    missing = ablation.missing(cells)  # with it, all that is to be run is known and checked
    if arguments.dry_run:
        text = describe_plan(ablation, cells)
        print(text)
        return AblationResult(None, {}, [text], {}, output_dir)
    settings = {
        "plan": plan.name,
        "dataset": dataset_fingerprint(arguments.dataset),
        "images": images.fingerprint(),
        "files": images.files(),
        "profile": arguments.profile,
        "device": choose_device(None).type,
    }
    folders = [f"runs/{pattern}" for pattern in RUN_FOLDERS]
    claim_folder(output_dir, settings, folders, arguments.overwrite_output_dir, ("results.csv", CHARTS))
    ablation.announce = Progress(missing)
    with told(), argument_names(**of_runs):
        pixels = ablation.run(cells)
    # Of several processes, the last one to report has the results of all.
    with taken(arguments.runs / LOCKS / "report.lock", CONSEQUENCE, waits=True):
        findings = collect(ablation, pixels)
        tables, charts = report(ablation, findings, output_dir, arguments.profile)
    return AblationResult(findings, findings.problems, tables, charts, output_dir)


def _part_of(images: ComparedImages, profile: str) -> ComparedImages:
    """The images, or some of each split where a profile has few."""
    most = PROFILES[profile].get("images")
    if most is None:
        return images
    parts = {}
    for name, split in (("train", images.train), ("test", images.test)):
        parts[name] = split
        if len(split) > most[name]:
            parts[name] = select_label_fraction(split, most[name] / len(split), TEST_SEED)
    part = images.in_memory(**parts)
    return ComparedImages(
        part.train, part.test, part.label_names, f"{len(part.test):,} of {images.test_name}", part.arguments
    )


def describe_plan(ablation: AblationRuns, cells: Sequence[Cell]) -> str:
    """How many runs, steps and hours are left of these cells, by a few steps of each pretraining, which are thrown away."""
    names, seeds = {cell.name for cell in cells}, ablation.measures.seeds
    lines, num_runs, num_steps, num_done, total = [], 0, 0, 0, 0.0
    for pretraining in ablation.pretrainings.all:
        wanted = [cell.name for cell in pretraining.cells if cell.name in names]
        if not wanted:
            continue
        folders = [ablation.pretrainings.run_dir(pretraining, seed) for seed in seeds]
        done = [folder for folder in folders if PRETRAINING in read_results(folder)]
        left = len(seeds) - len(done)
        cost = pretraining_cost(done[0]) if done else None
        if cost is not None:
            seconds = cost.seconds / cost.steps
        else:
            planned = ablation.pretrainings.planned(
                f"cell {wanted[0]}", {**pretraining.given, "seed": seeds[0]}, measures=True
            )
            seconds = planned.seconds_per_step
        num_runs, num_done = num_runs + len(seeds), num_done + len(done)
        num_steps, total = num_steps + left * pretraining.num_steps, total + left * pretraining.num_steps * seconds
        lines.append(
            f"  {', '.join(wanted)}: {counted(pretraining.num_steps, 'step')} of {seconds:.3g} s, "
            f"{describe_duration(pretraining.num_steps * seconds)} a run"
        )
    missing = ablation.missing(cells)
    kinds = {"frozen features": "measurement", "fine-tuning": "fine-tuning"}
    others = [counted(missing[kind], name, f"{name}s") for kind, name in kinds.items() if missing[kind]]
    others += ["the raw pixels"] if missing["raw pixels"] else []
    head = (
        f"{ablation.plan.name}: {counted(len(names), 'cell', 'cells')} with {counted(len(seeds), 'seed', 'seeds')}, "
        f"{counted(num_runs, 'pretraining', 'pretrainings')}, {num_done} of them done"
    )
    tail = f"left: {counted(num_steps, 'step')} of pretraining, about {describe_duration(total)} on {choose_device(None).type}"
    extra = (
        f"; then {' and '.join(others)}, all with those of untrained encoders, which are not in this time"
        if others
        else ""
    )
    return "\n".join([head, *lines, tail + extra, "dry run: nothing was written"])
