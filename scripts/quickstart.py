#!/usr/bin/env python
"""Show on scikit-learn's digits, within minutes on a CPU, that pretraining without labels helps.

Pretrains once, then fine-tunes with a tenth of the labels and with all of them, from the pretrained weights and from
scratch, with three seeds each. `make quickstart` runs this.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from compare import ComparisonArguments, compare

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.runtime.errors import SiTError

SCRIPTS = Path(__file__).resolve().parent
RECIPES = SCRIPTS / "recipes"
SEEDS = (0, 1, 2)
# Share of the labels, and how many times its images are seen: about as many steps for either.
LABEL_FRACTIONS = {0.1: 60, 1.0: 12}


@dataclass
class QuickstartArguments:
    """Where the results go."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Folder for everything; replaced."})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Steps of pretraining, to try the machinery. Default: as the recipe says."}
    )


def main() -> None:
    parser = RecipeArgumentParser((QuickstartArguments,), description=__doc__.partition("\n")[0])
    (arguments,) = parser.parse()
    with one_line_errors(parser.flags):
        started = time.time()
        output_dir = Path(arguments.output_dir)
        pretrained = output_dir / "pretrained"
        pretrain(pretrained, arguments.max_train_steps)
        compare(
            ComparisonArguments(
                dataset="digits",
                model_name_or_path=str(pretrained),
                output_dir=str(output_dir),
                overwrite_output_dir=True,
                finetuning_recipe=str(RECIPES / "digits_finetune.yaml"),
                label_fractions=list(LABEL_FRACTIONS),
                num_train_epochs=list(LABEL_FRACTIONS.values()),
                seeds=list(SEEDS),
                protocols="none",
            )
        )
        newest_preview = max((pretrained / "previews").glob("*.png"))
        shutil.copyfile(newest_preview, output_dir / "reconstructions.png")
        print(
            f"\nAll of it took {(time.time() - started) / 60:.1f} minutes. Look at {output_dir}/reconstructions.png and "
            f"{output_dir}/results.png, and load the model:\n\n"
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
        raise SiTError("pretraining failed; what it said stands above")


if __name__ == "__main__":
    main()
