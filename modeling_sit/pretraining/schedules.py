"""Schedules as functions of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.runtime.errors import SiTError

MOST_WARMUP = 0.1  # of a run


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at progress 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(step: int, num_steps: int, num_warmup_steps: int, peak: float, end: float) -> float:
    """Learning rate of step `step` of `num_steps` (from 0): a linear rise to `peak` over the warm-up's steps, then half a
    cosine, which the last step ends at `end`."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    return cosine(peak, end, progress(step - num_warmup_steps, num_steps - num_warmup_steps))


def progress(step: int, num_steps: int) -> float:
    """How far step `step` (from 0) is: 0 at the first, 1 at the last of `num_steps`."""
    return step / max(num_steps - 1, 1)


@dataclass(frozen=True)
class Schedules:
    """
    How long a run is, and what changes on the way.

    Args:
        num_steps (`int`): Optimizer steps.
        num_warmup_steps (`int`): Steps of the learning rate's linear rise.
        batches_per_epoch (`float`, *optional*): Batches of each process in an epoch; whole where epochs begin with a batch
            of their own. `None` for a stream of unknown length.
        batches_per_step (`int`): Batches that a step adds up.
        peak_learning_rate (`float`): Learning rate after the warm-up.
        min_learning_rate (`float`): Learning rate of the last step.
        weight_decay (pair of `float`): At the first and at the last step, on a cosine.
    """

    num_steps: int
    num_warmup_steps: int
    batches_per_epoch: float | None
    batches_per_step: int
    peak_learning_rate: float
    min_learning_rate: float
    weight_decay: tuple[float, float]

    def at(self, step: int) -> dict[str, float]:
        """`learning_rate` and `weight_decay` of step `step`, from 0."""
        return {
            "learning_rate": warmup_cosine(
                step, self.num_steps, self.num_warmup_steps, self.peak_learning_rate, self.min_learning_rate
            ),
            "weight_decay": cosine(*self.weight_decay, self.progress(step)),
        }

    def progress(self, step: int) -> float:
        """How far step `step` (from 0) is: 0 at the first step, 1 at the last."""
        return progress(step, self.num_steps)

    def epoch(self, steps: int) -> float | None:
        """How many times `steps` steps have seen each image; `None` where that is not known."""
        if self.batches_per_epoch is None:
            return None
        return steps * self.batches_per_step / self.batches_per_epoch


def plan_schedules(
    arguments: PretrainingArguments,
    num_images: int | None,
    num_processes: int,
    streaming: bool = False,
    most_warmup: float = MOST_WARMUP,
) -> Schedules:
    """The schedules that the arguments describe.

    Args:
        arguments ([`PretrainingArguments`]): What the user asked for, and the preset chose.
        num_images (`int`, *optional*): Images of the dataset; `None` for a stream of unknown length.
        num_processes (`int`): How many processes share them.
        streaming (`bool`, *optional*, defaults to `False`): Whether batches go on from one epoch into the next.
        most_warmup (`float`, *optional*, defaults to 0.1): Fraction of the run that epochs of warm-up are shortened
            to.

    Raises:
        [`SiTError`]: If the images do not fill one batch, or a stream's length would have to be known.
    """
    batch_size = arguments.per_device_train_batch_size * num_processes
    batches_per_step = arguments.gradient_accumulation_steps
    require_length(arguments, num_images)
    if num_images is None:
        batches_per_epoch = None
        num_steps = arguments.max_steps
        num_warmup_steps = int(MOST_WARMUP * num_steps)
    else:
        batches_per_epoch = _batches_per_epoch(arguments, num_images, num_processes, streaming)
        steps_per_epoch = batches_per_epoch / batches_per_step
        num_steps = arguments.max_steps or math.ceil(arguments.num_train_epochs * steps_per_epoch)
        num_warmup_steps = int(MOST_WARMUP * num_steps)
        if arguments.warmup_epochs is not None:
            num_warmup_steps = min(round(arguments.warmup_epochs * steps_per_epoch), int(most_warmup * num_steps))
    if arguments.warmup_steps is not None:
        num_warmup_steps = min(arguments.warmup_steps, num_steps)
    decay_end = arguments.weight_decay if arguments.weight_decay_end is None else arguments.weight_decay_end
    return Schedules(
        num_steps=num_steps,
        num_warmup_steps=num_warmup_steps,
        batches_per_epoch=batches_per_epoch,
        batches_per_step=batches_per_step,
        peak_learning_rate=arguments.base_learning_rate * batch_size * batches_per_step / 256,
        min_learning_rate=arguments.min_learning_rate,
        weight_decay=(arguments.weight_decay, decay_end),
    )


def require_length(arguments: PretrainingArguments, num_images: int | None) -> None:
    """Raise [`SiTError`] if a stream of unknown length has to have a length for these arguments."""
    for given, remedy in (
        (arguments.max_steps is not None, "`max_steps` or `time_budget`"),
        (arguments.checkpointing_steps != "epoch", "a number for `checkpointing_steps`"),
    ):
        if num_images is None and not given:
            raise SiTError(
                f"{dataset_name(arguments.dataset)} does not say how many images it has, so an epoch has no length",
                argument="dataset",
                remedy=f"give {remedy}",
            )


def _batches_per_epoch(arguments: PretrainingArguments, num_images: int, num_processes: int, streaming: bool) -> float:
    batch_size = arguments.per_device_train_batch_size * num_processes
    name = dataset_name(arguments.dataset)
    if num_images < num_processes:
        raise SiTError(
            f"{name} has {num_images} images, fewer than the {num_processes} processes",
            argument="dataset",
            remedy="start fewer processes",
        )
    if streaming:
        return num_images / batch_size
    if num_images < batch_size:
        raise SiTError(
            f"{name} has {num_images} images, fewer than one batch of {batch_size}",
            argument="dataset",
            remedy=f"set `per_device_train_batch_size` to {num_images // num_processes} or less",
        )
    return num_images // batch_size


def is_due(step: int, every: str | int | None, schedules: Schedules) -> bool:
    """Whether something is due after `step` steps.

    Args:
        step (`int`): Steps done.
        every (`str` or `int`, *optional*): A number of steps; `"epoch"`: at the end of each epoch; `"no"` or 0: never.
            `None`: ten times in the run.
        schedules ([`Schedules`]): The run's.
    """
    if every == "epoch":
        return int(schedules.epoch(step)) > int(schedules.epoch(step - 1))
    if every is None:
        every = max(1, -(-schedules.num_steps // 10))
    return every not in ("no", 0) and step % int(every) == 0
