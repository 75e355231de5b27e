"""A pretraining run, from arguments to a model repository: prepare, resume, train, write the card."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedModel

import modeling_sit
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.evaluation.protocol_arguments import FEATURE_PROTOCOLS
from modeling_sit.evaluation.results import drop_results
from modeling_sit.hub.card_writing import LOSS_CURVE
from modeling_sit.hub.provenance import Start, describe_call, describe_start
from modeling_sit.pretraining.arguments import parse_time
from modeling_sit.pretraining.card import RunFacts, write_pretraining_card
from modeling_sit.pretraining.checkpoints import (
    RunState,
    delete_checkpoints_after,
    load_checkpoint,
    read_output_state,
    read_run_state,
    write_run_state,
)
from modeling_sit.pretraining.dry_run import DryRun, describe_plan, measure_steps, num_dry_run_steps
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import Run, train, training_step
from modeling_sit.pretraining.output_folder import (
    PROGRAM,
    check_output_dir,
    delete_after,
    lock_output_dir,
    prepare_output_dir,
)
from modeling_sit.pretraining.prepare import describe_run, prepare
from modeling_sit.pretraining.resolve import default_precision, recall_choices
from modeling_sit.pretraining.resume_check import check_resume_compatible, run_fingerprint
from modeling_sit.pretraining.time_budget import fit_into_time
from modeling_sit.runtime.accelerator import create_accelerator, end_training, forget_settings, patient_processes
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.distributed import broadcast_from_main, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.markdown import code, escaped, table
from modeling_sit.runtime.memory import memory_errors
from modeling_sit.runtime.notebook import show
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.run_folders import mark_run
from modeling_sit.runtime.trackers import choose_trackers, read_metrics, start_trackers

# Of the last line of the log, beside each loss.
SHOWN = ("step", "epoch", "loss")


@dataclass
class PretrainingResult:
    """
    What a run has left.

    Args:
        output_dir (`Path`): The run's folder, a model repository.
        metrics (`dict`): The last line of `metrics.jsonl`; empty where there is none, as after a dry run.
    """

    output_dir: Path
    metrics: dict[str, Any]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The pretrained model, with its heads where the method exports them, on the CPU, in evaluation mode."""
        config = AutoConfig.from_pretrained(self.output_dir)
        with quiet_transformers():
            return getattr(modeling_sit, config.architectures[0]).from_pretrained(self.output_dir).eval()

    @cached_property
    def processor(self) -> BaseImageProcessor:
        """The image processor."""
        return AutoImageProcessor.from_pretrained(self.output_dir)

    def _ipython_display_(self) -> None:
        """In a notebook: the last losses, the curve, and the newest preview."""
        last = {name: f"{self.metrics[name]:.4g}" for name in self.metrics if name in SHOWN or name.endswith("_loss")}
        if not last:
            return
        show(
            f"The model is in {code(self.output_dir)}. The last line of its log:",
            table([escaped(name) for name in last], [list(last.values())]),
            self.output_dir / LOSS_CURVE,
            *sorted((self.output_dir / "previews").glob("*.png"))[-1:],
        )


@quiet_transformers()
def pretrain(
    dataset: str | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset,
    output_dir: str | Path,
    *,
    recipe: str | Path | None = None,
    **arguments: Any,
) -> PretrainingResult:
    """
    Pretrain a Vision Transformer on images, without labels.

    Args:
        dataset (`str` or `datasets.Dataset`): A folder of images, parquet or webdataset tar files, a `save_to_disk` folder, a
            Hub id, `digits`, or a dataset in memory.
        output_dir (`str` or `Path`): Folder for the model and everything else of the run.
        recipe (`str` or `Path`, *optional*): Name of a shipped recipe, such as `flowers`, or a YAML file: defaults for the
            arguments.
        arguments: As the flags of `modeling-sit pretrain`, such as `max_steps=2000`.

    Returns:
        [`PretrainingResult`]: `.model`, `.processor`, `.metrics`, `.output_dir`.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If the user can put something right: an argument, the data, the disk.
        [`TrainingInterrupted`]: If a signal ended the run, Ctrl-C for instance. Its checkpoint is written.
    """
    given = {"dataset": dataset, "output_dir": output_dir, **arguments}
    groups = build_arguments(PretrainingFlags.classes(), given, recipe, "pretrain")
    given |= {} if recipe is None else {"recipe": recipe}
    return run_pretraining(PretrainingFlags(*groups), describe_call("pretrain", given))


@memory_errors(
    "a smaller `per_device_train_batch_size`, model or `image_size`, or `gradient_checkpointing=True`, takes less"
)
def run_pretraining(flags: PretrainingFlags, command: str | None = None) -> PretrainingResult:
    """As [`pretrain`], for arguments that are built.

    Args:
        flags ([`PretrainingFlags`]): The arguments.
        command (`str`, *optional*): What started the run, for the model card. Default: the command line.
    """
    started, output_dir = time.time(), Path(flags.run.output_dir)
    check_outside_dataset(output_dir, flags.run.dataset)
    flags, chosen = recall_choices(flags)
    accelerator = create_accelerator(
        mixed_precision=default_precision(flags, chosen),
        gradient_accumulation_steps=flags.run.gradient_accumulation_steps,
        log_with=choose_trackers(flags.run.report_to) or None,
        kwargs_handlers=[patient_processes(flags.run.dataloader_timeout)],
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
    )
    precision = torch.get_float32_matmul_precision()
    try:
        if flags.run.tf32:
            torch.set_float32_matmul_precision("high")
        result = start_run(prepare_in_time(flags, accelerator, started, chosen), command)
    finally:
        torch.set_float32_matmul_precision(precision)
        end_training(accelerator)
    forget_settings()  # not after an error: who reports it asks for the rank of this process
    return result


def prepare_in_time(
    flags: PretrainingFlags, accelerator: Accelerator, started: float, chosen: Mapping[str, Any]
) -> Run:
    """As [`prepare`]. Where the user gives a time, some steps are measured first, and their run is thrown away."""
    run = prepare(flags, accelerator, started, chosen)
    if flags.run.time_budget is None or "max_steps" in chosen:
        return run
    broadcast_from_main(accelerator, lambda: check_output_dir(Path(flags.run.output_dir), flags.run))
    accelerator.print(f"measuring a few steps of the run, to fit it into {flags.run.time_budget}")
    fitting = fit_into_time(run, parse_time(flags.run.time_budget), keeps_images=not flags.run.dry_run)
    data = run.data
    del run
    accelerator.free_memory()
    run = prepare(flags, accelerator, started, {**chosen, "max_steps": fitting.value}, data)
    return replace(run, preset=replace(run.preset, choices=[fitting, *run.preset.choices]))


def start_run(run: Run, command: str | None) -> PretrainingResult:
    """Start the run, or go on with it, to its end.

    Args:
        run ([`Run`]): Ready for its first batch.
        command (`str`, *optional*): What started it.
    """
    flags, accelerator, output_dir = run.flags, run.accelerator, run.output_dir
    accelerator.print(describe_run(run))
    warn_of_batches_of_one(run)
    fingerprint = run_fingerprint(flags, run.method, run.schedules, run.data, accelerator)
    state = RunState(settings=flags.settings(), determined_by=fingerprint, chosen=run.preset.chosen)
    if flags.run.dry_run:
        checkpoint = broadcast_from_main(accelerator, lambda: check_output_dir(output_dir, flags.run))
        if checkpoint is not None:
            resume(run, checkpoint, state)
        accelerator.print(describe_plan(measure_run(run), run))
        return PretrainingResult(output_dir, {})
    with running_alone(accelerator, output_dir), pushing_to_the_end(run):
        execute(run, state, command)
    log = output_dir / "metrics.jsonl"
    lines = read_metrics(log) if log.exists() else []  # none where a finished run has written its model anew
    return PretrainingResult(output_dir, lines[-1] if lines else {})


def warn_of_batches_of_one(run: Run) -> None:
    """Say it once, if the loss needs several images and each batch has only one. Accumulated batches are apart."""
    trouble = run.method.trouble_with_one_image
    if trouble is not None and run.flags.run.per_device_train_batch_size * run.accelerator.num_processes == 1:
        run.accelerator.print(
            f"warning: a batch of one image {trouble}: raise per_device_train_batch_size", file=sys.stderr
        )


def execute(run: Run, state: RunState, command: str | None = None) -> None:
    """Train in the output folder, from the start or from a checkpoint, and leave the model and its card."""
    accelerator, flags, output_dir = run.accelerator, run.flags, run.output_dir
    checkpoint = broadcast_from_main(accelerator, lambda: check_output_dir(output_dir, flags.run))
    if checkpoint is not None:
        state = resume(run, checkpoint, state)
    if is_finished(run, state):
        accelerator.print(f"done before: {output_dir} holds the model, and is left as it is")
        if run.pusher is not None:
            run.pusher.push_finished()
        return
    cache_images(run, state)
    # Nothing of an earlier run is replaced before all that this one needs is known to be right.
    broadcast_from_main(accelerator, lambda: prepare_output_dir(output_dir, flags.run, checkpoint))
    broadcast_from_main(accelerator, lambda: mark_run(output_dir, PROGRAM))
    delete_checkpoints_after(accelerator, output_dir, state.step)
    broadcast_from_main(accelerator, lambda: delete_after(output_dir, state.step))
    broadcast_from_main(accelerator, lambda: drop_results(output_dir, FEATURE_PROTOCOLS))
    start_trackers(accelerator, output_dir, state.settings, state.step)

    state.starts.append(describe_start(state.step, accelerator.device, accelerator.num_processes, command))
    started = run.started - state.seconds
    train(run, state, checkpoint)
    state.seconds = time.time() - started
    finish(run, state)
    if state.unreadable:
        accelerator.print(f"{len(state.unreadable)} unreadable image(s) were skipped; they are named above")
    accelerator.print(f"done: {output_dir} holds the model; its README.md says what was run")
    if run.pusher is not None:
        run.pusher.push_finished()


def resume(run: Run, checkpoint: Path, state: RunState) -> RunState:
    """Go on from a checkpoint, if it is of a run like this one.

    Returns:
        [`RunState`]: The checkpoint's, with the settings of this run.
    """
    accelerator = run.accelerator
    saved = read_run_state(checkpoint)
    with sync_errors(accelerator):
        allow_changes = run.flags.run.allow_changed_settings
        changes = check_resume_compatible(
            saved.determined_by, state.determined_by, checkpoint, run.method, allow_changes
        )
        if saved.step > run.schedules.num_steps:
            raise SiTError(
                f"{checkpoint} is of step {saved.step}, beyond the {run.schedules.num_steps} steps of the run",
                argument="resume_from_checkpoint",
            )
        load_checkpoint(accelerator, run.method, checkpoint)
        for group in run.optimizer.param_groups:  # the loop sets what is scheduled, and these are not
            group["betas"] = (run.flags.run.adam_beta1, run.flags.run.adam_beta2)
    for change in changes:
        accelerator.print(f"changed since the checkpoint: {change}")
    accelerator.print(f"going on from {checkpoint}")
    return replace(saved, settings=state.settings, determined_by=state.determined_by, chosen=state.chosen)


@contextmanager
def running_alone(accelerator: Accelerator, output_dir: Path) -> Iterator[None]:
    """Keep other runs out of the output folder."""
    with sync_errors(accelerator):
        lock = lock_output_dir(output_dir) if accelerator.is_main_process else None
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


@contextmanager
def pushing_to_the_end(run: Run) -> Iterator[None]:
    """Make sure that there is a repository to push to. At the end, wait a while for what is on its way."""
    with sync_errors(run.accelerator):
        if run.pusher is not None:
            run.pusher.create_repository()
    try:
        yield
    finally:
        if run.pusher is not None:
            run.pusher.close()


def exported_weights(run: Run) -> str:
    """Whose weights the output folder gets: `"teacher"` or `"student"`."""
    return "teacher" if run.method.exports_teacher(run.flags.run.export) else "student"


def is_finished(run: Run, state: RunState) -> bool:
    """Whether the run is done, and its folder holds the model of the weights that the user asks for, and its card."""
    written = read_output_state(run.output_dir)
    return (
        state.step == run.schedules.num_steps
        and written is not None
        and (written.step, written.exported) == (state.step, exported_weights(run))
        and all((run.output_dir / name).exists() for name in ("model.safetensors", "README.md"))
    )


def cache_images(run: Run, state: RunState) -> None:
    """Have the images decoded once for the rest of the run, where the user asks for it or it pays.

    Crops that are cut on the device round otherwise, so a run that goes on has its crops cut where they were.

    Raises:
        [`SiTError`]: If there is no room, or the place would change the crops of a run that goes on.
    """
    asked, on_device = run.flags.cache.image_cache, state.crops_on_device
    if run.flags.run.allow_changed_settings:
        on_device = None
    elif on_device is not None and asked != "auto" and on_device != (asked == "device"):
        raise SiTError(
            f"{asked}: the run that goes on has its crops cut on the {'device' if on_device else 'host'}, and others "
            "differ by rounding",
            argument="image_cache",
            remedy="leave the argument out, or go on with these crops by `allow_changed_settings`",
        )
    num_epochs = (run.schedules.epoch(run.schedules.num_steps) or 0) - (run.schedules.epoch(state.step) or 0)
    run.data.cache(run.accelerator, num_epochs, on_device)
    state.crops_on_device = run.data.crops_on_device


def finish(run: Run, state: RunState) -> None:
    """Write the model card, and note that the run is finished."""
    accelerator = run.accelerator
    with sync_errors(accelerator):
        if accelerator.is_main_process:
            facts = RunFacts(
                settings={**state.settings, "export": exported_weights(run)},
                starts=[Start(**start) for start in state.starts],
                images=run.data.images,
                is_streamed=run.data.is_streamed,
                num_unreadable=len(state.unreadable),
                method=run.method,
                schedules=run.schedules,
                step=state.step,
                num_processes=accelerator.num_processes,
                mixed_precision=accelerator.mixed_precision,
                seconds=state.seconds,
                model_id=run.pusher.repository.name if run.pusher is not None else None,
            )
            write_pretraining_card(run.output_dir, facts)
            state.exported = exported_weights(run)
            write_run_state(run.output_dir, state)


def measure_run(run: Run) -> DryRun:
    """Train on the first few batches of a run, and measure."""
    batches = run.data.batches(0, num_dry_run_steps(run.schedules) * run.schedules.batches_per_step)
    with closing(batches):
        return measure_steps(batches, partial(training_step, run), run.schedules, run.accelerator)
