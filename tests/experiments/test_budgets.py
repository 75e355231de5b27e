"""Budgets: what a number of epochs, images or tokens is in steps."""

import pytest

from modeling_sit.experiments.budgets import StepSize, in_words, steps_within
from modeling_sit.runtime.errors import SiTError

# Batches of 64 of 1,000 images, so that 40 of them are left out of an epoch of 15 batches.
STEP = StepSize(images=64, tokens=136, images_per_epoch=960)


@pytest.mark.parametrize(
    ("budget", "value", "steps"),
    [
        *(("steps", 7, 7), ("steps", 7.9, 7)),
        *(("epochs", 1, 15), ("epochs", 2.5, 38), ("epochs", 0.001, 1)),
        *(("images", 64, 1), ("images", 1000, 15), ("images", 64_000, 1000)),
        *(("tokens", 64 * 136, 1), ("tokens", 1e6, 114)),
    ],
)
def test_whole_steps_within_the_budget(budget, value, steps):
    assert steps_within(budget, value, "sit", STEP) == steps


def test_a_budget_of_whole_steps_in_floats():
    assert 0.07 * 3200 / 32 > 7
    assert steps_within("epochs", 0.07, "sit", StepSize(images=32, tokens=136, images_per_epoch=3200)) == 7


def test_equal_tokens_give_more_steps_where_an_image_has_fewer():
    few = StepSize(64, 15, 960)
    assert steps_within("tokens", 1e7, "mae", few) == pytest.approx(
        steps_within("tokens", 1e7, "sit", STEP) * 136 / 15, 1e-3
    )


@pytest.mark.parametrize(("budget", "value"), [("steps", 0.5), ("images", 63), ("tokens", 64 * 136 - 1)])
def test_less_than_a_step(budget, value):
    with pytest.raises(SiTError, match=r"less than one step of sit, which takes 64 images of 136 tokens") as error:
        steps_within(budget, value, "sit", STEP)
    assert error.value.argument == "budget_value"


def test_words():
    assert in_words("images", 12_800) == "12,800 images" and in_words("epochs", 2.5) == "2.5 epochs"
