"""What a run needs before its first batch: images, networks, schedules, monitors. Nothing is written."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from modeling_sit.data.crops import CropGroup
from modeling_sit.data.description import tell
from modeling_sit.data.hand_over import fitting_workers, free_shared_memory, needed_shared_memory, usable_workers
from modeling_sit.data.image_datasets import TEST_SPLITS, ImageDatasets
from modeling_sit.data.sampling import MONITOR, PREVIEW, derive_seed
from modeling_sit.data.sources import load_images
from modeling_sit.data.training_data import LoadingSettings, TrainingData
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.image_modes import OTHER_CHANNELS, PixelFormat
from modeling_sit.interop.convert_in import range_of
from modeling_sit.pretraining.arguments import default_num_workers
from modeling_sit.pretraining.compilation import compile_training
from modeling_sit.pretraining.flags import PretrainingFlags, check_method
from modeling_sit.pretraining.loop import Run
from modeling_sit.pretraining.model_setup import create_config, create_processor
from modeling_sit.pretraining.monitors import OnlineMonitors
from modeling_sit.pretraining.resolve import describe_choices, resolve
from modeling_sit.pretraining.schedules import plan_schedules
from modeling_sit.runtime.accelerator import prepare_student
from modeling_sit.runtime.distributed import main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.optimizer import create_optimizer
from modeling_sit.runtime.products import use_fast_products
from modeling_sit.runtime.words import counted, rounded

NUM_PREVIEW_IMAGES = 8


def prepare(
    flags: PretrainingFlags,
    accelerator: Accelerator,
    started: float | None = None,
    chosen: Mapping[str, Any] | None = None,
    data: TrainingData | None = None,
) -> Run:
    """Find the images, settle what the user leaves open, make the networks, and hand them to Accelerate. Writes nothing.

    Args:
        flags ([`PretrainingFlags`]): What the user asked for.
        accelerator (`Accelerator`): Made by [`create_accelerator`].
        started (`float`, *optional*): When the run was started, as `time.time` gives it. Default: now.
        chosen (mapping, *optional*): What is chosen already, by name: by the run that goes on, or by a measurement.
        data ([`TrainingData`], *optional*): Of the same settings. Default: made anew.
    """
    with sync_errors(accelerator):  # before anything is downloaded
        method_class = check_method(flags)
        if flags.model.attn_implementation == "flex_attention" and accelerator.device.type == "cpu":
            raise SiTError(
                "flex_attention has no gradients on a CPU", argument="attn_implementation", remedy="use sdpa or eager"
            )
    pusher = create_pusher(flags, accelerator)
    images = main_process_first(accelerator, lambda: load_training_images(flags) if data is None else data.images)
    with sync_errors(accelerator):
        flags.run.check_intensity_range()
        if data is None:
            tell(images, intensity_range=range_of(flags.model.model_name_or_path, flags.run.intensity_range))
        preset = resolve(flags, images, accelerator, chosen or {})
        flags = preset.flags
    with sync_errors(accelerator):
        config = create_config(flags.model, images.num_train)
        processor = create_processor(config, flags.model, flags.corruption, flags.run)
        method = method_class(config, processor, flags).to(accelerator.device)
        groups = method.view_groups(flags.views)
        workers = choose_workers(flags, accelerator, [group.crops for group in groups], config.num_channels)
        data = data or TrainingData(
            images,
            [group.crops for group in groups],
            LoadingSettings(
                batch_size=flags.run.per_device_train_batch_size,
                seed=flags.run.seed,
                pixel_format=PixelFormat.of_model(config, processor),
                crop_ratio=flags.views.crop_ratio_for(config.image_shape),
                num_workers=workers.training,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
                device=accelerator.device,
                timeout=flags.run.dataloader_timeout,
            ),
            flags.streaming,
            flags.cache,
        )
        schedules = plan_schedules(
            flags.run, images.num_train, accelerator.num_processes, data.is_streamed, method.most_warmup
        )
        with _channels_of_the_start(flags.model.model_name_or_path, config.num_channels):
            preview_crops = data.preview_crops(NUM_PREVIEW_IMAGES, partial(derive_seed, flags.run.seed, PREVIEW))
        monitors = OnlineMonitors(
            flags.monitors,
            images,
            method.teacher is not None,
            accelerator,
            seed=derive_seed(flags.run.seed, MONITOR),
            batch_size=flags.run.per_device_train_batch_size,
            num_workers=workers.monitors,
        )
        monitors.timeout = flags.run.dataloader_timeout
    method.synchronize_batch_norm()
    use_fast_products(method)
    optimizer = create_optimizer(method.student, (flags.run.adam_beta1, flags.run.adam_beta2), accelerator.device)
    wrapped_student, optimizer = prepare_student(accelerator, method.student, optimizer, method.forward_methods)
    if method.teacher is not None:
        method.teacher.prepare(method.student, method.forward_methods)
    augment = [group.augment.to(accelerator.device) for group in groups]
    if flags.run.torch_compile:
        with sync_errors(accelerator):
            compile_training(method, augment, accelerator.device)
    wrapped_student.train()
    return Run(
        flags=flags,
        accelerator=accelerator,
        data=data,
        augment=augment,
        method=method,
        wrapped_student=wrapped_student,
        optimizer=optimizer,
        schedules=schedules,
        preview_crops=preview_crops,
        monitors=monitors,
        pusher=pusher,
        started=time.time() if started is None else started,
        preset=preset,
    )


@contextmanager
def _channels_of_the_start(model_name_or_path: str | None, num_channels: int) -> Iterator[None]:
    """A remedy that fits the model to go on from, if the images have other channels: its own cannot be chosen."""
    try:
        yield
    except SiTError as error:
        if model_name_or_path is None or OTHER_CHANNELS not in error.problem:
            raise
        remedy = f"{model_name_or_path} is for {counted(num_channels, 'channel')}: give such images, or another model"
        raise SiTError(error.problem, argument=error.argument, remedy=remedy) from error


class Workers(NamedTuple):
    """Dataloader workers of one process, which have room for their batches."""

    training: int
    monitors: int


def choose_workers(
    flags: PretrainingFlags, accelerator: Accelerator, groups: list[CropGroup], num_channels: int
) -> Workers:
    """How many workers read images for training, and for the monitors meanwhile.

    Raises:
        [`SiTError`]: If a worker cannot hand a batch over, or there is no room for the batches of as many workers as the user
            asks for.
    """
    asked, device_type = flags.run.dataloader_num_workers, accelerator.device.type
    # Of several machines, each has cores and memory of its own.
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    num_workers = default_num_workers(asked, device_type, num_processes)
    if num_workers == 0:
        return Workers(0, 0)
    batch_size, pinned = flags.run.per_device_train_batch_size, device_type == "cuda"
    num_pixels = sum(group.number * math.prod(group.image_shape) for group in groups)
    batch_bytes = batch_size * num_channels * num_pixels  # uint8
    places = ("device", "auto") if pinned else ("device",)
    if asked is not None and flags.cache.image_cache in places:
        batch_bytes = 1  # crops that are cut on the device are boxes until then
    num_workers = usable_workers(num_workers, asked, batch_bytes, num_processes, pinned)
    free = free_shared_memory()
    if free is not None:
        free = free // num_processes - needed_shared_memory(batch_bytes, num_workers, pinned=pinned)
    of_monitors = 4 * batch_size * num_channels * math.prod(groups[0].image_shape)  # float32
    return Workers(num_workers, fitting_workers(of_monitors, num_workers, free))


def load_training_images(flags: PretrainingFlags) -> ImageDatasets:
    """The images to train on, and those of a validation split to monitor by.

    Raises:
        [`SiTError`]: If they cannot be found, or no split is called train.
    """
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
            f"{images.name} has several splits, and none is called train",
            argument="dataset",
            remedy=f"choose one of {', '.join(images.splits)} by `train_split`",
        )
    # Who watches the monitors chooses by them, and test images are not for choosing.
    if arguments.validation_split is None and str(getattr(images.validation, "split", None)).lower() in TEST_SPLITS:
        images.validation = None
    return images


def create_pusher(flags: PretrainingFlags, accelerator: Accelerator) -> HubPusher | None:
    """What pushes to the Hub, after a check of the login; in the main process, if the user asks for it."""
    pusher = None
    with sync_errors(accelerator):
        if flags.hub.hub_strategy == "checkpoint" and flags.run.checkpointing_steps == "no":
            raise SiTError(
                "there is no checkpoint to push with `checkpointing_steps=no`",
                argument="hub_strategy",
                remedy="leave one of the two out",
            )
        if flags.hub.push_to_hub and accelerator.is_main_process:
            pusher = HubPusher(flags.hub, Path(flags.run.output_dir))
            pusher.check_login()
    return pusher


def describe_run(run: Run) -> str:
    """What is about to be run, in lines to print."""
    config, schedules, accelerator = run.method.config, run.schedules, run.accelerator
    height, width = config.image_shape
    backbone = sum(parameter.numel() for parameter in run.method.student.vit.parameters()) / 1e6
    choices = "".join(f"{line}\n" for line in describe_choices(run.preset.choices, run.flags.run.preset).splitlines())
    length = ""
    if schedules.batches_per_epoch is not None:
        epochs, batches = schedules.epoch(schedules.num_steps), schedules.batches_per_epoch
        length = f" ({rounded(epochs, 4)} epochs of {rounded(batches, 4)} batches)"
    return (
        f"{choices}"
        f"model: {backbone:.2f} M parameters in the backbone, {height} x {width} pixels in patches of "
        f"{config.patch_size}, losses {run.method.describe_losses()}\n"
        f"run: {counted(schedules.num_steps, 'step')}{length}, "
        f"warm-up {schedules.num_warmup_steps:,}, peak learning rate {schedules.peak_learning_rate:.3g}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}"
    )
