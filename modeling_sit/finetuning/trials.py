"""Trials: the model of a run, trained on a part of the training images and measured on the rest."""

import copy
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.callbacks import StopAtSignal
from modeling_sit.finetuning.prepare import TASKS, prepare_trainer
from modeling_sit.finetuning.presets import settle_defaults
from modeling_sit.finetuning.resume_check import digest_of_labels, digest_of_objects
from modeling_sit.finetuning.splits import Splits
from modeling_sit.finetuning.trainer import LossNotFinite
from modeling_sit.finetuning.training_arguments import AUTO, FinetuningTrainingArguments
from modeling_sit.runtime.accelerator import end_training
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.errors import TrainingInterrupted
from modeling_sit.runtime.fingerprints import configuration_fingerprint, dataset_fingerprint, model_fingerprint
from modeling_sit.runtime.products import fast_products
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.signals import StopSignal
from modeling_sit.runtime.words import counted

TUNING_FILE = "tuning.json"
# What trials depend on, beside `FinetuningArguments`.
TRAINING_SETTINGS = (
    *("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "weight_decay", "optim"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "label_smoothing_factor", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16"),
)
# What they do not depend on.
OTHER_SETTINGS = (
    "tuning_learning_rates",
    "tuning_steps",
    "max_tuning_steps",
    "license",
    "test_split",
    "early_stopping_patience",
)


@dataclass(frozen=True)
class Trial:
    """
    A model that was trained on a part of the training images and measured on the rest, once for each draw.

    Args:
        learning_rate (`float`): Its peak rate.
        max_steps (`int`): Its number of steps.
        metric (`float`): The task's first metric on the held-out images, the mean over the draws. Minus infinity if
            a loss was not finite.
        loss (`float`): Their mean loss.
        seconds (`float`): Duration of all draws.
    """

    learning_rate: float
    max_steps: int
    metric: float
    loss: float
    seconds: float

    def describe(self, metric_name: str) -> str:
        """The trial in a few words; `metric_name` is the name of its metric."""
        what = f"learning rate {self.learning_rate:g}, {counted(self.max_steps, 'step')}"
        if not math.isfinite(self.metric):
            return f"{what}: the loss was not finite"
        return f"{what}: {metric_name} {self.metric:.4f}"


class Trials:
    """
    Runs trials, and keeps them in `tuning.json`.

    Args:
        arguments, training_arguments: The run's arguments.
        draws (`list` of [`Splits`]): Of [`~finetuning.splits.held_out_draws`].
        num_train (`int`): Number of training images of the run.

    Attributes:
        finished (`list` of [`Trial`]): What was measured, in this order.
        usual ([`Preset`]): The defaults of the run; those of its arguments that are given are as they are.
        prints (`bool`): Whether this is the process that prints and writes.
    """

    def __init__(
        self,
        arguments: FinetuningArguments,
        training_arguments: FinetuningTrainingArguments,
        draws: list[Splits],
        num_train: int,
    ):
        self.arguments, self.training_arguments = arguments, copy.copy(training_arguments)
        self.draws = draws
        self.finished: list[Trial] = []
        self.prints = training_arguments.process_index == 0
        task = TASKS[arguments.task](arguments, training_arguments, draws[0])
        self.metric_name = task.metric_names[0]
        with quiet_transformers():
            task.load_model()
        self.facts, self.preset_class = task.facts(num_train, training_arguments), task.preset_class
        given = vars(arguments) | vars(training_arguments)
        given = {name: each for name, each in given.items() if each is not None and each != AUTO}
        self.usual = self.preset_class(self.facts, given)
        # A trial has fewer images than the run, but the same batches.
        self.training_arguments.per_device_train_batch_size = self.usual["per_device_train_batch_size"]
        self.path = Path(training_arguments.output_dir) / TUNING_FILE
        self.settings = self._settings()
        self.runs = self._read()

    def measure(self, learning_rate: float, max_steps: int) -> Trial:
        """The trial with this rate and length: from the file, or run now."""
        runs = [self._run_once(learning_rate, max_steps, draw) for draw in range(len(self.draws))]
        means = {"metric": -math.inf, "loss": math.inf}
        if all(run["metric"] is not None for run in runs):
            # Of a draw without any object there is no metric.
            values = {name: [run[name] for run in runs if not math.isnan(run[name])] for name in means}
            means = {name: statistics.fmean(found) if found else means[name] for name, found in values.items()}
        trial = Trial(learning_rate, max_steps, **means, seconds=round(sum(run["seconds"] for run in runs), 2))
        self.finished.append(trial)
        if self.prints:
            print(f"{trial.describe(self.metric_name)}, {counted(round(trial.seconds), 'second')}", flush=True)
        return trial

    def write(self, best: Trial | None = None, chosen_on: str | None = None) -> None:
        """Write what is there to the file, in the main process."""
        if not self.prints:
            return
        written: dict[str, Any] = {"settings": self.settings, "metric": self.metric_name, "trials": self.runs}
        if best is not None:
            written["choice"] = {**asdict(best), "chosen_on": chosen_on}
        remedy = "make room, then start again: finished trials are not run again"
        with write_errors(self.path, remedy), replace_file(self.path) as unfinished:
            unfinished.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")

    def _read(self) -> list[dict[str, Any]]:
        """Trials of an earlier start with the same settings. Others are of no use, and are replaced."""
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
            # Files of earlier versions do not say the configuration.
            if {"configuration": self.settings["configuration"], **read["settings"]} == self.settings:
                return read["trials"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return []

    def _settings(self) -> dict[str, Any]:
        arguments = {name: value for name, value in vars(self.arguments).items() if name not in OTHER_SETTINGS}
        arguments["dataset"] = dataset_fingerprint(self.arguments.dataset)
        arguments["model_name_or_path"] = model_fingerprint(self.arguments.model_name_or_path)
        arguments["configuration"] = configuration_fingerprint(self.arguments.model_name_or_path)
        training = {name: getattr(self.training_arguments, name) for name in TRAINING_SETTINGS}
        # A folder is known by its name, and images may have come into it.
        images = {
            "num_train": [len(draw.train) for draw in self.draws],
            "num_held_out": [len(draw.validation) for draw in self.draws],
            "images": [
                [digest_of_labels(draw.label_names, part), digest_of_objects(part)]
                for draw in self.draws
                for part in (draw.train, draw.validation)
            ],
        }
        # As JSON has it, with text for everything that it does not know.
        return json.loads(json.dumps({**arguments, **training, **images}, default=str))

    def _run_once(self, learning_rate: float, max_steps: int, draw: int) -> dict[str, Any]:
        key = {"learning_rate": learning_rate, "max_steps": max_steps, "draw": draw}
        for run in self.runs:
            if all(run[name] == value for name, value in key.items()):
                return run
        started = time.monotonic()
        metrics = self._train_and_measure(learning_rate, max_steps, self.draws[draw])
        run = {
            **key,
            "num_train": len(self.draws[draw].train),
            "num_held_out": len(self.draws[draw].validation),
            **metrics,
            "seconds": round(time.monotonic() - started, 2),
        }
        self.runs.append(run)
        self.write()
        return run

    def _train_and_measure(self, learning_rate: float, max_steps: int, splits: Splits) -> dict[str, float | None]:
        """The metric and the loss on the held-out images; `None` where a loss of the training is not finite."""
        arguments, training_arguments = copy.copy(self.arguments), copy.copy(self.training_arguments)
        arguments.early_stopping_patience = None
        training_arguments.learning_rate, training_arguments.max_steps = learning_rate, max_steps
        # As the run that learns from all images, which are more than here, has them: its augmentation, for example.
        settle_defaults(self.facts, arguments, training_arguments, self.preset_class)
        training_arguments.metric_for_best_model = None
        training_arguments.save_strategy = training_arguments.logging_strategy = "no"
        training_arguments.report_to, training_arguments.disable_tqdm = [], True
        training_arguments.evaluate_never()
        with quiet_transformers():
            trainer, _ = prepare_trainer(arguments, training_arguments, splits)
        trainer.remove_callback(PrinterCallback)
        try:
            with fast_products(trainer.model), StopSignal(trainer.accelerator) as request:
                stop = StopAtSignal(request, saves=False)
                trainer.add_callback(stop)
                trainer.train()
                stop.received = stop.received or request.any_rank()  # one that came after the last step
            if stop.received is not None:
                end_training(trainer.accelerator)
                message = (
                    f"stopped by {stop.received.name} in a trial; the same command goes on with the trials in "
                    f"{self.path}"
                )
                raise TrainingInterrupted(stop.received, message)
            results = trainer.evaluate()
        except LossNotFinite:
            return {"metric": None, "loss": None}
        finally:
            trainer.accelerator.free_memory()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return {"metric": results[f"eval_{self.metric_name}"], "loss": results["eval_loss"]}
