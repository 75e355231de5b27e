"""Does pretraining help? The same fine-tuning from pretrained weights and from scratch, and the frozen features of both."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.protocols import ProtocolArguments
from modeling_sit.evaluation.run import EvaluationArguments, run_evaluation
from modeling_sit.experiments.grid import claim_folder, results_of
from modeling_sit.experiments.report import mean_and_std, over_seeds, with_interval, write_report
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.run import run_finetuning
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.markdown import table
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted, argument_names
from modeling_sit.runtime.fingerprints import dataset_fingerprint, model_fingerprint
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.visualization.charts import comparison_chart

STARTS = ("scratch", "pretrained")
RUN_FOLDERS = ("finetuned-*", "frozen-*")


@dataclass(kw_only=True)
class ComparisonArguments(DatasetArguments):
    """
    What is compared, and with which seeds.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    validation_split: str | None = field(default="test", metadata={"help": "Split to measure. It chooses nothing."})
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the pretrained model. Required."})
    output_dir: str = field(metadata={"help": "Folder for the runs and the tables. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to delete an earlier comparison in that folder."}
    )
    finetuning_recipe: str | None = field(
        default=None,
        metadata={"help": "Fine-tuning recipe for all runs: a YAML file, or the name of a recipe of the package."},
    )
    label_fractions: list[float] = field(
        default_factory=lambda: [0.1, 1.0],
        metadata={"help": "Fractions of the training labels to train with, each in (0, 1]."},
    )
    num_train_epochs: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs of fine-tuning: one number for all fractions, or one number for each. Default: as in the"
            " recipe."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={
            "help": "Seeds of fine-tuning. Each seed draws other labels, another order and, from scratch, other "
            "weights."
        },
    )
    protocols: list[str] = field(
        default_factory=lambda: ["knn", "linear"],
        metadata={"help": "Protocols that measure the frozen features, separated by spaces or commas; or `none`."},
    )

    def __post_init__(self):
        if not all(0 < fraction <= 1 for fraction in self.label_fractions):
            raise SiTError(f"{self.label_fractions}: each must be in (0, 1]", argument="label_fractions")
        for name in ("label_fractions", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SiTError(f"{getattr(self, name)} has a value twice", argument=name)
        epochs = self.num_train_epochs
        if epochs is not None and len(epochs) not in (1, len(self.label_fractions)):
            raise SiTError(
                f"got {len(epochs)} numbers for {len(self.label_fractions)} `label_fractions`",
                argument="num_train_epochs",
                remedy="give one number, or one for each fraction",
            )
        names = [name.strip() for names in self.protocols for name in names.split(",")]
        self.protocols = [name for name in names if name and name != "none"]

    def epochs_of(self, fraction: float) -> float | None:
        """Epochs of fine-tuning with this fraction of the labels; `None` for the recipe's."""
        if self.num_train_epochs is None:
            return None
        index = self.label_fractions.index(fraction) if len(self.num_train_epochs) > 1 else 0
        return self.num_train_epochs[index]

    def dataset_arguments(self) -> dict[str, Any]:
        """The values of the fields of [`DatasetArguments`]."""
        return {item.name: getattr(self, item.name) for item in fields(DatasetArguments)}


@dataclass(frozen=True)
class FineTuned:
    """
    Results of the models that were fine-tuned alike but for the seed.

    Args:
        label_fraction (`float`): Fraction of the labels, in (0, 1].
        start (`str`): `"scratch"` or `"pretrained"`.
        metric (`str`): What was measured.
        values (`list[float]`): The metric in [0, 1], in the order of the seeds.
    """

    label_fraction: float
    start: str
    metric: str
    values: list[float]


@dataclass(frozen=True)
class ComparisonResult:
    """
    What a comparison found.

    Args:
        fine_tuned (`list[FineTuned]`): Metrics of the fine-tuned models.
        frozen (`dict`): Results of the frozen features, by start, then protocol, as `eval_results.json` has them.
        tables (`list[str]`): Both as Markdown, with captions.
        chart (`matplotlib.figure.Figure`): The fine-tuned models' metric for each fraction of the labels.
        output_dir (`Path`): The folder of the runs and the report.
    """

    fine_tuned: list[FineTuned]
    frozen: dict[str, dict[str, dict[str, Any]]]
    tables: list[str]
    chart: Figure
    output_dir: Path


def compare(
    model_name_or_path: str,
    dataset: Any,
    output_dir: str | Path,
    *,
    recipe: str | Path | None = None,
    **arguments: Any,
) -> ComparisonResult:
    """Compare fine-tuning from pretrained weights with fine-tuning from scratch, and the frozen features of both.

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
    output_dir = Path(arguments.output_dir)
    claim_folder(output_dir, _settings(arguments), RUN_FOLDERS, arguments.overwrite_output_dir)
    fine_tuned = [
        _finetune_seeds(arguments, fraction, start) for fraction in arguments.label_fractions for start in STARTS
    ]
    frozen = {start: _frozen_results(arguments, start) for start in STARTS} if arguments.protocols else {}
    tables = [_fine_tuned_table(arguments, fine_tuned)] + ([_frozen_table(frozen)] if frozen else [])
    values = {(cell.label_fraction, cell.start): cell.values for cell in fine_tuned}
    chart = comparison_chart(values, "fraction of the labels", fine_tuned[0].metric.replace("_", " "))
    results = {"seeds": arguments.seeds, "fine_tuned": [asdict(cell) for cell in fine_tuned], "frozen": frozen}
    write_report(output_dir, tables, results, chart)
    return ComparisonResult(fine_tuned, frozen, tables, chart, output_dir)


def _settings(arguments: ComparisonArguments) -> dict[str, Any]:
    """What the results depend on, as JSON has it. More seeds and protocols only add runs.

    Raises:
        [`SiTError`]: If the recipe cannot be read.
    """
    left_out = ("output_dir", "overwrite_output_dir", "seeds", "protocols")
    settings = {name: value for name, value in vars(arguments).items() if name not in left_out}
    settings["dataset"] = dataset_fingerprint(arguments.dataset)
    settings["model_name_or_path"] = model_fingerprint(arguments.model_name_or_path)
    if arguments.finetuning_recipe is not None:
        with argument_names(recipe="finetuning_recipe"):
            settings["finetuning_recipe"] = read_recipe(arguments.finetuning_recipe)
    return settings


def _finetune_seeds(arguments: ComparisonArguments, fraction: float, start: str) -> FineTuned:
    results = [_finetune(arguments, fraction, start, seed) for seed in arguments.seeds]
    metric = "accuracy" if "accuracy" in results[0] else "mean_average_precision"
    return FineTuned(fraction, start, metric, [result[metric] for result in results])


def _finetune(arguments: ComparisonArguments, fraction: float, start: str, seed: int) -> dict[str, Any]:
    """Results of one fine-tuned model."""
    run_dir = Path(arguments.output_dir) / f"finetuned-{start}-{100 * fraction:g}%-seed{seed}"
    dataset_arguments = arguments.dataset_arguments()
    given = {
        "model_name_or_path": arguments.model_name_or_path,
        **dataset_arguments,
        "validation_split": None,
        "test_split": dataset_arguments["validation_split"],
        "output_dir": str(run_dir),
        "from_scratch": start == "scratch",
        "label_fraction": fraction,
        "seed": seed,
        "resume_from_checkpoint": "auto",
    }
    if arguments.num_train_epochs is not None:
        given["num_train_epochs"] = arguments.epochs_of(fraction)

    def run(missing: list[str]) -> None:
        print(f"\nFine-tuning with {100 * fraction:g} % of the labels, {start}, seed {seed}", flush=True)
        classes = (FinetuningArguments, FinetuningTrainingArguments, HubArguments)
        with argument_names(test_split="validation_split", recipe="finetuning_recipe"):
            *built, _ = build_arguments(classes, given, arguments.finetuning_recipe, "finetune")
            run_finetuning(*built, HubArguments())  # none of many runs is the one to share

    try:
        return results_of(run_dir, ["finetune"], run)["finetune"]
    except TrainingInterrupted as interruption:
        message = f"stopped in {run_dir}; the same comparison goes on there when it starts again"
        raise TrainingInterrupted(interruption.signal, message) from interruption


def _frozen_results(arguments: ComparisonArguments, start: str) -> dict[str, dict[str, Any]]:
    """Results of the frozen features, by protocol."""
    run_dir = Path(arguments.output_dir) / f"frozen-{start}"

    def run(missing: list[str]) -> None:
        print(f"\nMeasuring frozen features, {start}", flush=True)
        _measure_frozen(arguments, start, run_dir, missing)

    return results_of(run_dir, arguments.protocols, run)


def _measure_frozen(arguments: ComparisonArguments, start: str, run_dir: Path, protocols: list[str]) -> None:
    given = {
        **arguments.dataset_arguments(),
        "model_name_or_path": arguments.model_name_or_path,
        "output_dir": run_dir,
        "from_scratch": start == "scratch",
        "protocols": protocols,
    }
    classes = (EvaluationArguments, DatasetArguments, ProtocolArguments)
    run_evaluation(*build_arguments(classes, given, function="evaluate"))


def _fine_tuned_table(arguments: ComparisonArguments, fine_tuned: list[FineTuned]) -> str:
    rows = []
    for fraction in arguments.label_fractions:
        values = {cell.start: cell.values for cell in fine_tuned if cell.label_fraction == fraction}
        rows.append([f"{100 * fraction:g} %", *(mean_and_std(values[start]) for start in STARTS)])
    metric = fine_tuned[0].metric.replace("_", " ")
    caption = f"Fine-tuned, {metric} on the {arguments.validation_split} images, {over_seeds(len(arguments.seeds))}:"
    return f"{caption}\n\n{table(['labels', *STARTS], rows)}"


def _frozen_table(frozen: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = []
    for protocol, result in frozen[STARTS[0]].items():
        for metric in result["intervals"]:
            measured = [frozen[start][protocol] for start in STARTS]
            cells = [with_interval(result[metric], result["intervals"][metric]) for result in measured]
            rows.append([protocol, metric.replace("_", " "), *cells])
    header = ["protocol", "metric", *STARTS]
    return f"Frozen features, with 95 % intervals over the images:\n\n{table(header, rows)}"
