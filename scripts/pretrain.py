#!/usr/bin/env python
"""Pretrain a Vision Transformer on your own pictures, without labels.

    accelerate launch scripts/pretrain.py [RECIPE.yaml] --dataset PICTURES --output_dir FOLDER ...

The folder becomes a model repository: weights, configuration, image processor, model card, and the code to load them.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.nn import SyncBatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor
from modeling_sit.cli.arguments import RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.sampling import PREVIEW, STEP, PictureBatches, derive_seed
from modeling_sit.data.sources import Pictures, load_pictures
from modeling_sit.data.views import TwoCropsDataset, ViewArguments, ViewAugmentation, collate_crops
from modeling_sit.training.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    create_config,
    create_processor,
    num_workers,
)
from modeling_sit.training.checkpoints import (
    delete_checkpoints_after,
    delete_old_checkpoints,
    load_checkpoint,
    prepare_output_dir,
    save_checkpoint,
)
from modeling_sit.training.contrast import gather_projections
from modeling_sit.training.model_card import typed_command, write_pretraining_card
from modeling_sit.training.optimization import create_optimizer, set_hyperparameters
from modeling_sit.training.progress import NonFiniteLoss, RunProgress
from modeling_sit.training.schedules import Schedules, plan_schedules
from modeling_sit.training.teacher import Teacher
from modeling_sit.visualization.reconstructions import save_preview

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "pretraining_template.md"
NUM_PREVIEW_PICTURES = 8


def main() -> None:
    parser = RecipeArgumentParser(
        (PretrainingArguments, ModelArguments, CorruptionArguments, ViewArguments),
        description="Pretrain a Vision Transformer on your own pictures, without labels.",
    )
    with one_line_errors():
        pretrain(*parser.parse())


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
        project_dir=output_dir,
    )
    with accelerator.main_process_first():
        pictures = load_training_pictures(arguments)
    settings = {
        name: value
        for group in (arguments, model_arguments, corruption_arguments, view_arguments)
        for name, value in asdict(group).items()
    }

    config = create_config(model_arguments, len(pictures.train))
    processor = create_processor(config, model_arguments, corruption_arguments)
    augment = create_augmentation(view_arguments, processor).to(accelerator.device)
    schedules = plan_schedules(arguments, len(pictures.train), accelerator.num_processes)

    student = create_student(config, model_arguments, arguments.seed).to(accelerator.device)
    teacher = Teacher(student) if config.use_teacher and config.contrastive_weight > 0 else None
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        student, teacher = (model and SyncBatchNorm.convert_sync_batchnorm(model) for model in (student, teacher))
    optimizer = create_optimizer(student, (arguments.adam_beta1, arguments.adam_beta2), accelerator.device)
    wrapped_student, optimizer = accelerator.prepare(student, optimizer)
    crops_dataset = TwoCropsDataset(pictures.train, config.image_shape, config.num_channels, view_arguments)
    with naming_unreadable(arguments.dataset):
        preview_crops = crop_for_preview(crops_dataset, arguments.seed)

    # Nothing of an earlier run is replaced before all that this one needs is known to be right.
    with accelerator.main_process_first():
        resumed_checkpoint = prepare_output_dir(output_dir, arguments, accelerator.is_main_process)
    first_step = load_checkpoint(accelerator, teacher, resumed_checkpoint) if resumed_checkpoint else 0
    if first_step > schedules.num_steps:
        raise UserError(
            f"{resumed_checkpoint} is of step {first_step}, beyond the {schedules.num_steps} steps asked for"
        )
    delete_checkpoints_after(accelerator, output_dir, first_step)
    loader = create_loader(crops_dataset, arguments, schedules, first_step, accelerator)
    accelerator.init_trackers("sit", config={name: str(value) for name, value in settings.items()})
    accelerator.print(describe_run(pictures, student, schedules, first_step, accelerator))

    unreadable: set[str] = set()
    loss_mask = corrupts_pixels(processor)
    with RunProgress(accelerator, output_dir, first_step, schedules.num_steps) as progress:
        wrapped_student.train()
        first_batch = first_step * schedules.batches_per_step
        for number, batch in enumerate(progress.wait_for(read_batches(loader, arguments.dataset)), start=first_batch):
            step = number // schedules.batches_per_step
            schedule = schedules.at(step)
            report_unreadable(batch["unreadable"], unreadable, arguments.on_bad_image)
            set_hyperparameters(optimizer, schedule["learning_rate"], schedule["weight_decay"])

            # From here to the next batch, what is random is a function of seed, batch and process.
            torch.manual_seed(derive_seed(arguments.seed, STEP, number, accelerator.process_index))
            clean_views = augment(batch["crops"].to(accelerator.device, non_blocking=True))
            corrupted_views, corruption_mask = corrupt_views(processor, clean_views)
            teacher_projections, offset = project_clean_views(accelerator, teacher, clean_views)
            with accelerator.accumulate(wrapped_student):
                output = wrapped_student(
                    corrupted_views,
                    target_pixel_values=clean_views,
                    corruption_mask=corruption_mask if loss_mask else None,
                    teacher_projections=teacher_projections,
                    teacher_projections_offset=offset,
                )
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    max_norm = arguments.max_grad_norm or float("inf")
                    progress.count_gradient(accelerator.clip_grad_norm_(wrapped_student.parameters(), max_norm))
                optimizer.step()
                optimizer.zero_grad()
            progress.count(output, arguments.per_device_train_batch_size * accelerator.num_processes)
            if not accelerator.sync_gradients:
                continue
            if teacher is not None:
                teacher.update(student, schedule["teacher_momentum"])

            step += 1
            progress.advance()
            is_last = step == schedules.num_steps
            saves = is_last or is_due(step, arguments.checkpointing_steps, schedules)
            if saves or step % arguments.logging_steps == 0:
                check_losses(progress, step, schedules.batches_per_step, output_dir)
                progress.tell(step, schedules.epoch(step), schedule)
            if accelerator.is_main_process and (is_last or is_due(step, arguments.preview_steps, schedules)):
                path = output_dir / "previews" / f"step-{step:08d}.png"
                save_preview(student, processor, preview_crops, path, derive_seed(arguments.seed, PREVIEW))
            if saves:
                if arguments.checkpointing_steps != "no":
                    save_checkpoint(accelerator, teacher, output_dir, step, settings)
                    delete_old_checkpoints(accelerator, output_dir, arguments.checkpoints_total_limit)
                save_model(accelerator, student, teacher, processor, output_dir, arguments.export)
    if first_step == schedules.num_steps:  # a finished run, resumed to export other weights
        save_model(accelerator, student, teacher, processor, output_dir, arguments.export)

    num_unreadable = len(set(gather_object(sorted(unreadable))))
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
            seconds=time.time() - started,
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


def choose_trackers(names: list[str]) -> list[str]:
    """Accelerate's trackers of these names, known to be installed; `none` is no tracker."""
    available = [str(tracker.value) for tracker in get_available_trackers()]
    chosen = [name for name in names if name != "none"]
    for name in chosen:
        if name not in (*available, "all"):
            raise UserError(
                f"--report_to {name}: no such tracker, or it is not installed; there are {', '.join(available) or 'none'}"
            )
    return chosen


def create_augmentation(arguments: ViewArguments, processor: SiTImageProcessor) -> ViewAugmentation:
    image_shape = (processor.size["height"], processor.size["width"])
    try:
        return ViewAugmentation(arguments, image_shape, processor.image_mean, processor.image_std)
    except ValueError as problem:
        raise UserError(str(problem)) from problem


def create_student(config: SiTConfig, arguments: ModelArguments, seed: int) -> SiTForPreTraining:
    """A student with weights from the seed, or from the checkpoint to go on from; heads without a loss are frozen."""
    torch.manual_seed(seed)
    if arguments.attn_implementation is not None:
        config._attn_implementation = arguments.attn_implementation
    try:
        student = SiTForPreTraining(config)
    except (ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"--attn_implementation {arguments.attn_implementation}: {reason}") from problem
    if arguments.model_name_or_path is not None:
        student = load_student(config, arguments.model_name_or_path)
    student.decoder.requires_grad_(config.reconstruction_weight > 0)
    student.projection_head.requires_grad_(config.contrastive_weight > 0)
    if arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def load_student(config: SiTConfig, model_name_or_path: str) -> SiTForPreTraining:
    """The checkpoint's weights; heads that it lacks are new, but every weight of the backbone has to be there."""
    try:
        student, info = SiTForPreTraining.from_pretrained(
            model_name_or_path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"--model_name_or_path {model_name_or_path}: cannot be loaded: {reason}") from problem
    missing = sorted(name for name in info["missing_keys"] if name.startswith("vit."))
    if missing:
        raise UserError(
            f"--model_name_or_path {model_name_or_path}: {len(missing)} weights of the backbone are not there, such as "
            f"{missing[0]}; it is no ViT"
        )
    return student


def create_loader(
    crops_dataset: TwoCropsDataset,
    arguments: PretrainingArguments,
    schedules: Schedules,
    first_step: int,
    accelerator: Accelerator,
) -> DataLoader:
    """Batches of this process from `first_step` to the end of the run."""
    return DataLoader(
        crops_dataset,
        batch_sampler=PictureBatches(
            len(crops_dataset),
            arguments.per_device_train_batch_size,
            arguments.seed,
            start=first_step * schedules.batches_per_step,
            stop=schedules.num_steps * schedules.batches_per_step,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        ),
        collate_fn=collate_crops,
        num_workers=num_workers(arguments.dataloader_num_workers, accelerator.device.type, accelerator.num_processes),
        pin_memory=accelerator.device.type == "cuda",
    )


def read_batches(loader: DataLoader, dataset: str) -> Iterator[dict]:
    with naming_unreadable(dataset):
        yield from loader


@contextmanager
def naming_unreadable(dataset: str) -> Iterator[None]:
    """Turn an `UnreadablePicture` into an error that names the data set."""
    try:
        yield
    except UnreadablePicture as problem:
        # A worker's exception carries its traceback in front of what it says.
        reason = str(problem).strip().splitlines()[-1].rpartition("UnreadablePicture: ")[2]
        raise UserError(f"--dataset {dataset} cannot be read: {reason}; mend or remove the damaged files") from problem


def report_unreadable(problems: list[str], known: set[str], on_bad_image: str) -> None:
    """Name each unreadable picture once, or end the run by the first."""
    for problem in problems:
        if on_bad_image == "error":
            raise UserError(f"{problem} (--on_bad_image skip would go on without it)")
        if problem not in known:
            known.add(problem)
            tqdm.write(f"skipped an unreadable picture: {problem}", file=sys.stderr)


def crop_for_preview(crops_dataset: TwoCropsDataset, seed: int) -> torch.Tensor:
    """One crop each of the first pictures, `(pictures, channels, height, width)`, uint8."""
    indices = range(min(NUM_PREVIEW_PICTURES, len(crops_dataset)))
    return torch.stack([crops_dataset[index, derive_seed(seed, PREVIEW, index)]["crops"][0] for index in indices])


def describe_run(
    pictures: Pictures, student: SiTForPreTraining, schedules: Schedules, first_step: int, accelerator: Accelerator
) -> str:
    height, width = student.config.image_shape
    backbone = sum(parameter.numel() for parameter in student.vit.parameters()) / 1e6
    return (
        f"{pictures.name}: {len(pictures.train):,} pictures, {schedules.batches_per_epoch:,} batches an epoch\n"
        f"model: {backbone:.2f} M parameters in the backbone, {height} x {width} pixels in patches of "
        f"{student.config.patch_size}, losses {student.config.reconstruction_weight:g} x reconstruction + "
        f"{student.config.contrastive_weight:g} x contrast\n"
        f"run: steps {first_step:,} to {schedules.num_steps:,} ({schedules.epoch(schedules.num_steps):.4g} epochs), "
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


def project_clean_views(
    accelerator: Accelerator, teacher: Teacher | None, clean_views: torch.Tensor
) -> tuple[torch.Tensor | None, int]:
    """The teacher's projections of the clean views of all processes, and the offset of this one's pictures."""
    if teacher is None:
        return None, 0
    with accelerator.autocast():
        projections = teacher.project(clean_views)
    return gather_projections(accelerator, projections)


def is_due(step: int, every: str | int | None, schedules: Schedules) -> bool:
    """Whether something is due after `step` steps: every so many, at the end of an `epoch`, never (`no` or 0), or, by
    default, ten times in the run."""
    if every == "epoch":
        return int(schedules.epoch(step)) > int(schedules.epoch(step - 1))
    if every is None:
        every = max(1, schedules.num_steps // 10)
    return every not in ("no", 0) and step % int(every) == 0


def check_losses(progress: RunProgress, step: int, batches_per_step: int, output_dir: Path) -> None:
    try:
        progress.check_losses()
        progress.check_gradients(batches_per_step)
    except NonFiniteLoss as problem:
        raise UserError(
            f"{problem} at step {step - problem.batches_ago // batches_per_step}; the checkpoints in {output_dir} are from "
            "before. Try a lower --base_learning_rate, longer --warmup_epochs, or --mixed_precision no"
        ) from problem


def save_model(
    accelerator: Accelerator,
    student: SiTForPreTraining,
    teacher: Teacher | None,
    processor: SiTImageProcessor,
    output_dir: Path,
    export: str,
) -> None:
    """Write the model repository's weights, configuration, processor and code, from the main process."""
    if accelerator.is_main_process:
        exported = teacher.model if teacher is not None and export == "teacher" else student
        student.save_pretrained(output_dir, state_dict=exported.state_dict())
        processor.save_pretrained(output_dir)


if __name__ == "__main__":
    main()
