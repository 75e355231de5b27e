#!/usr/bin/env python
"""Show on scikit-learn's digits, within minutes on a CPU, that pretraining without labels helps.

Pretrains once, then fine-tunes with a tenth of the labels and with all of them, from the pretrained weights and from
scratch, with three seeds each. `make quickstart` runs this.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from finetune import FinetuningArguments, FinetuningTrainingArguments, finetune

from modeling_sit.cli.arguments import RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.evaluation.results import read_results
from modeling_sit.visualization.comparison import accuracy_chart

SCRIPTS = Path(__file__).resolve().parent
RECIPES = SCRIPTS / "recipes"
SEEDS = (0, 1, 2)
# Share of the labels, and how many times its pictures are seen: about as many steps for either.
LABEL_FRACTIONS = {0.1: 60, 1.0: 12}
STARTS = ("scratch", "pretrained")


@dataclass
class QuickstartArguments:
    """Where the results go."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Folder for everything; replaced."})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Steps of pretraining, to try the machinery. Default: as the recipe says."}
    )


def main() -> None:
    (arguments,) = RecipeArgumentParser((QuickstartArguments,), description=__doc__.partition("\n")[0]).parse()
    with one_line_errors():
        started = time.time()
        output_dir = Path(arguments.output_dir)
        pretrained = output_dir / "pretrained"
        pretrain(pretrained, arguments.max_train_steps)
        accuracies = {
            (fraction, start): [finetuned_accuracy(output_dir, pretrained, fraction, start, seed) for seed in SEEDS]
            for fraction in LABEL_FRACTIONS
            for start in STARTS
        }
        write_report(output_dir, pretrained, accuracies)
        print(
            f"\nAll of it took {(time.time() - started) / 60:.1f} minutes. Look at {output_dir}/reconstructions.png and "
            f"{output_dir}/accuracy.png, and load the model:\n\n"
            "import modeling_sit\n"
            "from transformers import AutoModel\n"
            f'model = AutoModel.from_pretrained("{pretrained}")'
        )


def pretrain(output_dir: Path, max_train_steps: int | None) -> None:
    flags = ["--output_dir", str(output_dir), "--overwrite_output_dir"]
    if max_train_steps is not None:
        flags += ["--max_train_steps", str(max_train_steps)]
    command = [sys.executable, str(SCRIPTS / "pretrain.py"), str(RECIPES / "digits.yaml"), *flags]
    print("Pretraining without labels:", " ".join(command[1:]), flush=True)
    if subprocess.run(command).returncode:
        raise UserError("pretraining failed; what it said stands above")


def finetuned_accuracy(output_dir: Path, pretrained: Path, fraction: float, start: str, seed: int) -> float:
    """Accuracy on the test pictures after fine-tuning."""
    run_dir = output_dir / f"finetuned-{start}-{fraction:.0%}-seed{seed}"
    arguments = RecipeArgumentParser((FinetuningArguments, FinetuningTrainingArguments)).parse(
        [
            *(str(RECIPES / "digits_finetune.yaml"), "--model_name_or_path", str(pretrained)),
            *("--output_dir", str(run_dir), "--from_scratch", str(start == "scratch"), "--seed", str(seed)),
            *("--label_fraction", str(fraction), "--num_train_epochs", str(LABEL_FRACTIONS[fraction])),
        ]
    )
    print(f"\nFine-tuning with {fraction:.0%} of the labels, {start}, seed {seed}", flush=True)
    finetune(*arguments)
    return read_results(run_dir)["finetune"]["accuracy"]


def write_report(output_dir: Path, pretrained: Path, accuracies: dict[tuple[float, str], list[float]]) -> None:
    """Print the table; write it, the figures and the pictures."""
    lines = ["| labels | " + " | ".join(STARTS) + " |", "|---|" + "---|" * len(STARTS)]
    for fraction in LABEL_FRACTIONS:
        cells = [
            f"{100 * mean(accuracies[fraction, start]):.1f} ± {100 * stdev(accuracies[fraction, start]):.1f} %"
            for start in STARTS
        ]
        lines.append(f"| {fraction:.0%} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(f"\nAccuracy on the test pictures, mean and standard deviation over {len(SEEDS)} seeds:\n\n{table}")
    (output_dir / "results.md").write_text(table + "\n")
    figures = [
        {"label_fraction": fraction, "start": start, "accuracies": values}
        for (fraction, start), values in accuracies.items()
    ]
    (output_dir / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    accuracy_chart(accuracies, "share of the labels").savefig(output_dir / "accuracy.png", dpi=120)
    newest_preview = max((pretrained / "previews").glob("*.png"))
    shutil.copyfile(newest_preview, output_dir / "reconstructions.png")


if __name__ == "__main__":
    main()
