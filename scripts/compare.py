#!/usr/bin/env python
"""Tell whether pretraining helps on labeled images: the same fine-tuning from pretrained weights and from scratch.

    python scripts/compare.py --model_name_or_path M --dataset D --finetuning_recipe RECIPE.yaml --output_dir O

Fine-tunes with each share of the labels and each seed, from the pretrained weights and from scratch, measures the frozen
features of both, and leaves tables in `results.md`, the figures in `results.json` and a chart in `results.png`. What is in the
folder already is not run again, so a comparison that was cut off goes on.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from finetune import FinetuningArguments, FinetuningTrainingArguments, HubArguments, finetune

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.results import read_results
from modeling_sit.runtime.atomic_files import digest
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.charts import comparison_chart

STARTS = ("scratch", "pretrained")
SETTINGS_FILE = "settings.json"


@dataclass(kw_only=True)
class ComparisonArguments(DatasetArguments):
    """What is compared, and how often.

    Raises:
        `ValueError`: If a value is out of range.
    """

    validation_split: str | None = field(
        default="test", metadata={"help": "Split to measure on; nothing is chosen by it."}
    )
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the pretrained model. Required."})
    output_dir: str = field(metadata={"help": "Folder for the runs and the tables. Required."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to remove what an earlier comparison left in that folder."}
    )
    finetuning_recipe: str | None = field(
        default=None, metadata={"help": "YAML file of flags of scripts/finetune.py, for all runs alike."}
    )
    label_fractions: list[float] = field(
        default_factory=lambda: [0.1, 1.0],
        metadata={"help": "Shares of the training labels to learn from, each in (0, 1]."},
    )
    num_train_epochs: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs of fine-tuning: one number for all shares, or one for each. Default: as the recipe says."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Seeds of fine-tuning; each draws other labels, other weights from scratch, another order."},
    )
    protocols: str = field(
        default="knn,linear",
        metadata={"help": "Protocols of scripts/evaluate.py for the frozen features, separated by commas, or `none`."},
    )

    def __post_init__(self):
        if not all(0 < fraction <= 1 for fraction in self.label_fractions):
            raise ValueError(f"--label_fractions {self.label_fractions}: each must be in (0, 1]")
        for name in ("label_fractions", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"--{name} {getattr(self, name)}: one of them stands there twice")
        epochs = self.num_train_epochs
        if epochs is not None and len(epochs) not in (1, len(self.label_fractions)):
            raise ValueError(
                f"--num_train_epochs {epochs}: give one number, or one for each of --label_fractions {self.label_fractions}"
            )

    def epochs_of(self, fraction: float) -> float | None:
        """Epochs of fine-tuning with this share of the labels; `None` for what the recipe says."""
        if self.num_train_epochs is None:
            return None
        place = self.label_fractions.index(fraction) if len(self.num_train_epochs) > 1 else 0
        return self.num_train_epochs[place]

    def dataset_flags(self, **renamed: str) -> list[str]:
        """The flags that name the images, some of them called otherwise."""
        named = {renamed.get(flag.name, flag.name): getattr(self, flag.name) for flag in fields(DatasetArguments)}
        return [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]


@dataclass(frozen=True)
class FineTuned:
    """A figure of the models that were fine-tuned alike but for the seed, in the order of the seeds."""

    label_fraction: float
    start: str
    figure: str
    values: list[float]


def main() -> None:
    parser = RecipeArgumentParser((ComparisonArguments,), description=__doc__.partition("\n")[0])
    (arguments,) = parser.parse()
    with one_line_errors(parser.flags):
        compare(arguments)


def compare(arguments: ComparisonArguments) -> None:
    """Run what is not there yet, and report.

    Raises:
        [`SiTError`]: If the folder holds another comparison, or a run fails.
    """
    output_dir = Path(arguments.output_dir)
    claim_folder(output_dir, settings_of(arguments), arguments.overwrite_output_dir)
    fine_tuned = [
        fine_tuned_alike(arguments, fraction, start) for fraction in arguments.label_fractions for start in STARTS
    ]
    frozen = {start: frozen_results(arguments, start) for start in STARTS} if arguments.protocols != "none" else {}
    report(arguments, fine_tuned, frozen)


def settings_of(arguments: ComparisonArguments) -> dict[str, Any]:
    """What the figures depend on, as JSON has it. More seeds and protocols only add to what is there.

    Raises:
        [`SiTError`]: If the recipe cannot be read.
    """
    settings = asdict(arguments)
    for name in ("output_dir", "overwrite_output_dir", "seeds", "protocols"):
        del settings[name]
    if arguments.finetuning_recipe is not None:
        try:
            settings["finetuning_recipe"] = digest(Path(arguments.finetuning_recipe))
        except OSError as problem:
            raise SiTError(f"--finetuning_recipe {arguments.finetuning_recipe}: {problem.strerror}") from problem
    weights = Path(arguments.model_name_or_path) / "model.safetensors"
    if weights.is_file():
        settings["model_name_or_path"] = digest(weights)
    return settings


def claim_folder(output_dir: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, or make sure that the runs in it are of the same comparison."""
    path = output_dir / SETTINGS_FILE
    try:
        runs = [*output_dir.glob("finetuned-*"), *output_dir.glob("frozen-*")]
        if runs and overwrite:
            for run in runs:
                shutil.rmtree(run)
        elif runs:
            earlier = json.loads(path.read_text()) if path.is_file() else {}
            differing = [name for name in settings if earlier.get(name) != settings[name]]
            if differing:
                raise SiTError(
                    f"--output_dir {output_dir} holds runs with another {', another '.join(differing)}; name another "
                    "folder, or remove them by --overwrite_output_dir"
                )
        output_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    except (OSError, ValueError) as problem:
        raise SiTError(f"--output_dir {output_dir}: {problem}") from problem


def fine_tuned_alike(arguments: ComparisonArguments, fraction: float, start: str) -> FineTuned:
    """What comes of each seed."""
    results = [fine_tuned_result(arguments, fraction, start, seed) for seed in arguments.seeds]
    figure = "accuracy" if "accuracy" in results[0] else "mean_average_precision"
    return FineTuned(fraction, start, figure, [result[figure] for result in results])


def fine_tuned_result(arguments: ComparisonArguments, fraction: float, start: str, seed: int) -> dict[str, Any]:
    run_dir = Path(arguments.output_dir) / f"finetuned-{start}-{100 * fraction:g}%-seed{seed}"
    if "finetune" in read_results(run_dir):
        return read_results(run_dir)["finetune"]
    epochs = arguments.epochs_of(fraction)
    flags = [
        *([arguments.finetuning_recipe] if arguments.finetuning_recipe is not None else []),
        *(
            "--model_name_or_path",
            arguments.model_name_or_path,
            *arguments.dataset_flags(validation_split="test_split"),
        ),
        *("--output_dir", str(run_dir), "--from_scratch", str(start == "scratch"), "--seed", str(seed)),
        *("--label_fraction", str(fraction), "--resume_from_checkpoint", "auto"),
        *(("--num_train_epochs", str(epochs)) if epochs is not None else ()),
    ]
    print(f"\nFine-tuning with {100 * fraction:g} % of the labels, {start}, seed {seed}", flush=True)
    try:
        parser = RecipeArgumentParser((FinetuningArguments, FinetuningTrainingArguments, HubArguments))
        finetuning_arguments, training_arguments, _ = parser.parse(flags)
        finetune(finetuning_arguments, training_arguments, HubArguments())  # of many runs, none is the one to share
    except SiTError as problem:
        raise SiTError(str(problem).replace("--test_split", "--validation_split")) from problem
    return read_results(run_dir)["finetune"]


def frozen_results(arguments: ComparisonArguments, start: str) -> dict[str, dict[str, Any]]:
    """What `eval_results.json` says of the frozen features, by protocol."""
    run_dir = Path(arguments.output_dir) / f"frozen-{start}"
    protocols = arguments.protocols.split(",")
    missing = [protocol for protocol in protocols if protocol not in read_results(run_dir)]
    if missing:
        print(f"\nMeasuring frozen features, {start}", flush=True)
        flags = ["--model_name_or_path", arguments.model_name_or_path, *arguments.dataset_flags()]
        flags += ["--output_dir", str(run_dir), "--from_scratch", str(start == "scratch")]
        command = [sys.executable, str(Path(__file__).parent / "evaluate.py"), *flags]
        if subprocess.run([*command, "--protocols", ",".join(missing)]).returncode:
            raise SiTError("the frozen features were not measured; what was said of it stands above")
    results = read_results(run_dir)
    return {protocol: results[protocol] for protocol in protocols}


def report(
    arguments: ComparisonArguments, fine_tuned: list[FineTuned], frozen: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """Print the tables; write them, the figures and the chart."""
    output_dir = Path(arguments.output_dir)
    tables = [fine_tuned_table(arguments, fine_tuned)] + ([frozen_table(frozen)] if frozen else [])
    print("\n" + "\n\n".join(tables))
    (output_dir / "results.md").write_text("\n\n".join(tables) + "\n")
    results = {
        "seeds": arguments.seeds,
        "fine_tuned": [asdict(figures) for figures in fine_tuned],
        "frozen": frozen,
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    values = {(figures.label_fraction, figures.start): figures.values for figures in fine_tuned}
    name = fine_tuned[0].figure.replace("_", " ")
    comparison_chart(values, "share of the labels", name).savefig(output_dir / "results.png", dpi=120)
    print(f"\nwritten to {output_dir}/results.md, results.json and results.png")


def fine_tuned_table(arguments: ComparisonArguments, fine_tuned: list[FineTuned]) -> str:
    rows = [["labels", *STARTS]]
    for fraction in arguments.label_fractions:
        values = {figures.start: figures.values for figures in fine_tuned if figures.label_fraction == fraction}
        rows.append([f"{100 * fraction:g} %", *(mean_and_std(values[start]) for start in STARTS)])
    name = fine_tuned[0].figure.replace("_", " ")
    seeds = (
        f"mean and standard deviation over {len(arguments.seeds)} seeds" if len(arguments.seeds) > 1 else "one seed"
    )
    return f"Fine-tuned, {name} on the {arguments.validation_split} images, {seeds}:\n\n{as_markdown(rows)}"


def mean_and_std(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def frozen_table(frozen: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = [["protocol", "figure", *STARTS]]
    for protocol, result in frozen[STARTS[0]].items():
        for figure in result["intervals"]:
            cells = []
            for start in STARTS:
                value, (low, high) = frozen[start][protocol][figure], frozen[start][protocol]["intervals"][figure]
                cells.append(f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
            rows.append([protocol, figure.replace("_", " "), *cells])
    return f"Frozen features, with 95 % intervals over the images:\n\n{as_markdown(rows)}"


def as_markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


if __name__ == "__main__":
    main()
