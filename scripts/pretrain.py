#!/usr/bin/env python
"""`modeling-sit pretrain` as a file, for `accelerate launch`."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from modeling_sit.data.loading import (
    UnreadableImages,
    create_crops,
    create_loader,
    crop_first_images,
    is_streamed,
    read_batches,
)
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from modeling_sit import SiTForPreTraining, SiTForPreTrainingOutput, SiTImageProcessor
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.caching import ImageCacheArguments, cache_images, check_image_cache
from modeling_sit.data.crops import TwoCropsDataset
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice
from modeling_sit.data.sampling import MONITOR, PREVIEW, STEP, derive_seed
from modeling_sit.data.sources import ImageDatasets, load_images
from modeling_sit.data.streaming import StreamedCrops, StreamingArguments, StreamingLoader
from modeling_sit.data.views import ViewArguments, rotate_views
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.provenance import Start, describe_start
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.pretraining.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    create_config,
    create_processor,
    default_num_workers,
)
from modeling_sit.pretraining.card import write_pretraining_card
from modeling_sit.pretraining.checkpoints import (
    RunState,
    check_output_dir,
    delete_checkpoints_after,
    delete_old_checkpoints,
    list_checkpoints,
    load_checkpoint,
    lock_output_dir,
    prepare_output_dir,
    read_run_state,
    read_stream_state,
    save_checkpoint,
)
from modeling_sit.pretraining.compilation import compile_training
from modeling_sit.pretraining.dry_run import describe_plan, measure_steps, num_dry_run_steps
from modeling_sit.pretraining.export import export_model
from modeling_sit.pretraining.metric_logger import MetricLogger, NonFiniteLoss, logged_losses
from modeling_sit.pretraining.monitors import MonitorArguments, OnlineMonitors, collapse_warning
from modeling_sit.pretraining.previews import preview_path, save_preview
from modeling_sit.pretraining.resume_check import check_resume_compatible, run_fingerprint
from modeling_sit.pretraining.schedules import Schedules, plan_schedules
from modeling_sit.pretraining.student import create_student
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.accelerator import clip_gradients, create_accelerator, prepare_student
from modeling_sit.runtime.batch_norm import synchronize_batch_norm
from modeling_sit.runtime.distributed import broadcast_from_main, main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.gather import gather_projections, mean_num_corrupted_pixels
from modeling_sit.runtime.optimizer import create_optimizer, set_hyperparameters
from modeling_sit.runtime.signals import StopSignal, die_with_parent, ignore_signals_in_worker
from modeling_sit.runtime.trackers import choose_trackers, start_trackers

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "modeling_sit" / "templates" / "pretraining_card.md"
NUM_PREVIEW_IMAGES = 8
TEST_SPLITS = ("test", "testing")


@dataclass
class Flags:
    """What was asked for, as the command line has it."""

    run: PretrainingArguments
    streaming: StreamingArguments
    cache: ImageCacheArguments
    model: ModelArguments
    corruption: CorruptionArguments
    views: ViewArguments
    monitors: MonitorArguments
    hub: HubArguments

    def settings(self) -> dict[str, Any]:
        """Every flag's value by its name."""
        groups = (getattr(self, group.name) for group in fields(self))
        return {name: value for group in groups for name, value in asdict(group).items()}


@dataclass
class Pretraining:
    """What a run works with, in the order in which the images pass through."""

    flags: Flags
    accelerator: Accelerator
    images: ImageDatasets
    crops: TwoCropsDataset | StreamedCrops
    augment: ViewAugmentation
    processor: SiTImageProcessor
    student: SiTForPreTraining
    wrapped_student: torch.nn.Module
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    preview_crops: torch.Tensor
    monitors: OnlineMonitors
    pusher: HubPusher | None  # in the main process, if it is to push

    def train_on(self, crops: torch.Tensor, number: int) -> tuple[SiTForPreTrainingOutput, torch.Tensor | None]:
        """Learn from batch `number` of the run, counted from 0.

        Returns:
            `tuple`: The losses, and where the batch ends a step, the norm of its gradient before clipping.
        """
        accelerator, schedule = self.accelerator, self.schedules.at(number // self.schedules.batches_per_step)
        set_hyperparameters(self.optimizer, schedule["learning_rate"], schedule["weight_decay"])
        gradient_norm = None
        # From here to the next batch, what is random is a function of seed, batch and process.
        torch.manual_seed(derive_seed(self.flags.run.seed, STEP, number, accelerator.process_index))
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
                max_norm = self.flags.run.max_grad_norm or float("inf")
                gradient_norm = clip_gradients(accelerator, self.wrapped_student, max_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and self.teacher is not None:
            self.teacher.update(self.student, schedule["teacher_momentum"])
        return output, gradient_norm

    def project_clean_views(self, clean_views: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        """The teacher's projections of the clean views of all processes, and the offset of this one's images."""
        if self.teacher is None:
            return None, 0
        with self.accelerator.autocast():
            projections = self.teacher.project(clean_views)
        return gather_projections(self.accelerator, projections)


def main() -> None:
    parser = RecipeArgumentParser(
        tuple(group.type for group in fields(Flags)),
        description="Pretrain a Vision Transformer on your own images, without labels.",
    )
    with one_line_errors(parser.flags):
        pretrain(Flags(*parser.parse()))


def pretrain(flags: Flags) -> None:
    started = time.time()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    die_with_parent(os.environ)
    output_dir = Path(flags.run.output_dir)
    accelerator = create_accelerator(
        mixed_precision=flags.run.mixed_precision,
        gradient_accumulation_steps=flags.run.gradient_accumulation_steps,
        log_with=choose_trackers(flags.run.report_to) or None,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
    )
    if flags.run.tf32:
        torch.set_float32_matmul_precision("high")
    pretraining = prepare(flags, accelerator)
    accelerator.print(describe_run(pretraining))
    determined_by = run_fingerprint(
        flags.run,
        flags.views,
        pretraining.student.config,
        pretraining.processor,
        pretraining.schedules,
        pretraining.images,
        accelerator,
        flags.streaming.shuffle_buffer_size,
    )
    state = RunState(settings=flags.settings(), determined_by=determined_by)
    if flags.run.dry_run:
        checkpoint = broadcast_from_main(accelerator, lambda: check_output_dir(output_dir, flags.run))
        if checkpoint is not None:
            resume(pretraining, checkpoint, state)
        accelerator.print(dry_run_plan(pretraining))
        return

    with running_alone(accelerator, output_dir), pushing_to_the_end(pretraining):
        run(pretraining, state, started)
    accelerator.end_training()


def run(pretraining: Pretraining, state: RunState, started: float) -> None:
    """Train in the output folder, from the start or from a checkpoint, and leave the model and its card."""
    accelerator, flags, output_dir = pretraining.accelerator, pretraining.flags, Path(pretraining.flags.run.output_dir)
    checkpoint = broadcast_from_main(accelerator, lambda: check_output_dir(output_dir, flags.run))
    if checkpoint is not None:
        state = resume(pretraining, checkpoint, state)
    if is_finished(pretraining, state):
        accelerator.print(f"done before: {output_dir} holds the model, and is left as it is")
        if pretraining.pusher is not None:
            pretraining.pusher.push_finished()
        return
    cache_crops(pretraining, state)
    # Nothing of an earlier run is replaced before all that this one needs is known to be right.
    broadcast_from_main(accelerator, lambda: prepare_output_dir(output_dir, flags.run, checkpoint))
    delete_checkpoints_after(accelerator, output_dir, state.step)
    start_trackers(accelerator, output_dir, state.settings, state.step)

    state.starts.append(describe_start(state.step, accelerator.device, accelerator.num_processes))
    started -= state.seconds
    train(pretraining, state, checkpoint, started)
    write_card(pretraining, state, time.time() - started)
    if state.unreadable:
        accelerator.print(f"{len(state.unreadable)} unreadable image(s) were skipped; they are named above")
    accelerator.print(f"done: {output_dir} holds the model; its README.md says what was run")
    if pretraining.pusher is not None:
        pretraining.pusher.push_finished()


def prepare(flags: Flags, accelerator: Accelerator) -> Pretraining:
    """Find the images, make the networks, and hand them to Accelerate; writes nothing."""
    pusher = create_pusher(flags, accelerator)
    images = main_process_first(accelerator, lambda: load_training_images(flags))
    with sync_errors(accelerator):
        check_image_cache(flags.cache, images)
        config = create_config(flags.model, images.num_train)
        processor = create_processor(config, flags.model, flags.corruption)
        augment = create_augmentation(flags.views, processor).to(accelerator.device)
        schedules = plan_schedules(flags.run, images.num_train, accelerator.num_processes, flags.streaming.streaming)
        student = create_student(config, flags.model, flags.run.seed).to(accelerator.device)
        crops = create_crops(images, config.image_shape, config.num_channels, flags.views)
        preview_crops = crop_first_images(
            images, crops, NUM_PREVIEW_IMAGES, seeds=partial(derive_seed, flags.run.seed, PREVIEW)
        )
        monitors = OnlineMonitors(
            flags.monitors,
            images,
            config,
            processor,
            accelerator,
            seed=derive_seed(flags.run.seed, MONITOR),
            batch_size=flags.run.per_device_train_batch_size,
            num_workers=choose_num_workers(flags.run, accelerator),
        )
    student = synchronize_batch_norm(student)
    teacher = Teacher(student) if config.use_teacher and config.contrastive_weight > 0 else None
    optimizer = create_optimizer(student, (flags.run.adam_beta1, flags.run.adam_beta2), accelerator.device)
    wrapped_student, optimizer = prepare_student(accelerator, student, optimizer)
    if teacher is not None:
        teacher.spread(student)
    if flags.run.torch_compile:
        with sync_errors(accelerator):
            compile_training(augment, student, teacher, accelerator.device)
    wrapped_student.train()
    return Pretraining(
        flags=flags,
        accelerator=accelerator,
        images=images,
        crops=crops,
        augment=augment,
        processor=processor,
        student=student,
        wrapped_student=wrapped_student,
        teacher=teacher,
        optimizer=optimizer,
        schedules=schedules,
        preview_crops=preview_crops,
        monitors=monitors,
        pusher=pusher,
    )


def create_pusher(flags: Flags, accelerator: Accelerator) -> HubPusher | None:
    """What pushes to the Hub, known to be let in; in the main process, if the flags ask for it."""
    pusher = None
    with sync_errors(accelerator):
        if flags.hub.hub_strategy == "checkpoint" and flags.run.checkpointing_steps == "no":
            raise SiTError("--hub_strategy checkpoint: there is none with --checkpointing_steps no; leave one out")
        if flags.hub.push_to_hub and accelerator.is_main_process:
            pusher = HubPusher(flags.hub, Path(flags.run.output_dir))
            pusher.check_login()
    return pusher


def resume(pretraining: Pretraining, checkpoint: Path, state: RunState) -> RunState:
    """Go on from a checkpoint, if it is of a run like this one; gives what it says, with this run's settings."""
    accelerator = pretraining.accelerator
    saved = read_run_state(checkpoint)
    with sync_errors(accelerator):
        allow_changes = pretraining.flags.run.allow_changed_settings
        changes = check_resume_compatible(saved.determined_by, state.determined_by, checkpoint, allow_changes)
        num_steps = pretraining.schedules.num_steps
        if saved.step > num_steps:
            raise SiTError(f"{checkpoint} is of step {saved.step}, beyond the {num_steps} steps asked for")
        load_checkpoint(accelerator, pretraining.teacher, checkpoint)
    for change in changes:
        accelerator.print(f"changed since the checkpoint: {change}")
    accelerator.print(f"going on from {checkpoint}")
    return replace(saved, settings=state.settings, determined_by=state.determined_by)


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
def pushing_to_the_end(pretraining: Pretraining) -> Iterator[None]:
    """Make sure that there is a repository to push to, and let nothing be cut off that is on its way, for a while."""
    pusher = pretraining.pusher
    with sync_errors(pretraining.accelerator):
        if pusher is not None:
            pusher.create_repository()
    try:
        yield
    finally:
        if pusher is not None:
            pusher.close()


def is_finished(pretraining: Pretraining, state: RunState) -> bool:
    """Whether the run is done, and its folder holds the model and a card of the weights that are asked for."""
    card = Path(pretraining.flags.run.output_dir) / "README.md"
    export = pretraining.flags.run.export if pretraining.teacher is not None else "student"
    return (
        state.step == pretraining.schedules.num_steps
        and (card.parent / "model.safetensors").exists()
        and card.exists()
        and f"| weights in this folder | {export} |" in card.read_text()
    )


def train(pretraining: Pretraining, state: RunState, checkpoint: Path | None, started: float) -> None:
    """Train from `state` to the end, keeping it up to date; `started` is when, if the run had never been cut off."""
    accelerator, flags, schedules = pretraining.accelerator, pretraining.flags.run, pretraining.schedules
    output_dir, batches_per_step = Path(flags.output_dir), schedules.batches_per_step
    first_batch, last_batch = state.step * batches_per_step, schedules.num_steps * batches_per_step
    with sync_errors(accelerator):
        loader = load_batches(pretraining, first_batch, last_batch, checkpoint)
    unreadable = UnreadableImages(flags.on_bad_image, state.unreadable)
    with (
        closing(read_batches(loader, flags.dataset)) as batches,
        StopSignal(accelerator) as stop_request,
        MetricLogger(
            accelerator,
            output_dir,
            state.step,
            schedules.num_steps,
            losses=logged_losses(pretraining.student.config),
            window=state.window,
            monitored=bool(pretraining.monitors.chosen),
        ) as progress,
    ):
        for number, batch in enumerate(progress.wait_for(batches), start=first_batch):
            unreadable.add(batch["unreadable"])
            if accelerator.num_processes == 1:
                unreadable.check()
            output, gradient_norm = pretraining.train_on(batch["crops"], number)
            progress.count(output, flags.per_device_train_batch_size * accelerator.num_processes)
            if gradient_norm is None:
                continue

            progress.count_gradient(gradient_norm)
            progress.advance()
            step = progress.step
            stopped_by = stop_request.agreed()
            is_last = step == schedules.num_steps
            epoch = loader.epoch if is_streamed(pretraining.images) else schedules.epoch(step)
            saves = is_last or stopped_by or is_due(step, flags.checkpointing_steps, schedules)
            logs = is_last or step % flags.logging_steps == 0
            if saves or logs:
                with sync_errors(accelerator):
                    check_losses(progress, batches_per_step, output_dir)
                    unreadable.check()
            if logs:
                progress.tell(epoch, schedules.at(step - 1))
            with progress.off_the_clock():
                if is_due(step, flags.preview_steps, schedules) or (is_last and flags.preview_steps != 0):
                    preview(pretraining, progress)
                if is_last or is_due(step, pretraining.flags.monitors.monitor_steps, schedules):
                    values = pretraining.monitors.run(pretraining.student, pretraining.teacher)
                    progress.log_monitors(epoch, values, collapse_warning(values))
                if saves:
                    state.step, state.seconds = step, time.time() - started
                    state.window, state.unreadable = progress.state_dict(), unreadable.named_by_all()
                    if flags.checkpointing_steps != "no":
                        progress.sync_logs()
                        stream_state = loader.state_dict() if is_streamed(pretraining.images) else None
                        save_checkpoint(accelerator, pretraining.teacher, output_dir, state, stream_state)
                        delete_old_checkpoints(accelerator, output_dir, flags.checkpoints_total_limit)
                    export(pretraining)
                    if pretraining.pusher is not None and not is_last:
                        pretraining.pusher.push_checkpoint(step, with_model=True)
            if stopped_by and not is_last:
                leave(accelerator, stopped_by, step, flags)
    if first_batch == last_batch:  # a finished run, resumed to export other weights
        export(pretraining)


def dry_run_plan(pretraining: Pretraining) -> str:
    """What a few steps tell of the whole run."""
    flags, schedules, accelerator = pretraining.flags, pretraining.schedules, pretraining.accelerator
    loader = load_batches(pretraining, 0, num_dry_run_steps(schedules) * schedules.batches_per_step)
    with closing(read_batches(loader, flags.run.dataset)) as batches:
        dry_run = measure_steps(batches, pretraining.train_on, schedules, accelerator)
    return describe_plan(
        dry_run,
        pretraining.student,
        pretraining.teacher,
        schedules,
        flags.run,
        accelerator,
        monitor_steps=flags.monitors.monitor_steps if pretraining.monitors.chosen else 0,
    )


def load_training_images(flags: Flags) -> ImageDatasets:
    arguments = flags.run
    images = load_images(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
        streaming=flags.streaming.streaming,
    )
    if images.train is None:
        raise SiTError(
            f"--dataset {arguments.dataset} has several splits, none of them called train: choose one of "
            f"{', '.join(images.splits)} by --train_split"
        )
    # Who watches the monitors chooses by them, and test images are not for choosing.
    if arguments.validation_split is None and str(getattr(images.validation, "split", None)).lower() in TEST_SPLITS:
        images.validation = None
    return images


def create_augmentation(arguments: ViewArguments, processor: SiTImageProcessor) -> ViewAugmentation:
    image_shape = (processor.size["height"], processor.size["width"])
    try:
        return ViewAugmentation(arguments, image_shape, processor.image_mean, processor.image_std)
    except ValueError as problem:
        raise SiTError(str(problem)) from problem


def cache_crops(pretraining: Pretraining, state: RunState) -> None:
    """Have the images decoded once for the rest of the run, where that is asked for or pays.

    A run whose crops are cut on the device goes on so, and one whose are not does not begin to: they round otherwise.

    Raises:
        [`SiTError`]: If there is no room where it is asked for, or it would change the crops of a run that goes on.
    """
    if is_streamed(pretraining.images):
        return
    flags, schedules = pretraining.flags, pretraining.schedules
    asked, on_device = flags.cache.image_cache, state.crops_on_device
    if flags.run.allow_changed_settings:
        on_device = None
    elif on_device is not None and asked != "auto" and on_device != (asked == "device"):
        raise SiTError(
            f"--image_cache {asked}: the run that goes on has its crops cut on the {'device' if on_device else 'host'}, "
            "and others differ by rounding; leave the flag out, or go on with these by --allow_changed_settings"
        )
    num_epochs = schedules.epoch(schedules.num_steps) - schedules.epoch(state.step)
    pretraining.crops = cache_images(
        pretraining.accelerator, pretraining.images.name, pretraining.crops, flags.cache, num_epochs, on_device
    )
    state.crops_on_device = isinstance(pretraining.crops, CropsOnDevice)


def load_batches(
    pretraining: Pretraining, first_batch: int, last_batch: int, checkpoint: Path | None = None
) -> DataLoader | StreamingLoader | CropLoader:
    """This process's batches from number `first_batch` of the run on, to before `last_batch`; a stream's from where the
    checkpoint says."""
    flags, accelerator = pretraining.flags, pretraining.accelerator
    stream_state = None
    if checkpoint is not None and is_streamed(pretraining.images):
        stream_state = read_stream_state(checkpoint, accelerator.process_index)
    return create_loader(
        pretraining.images,
        pretraining.crops,
        batch_size=flags.run.per_device_train_batch_size,
        seed=flags.run.seed,
        first_batch=first_batch,
        num_batches=last_batch - first_batch,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        shuffle_buffer_size=flags.streaming.shuffle_buffer_size,
        stream_state=stream_state,
        num_workers=choose_num_workers(flags.run, accelerator),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals_in_worker,
    )


def choose_num_workers(arguments: PretrainingArguments, accelerator: Accelerator) -> int:
    return default_num_workers(arguments.dataloader_num_workers, accelerator.device.type, accelerator.num_processes)


def describe_run(pretraining: Pretraining) -> str:
    images = pretraining.images
    config, schedules, accelerator = pretraining.student.config, pretraining.schedules, pretraining.accelerator
    height, width = config.image_shape
    weights = {
        "reconstruction": config.reconstruction_weight,
        "contrast": config.contrastive_weight,
        "rotation": config.rotation_weight,
    }
    losses = [f"{weight:g} x {name}" for name, weight in weights.items() if weight > 0]
    backbone = sum(parameter.numel() for parameter in pretraining.student.vit.parameters()) / 1e6
    num_images, length = "an unknown number of", ""
    if images.num_train is not None:
        num_images = f"{images.num_train:,}"
        length = f" ({schedules.epoch(schedules.num_steps):.4g} epochs of {schedules.batches_per_epoch:,.4g} batches)"
    return (
        f"{images.name}: {num_images} images{', streamed' if is_streamed(images) else ''}\n"
        f"model: {backbone:.2f} M parameters in the backbone, {height} x {width} pixels in patches of "
        f"{config.patch_size}, losses {' + '.join(losses)}\n"
        f"run: {schedules.num_steps:,} steps{length}, "
        f"warm-up {schedules.num_warmup_steps:,}, peak learning rate {schedules.peak_learning_rate:.3g}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}"
    )


def corrupt_views(processor: SiTImageProcessor, clean_views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Corrupt view 1 and view 2, so that what replaces a place comes from another image, not its other view.

    Where the settings corrupt no pixel there is no mask, and the loss counts all pixels.
    """
    corrupted, mask = processor.corrupt(clean_views, num_views=2)
    ratios = [getattr(processor, f"{kind}_ratio")[1] for kind in processor.corruption.split("+") if kind != "none"]
    return corrupted, mask if any(ratios) else None


def is_due(step: int, every: str | int | None, schedules: Schedules) -> bool:
    """Whether something is due after `step` steps: every so many, at the end of an `epoch`, never (`no` or 0), or, by
    default, ten times in the run."""
    if every == "epoch":
        return int(schedules.epoch(step)) > int(schedules.epoch(step - 1))
    if every is None:
        every = max(1, -(-schedules.num_steps // 10))
    return every not in ("no", 0) and step % int(every) == 0


def check_losses(progress: MetricLogger, batches_per_step: int, output_dir: Path) -> None:
    try:
        progress.check(batches_per_step)
    except NonFiniteLoss as problem:
        checkpoints = list_checkpoints(output_dir)
        newest = (
            f"the newest checkpoint from before is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        )
        raise SiTError(
            f"{problem} at step {progress.step - problem.batches_ago // batches_per_step}; {newest}. Try a lower "
            "--base_learning_rate, longer --warmup_epochs, or --mixed_precision no"
        ) from problem


def preview(pretraining: Pretraining, progress: MetricLogger) -> None:
    """Save what the student makes of the first images."""
    path = preview_path(Path(pretraining.flags.run.output_dir), progress.step)
    seed = derive_seed(pretraining.flags.run.seed, PREVIEW)
    student, processor = pretraining.student, pretraining.processor
    save_preview(pretraining.accelerator, student, processor, pretraining.preview_crops, path, seed)
    progress.log_preview(path)


def export(pretraining: Pretraining) -> None:
    """Make the output folder the model repository of the weights as they are."""
    flags = pretraining.flags.run
    export_model(
        pretraining.accelerator,
        pretraining.student,
        pretraining.teacher,
        pretraining.processor,
        Path(flags.output_dir),
        flags.export,
    )


def write_card(pretraining: Pretraining, state: RunState, seconds: float) -> None:
    flags, accelerator = pretraining.flags.run, pretraining.accelerator
    with sync_errors(accelerator):
        if accelerator.is_main_process:
            write_pretraining_card(
                CARD_TEMPLATE,
                Path(flags.output_dir),
                settings={**state.settings, "export": flags.export if pretraining.teacher is not None else "student"},
                starts=[Start(**start) for start in state.starts],
                images=pretraining.images,
                num_unreadable=len(state.unreadable),
                config=pretraining.student.config,
                num_parameters=sum(parameter.numel() for parameter in pretraining.student.vit.parameters()),
                schedules=pretraining.schedules,
                step=state.step,
                num_processes=accelerator.num_processes,
                mixed_precision=accelerator.mixed_precision,
                seconds=seconds,
                model_id=pretraining.pusher.repository.name if pretraining.pusher is not None else None,
            )


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

from modeling_sit.cli.main import main

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose evaluate.py hides the library of that name
    main(["pretrain", *sys.argv[1:]])
