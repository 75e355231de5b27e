"""Schedules against their closed forms, and the arithmetic of a run's length."""

import itertools
import math

import pytest

from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.presets import PAPER
from modeling_sit.pretraining.schedules import Schedules, cosine, is_due, plan_schedules, progress, warmup_cosine
from modeling_sit.runtime.errors import SiTError


def arguments(**settings) -> PretrainingArguments:
    lengths = {name: PAPER[name] for name in ("num_train_epochs", "warmup_epochs", "base_learning_rate")}
    defaults = {**lengths, "per_device_train_batch_size": 64}
    return PretrainingArguments(dataset="some", output_dir="out", **{**defaults, **settings})


def test_cosine():
    assert cosine(2.0, 1.0, 0.0) == pytest.approx(2.0)
    assert cosine(2.0, 1.0, 0.5) == pytest.approx(1.5)
    assert cosine(2.0, 1.0, 1.0) == pytest.approx(1.0)
    assert cosine(2.0, 1.0, 1 / 3) == pytest.approx(1.75)
    assert cosine(0.04, 0.1, 0.25) == pytest.approx(0.04 + 0.06 * math.sin(math.pi / 8) ** 2)


def test_progress():
    assert [progress(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert progress(0, 1) == 0


class TestWarmupCosine:
    def test_warm_up_is_linear_and_ends_at_the_peak(self):
        rates = [warmup_cosine(step, 100, 10, peak=1.0, end=0.1) for step in range(100)]
        assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        assert rates[10] == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.1)
        assert all(a > b for a, b in itertools.pairwise(rates[10:]))

    def test_middle_of_the_cosine(self):
        assert warmup_cosine(15, 21, 10, peak=1.0, end=0.0) == pytest.approx(0.5)
        assert warmup_cosine(50, 101, 0, peak=3.0, end=1.0) == pytest.approx(2.0)

    @pytest.mark.parametrize("num_warmup_steps", [0, 1])
    def test_a_run_of_one_step(self, num_warmup_steps):
        assert warmup_cosine(0, 1, num_warmup_steps, peak=1.0, end=0.1) == pytest.approx(1.0)


class TestAt:
    schedules = Schedules(
        num_steps=101,
        num_warmup_steps=10,
        batches_per_epoch=50,
        batches_per_step=2,
        peak_learning_rate=1e-3,
        min_learning_rate=1e-6,
        weight_decay=(0.04, 0.1),
    )

    def test_ends_and_middle(self):
        first, middle, last = (self.schedules.at(step) for step in (0, 50, 100))
        assert first == pytest.approx({"learning_rate": 1e-4, "weight_decay": 0.04})
        assert middle["weight_decay"] == pytest.approx(0.07)
        assert middle["learning_rate"] == pytest.approx(
            1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * 40 / 90)) / 2  # 40 of the 90 steps after the first of them
        )
        assert last == pytest.approx({"learning_rate": 1e-6, "weight_decay": 0.1})

    def test_progress(self):
        assert [self.schedules.progress(step) for step in (0, 25, 100)] == [0, 0.25, 1]

    def test_epoch(self):
        assert self.schedules.epoch(0) == 0
        assert self.schedules.epoch(25) == 1
        assert self.schedules.epoch(30) == pytest.approx(1.2)


class TestPlan:
    def test_epochs_to_steps(self):
        plan = plan_schedules(
            arguments(per_device_train_batch_size=64, num_train_epochs=100, warmup_epochs=4, weight_decay=0.05),
            num_images=1000,
            num_processes=1,
        )
        assert plan.batches_per_epoch == 15  # 40 images are left over
        assert plan.num_steps == 1500
        assert plan.num_warmup_steps == 60
        assert plan.peak_learning_rate == pytest.approx(5e-4 * 64 / 256)
        assert plan.min_learning_rate == 1e-6
        assert plan.weight_decay == (0.05, 0.05)

    def test_processes_and_accumulation_make_the_batch_bigger(self):
        plan = plan_schedules(
            arguments(
                per_device_train_batch_size=16, gradient_accumulation_steps=4, num_train_epochs=10, warmup_epochs=1
            ),
            num_images=1000,
            num_processes=3,
        )
        assert plan.batches_per_epoch == 20
        assert plan.batches_per_step == 4
        assert plan.num_steps == 50
        assert plan.num_warmup_steps == 5
        assert plan.epoch(plan.num_steps) == 10
        assert plan.peak_learning_rate == pytest.approx(5e-4 * 16 * 3 * 4 / 256)

    def test_a_part_of_an_epoch_is_rounded_up_to_a_step(self):
        settings = {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 3}
        plan = plan_schedules(arguments(**settings, num_train_epochs=1), 100, 1)
        assert plan.num_steps == 4
        assert plan_schedules(arguments(**settings, num_train_epochs=0.01), 100, 1).num_steps == 1

    def test_max_steps_overrides_the_epochs(self):
        plan = plan_schedules(arguments(max_steps=7, num_train_epochs=100), 1000, 1)
        assert plan.num_steps == 7

    def test_warm_up_is_at_most_a_tenth_of_the_run(self):
        plan = plan_schedules(arguments(per_device_train_batch_size=10, num_train_epochs=20), 1000, 1)
        assert (plan.num_steps, plan.num_warmup_steps) == (2000, 200)
        plan = plan_schedules(arguments(per_device_train_batch_size=10, num_train_epochs=200), 1000, 1)
        assert plan.num_warmup_steps == 1000

    def test_weight_decay_can_rise(self):
        plan = plan_schedules(arguments(weight_decay=0.04, weight_decay_end=0.1), 1000, 1)
        assert plan.weight_decay == (0.04, 0.1)
        assert plan_schedules(arguments(weight_decay=0.04, weight_decay_end=0.0), 1000, 1).weight_decay == (0.04, 0.0)

    @pytest.mark.parametrize(("num_processes", "allowed"), [(1, 30), (4, 7)])
    def test_fewer_images_than_a_batch(self, num_processes, allowed):
        with pytest.raises(SiTError, match=rf"30 images.*`per_device_train_batch_size` to {allowed} or less") as error:
            plan_schedules(arguments(per_device_train_batch_size=64), 30, num_processes)
        assert error.value.argument == "dataset"
        plan = plan_schedules(arguments(per_device_train_batch_size=allowed), 30, num_processes)
        assert plan.batches_per_epoch == 1

    def test_fewer_images_than_processes(self):
        """No batch size helps then, and 0 is not one."""
        with pytest.raises(SiTError) as error:
            plan_schedules(arguments(per_device_train_batch_size=64), 3, num_processes=4)
        assert "to 0 or less" not in str(error.value)


class TestUnknownLength:
    """A stream may not say how many images it has."""

    def test_needs_a_number_of_steps(self):
        with pytest.raises(SiTError, match="`max_steps`") as error:
            plan_schedules(arguments(), None, 1, streaming=True)
        assert error.value.argument == "dataset"
        plan = plan_schedules(arguments(max_steps=50), None, 1, streaming=True)
        assert (plan.num_steps, plan.num_warmup_steps, plan.epoch(3)) == (50, 5, None)

    def test_has_no_epochs_to_save_at(self):
        with pytest.raises(SiTError, match="`checkpointing_steps`"):
            plan_schedules(arguments(max_steps=50, checkpointing_steps="epoch"), None, 1, streaming=True)


class TestIsDue:
    """Steps of 95 at which something is due."""

    @pytest.mark.parametrize(
        ("every", "steps"),
        [
            (40, [40, 80]),
            ("40", [40, 80]),
            ("no", []),
            (0, []),
            (None, list(range(10, 95, 10))),
            ("epoch", [25, 50, 75]),
        ],
    )
    def test_steps(self, every, steps):
        schedules = Schedules(95, 0, 50, 2, 1e-3, 1e-6, (0.05, 0.05))
        assert [step for step in range(1, 96) if is_due(step, every, schedules)] == steps

    def test_a_run_of_a_few_steps(self):
        schedules = Schedules(3, 0, 50, 1, 1e-3, 1e-6, (0.05, 0.05))
        assert [step for step in range(1, 4) if is_due(step, None, schedules)] == [1, 2, 3]

    def test_epochs_that_are_no_whole_number_of_steps(self):
        """Two batches a step, 5 an epoch: the first step that ends behind the epoch's end."""
        schedules = Schedules(10, 0, 5, 2, 1e-3, 1e-6, (0.05, 0.05))
        assert [step for step in range(1, 11) if is_due(step, "epoch", schedules)] == [3, 5, 8, 10]


def test_processes_share_a_stream():
    one, two = (
        plan_schedules(arguments(per_device_train_batch_size=8 // n, num_train_epochs=3.0), 90, n, streaming=True)
        for n in (1, 2)
    )
    assert one == two and one.batches_per_epoch == 90 / 8
