"""SiT's own run as contender: driven as `scripts/pretrain.py` drives itself, from files, from made-up images, or bare."""

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

import pretrain
import torch
from accelerate import Accelerator
from modeling_sit.data.loading import read_batches

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.pretraining.checkpoints import RunState
from modeling_sit.runtime.distributed import gather_projections
from throughput.arithmetic import count_pretraining_flops
from throughput.measuring import TOTAL, StageClock, synchronize

# Nothing beside the step, and schedules that do not end while it is measured.
QUIET_FLAGS = {
    "monitors": "none",
    "monitor_steps": 0,
    "preview_steps": 0,
    "checkpointing_steps": "no",
    "max_train_steps": 1_000_000,
}
DECODE, COPY = "decode and crop", "copy"


def parse_flags(**flags: Any) -> pretrain.Flags:
    """The flags as `scripts/pretrain.py` reads them.

    Raises:
        `SystemExit`: With one line on stderr, for a flag that it does not have, or a value that does not fit.
    """
    words = []
    for name, value in {**QUIET_FLAGS, **flags}.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return pretrain.Flags(*RecipeArgumentParser(tuple(group.type for group in fields(pretrain.Flags))).parse(words))


def prepare(flags: pretrain.Flags, accelerator: Accelerator) -> pretrain.Pretraining:
    """A run that is ready for its first batch."""
    pretraining = pretrain.prepare(flags, accelerator)
    pretrain.cache_crops(pretraining, RunState(settings={}, determined_by={}))
    return pretraining


class OurRun:
    """
    The run that the flags describe, from files.

    Args:
        name (`str`): What tables call it.
        pretraining ([`Pretraining`]): What `pretrain.prepare` made; may be shared with other contenders.
    """

    num_views = 2

    def __init__(self, name: str, pretraining: pretrain.Pretraining):
        self.name, self.pretraining, self.number = name, pretraining, 0
        self.flops_per_image = count_pretraining_flops(pretraining.student.config)
        self.batch_size = pretraining.flags.run.per_device_train_batch_size
        self.num_workers = pretrain.choose_num_workers(pretraining.flags.run, pretraining.accelerator)

    @property
    def device(self) -> torch.device:
        return self.pretraining.accelerator.device

    def batches(self, count: int) -> Iterator[Any]:
        """What the training loop is given, from the batch on that is the next."""
        loader = pretrain.load_batches(self.pretraining, self.number, self.number + count)
        with closing(read_batches(loader, self.pretraining.flags.run.dataset)) as batches:
            for batch in batches:
                yield batch["crops"]

    def train_on(self, batch: Any) -> torch.Tensor:
        output, _ = self.pretraining.train_on(batch, self.number)
        self.number += 1
        return output.loss.detach()

    def time_stages(self, num_warmup_steps: int, num_steps: int) -> list[dict[str, float]]:
        """Seconds of the stages of each step, on an accelerator one after the other: waiting for each hides no stage behind
        another, as a run does. Images are read in this process, to tell what reading costs."""
        pretraining = self.pretraining
        clock, steps = StageClock(self.device), []
        student = pretraining.wrapped_student
        compiled = getattr(student, "_compiled_call_impl", None) is not None
        watched = [
            (pretraining, "augment", "views"),
            (pretrain, "corrupt_views", "corruption"),
            (student, "_compiled_call_impl" if compiled else "forward", "student forward"),
            (pretraining.accelerator, "backward", "backward"),
            (pretrain, "clip_gradients", "clip and optimizer"),
            (pretraining.optimizer, "step", "clip and optimizer"),
        ]
        if pretraining.teacher is not None:
            watched += [
                (pretraining.teacher, "project", "teacher forward"),
                (pretraining.teacher, "update", "teacher update"),
            ]
        arguments = pretraining.flags.run
        asked, arguments.dataloader_num_workers = arguments.dataloader_num_workers, 0
        try:
            with closing(self.batches(num_warmup_steps + num_steps)) as batches, clock.watching(watched):
                for _ in range(num_warmup_steps + num_steps):
                    clock.seconds = {}
                    synchronize(self.device)
                    started = time.perf_counter()
                    with clock.stage(DECODE):
                        batch = next(batches)
                    with clock.stage(COPY) if isinstance(batch, torch.Tensor) else nullcontext():
                        batch = batch.to(self.device) if isinstance(batch, torch.Tensor) else batch
                    self.train_on(batch)
                    synchronize(self.device)
                    steps.append({**clock.seconds, TOTAL: time.perf_counter() - started})
        finally:
            arguments.dataloader_num_workers = asked
        return steps[num_warmup_steps:]


class SyntheticRun(OurRun):
    """Our step on crops that are on the device already: what is left when reading costs nothing."""

    def __init__(self, name: str, pretraining: pretrain.Pretraining):
        super().__init__(name, pretraining)
        self.num_workers = 0
        config = pretraining.student.config
        shape = (2, self.batch_size, config.num_channels, *config.image_shape)
        self.crops = torch.randint(256, shape, dtype=torch.uint8, device=self.device)

    def batches(self, count: int) -> Iterator[torch.Tensor]:
        for _ in range(count):
            yield self.crops


class BareArithmetic(SyntheticRun):
    """The networks alone, on views that do not change: the teacher's forward pass, the student's forward and backward pass;
    no images, no augmentation, no corruption, no optimizer."""

    def __init__(self, name: str, pretraining: pretrain.Pretraining):
        super().__init__(name, pretraining)
        self.clean_views = pretraining.augment(self.crops)
        self.corrupted_views, self.corruption_mask = pretrain.corrupt_views(pretraining.processor, self.clean_views)

    def train_on(self, batch: Any) -> torch.Tensor:
        pretraining, accelerator = self.pretraining, self.pretraining.accelerator
        teacher_projections, offset = pretraining.project_clean_views(self.clean_views)
        with accelerator.autocast():
            output = pretraining.wrapped_student(
                self.corrupted_views,
                target_pixel_values=self.clean_views,
                corruption_mask=self.corruption_mask,
                teacher_projections=teacher_projections,
                teacher_projections_offset=offset,
                gather_projections=partial(gather_projections, accelerator),
            )
        accelerator.backward(output.loss)
        pretraining.optimizer.zero_grad()
        return output.loss.detach()


def time_reading(flags: pretrain.Flags, accelerator: Accelerator, num_epochs: int) -> dict[str, Any]:
    """How fast images are read, cropped and put on the device, with no training: epoch by epoch.

    Returns:
        `dict`: `prepare_seconds` before the first batch, the networks' making and a cache's building among them;
        `epoch_seconds`, a list; `images` of an epoch.
    """
    started = time.perf_counter()
    pretraining = prepare(flags, accelerator)
    prepared = time.perf_counter() - started
    num_batches = int(pretraining.schedules.batches_per_epoch)
    epoch_seconds = []
    for epoch in range(num_epochs):
        started = time.perf_counter()
        loader = pretrain.load_batches(pretraining, epoch * num_batches, (epoch + 1) * num_batches)
        with closing(read_batches(loader, flags.run.dataset)) as batches:
            for batch in batches:
                if isinstance(batch["crops"], torch.Tensor):
                    batch["crops"].to(accelerator.device, non_blocking=True)
        synchronize(accelerator.device)
        epoch_seconds.append(time.perf_counter() - started)
    images = num_batches * flags.run.per_device_train_batch_size
    return {"prepare_seconds": prepared, "epoch_seconds": epoch_seconds, "images": images}
