"""The training loop: batches in, steps, and what is saved and logged on the way. It knows no method but its interface."""

import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit.data.image_sample import read_sample
from modeling_sit.data.loaders import worker_deaths
from modeling_sit.data.sampling import PREVIEW, STEP, derive_seed
from modeling_sit.data.training_data import TrainingData
from modeling_sit.data.unreadable import UnreadableImages
from modeling_sit.data.value_ranges import range_of_dark
from modeling_sit.evaluation.collapse import collapse_warning
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.pretraining.checkpoints import (
    RunState,
    delete_old_checkpoints,
    list_checkpoints,
    read_stream_state,
    save_checkpoint,
    write_run_state,
)
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.metric_logger import MetricLogger, NonFiniteLoss
from modeling_sit.pretraining.monitors import OnlineMonitors
from modeling_sit.pretraining.outputs import export_model, export_path, preview_path, save_preview
from modeling_sit.pretraining.resolve import Resolved
from modeling_sit.pretraining.schedules import Schedules, is_due
from modeling_sit.pretraining.stopping import interruption, stopped_waits
from modeling_sit.runtime.accelerator import clip_gradients
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.optimizer import set_hyperparameters
from modeling_sit.runtime.signals import StopSignal


@dataclass
class Run:
    """What a run works with, in the order in which the images pass through."""

    flags: PretrainingFlags
    accelerator: Accelerator
    data: TrainingData
    augment: list[nn.Module]  # one for each group of views
    method: Method
    wrapped_student: nn.Module  # as Accelerate has prepared it
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    preview_crops: torch.Tensor
    monitors: OnlineMonitors
    pusher: HubPusher | None  # in the main process, if the run pushes
    started: float  # when, as `time.time` gives it
    preset: Resolved  # what was chosen for the user

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.run.output_dir)

    @property
    def num_batches(self) -> int:
        """Batches of this process in the whole run."""
        return self.schedules.num_steps * self.schedules.batches_per_step

    def schedule(self, step: int) -> dict[str, float]:
        """Learning rate, weight decay and the method's own values of step `step`, from 0."""
        return {**self.schedules.at(step), **self.method.schedules(self.schedules.progress(step))}


def training_step(run: Run, crops: tuple[torch.Tensor, ...], number: int) -> tuple[ModelOutput, torch.Tensor | None]:
    """Learn from one batch.

    Args:
        run ([`Run`]): The run.
        crops (`tuple` of `torch.Tensor`): One tensor for each group of views, uint8 `(views, batch, channels, height, width)`.
        number (`int`): Number of the batch in the run, from 0.

    Returns:
        `tuple`: The student's output with its losses; where the batch ends a step, the norm of its gradient before
        clipping, else `None`.
    """
    accelerator, gradient_norm = run.accelerator, None
    schedule = run.schedule(number // run.schedules.batches_per_step)
    set_hyperparameters(run.optimizer, schedule["learning_rate"], schedule["weight_decay"])
    # From here to the next batch, all randomness is a function of seed, batch and process.
    torch.manual_seed(derive_seed(run.flags.run.seed, STEP, number, accelerator.process_index))
    views = [
        augment(group.to(accelerator.device, non_blocking=True))
        for augment, group in zip(run.augment, crops, strict=True)
    ]
    inputs = run.method.inputs(views, accelerator, schedule)
    with accelerator.accumulate(run.wrapped_student):
        with accelerator.autocast():
            output = run.wrapped_student(**inputs)
        accelerator.backward(output.loss)
        if accelerator.sync_gradients:
            max_norm = run.flags.run.max_grad_norm or float("inf")
            gradient_norm = clip_gradients(accelerator, run.wrapped_student, max_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
    if accelerator.sync_gradients:
        run.method.after_step(schedule)
    return output, gradient_norm


def train(run: Run, state: RunState, checkpoint: Path | None) -> None:
    """Train from `state` to the end, and keep `state` up to date. Every process calls this.

    Args:
        run ([`Run`]): Ready for its first batch.
        state ([`RunState`]): Of the start of the run, or of the checkpoint that is loaded.
        checkpoint (`Path`, *optional*): The checkpoint, which says where a stream stands.

    Raises:
        [`SiTError`]: If a loss is not finite, too many images cannot be read, or something cannot be written.
        [`TrainingInterrupted`]: If SIGTERM, SIGINT or SIGHUP asked to stop. The checkpoint of the step is written.
    """
    accelerator, flags, schedules = run.accelerator, run.flags.run, run.schedules
    started = run.started - state.seconds  # as if the run had never been interrupted
    first_batch = state.step * schedules.batches_per_step
    stream_state = None
    with sync_errors(accelerator):
        if checkpoint is not None:
            stream_state = read_stream_state(checkpoint, accelerator.process_index)
        batches = run.data.batches(first_batch, run.num_batches, stream_state)
    unreadable = UnreadableImages(flags.on_bad_image, state.unreadable)

    def save_step(step: int) -> None:
        state.step, state.seconds = step, time.time() - started
        state.window, state.unreadable = logger.state_dict(), unreadable.named_by_all()
        save(run, state, logger)

    def save_alone() -> None:
        check_losses(run, logger)
        save_step(logger.step)

    may_save_alone = accelerator.num_processes == schedules.batches_per_step == 1
    with (
        worker_deaths(),
        closing(batches),
        StopSignal(accelerator) as stop_signal,
        create_logger(run, state) as logger,
        stopped_waits(flags, state, logger, save_alone if may_save_alone else None),
    ):
        for number, batch in enumerate(logger.timed(batches), start=first_batch):
            unreadable.add(batch["unreadable"])
            if accelerator.num_processes == 1:
                unreadable.check()
            output, gradient_norm = training_step(run, batch["crops"], number)
            logger.update(output, flags.per_device_train_batch_size * accelerator.num_processes)
            if gradient_norm is None:
                continue

            logger.update_gradient(gradient_norm)
            logger.count_step()
            step, epoch = logger.step, run.data.epoch(number + 1)
            stopped_by = stop_signal.any_rank()
            is_last = step == schedules.num_steps
            saves = is_last or stopped_by or is_due(step, flags.checkpointing_steps, schedules)
            logs = is_last or step % flags.logging_steps == 0
            exports = is_due(step, flags.export_steps, schedules)
            if saves or logs or exports:
                with sync_errors(accelerator):
                    check_losses(run, logger)
                    unreadable.check()
            if logs:
                logger.log(epoch, run.schedule(step - 1))
            with logger.paused():
                if is_due(step, flags.preview_steps, schedules) or (is_last and flags.preview_steps != 0):
                    preview(run, logger)
                if is_last or is_due(step, run.flags.monitors.monitor_steps, schedules):
                    values = run.monitors.run(run.method)
                    signs = {name: values[name] for name in run.method.collapse_signs if name in values}
                    logger.log_monitors(epoch, values, collapse_warning(signs, partial(needed_range, run)))
                if exports:  # before a checkpoint, from which none would come again
                    export_model(accelerator, run.method, export_path(run.output_dir, step), flags.export)
                if saves:
                    save_step(step)
            if stopped_by and not is_last:
                raise interruption(flags, stopped_by, step, state.step)
    if first_batch == run.num_batches:  # a finished run, resumed to export other weights
        export(run, state)


def needed_range(run: Run) -> str | None:
    """The range of values that images need which are nearly black without it, as the run has warned at its start."""
    return range_of_dark(read_sample(run.data.images).images, run.method.processor.intensity_range)


def create_logger(run: Run, state: RunState) -> MetricLogger:
    """What logs the run from `state` on."""
    return MetricLogger(
        run.accelerator,
        run.output_dir,
        state.step,
        run.schedules.num_steps,
        losses=run.method.losses,
        window=state.window,
        monitored=bool(run.monitors.chosen),
    )


def check_losses(run: Run, logger: MetricLogger) -> None:
    """Raise [`SiTError`] if a loss since the last line of the log is not finite."""
    try:
        logger.check(run.schedules.batches_per_step)
    except NonFiniteLoss as problem:
        checkpoints = list_checkpoints(run.output_dir)
        newest = f"the newest checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        raise SiTError(
            f"{problem} at step {logger.step - problem.batches_ago // run.schedules.batches_per_step}, {newest}",
            remedy="try a lower `base_learning_rate`, more `warmup_steps`, or `mixed_precision=no`",
        ) from problem


def preview(run: Run, logger: MetricLogger) -> None:
    """Save what the student makes of the first images."""
    path = preview_path(run.output_dir, logger.step)
    save_preview(run.accelerator, run.method, run.preview_crops, path, derive_seed(run.flags.run.seed, PREVIEW))
    logger.log_preview(path)


def save(run: Run, state: RunState, logger: MetricLogger) -> None:
    """Write a checkpoint, unless the user wants none, and the model as it is now."""
    accelerator, flags = run.accelerator, run.flags.run
    if flags.checkpointing_steps != "no":
        logger.sync_logs()
        save_checkpoint(accelerator, run.method, run.output_dir, state, run.data.state_dict())
        delete_old_checkpoints(accelerator, run.output_dir, flags.checkpoints_total_limit)
    export(run, state)
    if run.pusher is not None and state.step < run.schedules.num_steps:
        run.pusher.push_checkpoint(state.step, with_model=True)


def export(run: Run, state: RunState) -> None:
    """Make the output folder the model repository of the weights as they are."""
    export_model(run.accelerator, run.method, run.output_dir, run.flags.run.export)
    with sync_errors(run.accelerator):
        if run.accelerator.is_main_process:
            write_run_state(run.output_dir, state)
