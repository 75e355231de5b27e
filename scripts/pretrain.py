#!/usr/bin/env python
"""Pretrain a Vision Transformer on your own pictures, without labels.

    accelerate launch scripts/pretrain.py [RECIPE.yaml] --dataset PICTURES --output_dir FOLDER ...

The folder becomes a model repository: weights, configuration, image processor, model card, and the code to load them.
"""

import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from modeling_sit import SiTForPreTraining, SiTForPreTrainingOutput, SiTImageProcessor
from modeling_sit.cli.arguments import RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.data.loading import (
    UnreadablePictures,
    create_crops,
    create_loader,
    crop_first_pictures,
    is_streamed,
    read_batches,
)
from modeling_sit.data.sampling import MONITOR, PREVIEW, STEP, derive_seed
from modeling_sit.data.sources import Pictures, load_pictures
from modeling_sit.data.streaming import StreamedCrops, StreamingArguments, StreamingLoader
from modeling_sit.data.views import TwoCropsDataset, ViewArguments, ViewAugmentation, rotate_views
from modeling_sit.evaluation.monitors import MonitorArguments, OnlineMonitors
from modeling_sit.training.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    create_config,
    create_processor,
    num_workers,
)
from modeling_sit.training.batch_norm import synchronize_batch_norm
from modeling_sit.training.checkpoints import (
    RunState,
    delete_checkpoints_after,
    delete_old_checkpoints,
    list_checkpoints,
    load_checkpoint,
    prepare_output_dir,
    read_run_state,
    read_stream_state,
    save_checkpoint,
)
from modeling_sit.training.contrast import gather_projections, mean_num_corrupted_pixels
from modeling_sit.training.engines import clip_gradients, create_accelerator, prepare_student
from modeling_sit.training.export import export_model
from modeling_sit.training.model_card import typed_command, write_pretraining_card
from modeling_sit.training.optimization import create_optimizer, set_hyperparameters
from modeling_sit.training.previews import preview_path, save_preview
from modeling_sit.training.processes import fail_together, run_main_process_first, share_main_process_result
from modeling_sit.training.progress import NonFiniteLoss, RunProgress, logged_losses
from modeling_sit.training.rehearsal import describe_plan, num_rehearsed_steps, rehearse
from modeling_sit.training.run_settings import check_settings, determining_settings
from modeling_sit.training.schedules import Schedules, plan_schedules
from modeling_sit.training.stopping import StopRequest, leave_signals_to_the_loop
from modeling_sit.training.student import create_student
from modeling_sit.training.teacher import Teacher
from modeling_sit.training.tracking import choose_trackers, start_trackers

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "pretraining_template.md"
NUM_PREVIEW_PICTURES = 8
TEST_SPLITS = ("test", "testing")


def main() -> None:
    parser = RecipeArgumentParser(
        (
            PretrainingArguments,
            StreamingArguments,
            ModelArguments,
            CorruptionArguments,
            ViewArguments,
            MonitorArguments,
        ),
        description="Pretrain a Vision Transformer on your own pictures, without labels.",
    )
    with one_line_errors():
        pretrain(*parser.parse())


@dataclass
class Pretraining:
    """What a step works with, in the order in which the pictures pass through."""

    accelerator: Accelerator
    augment: ViewAugmentation
    processor: SiTImageProcessor
    student: SiTForPreTraining
    wrapped_student: torch.nn.Module
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    arguments: PretrainingArguments

    def train_on(self, crops: torch.Tensor, number: int) -> tuple[SiTForPreTrainingOutput, torch.Tensor | None]:
        """Learn from batch `number` of the run, counted from 0.

        Returns:
            `tuple`: The losses, and where the batch ends a step, the norm of its gradient before clipping.
        """
        accelerator, schedule = self.accelerator, self.schedules.at(number // self.schedules.batches_per_step)
        set_hyperparameters(self.optimizer, schedule["learning_rate"], schedule["weight_decay"])
        gradient_norm = None
        # From here to the next batch, what is random is a function of seed, batch and process.
        torch.manual_seed(derive_seed(self.arguments.seed, STEP, number, accelerator.process_index))
        clean_views = self.augment(crops.to(accelerator.device, non_blocking=True))
        rotation_labels = None
        if self.student.config.rotation_weight > 0:
            clean_views, rotation_labels = rotate_views(clean_views)
        corrupted_views, corruption_mask = corrupt_views(self.processor, clean_views)
        num_corrupted_pixels = None
        if corruption_mask is not None:
            num_corrupted_pixels = mean_num_corrupted_pixels(accelerator, corruption_mask)
        teacher_projections, offset = self.project_clean_views(clean_views)
        with accelerator.accumulate(self.wrapped_student):
            with accelerator.autocast():
                output = self.wrapped_student(
                    corrupted_views,
                    target_pixel_values=clean_views,
                    corruption_mask=corruption_mask,
                    num_corrupted_pixels=num_corrupted_pixels,
                    teacher_projections=teacher_projections,
                    teacher_projections_offset=offset,
                    gather_projections=partial(gather_projections, accelerator),
                    rotation_labels=rotation_labels,
                )
            accelerator.backward(output.loss)
            if accelerator.sync_gradients:
                max_norm = self.arguments.max_grad_norm or float("inf")
                gradient_norm = clip_gradients(accelerator, self.wrapped_student, max_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and self.teacher is not None:
            self.teacher.update(self.student, schedule["teacher_momentum"])
        return output, gradient_norm

    def project_clean_views(self, clean_views: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        """The teacher's projections of the clean views of all processes, and the offset of this one's pictures."""
        if self.teacher is None:
            return None, 0
        with self.accelerator.autocast():
            projections = self.teacher.project(clean_views)
        return gather_projections(self.accelerator, projections)


def pretrain(
    arguments: PretrainingArguments,
    streaming_arguments: StreamingArguments,
    model_arguments: ModelArguments,
    corruption_arguments: CorruptionArguments,
    view_arguments: ViewArguments,
    monitor_arguments: MonitorArguments,
) -> None:
    started = time.time()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    output_dir = Path(arguments.output_dir)
    accelerator = create_accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=choose_trackers(arguments.report_to) or None,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
    )
    pictures = run_main_process_first(
        accelerator, lambda: load_training_pictures(arguments, streaming_arguments.streaming)
    )
    groups = (
        arguments,
        streaming_arguments,
        model_arguments,
        corruption_arguments,
        view_arguments,
        monitor_arguments,
    )
    settings = {name: value for group in groups for name, value in asdict(group).items()}

    with fail_together(accelerator):
        config = create_config(model_arguments, pictures.num_train)
        processor = create_processor(config, model_arguments, corruption_arguments)
        augment = create_augmentation(view_arguments, processor).to(accelerator.device)
        schedules = plan_schedules(
            arguments, pictures.num_train, accelerator.num_processes, streaming_arguments.streaming
        )
        student = create_student(config, model_arguments, arguments.seed).to(accelerator.device)
        crops = create_crops(pictures, config.image_shape, config.num_channels, view_arguments)
        preview_crops = crop_first_pictures(
            pictures, crops, NUM_PREVIEW_PICTURES, seeds=partial(derive_seed, arguments.seed, PREVIEW)
        )
        monitors = OnlineMonitors(
            monitor_arguments,
            pictures,
            config,
            processor,
            accelerator,
            seed=derive_seed(arguments.seed, MONITOR),
            batch_size=arguments.per_device_train_batch_size,
            num_workers=choose_num_workers(arguments, accelerator),
        )
    student = synchronize_batch_norm(student)
    teacher = Teacher(student) if config.use_teacher and config.contrastive_weight > 0 else None
    optimizer = create_optimizer(student, (arguments.adam_beta1, arguments.adam_beta2), accelerator.device)
    wrapped_student, optimizer = prepare_student(accelerator, student, optimizer)
    if teacher is not None:
        teacher.spread(student)
    pretraining = Pretraining(
        accelerator, augment, processor, student, wrapped_student, teacher, optimizer, schedules, arguments
    )
    wrapped_student.train()
    accelerator.print(describe_run(pictures, pretraining))
    if arguments.dry_run:
        num_batches = num_rehearsed_steps(schedules) * schedules.batches_per_step
        loader = load_batches(pictures, crops, pretraining, streaming_arguments, 0, num_batches)
        with closing(read_batches(loader, arguments.dataset)) as batches:
            rehearsal = rehearse(batches, pretraining.train_on, schedules, accelerator)
        monitor_steps = monitor_arguments.monitor_steps if monitors.chosen else 0
        accelerator.print(describe_plan(rehearsal, student, teacher, schedules, arguments, accelerator, monitor_steps))
        return

    # Nothing of an earlier run is replaced before all that this one needs is known to be right.
    determined_by = determining_settings(
        arguments,
        view_arguments,
        config,
        processor,
        schedules,
        pictures,
        accelerator,
        streaming_arguments.shuffle_buffer_size,
    )
    checkpoint = share_main_process_result(accelerator, lambda: prepare_output_dir(output_dir, arguments))
    resumed = resume(pretraining, checkpoint, determined_by) if checkpoint is not None else None
    first_step = resumed.step if resumed is not None else 0
    delete_checkpoints_after(accelerator, output_dir, first_step)
    start_trackers(accelerator, output_dir, settings, first_step)

    unreadable = UnreadablePictures(arguments.on_bad_image, resumed.unreadable if resumed is not None else [])
    first_batch = first_step * schedules.batches_per_step
    num_batches = schedules.num_steps * schedules.batches_per_step - first_batch
    stream_state = None
    with fail_together(accelerator):
        if checkpoint is not None and is_streamed(pictures):
            stream_state = read_stream_state(checkpoint, accelerator.process_index)
        loader = load_batches(
            pictures, crops, pretraining, streaming_arguments, first_batch, num_batches, stream_state
        )
    with (
        closing(read_batches(loader, arguments.dataset)) as batches,
        StopRequest(accelerator) as stop_request,
        RunProgress(
            accelerator,
            output_dir,
            first_step,
            schedules.num_steps,
            losses=logged_losses(config),
            window=resumed.window if resumed is not None else None,
            monitored=monitors.chosen,
        ) as progress,
    ):
        for number, batch in enumerate(progress.wait_for(batches), start=first_batch):
            unreadable.add(batch["unreadable"])
            if accelerator.num_processes == 1:
                unreadable.check()
            output, gradient_norm = pretraining.train_on(batch["crops"], number)
            progress.count(output, arguments.per_device_train_batch_size * accelerator.num_processes)
            if gradient_norm is None:
                continue

            progress.count_gradient(gradient_norm)
            progress.advance()
            step = progress.step
            stopped_by = stop_request.agreed()
            is_last = step == schedules.num_steps
            epoch = loader.epoch if is_streamed(pictures) else schedules.epoch(step)
            saves = is_last or stopped_by or is_due(step, arguments.checkpointing_steps, schedules)
            logs = is_last or step % arguments.logging_steps == 0
            if saves or logs:
                with fail_together(accelerator):
                    check_losses(progress, schedules.batches_per_step, output_dir)
                    unreadable.check()
            if logs:
                progress.tell(epoch, schedules.at(step - 1))
            with progress.off_the_clock():
                if is_due(step, arguments.preview_steps, schedules) or (is_last and arguments.preview_steps != 0):
                    path, seed = preview_path(output_dir, step), derive_seed(arguments.seed, PREVIEW)
                    save_preview(accelerator, student, processor, preview_crops, path, seed)
                    progress.tell_preview(path)
                if is_due(step, monitor_arguments.monitor_steps, schedules) or is_last:
                    progress.tell_monitors(epoch, monitors.run(student, teacher))
                if saves and arguments.checkpointing_steps != "no":
                    progress.sync_logs()
                    state = RunState(
                        step=step,
                        settings=settings,
                        determined_by=determined_by,
                        window=progress.state_dict(),
                        unreadable=unreadable.named_by_all(),
                        seconds=time.time() - started + (resumed.seconds if resumed is not None else 0),
                    )
                    stream_state = loader.state_dict() if is_streamed(pictures) else None
                    save_checkpoint(accelerator, teacher, output_dir, state, stream_state)
                    delete_old_checkpoints(accelerator, output_dir, arguments.checkpoints_total_limit)
                if saves:
                    export_model(accelerator, student, teacher, processor, output_dir, arguments.export)
            if stopped_by and not is_last:
                leave(accelerator, stopped_by, step, arguments)
    if first_step == schedules.num_steps:  # a finished run, resumed to export other weights
        export_model(accelerator, student, teacher, processor, output_dir, arguments.export)

    num_unreadable = len(unreadable.named_by_all())
    with fail_together(accelerator):
        if accelerator.is_main_process:
            write_pretraining_card(
                CARD_TEMPLATE,
                output_dir,
                settings={**settings, "export": arguments.export if teacher is not None else "student"},
                command=typed_command(),
                num_pictures=pictures.num_train,
                num_unreadable=num_unreadable,
                schedules=schedules,
                num_processes=accelerator.num_processes,
                device=accelerator.device,
                seconds=time.time() - started + (resumed.seconds if resumed is not None else 0),
            )
    if num_unreadable:
        accelerator.print(f"{num_unreadable} unreadable picture(s) were skipped; they are named above")
    accelerator.print(f"done: {output_dir} holds the model; its README.md says what was run")
    accelerator.end_training()


def load_training_pictures(arguments: PretrainingArguments, streaming: bool) -> Pictures:
    pictures = load_pictures(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
        streaming=streaming,
    )
    if pictures.train is None:
        raise UserError(
            f"--dataset {arguments.dataset} has several splits, none of them called train: choose one of "
            f"{', '.join(pictures.splits)} by --train_split"
        )
    # Who watches the monitors chooses by them, and test pictures are not for choosing.
    if arguments.validation_split is None and str(getattr(pictures.validation, "split", None)).lower() in TEST_SPLITS:
        pictures.validation = None
    return pictures


def create_augmentation(arguments: ViewArguments, processor: SiTImageProcessor) -> ViewAugmentation:
    image_shape = (processor.size["height"], processor.size["width"])
    try:
        return ViewAugmentation(arguments, image_shape, processor.image_mean, processor.image_std)
    except ValueError as problem:
        raise UserError(str(problem)) from problem


def load_batches(
    pictures: Pictures,
    crops: TwoCropsDataset | StreamedCrops,
    pretraining: Pretraining,
    streaming_arguments: StreamingArguments,
    first_batch: int,
    num_batches: int,
    stream_state: dict | None = None,
) -> DataLoader | StreamingLoader:
    """This process's batches from number `first_batch` of the run on."""
    arguments, accelerator = pretraining.arguments, pretraining.accelerator
    return create_loader(
        pictures,
        crops,
        batch_size=arguments.per_device_train_batch_size,
        seed=arguments.seed,
        first_batch=first_batch,
        num_batches=num_batches,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        shuffle_buffer_size=streaming_arguments.shuffle_buffer_size,
        stream_state=stream_state,
        num_workers=choose_num_workers(arguments, accelerator),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_loop,
    )


def choose_num_workers(arguments: PretrainingArguments, accelerator: Accelerator) -> int:
    return num_workers(arguments.dataloader_num_workers, accelerator.device.type, accelerator.num_processes)


def resume(pretraining: Pretraining, checkpoint: Path, determined_by: dict) -> RunState:
    """Go on from a checkpoint, if it is of a run like this one."""
    accelerator, arguments = pretraining.accelerator, pretraining.arguments
    state = read_run_state(checkpoint)
    with fail_together(accelerator):
        changes = check_settings(state.determined_by, determined_by, checkpoint, arguments.allow_changed_settings)
        num_steps = pretraining.schedules.num_steps
        if state.step > num_steps:
            raise UserError(f"{checkpoint} is of step {state.step}, beyond the {num_steps} steps asked for")
        load_checkpoint(accelerator, pretraining.teacher, checkpoint)
    for change in changes:
        accelerator.print(f"changed since the checkpoint: {change}")
    accelerator.print(f"going on from {checkpoint}")
    return state


def describe_run(pictures: Pictures, pretraining: Pretraining) -> str:
    config, schedules, accelerator = pretraining.student.config, pretraining.schedules, pretraining.accelerator
    height, width = config.image_shape
    weights = {
        "reconstruction": config.reconstruction_weight,
        "contrast": config.contrastive_weight,
        "rotation": config.rotation_weight,
    }
    losses = [f"{weight:g} x {name}" for name, weight in weights.items() if weight > 0]
    backbone = sum(parameter.numel() for parameter in pretraining.student.vit.parameters()) / 1e6
    num_pictures, length = "an unknown number of", ""
    if pictures.num_train is not None:
        num_pictures = f"{pictures.num_train:,}"
        length = f" ({schedules.epoch(schedules.num_steps):.4g} epochs of {schedules.batches_per_epoch:,.4g} batches)"
    return (
        f"{pictures.name}: {num_pictures} pictures{', streamed' if is_streamed(pictures) else ''}\n"
        f"model: {backbone:.2f} M parameters in the backbone, {height} x {width} pixels in patches of "
        f"{config.patch_size}, losses {' + '.join(losses)}\n"
        f"run: {schedules.num_steps:,} steps{length}, "
        f"warm-up {schedules.num_warmup_steps:,}, peak learning rate {schedules.peak_learning_rate:.3g}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}"
    )


def corrupt_views(processor: SiTImageProcessor, clean_views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Corrupt view 1 and view 2 apart, so that what replaces a place comes from another picture, not its other view.

    Where the settings corrupt no pixel there is no mask, and the loss counts all pixels.
    """
    corrupted, masks = zip(*(processor.corrupt(view) for view in clean_views.chunk(2)), strict=True)
    ratios = [getattr(processor, f"{kind}_ratio")[1] for kind in processor.corruption.split("+") if kind != "none"]
    return torch.cat(corrupted), torch.cat(masks) if any(ratios) else None


def is_due(step: int, every: str | int | None, schedules: Schedules) -> bool:
    """Whether something is due after `step` steps: every so many, at the end of an `epoch`, never (`no` or 0), or, by
    default, ten times in the run."""
    if every == "epoch":
        return int(schedules.epoch(step)) > int(schedules.epoch(step - 1))
    if every is None:
        every = max(1, -(-schedules.num_steps // 10))
    return every not in ("no", 0) and step % int(every) == 0


def check_losses(progress: RunProgress, batches_per_step: int, output_dir: Path) -> None:
    try:
        progress.check(batches_per_step)
    except NonFiniteLoss as problem:
        checkpoints = list_checkpoints(output_dir)
        newest = (
            f"the newest checkpoint from before is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        )
        raise UserError(
            f"{problem} at step {progress.step - problem.batches_ago // batches_per_step}; {newest}. Try a lower "
            "--base_learning_rate, longer --warmup_epochs, or --mixed_precision no"
        ) from problem


def leave(accelerator: Accelerator, stopped_by: signal.Signals, step: int, arguments: PretrainingArguments) -> None:
    """End the run before its time, with the exit code by which shells and schedulers know the signal."""
    how = (
        "its checkpoint is written; --resume_from_checkpoint auto goes on"
        if arguments.checkpointing_steps != "no"
        else "no checkpoint was written, as --checkpointing_steps no says"
    )
    # Ctrl-C ends a `| tee`, too.
    with suppress(BrokenPipeError):
        accelerator.print(f"stopped by {stopped_by.name} after step {step}: {how}")
    accelerator.end_training()
    sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
