"""Minutes on a CPU: pretrain on scikit-learn's digits without labels, and compare with raw pixels and training from scratch."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from modeling_sit.experiments.compare import ComparisonArguments, ComparisonResult, run_comparison
from modeling_sit.experiments.comparison_runs import Choice
from modeling_sit.experiments.grid import refuse_launcher
from modeling_sit.pretraining.run import pretrain

SEEDS = (0, 1, 2)
# Learning rate and steps of fine-tuning, by start and fraction of the labels. A search would take longer than all the rest. On
# held-out training images, 3.3e-4 and 3e-3 were no better from scratch, nor 3e-4 pretrained, nor longer runs from scratch.
CHOICES = {
    ("scratch", 0.1): Choice(learning_rate=1e-3, max_steps=300),
    ("pretrained", 0.1): Choice(learning_rate=1e-3, max_steps=300),
    ("scratch", 1.0): Choice(learning_rate=1e-3, max_steps=1000),
    ("pretrained", 1.0): Choice(learning_rate=1e-3, max_steps=1000),
}


@dataclass
class QuickstartArguments:
    """Where the results go, and how long pretraining takes."""

    output_dir: str = field(
        default="outputs/quickstart", metadata={"help": "Folder for all files. An earlier one is replaced."}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Steps of pretraining, for a trial run. Default: as in the recipe."}
    )


def run_quickstart(arguments: QuickstartArguments) -> ComparisonResult:
    """Pretrain once, then fine-tune with a tenth of the labels and with all of them, from the pretrained weights and from
    scratch, with three seeds each, and classify raw pixels with the same labels. Prints tables, whether pretraining helped,
    and the lines that load the model.

    Raises:
        [`SiTError`]: If the folder cannot be written.
        [`TrainingInterrupted`]: If a signal ended a run.
    """
    refuse_launcher()
    started = time.time()
    output_dir = Path(arguments.output_dir)
    pretrained = output_dir / "pretrained"
    print("Pretraining without labels", flush=True)
    steps = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
    pretrain("digits", pretrained, recipe="digits", overwrite_output_dir=True, **steps)
    result = run_comparison(
        ComparisonArguments(
            dataset="digits",
            model_name_or_path=str(pretrained),
            output_dir=str(output_dir),
            overwrite_output_dir=True,
            finetuning_recipe="digits_finetune",
            label_fractions=list(dict.fromkeys(fraction for _, fraction in CHOICES)),
            seeds=list(SEEDS),
        ),
        CHOICES,
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
    return result
