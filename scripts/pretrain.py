#!/usr/bin/env python
"""Pretrain a Vision Transformer on your own pictures, without labels.

    accelerate launch scripts/pretrain.py [RECIPE.yaml] --dataset PICTURES --output_dir FOLDER ...

The folder becomes a model repository: weights, configuration, image processor, model card, and the code to load them.
"""

import signal
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.nn import SyncBatchNorm
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from modeling_sit import SiTForPreTraining, SiTForPreTrainingOutput, SiTImageProcessor
from modeling_sit.cli.arguments import RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.data.loading import UnreadablePictures, crop_for_preview, naming_unreadable, read_batches
from modeling_sit.data.sampling import PREVIEW, STEP, PictureBatches, derive_seed
from modeling_sit.data.sources import Pictures, load_pictures
from modeling_sit.data.views import TwoCropsDataset, ViewArguments, ViewAugmentation, collate_crops, rotate_views
from modeling_sit.training.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    create_config,
    create_processor,
    num_workers,
)
from modeling_sit.training.checkpoints import (
    RunState,
    delete_checkpoints_after,
    delete_old_checkpoints,
    load_checkpoint,
    prepare_output_dir,
    read_run_state,
    save_checkpoint,
)
from modeling_sit.training.contrast import gather_projections
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


def main() -> None:
    parser = RecipeArgumentParser(
        (PretrainingArguments, ModelArguments, CorruptionArguments, ViewArguments),
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
        teacher_projections, offset = self.project_clean_views(clean_views)
        with accelerator.accumulate(self.wrapped_student):
            output = self.wrapped_student(
                corrupted_views,
                target_pixel_values=clean_views,
                corruption_mask=corruption_mask if corrupts_pixels(self.processor) else None,
                teacher_projections=teacher_projections,
                teacher_projections_offset=offset,
                rotation_labels=rotation_labels,
            )
            accelerator.backward(output.loss)
            if accelerator.sync_gradients:
                max_norm = self.arguments.max_grad_norm or float("inf")
                gradient_norm = accelerator.clip_grad_norm_(self.wrapped_student.parameters(), max_norm)
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
    model_arguments: ModelArguments,
    corruption_arguments: CorruptionArguments,
    view_arguments: ViewArguments,
) -> None:
    started = time.time()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    output_dir = Path(arguments.output_dir)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=choose_trackers(arguments.report_to) or None,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
    )
    pictures = run_main_process_first(accelerator, lambda: load_training_pictures(arguments))
    settings = {
        name: value
        for group in (arguments, model_arguments, corruption_arguments, view_arguments)
        for name, value in asdict(group).items()
    }

    with fail_together(accelerator):
        config = create_config(model_arguments, len(pictures.train))
        processor = create_processor(config, model_arguments, corruption_arguments)
        augment = create_augmentation(view_arguments, processor).to(accelerator.device)
        schedules = plan_schedules(arguments, len(pictures.train), accelerator.num_processes)
        student = create_student(config, model_arguments, arguments.seed).to(accelerator.device)
        crops_dataset = TwoCropsDataset(pictures.train, config.image_shape, config.num_channels, view_arguments)
        preview_crops = crop_first_pictures(crops_dataset, arguments)
    teacher = Teacher(student) if config.use_teacher and config.contrastive_weight > 0 else None
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        student, teacher = (model and SyncBatchNorm.convert_sync_batchnorm(model) for model in (student, teacher))
    optimizer = create_optimizer(student, (arguments.adam_beta1, arguments.adam_beta2), accelerator.device)
    wrapped_student, optimizer = accelerator.prepare(student, optimizer)
    pretraining = Pretraining(
        accelerator, augment, processor, student, wrapped_student, teacher, optimizer, schedules, arguments
    )
    wrapped_student.train()
    accelerator.print(describe_run(pictures, pretraining))
    if arguments.dry_run:
        loader = create_loader(crops_dataset, pretraining, 0, num_rehearsed_steps(schedules))
        with closing(read_batches(loader, arguments.dataset)) as batches:
            rehearsal = rehearse(batches, pretraining.train_on, schedules, accelerator)
        accelerator.print(describe_plan(rehearsal, student, teacher, schedules, arguments, accelerator))
        return

    # Nothing of an earlier run is replaced before all that this one needs is known to be right.
    determined_by = determining_settings(
        arguments,
        view_arguments,
        config,
        processor,
        schedules,
        pictures,
        accelerator.num_processes,
        accelerator.mixed_precision,
    )
    checkpoint = share_main_process_result(accelerator, lambda: prepare_output_dir(output_dir, arguments))
    resumed = resume(pretraining, checkpoint, determined_by) if checkpoint is not None else None
    first_step = resumed.step if resumed is not None else 0
    delete_checkpoints_after(accelerator, output_dir, first_step)
    start_trackers(accelerator, output_dir, settings, first_step)

    unreadable = UnreadablePictures(arguments.on_bad_image, resumed.unreadable if resumed is not None else [])
    loader = create_loader(crops_dataset, pretraining, first_step, schedules.num_steps)
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
        ) as progress,
    ):
        first_batch = first_step * schedules.batches_per_step
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
            saves = is_last or stopped_by or is_due(step, arguments.checkpointing_steps, schedules)
            logs = is_last or step % arguments.logging_steps == 0
            if saves or logs:
                with fail_together(accelerator):
                    check_losses(progress, schedules.batches_per_step, output_dir)
                    unreadable.check()
            if logs:
                progress.tell(schedules.epoch(step), schedules.at(step - 1))
            if is_due(step, arguments.preview_steps, schedules) or (is_last and arguments.preview_steps != 0):
                path, seed = preview_path(output_dir, step), derive_seed(arguments.seed, PREVIEW)
                save_preview(accelerator, student, processor, preview_crops, path, seed)
                progress.tell_preview(path)
            if saves:
                if arguments.checkpointing_steps != "no":
                    progress.sync_logs()
                    state = RunState(
                        step=step,
                        settings=settings,
                        determined_by=determined_by,
                        window=progress.state_dict(),
                        unreadable=unreadable.named_by_all(),
                        seconds=time.time() - started + (resumed.seconds if resumed is not None else 0),
                    )
                    save_checkpoint(accelerator, teacher, output_dir, state)
                    delete_old_checkpoints(accelerator, output_dir, arguments.checkpoints_total_limit)
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
                num_pictures=len(pictures.train),
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


def load_training_pictures(arguments: PretrainingArguments) -> Pictures:
    pictures = load_pictures(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
    )
    if pictures.train is None:
        raise UserError(
            f"--dataset {arguments.dataset} has several splits, none of them called train: choose one of "
            f"{', '.join(pictures.splits)} by --train_split"
        )
    return pictures


def create_augmentation(arguments: ViewArguments, processor: SiTImageProcessor) -> ViewAugmentation:
    image_shape = (processor.size["height"], processor.size["width"])
    try:
        return ViewAugmentation(arguments, image_shape, processor.image_mean, processor.image_std)
    except ValueError as problem:
        raise UserError(str(problem)) from problem


def crop_first_pictures(crops_dataset: TwoCropsDataset, arguments: PretrainingArguments) -> torch.Tensor:
    """One crop each of the first pictures, for previews."""
    indices = range(min(NUM_PREVIEW_PICTURES, len(crops_dataset)))
    with naming_unreadable(arguments.dataset):
        return crop_for_preview(
            crops_dataset, [(index, derive_seed(arguments.seed, PREVIEW, index)) for index in indices]
        )


def create_loader(
    crops_dataset: TwoCropsDataset, pretraining: Pretraining, first_step: int, last_step: int
) -> DataLoader:
    """Batches of this process for the steps from `first_step` (counted from 0) to before `last_step`."""
    arguments, accelerator = pretraining.arguments, pretraining.accelerator
    batches_per_step = pretraining.schedules.batches_per_step
    return DataLoader(
        crops_dataset,
        batch_sampler=PictureBatches(
            len(crops_dataset),
            arguments.per_device_train_batch_size,
            arguments.seed,
            start=first_step * batches_per_step,
            stop=last_step * batches_per_step,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        ),
        collate_fn=collate_crops,
        num_workers=num_workers(arguments.dataloader_num_workers, accelerator.device.type, accelerator.num_processes),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_loop,
    )


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
    return (
        f"{pictures.name}: {len(pictures.train):,} pictures, {schedules.batches_per_epoch:,} batches an epoch\n"
        f"model: {backbone:.2f} M parameters in the backbone, {height} x {width} pixels in patches of "
        f"{config.patch_size}, losses {' + '.join(losses)}\n"
        f"run: {schedules.num_steps:,} steps ({schedules.epoch(schedules.num_steps):.4g} epochs), "
        f"warm-up {schedules.num_warmup_steps:,}, peak learning rate {schedules.peak_learning_rate:.3g}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}"
    )


def corrupt_views(processor: SiTImageProcessor, clean_views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupt view 1 and view 2 apart, so that what replaces a place comes from another picture, not its other view."""
    corrupted, masks = zip(*(processor.corrupt(view) for view in clean_views.chunk(2)), strict=True)
    return torch.cat(corrupted), torch.cat(masks)


def corrupts_pixels(processor: SiTImageProcessor) -> bool:
    """Whether there is a corrupted pixel to reconstruct; where there is none, the loss counts all."""
    ratios = [getattr(processor, f"{kind}_ratio")[1] for kind in processor.corruption.split("+") if kind != "none"]
    return any(ratios)


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
        raise UserError(
            f"{problem} at step {progress.step - problem.batches_ago // batches_per_step}; the checkpoints in {output_dir} "
            "are from before. Try a lower --base_learning_rate, longer --warmup_epochs, or --mixed_precision no"
        ) from problem


def leave(accelerator: Accelerator, stopped_by: signal.Signals, step: int, arguments: PretrainingArguments) -> None:
    """End the run before its time, with the exit code by which shells and schedulers know the signal."""
    how = (
        "its checkpoint is written; --resume_from_checkpoint auto goes on"
        if arguments.checkpointing_steps != "no"
        else "no checkpoint was written, as --checkpointing_steps no says"
    )
    accelerator.print(f"stopped by {stopped_by.name} after step {step}: {how}")
    accelerator.end_training()
    sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
