"""A budget of pretraining, the same for every method: from steps, epochs, images or tokens to a number of steps."""

import math
from dataclasses import dataclass

from modeling_sit.runtime.errors import SiTError

# What a budget counts, and how a table says it. Seconds become steps where a run measures its own speed.
BUDGETS = {
    "steps": "{:,.0f} steps",
    "epochs": "{:,g} epochs",
    "images": "{:,.0f} images",
    "tokens": "{:,.0f} encoder tokens",
    "seconds": "{:,.0f} seconds",
}


@dataclass(frozen=True)
class StepSize:
    """
    What a step of a method takes.

    Args:
        images (`int`): Images of all processes and accumulated batches.
        tokens (`int`): Encoder tokens of an image, as [`Method.encoder_tokens`] counts them.
        images_per_epoch (`int`): Images of an epoch, without those that fill no batch.
    """

    images: int
    tokens: int
    images_per_epoch: int


def steps_within(budget: str, value: float, method: str, step: StepSize) -> int:
    """How many steps of a method a budget is worth: whole steps within it; of epochs, until the last one is over.

    Args:
        budget (`str`): Key of [`BUDGETS`], but for `"seconds"`.
        value (`float`): How many of them.
        method (`str`): Name of the method, for the message.
        step ([`StepSize`]): What a step of it takes.

    Raises:
        [`SiTError`]: If the budget is less than one step.
    """
    steps = {
        "steps": value,
        # Rounded: 0.07 of 3,200 images are 224, and not a little more.
        "epochs": math.ceil(round(value * step.images_per_epoch / step.images, 9)),
        "images": value / step.images,
        "tokens": value / (step.images * step.tokens),
    }[budget]
    if steps < 1:
        raise SiTError(
            f"{in_words(budget, value)} are less than one step of {method}, which takes {step.images:,} images of "
            f"{step.tokens:,} tokens",
            argument="budget_value",
            remedy="give more, or a smaller batch",
        )
    return int(steps)


def in_words(budget: str, value: float) -> str:
    """Such as `12,800 images`."""
    return BUDGETS[budget].format(value)
