"""Does pretraining help? Raw pixels, the untrained encoder and training from scratch against the pretrained model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.data.description import told
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.evaluation.raw_pixels import CLASSIFIERS
from modeling_sit.experiments.compared_images import compared_images
from modeling_sit.experiments.comparison_arguments import ComparisonArguments
from modeling_sit.experiments.comparison_runs import RUN_FOLDERS, STARTS, Choice, FineTuned, OfPixels, Runs, Start
from modeling_sit.experiments.comparison_tables import ROWS, choices_table, frozen_table, main_table
from modeling_sit.experiments.grid import claim_folder, refuse_launcher
from modeling_sit.experiments.report import write_report
from modeling_sit.experiments.verdict import MAY_BE_SEEN, Side, length_remark, verdict
from modeling_sit.pretraining.cost import PretrainingCost, pretraining_cost
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import argument_names
from modeling_sit.runtime.fingerprints import configuration_fingerprint, dataset_fingerprint, model_fingerprint
from modeling_sit.runtime.notebook import show
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.visualization.charts import comparison_chart


@dataclass(frozen=True)
class ComparisonResult:
    """
    What a comparison found.

    Args:
        fine_tuned (`list[FineTuned]`): Metrics of the fine-tuned models.
        raw_pixels (`list[OfPixels]`): Metrics of the classifiers of raw pixels.
        frozen (`dict`): Results of the frozen features, by start, then protocol, as `eval_results.json` has them.
        choices (`dict`): Learning rate and steps by start and fraction, where they are not the recipe's.
        pretraining ([`PretrainingCost`], *optional*): What pretraining cost, if the model's folder says so.
        tables (`list[str]`): All this as Markdown, with captions, the main table first.
        verdict (`list[str]`): For each fraction, whether pretraining helped, in words.
        chart (`matplotlib.figure.Figure`): The metric for each fraction of the labels.
        output_dir (`Path`): The folder of the runs and the report.
    """

    fine_tuned: list[FineTuned]
    raw_pixels: list[OfPixels]
    frozen: dict[str, dict[str, dict[str, Any]]]
    choices: dict[tuple[str, float], Choice]
    pretraining: PretrainingCost | None
    tables: list[str]
    verdict: list[str]
    chart: Figure
    output_dir: Path

    def _ipython_display_(self) -> None:
        """In a notebook: the tables, the verdict, and the chart."""
        show(*self.tables, "\n\n".join(self.verdict), self.chart)


@quiet_transformers()
def compare(
    model_name_or_path: str,
    dataset: Any,
    output_dir: str | Path,
    *,
    recipe: str | Path | None = None,
    **arguments: Any,
) -> ComparisonResult:
    """Compare a pretrained model with classifiers of raw pixels, with the same encoder before any training, and with the
    same fine-tuning from scratch.

    Runs that are finished in the folder are not run again, so that a comparison goes on where it stopped.

    Args:
        model_name_or_path (`str`): Folder or Hub id of the pretrained model.
        dataset (`str` or `datasets.DatasetDict`): Labeled images, as in [`DatasetArguments`].
        output_dir (`str` or `Path`): Folder for the runs, and for `results.md`, `results.json` and `results.png`.
        recipe (`str` or `Path`, *optional*): YAML file of values for the arguments, or the name of a shipped one.
        arguments: Fields of [`ComparisonArguments`].

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If the folder holds another comparison, or a run fails by a user's mistake.
        [`TrainingInterrupted`]: If a signal ended a run.
    """
    given = {**arguments, "model_name_or_path": model_name_or_path, "dataset": dataset, "output_dir": output_dir}
    return run_comparison(*build_arguments((ComparisonArguments,), given, recipe, "compare"))


def run_comparison(arguments: ComparisonArguments) -> ComparisonResult:
    """Run what is missing, and write the report. Raises as [`compare`]."""
    refuse_launcher()
    output_dir = Path(arguments.output_dir)
    check_outside_dataset(output_dir, arguments.dataset)
    settings = _settings(arguments)
    images = compared_images(arguments, arguments.model_name_or_path)
    settings |= {"images": images.fingerprint(), "files": images.files()}
    claim_folder(output_dir, settings, RUN_FOLDERS, arguments.overwrite_output_dir)
    models = dict.fromkeys(arguments.seeds, arguments.model_name_or_path)
    starts = {start: Start(models, from_scratch=start == "scratch") for start in STARTS}
    return report_comparison(arguments, Runs(arguments, images, starts))


def report_comparison(arguments: ComparisonArguments, runs: Runs) -> ComparisonResult:
    """Run what is missing in the folder of the comparison, which is claimed, and write the report."""
    images, output_dir = runs.images, runs.output_dir
    cells = [(start, fraction) for fraction in arguments.label_fractions for start in STARTS]
    with told():
        pixels = runs.raw_pixels() if arguments.raw_pixels else []
        frozen = {start: runs.frozen(start) for start in STARTS} if arguments.protocols else {}
        fine_tuned = [runs.fine_tune(*cell) for cell in cells]
    chosen = {cell: choice for cell in cells if (choice := runs.choose(*cell)) is not None}
    cost = pretraining_cost(Path(arguments.model_name_or_path))

    costs = {"pretrained": [cost]} if cost is not None else {}
    seen = {start: [results] for start, results in frozen.items()}
    test_name = images.measured_name(fine_tuned[0].num_images)
    tables = [main_table(test_name, ROWS, fine_tuned, seen, pixels, costs)]
    tables += [frozen_table(frozen)] if frozen else []
    tables += [choices_table(chosen)] if chosen else []
    words = [
        _verdict(fraction, fine_tuned, pixels, runs) + length_remark(chosen.get(("scratch", fraction)))
        for fraction in arguments.label_fractions
    ]
    if images.is_held_back:
        words.append(MAY_BE_SEEN)
    if images.copies is not None:
        words.append(f"{images.copies}.")
    chart = comparison_chart(
        {(cell.label_fraction, cell.start): cell.values for cell in fine_tuned},
        "fraction of the labels",
        fine_tuned[0].metric.replace("_", " "),
        {(cell.label_fraction, f"raw pixels, {CLASSIFIERS[cell.classifier]}"): mean(cell.values) for cell in pixels},
    )
    results = {
        "seeds": arguments.seeds,
        "fine_tuned": [asdict(cell) for cell in fine_tuned],
        "raw_pixels": [asdict(cell) for cell in pixels],
        "frozen": frozen,
        "choices": [
            {"start": start, "label_fraction": fraction, **asdict(choice)}
            for (start, fraction), choice in chosen.items()
        ],
        "pretraining": asdict(cost) if cost is not None else None,
        "verdict": words,
    }
    write_report(output_dir, [*tables, "\n".join(words)], results, {"results.png": chart})
    return ComparisonResult(fine_tuned, pixels, frozen, chosen, cost, tables, words, chart, output_dir)


def _settings(arguments: ComparisonArguments) -> dict[str, Any]:
    """What the results depend on, as JSON has it. More seeds, protocols and classifiers only add runs.

    Raises:
        [`SiTError`]: If the recipe cannot be read.
    """
    left_out = ("output_dir", "overwrite_output_dir", "seeds", "protocols", "raw_pixels")
    settings = {name: value for name, value in vars(arguments).items() if name not in left_out}
    if settings["intensity_range"] is None:  # as in comparisons of before there was a range
        del settings["intensity_range"]
    settings["dataset"] = dataset_fingerprint(arguments.dataset)
    settings["model_name_or_path"] = model_fingerprint(arguments.model_name_or_path)
    settings["configuration"] = configuration_fingerprint(arguments.model_name_or_path)
    settings["device"] = choose_device(None).type  # the presets choose by it
    settings["choices"] = []  # the quickstart of earlier versions had some
    if arguments.finetuning_recipe is not None:
        with argument_names(recipe="finetuning_recipe"):
            settings["finetuning_recipe"] = read_recipe(arguments.finetuning_recipe)
    return settings


def _verdict(fraction: float, fine_tuned: list[FineTuned], pixels: list[OfPixels], runs: Runs) -> str:
    cells = {cell.start: cell for cell in fine_tuned if cell.label_fraction == fraction}
    sides = {start: Side(cell.values, runs.hits(cell)) for start, cell in cells.items()}
    of_pixels = {
        CLASSIFIERS[cell.classifier]: Side(cell.values, runs.pixel_hits(cell))
        for cell in pixels
        if cell.label_fraction == fraction
    }
    return verdict(fraction, sides["pretrained"], sides["scratch"], of_pixels, cells["pretrained"].num_images)
