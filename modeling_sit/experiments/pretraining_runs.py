"""What the pretraining runs of every experiment share: what is planned before one starts, and what is noted of it when it is done."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from modeling_sit.data.description import told
from modeling_sit.evaluation.results import read_results, write_results
from modeling_sit.experiments.budgets import StepSize
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.cost import PretrainingCost, pretraining_cost
from modeling_sit.pretraining.dry_run import measure_steps, num_dry_run_steps
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import training_step
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.metric_logger import NonFiniteLoss
from modeling_sit.pretraining.model_setup import create_config, create_processor
from modeling_sit.pretraining.prepare import load_training_images, prepare
from modeling_sit.pretraining.resolve import resolve
from modeling_sit.pretraining.resume_check import run_fingerprint
from modeling_sit.pretraining.run import pretrain
from modeling_sit.runtime.accelerator import create_accelerator
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.runtime.recipes import read_recipe

PRETRAINING, DIVERGED = "pretraining", "diverged"
# What a recipe says otherwise: where the images and the models are is ours, and each run needs its last checkpoint.
OURS = (
    "dataset",
    "output_dir",
    "seed",
    "time_budget",
    "overwrite_output_dir",
)
DEFAULTS: Mapping[str, Any] = {"monitors": ["none"], "logging_steps": 50, "checkpoints_total_limit": 1}


@dataclass(frozen=True)
class PlannedRun:
    """
    What a run would be.

    Args:
        step ([`StepSize`]): What a step takes.
        base_learning_rate (`float`): Of a batch of 256.
        num_steps (`int`): Optimizer steps.
        batch_size (`int`): Images of a batch of one device.
        seconds_per_step (`float`, *optional*): If that was measured.
    """

    step: StepSize
    base_learning_rate: float
    num_steps: int = 1
    batch_size: int = 1
    seconds_per_step: float | None = None


def plan_run(given: Mapping[str, Any], measures: bool = False) -> PlannedRun:
    """Prepare a run, and do not start it.

    Args:
        given (mapping): Arguments of [`pretrain`].
        measures (`bool`, *optional*, defaults to `False`): Whether to train for a few steps, which are thrown away.

    Raises:
        [`SiTError`]: If the run could not start.
    """
    flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, function="pretrain"))
    accumulated = flags.run.gradient_accumulation_steps
    accelerator = create_accelerator(gradient_accumulation_steps=accumulated)
    with told():
        run = prepare(flags, accelerator)
    settings = run_fingerprint(run.flags, run.method, run.schedules, run.data, accelerator)
    batch = settings["per_device_train_batch_size"] * settings["num_processes"]
    step = StepSize(
        images=batch * accumulated,
        tokens=METHODS[flags.run.method].encoder_tokens(settings),
        images_per_epoch=int(run.schedules.batches_per_epoch * batch),
    )
    seconds = None
    if measures:
        num_batches = num_dry_run_steps(run.schedules) * run.schedules.batches_per_step
        with closing(run.data.batches(0, num_batches)) as batches:
            measured = measure_steps(batches, partial(training_step, run), run.schedules, accelerator)
        seconds = measured.seconds_per_step
    accelerator.free_memory()
    rate, batch_size = settings["base_learning_rate"], settings["per_device_train_batch_size"]
    return PlannedRun(step, rate, run.schedules.num_steps, batch_size, seconds)


def plan_encoder(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model of a run would have in `config.json` and in `preprocessor_config.json`. The model is not made.

    Args:
        given (mapping): Arguments of [`pretrain`].

    Raises:
        [`SiTError`]: If the run could not start.
    """
    flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, function="pretrain"))
    accelerator = create_accelerator()
    with told():
        images = load_training_images(flags)
        flags = resolve(flags, images, accelerator, {}).flags
        config = create_config(flags.model, images.num_train)
        processor = create_processor(config, flags.model, flags.corruption, flags.run)
    return json.loads(config.to_json_string()), json.loads(processor.to_json_string())


class Diverged(SiTError):
    """The loss of a pretraining was not finite. A second try would end in the same way."""


def check_diverged(run_dir: Path) -> None:
    """Raise [`Diverged`] if the pretraining in a folder has ended so."""
    found = read_results(run_dir).get(DIVERGED)
    if found is not None:
        raise Diverged(found["problem"])


def pretrain_in(run_dir: Path, given: Mapping[str, Any], noted: Sequence[str] = ("seed",)) -> None:
    """Pretrain in a folder, or go on there, and note in its results that it is done.

    Args:
        run_dir (`Path`): The folder.
        given (mapping): Arguments of [`pretrain`], without the folder.
        noted (sequence of `str`, *optional*): Arguments whose values the results name.

    Raises:
        [`Diverged`]: If a loss is not finite. That is noted, too.
        [`SiTError`]: As [`pretrain`].
    """
    try:
        with told():
            pretrain(**given, output_dir=run_dir, resume_from_checkpoint="auto")
    except SiTError as error:
        if not isinstance(error.__cause__, NonFiniteLoss):
            raise
        problem = f"{error.problem}; {run_dir} holds the run"
        write_results(run_dir, {DIVERGED: {"problem": problem}})
        raise Diverged(problem) from error
    state = read_output_state(run_dir)
    found = {name: state.settings[name] for name in noted}
    write_results(run_dir, {PRETRAINING: {**found, "seconds": state.seconds}})


def cost_of(model: Path) -> PretrainingCost | None:
    """What the pretraining of a model has cost, without the time in which its other weights were written."""
    cost, noted = pretraining_cost(model), read_results(model)[PRETRAINING]
    return cost if cost is None else replace(cost, seconds=noted["seconds"])


def read_pretraining_recipe(recipe: str, left_out: Sequence[str] = OURS) -> dict[str, Any]:
    """The values of a pretraining recipe, without those that an experiment sets itself.

    Raises:
        [`SiTError`]: If there is no such recipe, or it has an unknown key or a value of the wrong type.
    """
    with argument_names(recipe="pretraining_recipe"):
        needed = {"dataset": "", "output_dir": ""}
        build_arguments(PretrainingFlags.classes(), needed, recipe, "pretrain")
        values = {name: value for name, value in read_recipe(recipe).items() if name not in left_out}
    if values.get("checkpointing_steps") in ("no", False):
        del values["checkpointing_steps"]
    return values
