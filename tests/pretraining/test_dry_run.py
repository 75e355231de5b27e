"""The dry run's figures: medians of measured steps, parameters and bytes counted by hand."""

import itertools

import pytest
import torch
from accelerate import Accelerator

from modeling_sit import SiTForPreTraining
from modeling_sit.pretraining import dry_run as dry_run
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.dry_run import DryRun, describe_plan, measure_steps, num_dry_run_steps
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.pretraining.teacher import Teacher


def schedules_of(num_steps: int, batches_per_step: int = 1) -> Schedules:
    return Schedules(num_steps, 0, 100, batches_per_step, 1e-3, 1e-6, (0.05, 0.05), 0.996)


class TestRehearse:
    @pytest.mark.parametrize(("num_steps", "rehearsed"), [(1, 1), (2, 2), (7, 7), (8, 7), (10**6, 7)])
    def test_a_few_steps(self, num_steps, rehearsed):
        assert num_dry_run_steps(schedules_of(num_steps)) == rehearsed

    @pytest.mark.parametrize(("num_steps", "batches_per_step"), [(100, 1), (100, 3), (1, 2), (3, 1)])
    def test_trains_on_the_first_batches_in_their_order(self, num_steps, batches_per_step):
        schedules, seen = schedules_of(num_steps, batches_per_step), []
        batches = ({"crops": torch.tensor(number)} for number in itertools.count())
        measure_steps(
            batches, lambda crops, number: seen.append((int(crops), number)), schedules, Accelerator(cpu=True)
        )
        assert seen == [(number, number) for number in range(num_dry_run_steps(schedules) * batches_per_step)]
        assert int(next(batches)["crops"]) == len(seen)  # none was read for nothing

    def run_with_clock(self, monkeypatch, waits, works, batches_per_step=1) -> DryRun:
        """Rehearse with batches that take so many seconds to come, and to train on."""
        now = 100.0
        monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now)

        def batches():
            nonlocal now
            for wait in waits:
                now += wait
                yield {"crops": torch.zeros(1)}

        def train_on(crops, number):
            nonlocal now
            now += works[number]

        schedules = schedules_of(len(waits) // batches_per_step, batches_per_step)
        return measure_steps(batches(), train_on, schedules, Accelerator(cpu=True))

    def test_median_after_the_warmup(self, monkeypatch):
        done = self.run_with_clock(monkeypatch, [50, 50, 1, 2, 3, 4, 30], [90, 90, 10, 10, 10, 10, 500])
        assert (done.seconds_per_step, done.waited) == (pytest.approx(13), pytest.approx(3))

    def test_batches_of_a_step_add_up(self, monkeypatch):
        done = self.run_with_clock(monkeypatch, [1] * 14, [3, 5] * 7, batches_per_step=2)
        assert (done.seconds_per_step, done.waited) == (pytest.approx(10), pytest.approx(2))

    @pytest.mark.parametrize("num_steps", [1, 2])
    def test_a_run_as_short_as_the_warmup(self, monkeypatch, num_steps):
        done = self.run_with_clock(monkeypatch, [1] * num_steps, [3] * num_steps)
        assert (done.seconds_per_step, done.waited) == (pytest.approx(4), pytest.approx(1))

    def test_memory_is_in_bytes(self):
        done = measure_steps(
            iter([{"crops": torch.zeros(1)}]), lambda crops, number: None, schedules_of(1), Accelerator(cpu=True)
        )
        assert 50e6 < done.peak_memory < 50e9  # of a process that has imported PyTorch


class TestPlan:
    @pytest.fixture
    def plan(self, tiny_config, tmp_path):
        """The plan's lines, of a run of 1,000 steps of 8 images that take 2 seconds, half a second of it waiting."""

        def plan(num_steps=1000, has_teacher=True, config=None, **flags):
            student = SiTForPreTraining(tiny_config(**(config or {})))
            teacher = Teacher(student) if has_teacher else None
            settings = {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 8, **flags}
            arguments = PretrainingArguments("digits", **settings)
            text = describe_plan(
                DryRun(2.0, 0.5, 300_000_000),
                student,
                teacher,
                schedules_of(num_steps, batches_per_step=3),
                arguments,
                Accelerator(cpu=True),
            )
            return text.splitlines(), student

        return plan

    def test_parts_are_all_there_is(self, tiny_config):
        """A part without its place in the plan would be missing from its sum."""
        student = SiTForPreTraining(tiny_config(rotation_weight=1.0))
        parts = sum(dry_run._count(getattr(student, name)) for name in dry_run.PARTS)
        assert parts == sum(parameter.numel() for parameter in student.parameters())

    def test_speed_and_time(self, plan):
        lines, _ = plan()
        (speed,) = (line for line in lines if line.startswith("speed"))
        assert speed.startswith("speed: 2 s a step, 12.0 images/s, data wait 25%")
        (steps,) = (line for line in lines if line.startswith("steps"))
        assert steps.startswith("steps: 1,000, in all about 33 minutes")

    @pytest.mark.parametrize(
        ("num_steps", "duration"), [(20, "40 seconds"), (59, "118 seconds"), (60, "2 minutes"), (10**5, "55.6 hours")]
    )
    def test_time_in_its_unit(self, plan, num_steps, duration):
        assert any(f"in all about {duration}," in line for line in plan(num_steps)[0])

    def test_memory(self, plan):
        lines, student = plan(config={"projection_hidden_size": 300})
        weights = sum(parameter.numel() for parameter in student.parameters())
        (memory,) = (line for line in lines if line.startswith("memory"))
        kilobytes = 4 * weights / 1000
        assert 100 < kilobytes < 1000
        assert "peak of this process 300 MB" in memory
        expected = f"networks {2 * kilobytes:.3g} KB, gradients {kilobytes:.3g} KB, optimizer {2 * kilobytes:.3g} KB"
        assert expected in memory

    def test_what_is_frozen_has_neither_gradients_nor_moments(self, plan, tiny_config, tmp_path):
        student = SiTForPreTraining(tiny_config()).requires_grad_(False)
        arguments = PretrainingArguments("digits", output_dir=str(tmp_path))
        figures = (DryRun(1.0, 0.0, 1), student, None, schedules_of(5), arguments, Accelerator(cpu=True))
        assert "gradients 0 B, optimizer 0 B" in describe_plan(*figures)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"checkpointing_steps": "no"}, "checkpoints/: none"),
            ({"checkpointing_steps": "epoch"}, "checkpoints/: every epoch and at the end"),
            ({"checkpointing_steps": "2000"}, "checkpoints/: every 2,000 steps and at the end"),
            ({"checkpoints_total_limit": 0}, "each, all of them kept"),
            ({"checkpoints_total_limit": 3}, "each, the newest 3 kept"),
            ({"logging_steps": 300}, "metrics.jsonl: 4 lines"),
            ({"logging_steps": 250}, "metrics.jsonl: 4 lines"),
            ({"preview_steps": 0}, "previews/: none"),
            ({"preview_steps": 300}, "previews/: 4 images"),
            ({}, "previews/: 10 images"),
            ({"report_to": ["tensorboard"]}, "logs/"),
        ],
    )
    def test_what_would_be_written(self, plan, flags, said):
        assert any(said in line for line in plan(**flags)[0])

    def test_no_previews_without_a_reconstruction(self, plan):
        assert any("previews/: none" in line for line in plan(config={"reconstruction_weight": 0.0})[0])

    def test_where(self, plan, tmp_path):
        def where(folder):
            lines, _ = plan(output_dir=str(folder))
            (line,) = (line for line in lines if line.startswith("would write to"))
            return line.removeprefix(f"would write to {folder}").removesuffix(":")

        assert where(tmp_path / "a" / "b") == "" == where(tmp_path)
        (tmp_path / "metrics.jsonl").write_text("")
        assert where(tmp_path) == " (which holds a run already)"

    @pytest.mark.parametrize(
        ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (86_900_000, "86.9 MB"), (5e9, "5.0 GB")]
    )
    def test_sizes(self, num_bytes, text):
        assert dry_run._size(num_bytes) == text
