"""Which pretraining method, on these images, for this budget? Each gets the same budget, search and measures."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.data.description import told
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.evaluation.feature_arguments import POOLINGS
from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.evaluation.results import read_results
from modeling_sit.experiments.budgets import in_words
from modeling_sit.experiments.compared_images import ComparedImages, compared_images
from modeling_sit.experiments.comparison_runs import RUN_FOLDERS, Choice, FineTuned, OfPixels, Runs, Start, percent
from modeling_sit.experiments.comparison_tables import ROWS, choices_table, labels, main_table, tuned_table
from modeling_sit.experiments.grid import claim_folder, refuse_launcher
from modeling_sit.experiments.method_maps import FIGURE, write_maps
from modeling_sit.experiments.method_runs import FACTORS, OTHER_WEIGHTS, MethodRuns
from modeling_sit.experiments.methods_arguments import MethodsComparisonArguments
from modeling_sit.experiments.pretraining_runs import PRETRAINING, Diverged, cost_of
from modeling_sit.experiments.progress import Progress
from modeling_sit.experiments.report import write_report
from modeling_sit.experiments.trials import Trial
from modeling_sit.experiments.verdict import Side, length_remark, ranking
from modeling_sit.pretraining.cost import PretrainingCost
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.runtime.fingerprints import dataset_fingerprint
from modeling_sit.runtime.notebook import show
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.visualization.charts import comparison_chart

SCRATCH = "scratch"


@dataclass(frozen=True)
class MethodsComparisonResult:
    """
    What a comparison of methods found.

    Args:
        fine_tuned (`list[FineTuned]`): Metrics of the fine-tuned models; `start` is a method or `"scratch"`.
        raw_pixels (`list[OfPixels]`): Metrics of the classifiers of raw pixels.
        frozen (`dict`): Results of the frozen features by start, of each seed, by protocol.
        tuned (`dict[str, Trial]`): What was chosen for each method.
        choices (`dict`): Learning rate and steps of fine-tuning by start and fraction, where they are not the recipe's.
        costs (`dict[str, list[PretrainingCost]]`): What pretraining cost, by method, of each seed.
        tables (`list[str]`): All this as Markdown, with captions, the main table first.
        ranking (`list[str]`): For each fraction, which method is best and which are not clearly worse, in words.
        failed (`dict[str, str]`): Why a method, or a seed of one, was not measured: its loss was not finite. Such runs are in
            `ranking`, too.
        chart (`matplotlib.figure.Figure`): The metric for each fraction of the labels.
        output_dir (`Path`): The folder of the runs and the report.
    """

    fine_tuned: list[FineTuned]
    raw_pixels: list[OfPixels]
    frozen: dict[str, list[dict[str, dict[str, Any]]]]
    tuned: dict[str, Trial]
    choices: dict[tuple[str, float], Choice]
    costs: dict[str, list[PretrainingCost]]
    tables: list[str]
    ranking: list[str]
    failed: dict[str, str]
    chart: Figure
    output_dir: Path

    def _ipython_display_(self) -> None:
        """In a notebook: the tables, the ranking, the chart, and the maps."""
        show(*self.tables, "\n\n".join(self.ranking), self.chart, self.output_dir / FIGURE)


@quiet_transformers()
def compare_methods(
    methods: list[str], dataset: Any, output_dir: str | Path, *, recipe: str | Path | None = None, **arguments: Any
) -> MethodsComparisonResult:
    """Pretrain with several methods at the same budget, and compare them with one another, with training from scratch and with
    raw pixels.

    Runs that are finished in the folder are not run again, so that a comparison goes on where it stopped, and methods and
    seeds can be added.

    Args:
        methods (list of `str`): Names of the methods, as of [`pretrain`].
        dataset (`str` or `datasets.DatasetDict`): Labeled images, as in [`DatasetArguments`].
        output_dir (`str` or `Path`): Folder for the runs, and for `results.md`, `results.json`, `results.png`,
            `embeddings.png` and `embeddings.html`.
        recipe (`str` or `Path`, *optional*): YAML file of values for the arguments, or the name of a shipped one.
        arguments: Fields of [`MethodsComparisonArguments`], such as `budget="tokens"` and `budget_value=1e9`.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If the folder holds another comparison, a run fails by a user's mistake, or every pretraining diverged.
        [`TrainingInterrupted`]: If a signal ended a run.
    """
    given = {**arguments, "methods": methods, "dataset": dataset, "output_dir": output_dir}
    return run_methods_comparison(*build_arguments((MethodsComparisonArguments,), given, recipe, "compare_methods"))


def run_methods_comparison(arguments: MethodsComparisonArguments) -> MethodsComparisonResult:
    """Run what is missing, and write the report. Raises as [`compare_methods`]."""
    refuse_launcher()
    output_dir = Path(arguments.output_dir)
    check_outside_dataset(output_dir, arguments.dataset)
    settings = _settings(arguments)
    images = compared_images(arguments)
    settings |= {"images": images.fingerprint(), "files": images.files()}
    if arguments.tune and not images.can_hold_out():
        raise SiTError(
            "each training image is the only one of a class, or has none, so none can be held out to choose by",
            argument="tune",
            remedy="leave the search out with `tune=False`",
        )
    claim_folder(output_dir, settings, (*RUN_FOLDERS, "pretrained-*"), arguments.overwrite_output_dir)
    progress = Progress(_missing(arguments))
    with told():
        tuned, starts, failed = _pretrain(arguments, images, progress)
        runs = Runs(arguments, images, starts, announce=progress)
        pixels = runs.raw_pixels() if arguments.raw_pixels else []
        frozen = {}
        if arguments.protocols:
            frozen = {name: [runs.frozen(name, seed) for seed in start.models] for name, start in starts.items()}
        fine_tuned = []
        for fraction, start in itertools.product(arguments.label_fractions, starts):
            if start == SCRATCH:
                _settle_length(runs, fraction)
            fine_tuned.append(runs.fine_tune(start, fraction))
    found = _report(runs, fine_tuned, pixels, frozen, tuned, failed)
    write_maps(output_dir, images, starts, arguments)
    return found


def _pretrain(
    arguments: MethodsComparisonArguments, images: ComparedImages, progress: Progress
) -> tuple[dict[str, Trial], dict[str, Start], dict[str, str]]:
    """Pretrain all that is missing; what was chosen by method, what the measures start from, from scratch first, and which runs
    diverged. A method is measured with the seeds that are left."""
    pretraining = MethodRuns(arguments, images, progress)
    tuned, starts, failed = {}, {}, {}

    @contextmanager
    def surviving(name: str) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            failed[name] = error.problem
            print(f"{name}: {error.problem}", flush=True)

    for method in arguments.methods:  # what one of them cannot do is known before hours of the others
        pretraining.plan(method)
        pretraining.length(method)
    recipe = {} if arguments.finetuning_recipe is None else read_recipe(arguments.finetuning_recipe)
    steps = {name: value for name, value in arguments.profile["finetuning"].items() if name not in recipe}
    for method in arguments.methods:
        with surviving(method):
            choice, models = pretraining.choose(method), {}
            for seed in arguments.seeds:
                with surviving(f"{method}, seed {seed}"):
                    models[seed] = str(pretraining.pretrain(method, seed, choice))
            if models:
                if not starts:
                    steps |= _stochastic_depth(Path(arguments.output_dir), next(iter(models.values())), recipe)
                tuned[method] = choice
                starts[method] = Start(models, pooling=choice.pooling, finetuning={"pooling": choice.pooling, **steps})
    if not starts:
        raise SiTError(
            f"no pretraining is left to measure: {'; '.join(f'{name}: {each}' for name, each in failed.items())}",
            argument="pretraining_recipe",
            remedy="give a lower `base_learning_rate` there",
        )
    # All methods have the same backbone; from scratch it has both kinds of tokens, so that none is chosen for it wrongly.
    first = next(iter(next(iter(starts.values())).models.values()))
    pooling = recipe.get("pooling", POOLINGS[-1])
    scratch = Start(dict.fromkeys(arguments.seeds, first), True, pooling, finetuning={"pooling": pooling, **steps})
    return tuned, {SCRATCH: scratch, **starts}, failed


def _stochastic_depth(output_dir: Path, model: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Stochastic depth of fine-tuning, if the recipe does not say it: that of the first method's model for all of them. Else each would
    have that of its pretraining, which is 0 for some methods in long runs, and 0.1 for others. What was fine-tuned before, with another
    method as the first one, decides for those that are added."""
    if recipe.get("drop_path_rate") is not None:
        return {}
    earlier = sorted(output_dir.glob("finetuned-*/config.json"))
    config = json.loads((earlier or [Path(model) / "config.json"])[0].read_text(encoding="utf-8"))
    return {"drop_path_rate": config["drop_path_rate"]}


def _settle_length(runs: Runs, fraction: float) -> None:
    """Have every method fine-tune as long as training from scratch, whose rate and length are chosen, with its usual rate."""
    arguments = runs.arguments
    if arguments.tune_finetuning != SCRATCH:
        return
    choice = runs.choose(SCRATCH, fraction)
    longest = runs.starts[SCRATCH].finetuning.get("max_tuning_steps")
    if choice is None and longest is not None and not arguments.length_of(fraction):
        # One label of each class, of which none can be held out.
        choice = runs.chosen[SCRATCH, fraction] = Choice(None, longest)
    if choice is not None:
        others = Choice(None, choice.max_steps, "as from scratch")
        runs.chosen |= {(method, fraction): others for method in runs.starts if method != SCRATCH}


def _report(
    runs: Runs,
    fine_tuned: list[FineTuned],
    pixels: list[OfPixels],
    frozen: Mapping[str, list[dict[str, dict[str, Any]]]],
    tuned: Mapping[str, Trial],
    failed: dict[str, str],
) -> MethodsComparisonResult:
    """Write tables, values and chart."""
    arguments, images = runs.arguments, runs.images
    choices = {cell: choice for cell, choice in runs.chosen.items() if choice is not None}
    costs = {
        method: [cost for model in runs.starts[method].models.values() if (cost := cost_of(Path(model))) is not None]
        for method in tuned
    }
    rows = {SCRATCH: ROWS[SCRATCH], **{method: method for method in tuned}}
    test_name = images.measured_name(fine_tuned[0].num_images)
    budget = f"Each method is pretrained for {in_words(arguments.budget, arguments.amount)}, with each seed."
    tables = [f"{budget} {main_table(test_name, rows, fine_tuned, frozen, pixels, costs)}"]
    tables += [tuned_table(tuned)] if arguments.tune else []
    tables += [choices_table(choices)] if choices else []
    words = [f"Not measured: {name}: {problem}." for name, problem in failed.items()]
    words += [
        _ranking(fraction, fine_tuned, pixels, runs) + length_remark(choices.get((SCRATCH, fraction)))
        for fraction in arguments.label_fractions
    ]
    words += [] if images.copies is None else [f"{images.copies}."]
    chart = comparison_chart(
        {(cell.label_fraction, cell.start): cell.values for cell in fine_tuned},
        "fraction of the labels",
        fine_tuned[0].metric.replace("_", " "),
        {(cell.label_fraction, f"raw pixels, {CLASSIFIERS[cell.classifier]}"): mean(cell.values) for cell in pixels},
    )
    results = {
        "budget": {"kind": arguments.budget, "value": arguments.amount},
        "seeds": arguments.seeds,
        "fine_tuned": [asdict(cell) for cell in fine_tuned],
        "raw_pixels": [asdict(cell) for cell in pixels],
        "frozen": frozen,
        "tuned": {method: asdict(trial) for method, trial in tuned.items()},
        "choices": [
            {"start": start, "label_fraction": fraction, **asdict(choice)}
            for (start, fraction), choice in choices.items()
        ],
        "pretraining": {method: [asdict(cost) for cost in each] for method, each in costs.items()},
        "ranking": words,
        "failed": failed,
    }
    output_dir = Path(arguments.output_dir)
    write_report(output_dir, [*tables, "\n".join(words)], results, {"results.png": chart})
    return MethodsComparisonResult(
        fine_tuned, pixels, dict(frozen), dict(tuned), choices, dict(costs), tables, words, failed, chart, output_dir
    )


def _ranking(fraction: float, fine_tuned: list[FineTuned], pixels: list[OfPixels], runs: Runs) -> str:
    """By the seeds that all have: where one of a method has diverged, the others' values of it are left out, too."""
    cells = [cell for cell in fine_tuned if cell.label_fraction == fraction]
    seeds = set.intersection(*(set(cell.seeds) for cell in cells))
    if not seeds:
        return f"{labels(fraction)}: nothing is compared, because no seed is left of all methods.".capitalize()
    sides = {}
    for cell in cells:
        values = {seed: value for seed, value in zip(cell.seeds, cell.values, strict=True) if seed in seeds}
        common = replace(cell, values=list(values.values()), seeds=list(values))
        sides[cell.start] = Side(common.values, runs.hits(common))
    scratch = sides.pop(SCRATCH)
    # A classifier has a value for each seed of the comparison, or one in all.
    is_whole = len(seeds) == len(runs.arguments.seeds)
    of_pixels = {
        CLASSIFIERS[cell.classifier]: Side(cell.values, runs.pixel_hits(cell))
        for cell in pixels
        if cell.label_fraction == fraction and (is_whole or len(cell.values) == 1)
    }
    return ranking(fraction, sides, scratch, of_pixels, cells[0].num_images)


def _settings(arguments: MethodsComparisonArguments) -> dict[str, Any]:
    """What the results depend on, as JSON has it. More methods, seeds, protocols and classifiers only add runs.

    Raises:
        [`SiTError`]: If a recipe cannot be read.
    """
    left_out = ("output_dir", "overwrite_output_dir", "methods", "seeds", "protocols", "raw_pixels")
    settings = {name: value for name, value in vars(arguments).items() if name not in left_out}
    settings["budget_value"] = arguments.amount
    settings["first_seed"] = arguments.seeds[0]
    settings["dataset"] = dataset_fingerprint(arguments.dataset)
    settings["device"] = choose_device(None).type  # the presets choose by it
    for name in ("pretraining_recipe", "finetuning_recipe"):
        if settings[name] is not None:
            with argument_names(recipe=name):
                settings[name] = read_recipe(settings[name])
    return settings


def _missing(arguments: MethodsComparisonArguments) -> Counter[str]:
    """How many runs are still to do, by kind."""
    output_dir, missing = Path(arguments.output_dir), Counter()

    def expect(kind: str, folder: str, *names: str) -> None:
        found = read_results(output_dir / folder)
        missing[kind] += any(name not in found for name in names)

    first, *others = arguments.seeds
    for method in arguments.methods:
        if arguments.tune:
            for factor in FACTORS:
                expect(PRETRAINING, f"tuned-{method}", MethodRuns.trial_name(factor))
            if MethodRuns.has_choice_of_weights(method):
                expect(OTHER_WEIGHTS, f"tuned-{method}", OTHER_WEIGHTS)
        for seed in others if arguments.tune else arguments.seeds:
            expect(PRETRAINING, f"pretrained-{method}-seed{seed}", PRETRAINING)
    for start, seed in itertools.product((SCRATCH, *arguments.methods), arguments.seeds):
        expect("frozen features", f"frozen-{start}-seed{seed}", *arguments.protocols)
        for fraction in arguments.label_fractions:
            expect("fine-tuning", f"finetuned-{start}-{percent(fraction)}-seed{seed}", "finetune")
            if seed == first and arguments.tunes(start):
                expect("search", f"tuned-{start}-{percent(fraction)}", "chosen")
    if arguments.raw_pixels and not (output_dir / "raw-pixels").exists():
        missing["raw pixels"] += 1
    return missing
