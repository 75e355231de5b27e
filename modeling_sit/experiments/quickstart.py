"""Minutes on a CPU: pretrain on scikit-learn's digits without labels, and compare with raw pixels and training from scratch."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from modeling_sit.data.description import told
from modeling_sit.experiments.compare import ComparisonResult, report_comparison
from modeling_sit.experiments.compared_images import compared_images
from modeling_sit.experiments.comparison_arguments import ComparisonArguments
from modeling_sit.experiments.comparison_runs import RUN_FOLDERS, Choice, Runs, Start
from modeling_sit.experiments.grid import claim_folder, refuse_launcher
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.run import pretrain
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.second_process import say, second_process

SEEDS = (0, 1, 2)
# Learning rate and steps of fine-tuning, by start and fraction of the labels. A search would take longer than all the rest. On
# held-out training images, 3.3e-4 and 3e-3 were no better from scratch, nor 3e-4 pretrained, nor longer runs from scratch.
CHOICES = {
    ("scratch", 0.1): Choice(learning_rate=1e-3, max_steps=300),
    ("pretrained", 0.1): Choice(learning_rate=1e-3, max_steps=300),
    ("scratch", 1.0): Choice(learning_rate=1e-3, max_steps=1000),
    ("pretrained", 1.0): Choice(learning_rate=1e-3, max_steps=1000),
}

SECOND_LOG, RECONSTRUCTIONS = "second_process.log", "reconstructions.png"
# Of the run that is there for its architecture.
NO_EXTRAS = {"monitors": ["none"], "preview_steps": 0, "report_to": ["none"]}

# Two processes use both cores, so that a worker that loads images has none.
IN_THE_PROCESS = {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}


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
    and the lines that load the model. Where there are two cores, a second process does half of it.

    Raises:
        [`SiTError`]: If the folder cannot be written.
        [`TrainingInterrupted`]: If a signal ended a run.
    """
    refuse_launcher()
    started = time.time()
    output_dir = Path(arguments.output_dir)
    pretrained = output_dir / "pretrained"
    comparison = ComparisonArguments(
        dataset="digits",
        model_name_or_path=str(pretrained),
        output_dir=str(output_dir),
        overwrite_output_dir=True,
        finetuning_recipe="digits_finetune",
        label_fractions=list(dict.fromkeys(fraction for _, fraction in CHOICES)),
        seeds=list(SEEDS),
    )
    steps = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
    given = {"dataset": "digits", "output_dir": pretrained, "overwrite_output_dir": True, **steps}
    build_arguments(PretrainingFlags.classes(), given, "digits", "pretrain")  # before anything is deleted
    files = (SECOND_LOG, RECONSTRUCTIONS)
    claim_folder(output_dir, {"quickstart": asdict(comparison)}, RUN_FOLDERS, overwrite=True, report_files=files)
    (output_dir / SECOND_LOG).unlink(missing_ok=True)
    with second_process(output_dir / SECOND_LOG) as second:
        architecture = pretrained if second is None else output_dir / "architecture"
        models = {"scratch": str(architecture), "pretrained": str(pretrained)}
        plan = _Plan(comparison, models, CHOICES, {} if second is None else IN_THE_PROCESS)
        if second is not None:
            second.begin(_run_without_pretrained, plan)
        print("Pretraining without labels", flush=True)
        pretrain(**given, recipe="digits")
        if second is not None:
            of_second, of_first = plan.halves("pretrained")
            second.begin(_fine_tune, plan, of_second)
            with told():
                _fine_tune(plan, of_first)
            second.wait()
    with told() if second is not None else nullcontext():
        runs = plan.runs()
    result = report_comparison(comparison, runs)
    newest_preview = max((pretrained / "previews").glob("*.png"))
    shutil.copyfile(newest_preview, output_dir / RECONSTRUCTIONS)
    print(
        f"\nAll of it took {(time.time() - started) / 60:.1f} minutes. Look at {output_dir}/reconstructions.png and "
        f"{output_dir}/results.png, and load the model:\n\n"
        "import modeling_sit\n"
        "from transformers import AutoModel\n"
        f'model = AutoModel.from_pretrained("{pretrained}")'
    )
    return result


@dataclass(frozen=True)
class _Plan:
    """What both processes know of the comparison: its arguments, the model's folder by start, rates and lengths, and how
    fine-tuning loads images."""

    comparison: ComparisonArguments
    models: Mapping[str, str]
    choices: Mapping[tuple[str, float], Choice]
    loading: Mapping[str, Any]

    def runs(self) -> Runs:
        """The runs of the comparison. Those that are finished, by whichever process, are read."""
        starts = {
            name: Start(dict.fromkeys(self.comparison.seeds, model), name == "scratch", finetuning=self.loading)
            for name, model in self.models.items()
        }
        images = compared_images(self.comparison, self.models["scratch"])
        return Runs(self.comparison, images, starts, self.choices, announce=_announce)

    def cells(self, start: str) -> list[tuple[str, float, int]]:
        """Each fine-tuning from a start: start, fraction of the labels, seed."""
        return [
            (start, fraction, seed) for fraction in self.comparison.label_fractions for seed in self.comparison.seeds
        ]

    def halves(self, start: str) -> tuple[list[tuple[str, float, int]], list[tuple[str, float, int]]]:
        """The same in two parts of about as many steps."""
        cells = self.cells(start)
        ends = list(accumulate(self.choices[start, fraction].max_steps for _, fraction, _ in cells))
        middle = sum(2 * end <= ends[-1] for end in ends)
        return cells[:middle], cells[middle:]


def _run_without_pretrained(plan: _Plan) -> None:
    """What needs the pretrained model's architecture, but not its weights: that is what a run of one step leaves."""
    pretrain("digits", plan.models["scratch"], recipe="digits", overwrite_output_dir=True, max_steps=1, **NO_EXTRAS)
    runs = plan.runs()
    with told():
        runs.raw_pixels()
        runs.frozen("scratch")
    _fine_tune(plan, plan.cells("scratch"))


def _fine_tune(plan: _Plan, cells: Sequence[tuple[str, float, int]]) -> None:
    runs = plan.runs()
    for start, fraction, seed in cells:
        runs.fine_tune_once(start, fraction, seed, plan.choices[start, fraction])


@contextmanager
def _announce(kind: str, description: str) -> Iterator[None]:
    say(f"\n{description}")
    yield
