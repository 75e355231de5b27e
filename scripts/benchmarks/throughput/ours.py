"""SiT's own run as contender: prepared and trained by the package, from files, from made-up images, or bare."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.training_data import LoadingSettings, TrainingData
from modeling_sit.image_modes import PixelFormat
from modeling_sit.pretraining.arguments import default_num_workers
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import Run, training_step
from modeling_sit.pretraining.prepare import prepare as prepare_run
from throughput.arithmetic import count_pretraining_flops
from throughput.measuring import TOTAL, StageClock, synchronize

# Nothing beside the step, and schedules that do not end while it is measured.
QUIET_FLAGS = {
    "preset": "paper",  # the same work, whatever the machine and the images
    "monitors": "none",
    "monitor_steps": 0,
    "preview_steps": 0,
    "checkpointing_steps": "no",
    "max_steps": 1_000_000,
}
DECODE, COPY = "decode and crop", "copy"


def parse_flags(**flags: Any) -> PretrainingFlags:
    """The flags as the command reads them.

    Raises:
        `SystemExit`: With one line on stderr, for a flag that it does not have, or a value that does not fit.
    """
    words = []
    for name, value in {**QUIET_FLAGS, **flags}.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return PretrainingFlags(*RecipeArgumentParser(PretrainingFlags.classes()).parse(words))


def prepare(flags: PretrainingFlags, accelerator: Accelerator) -> Run:
    """A run that is ready for its first batch."""
    run = prepare_run(flags, accelerator, time.time())
    run.data.cache(accelerator, run.schedules.epoch(run.schedules.num_steps))
    return run


def num_workers_of(run: Run) -> int:
    """Processes that read ahead for a run."""
    asked, accelerator = run.flags.run.dataloader_num_workers, run.accelerator
    return default_num_workers(asked, accelerator.device.type, accelerator.num_processes)


def read_here(run: Run) -> TrainingData:
    """The run's images, read in this process."""
    if num_workers_of(run) == 0:
        return run.data
    flags, accelerator = run.flags, run.accelerator
    loading = LoadingSettings(
        batch_size=flags.run.per_device_train_batch_size,
        seed=flags.run.seed,
        pixel_format=PixelFormat(run.method.config.num_channels),
        crop_ratio=tuple(flags.views.crop_ratio),
        num_workers=0,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
    )
    groups = [group.crops for group in run.method.view_groups(flags.views)]
    data = TrainingData(run.data.images, groups, loading, flags.streaming, flags.cache)
    data.cache(accelerator, run.schedules.epoch(run.schedules.num_steps))
    return data


class OurRun:
    """
    The run that the flags describe, from files.

    Args:
        name (`str`): What tables call it.
        run ([`Run`]): What [`prepare`] made; may be shared with other contenders.
    """

    num_views = 2

    def __init__(self, name: str, run: Run):
        self.name, self.run, self.number = name, run, 0
        self.flops_per_image = count_pretraining_flops(run.method.config)
        self.batch_size = run.flags.run.per_device_train_batch_size
        self.num_workers = num_workers_of(run)

    @property
    def device(self) -> torch.device:
        return self.run.accelerator.device

    def batches(self, count: int, data: TrainingData | None = None) -> Iterator[Any]:
        """What the training loop is given, from the batch on that is the next."""
        with closing((data or self.run.data).batches(self.number, self.number + count)) as batches:
            for batch in batches:
                yield batch["crops"]

    def train_on(self, batch: Any) -> torch.Tensor:
        output, _ = training_step(self.run, batch, self.number)
        self.number += 1
        return output.loss.detach()

    def time_stages(self, num_warmup_steps: int, num_steps: int) -> list[dict[str, float]]:
        """Seconds of the stages of each step, on an accelerator one after the other: waiting for each hides no stage behind
        another, as a run does. Images are read in this process, to show what reading costs."""
        run, clock, steps = self.run, StageClock(self.device), []
        student, accelerator, method = run.wrapped_student, run.accelerator, run.method
        compiled = getattr(student, "_compiled_call_impl", None) is not None
        watched = [
            *((augment, "forward", "views") for augment in run.augment),
            (method.processor, "corrupt", "corruption"),
            (student, "_compiled_call_impl" if compiled else "forward", "student forward"),
            (accelerator, "backward", "backward"),
            (accelerator, "clip_grad_norm_", "clip and optimizer"),
            (run.optimizer, "step", "clip and optimizer"),
        ]
        if method.teacher is not None:
            watched += [(method.teacher, "project", "teacher forward"), (method, "after_step", "teacher update")]
        batches = self.batches(num_warmup_steps + num_steps, read_here(run))
        with closing(batches), clock.watching(watched):
            for _ in range(num_warmup_steps + num_steps):
                clock.seconds = {}
                synchronize(self.device)
                started = time.perf_counter()
                with clock.stage(DECODE):
                    batch = next(batches)
                with clock.stage(COPY):
                    batch = tuple(group.to(self.device) for group in batch)
                self.train_on(batch)
                synchronize(self.device)
                steps.append({**clock.seconds, TOTAL: time.perf_counter() - started})
        return steps[num_warmup_steps:]


class SyntheticRun(OurRun):
    """Our step on crops that are on the device already: what is left when reading costs nothing."""

    def __init__(self, name: str, run: Run):
        super().__init__(name, run)
        self.num_workers = 0
        config = run.method.config
        shape = (2, self.batch_size, config.num_channels, *config.image_shape)
        self.crops = (torch.randint(256, shape, dtype=torch.uint8, device=self.device),)

    def batches(self, count: int, data: TrainingData | None = None) -> Iterator[Any]:
        for _ in range(count):
            yield self.crops


class BareArithmetic(SyntheticRun):
    """The networks alone, on views that do not change: the teacher's forward pass, the student's forward and backward pass;
    no images, no augmentation, no corruption, no optimizer."""

    def __init__(self, name: str, run: Run):
        super().__init__(name, run)
        views = [augment(group) for augment, group in zip(run.augment, self.crops, strict=True)]
        self.inputs = run.method.inputs(views, run.accelerator, run.schedule(0))
        (self.clean_views,) = views

    def train_on(self, batch: Any) -> torch.Tensor:
        run, accelerator = self.run, self.run.accelerator
        if run.method.teacher is not None:
            with accelerator.autocast():
                run.method.teacher.project(self.clean_views)
        with accelerator.autocast():
            output = run.wrapped_student(**self.inputs)
        accelerator.backward(output.loss)
        run.optimizer.zero_grad()
        return output.loss.detach()


def time_reading(flags: PretrainingFlags, accelerator: Accelerator, num_epochs: int) -> dict[str, Any]:
    """How fast images are read, cropped and put on the device, with no training: epoch by epoch.

    Returns:
        `dict`: `prepare_seconds` before the first batch, the networks' making and a cache's building among them;
        `epoch_seconds`, a list; `images` of an epoch.
    """
    started = time.perf_counter()
    run = prepare(flags, accelerator)
    prepared = time.perf_counter() - started
    num_batches = int(run.schedules.batches_per_epoch)
    epoch_seconds = []
    for epoch in range(num_epochs):
        started = time.perf_counter()
        with closing(run.data.batches(epoch * num_batches, (epoch + 1) * num_batches)) as batches:
            for batch in batches:
                for crops in batch["crops"]:
                    crops.to(accelerator.device, non_blocking=True)
        synchronize(accelerator.device)
        epoch_seconds.append(time.perf_counter() - started)
    images = num_batches * flags.run.per_device_train_batch_size
    return {"prepare_seconds": prepared, "epoch_seconds": epoch_seconds, "images": images}
