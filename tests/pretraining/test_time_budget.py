"""A run that fits into a time: its length by hand, and that the measured steps leave no trace."""

import json

import pytest
from pretraining_runs import arguments_of, assert_equal, checkpoint, losses_of, weights_in

from modeling_sit.pretraining import time_budget
from modeling_sit.pretraining.dry_run import DryRun
from modeling_sit.pretraining.prepare import prepare
from modeling_sit.runtime.accelerator import create_accelerator

QUICK = {"max_steps": None, "checkpointing_steps": "no", "preset": "auto"}


@pytest.fixture
def pace(monkeypatch):
    """Have every step take so many seconds, after so many seconds of the run."""

    def pace(seconds: float, elapsed: float = 0.0, waited: float = 0.0) -> list[int]:
        measured = []

        def measure(run, num_steps):
            measured.append(num_steps)
            return measure_really(run, num_steps) and DryRun(seconds, waited, 0)

        measure_really = time_budget._measure
        monkeypatch.setattr(time_budget, "_measure", measure)
        monkeypatch.setattr(time_budget, "MIN_STEPS", 5)
        monkeypatch.setattr(time_budget, "_elapsed", lambda run: elapsed)
        return measured

    return pace


class TestSteps:
    @pytest.fixture
    def fit(self, prepared, pace):
        def fit(seconds: float, step: float, elapsed: float = 0.0):
            run = prepared()
            pace(step, elapsed)
            return time_budget.fit_into_time(run, seconds, keeps_images=False)

        return fit

    @pytest.fixture
    def prepared(self, flags_of, forget_accelerators, tmp_path):
        def prepared():
            forget_accelerators()
            return prepare(flags_of(**arguments_of(tmp_path / "out")), create_accelerator())

        return prepared

    @pytest.mark.parametrize(("seconds", "step", "elapsed"), [(60, 0.1, 0), (600, 0.5, 20), (7200, 0.25, 3)])
    def test_are_what_is_left(self, fit, seconds, step, elapsed):
        choice = fit(seconds, step, elapsed)
        left = (1 - time_budget.MARGIN) * (seconds - elapsed - time_budget.FINISHING)
        assert choice.name == "max_steps" and choice.value == int(left / step)

    @pytest.mark.parametrize(("seconds", "told"), [(0.2, "0.2 seconds"), (1, "1 second"), (60, "1.0 minutes")])
    def test_too_few(self, fit, seconds, told):
        with pytest.raises(time_budget.SiTError) as error:
            fit(seconds, 30.0)
        assert error.value.argument == "time_budget"
        assert error.value.problem.startswith(f"a time of {told} is too short: ")

    @pytest.mark.parametrize(("waited", "num_measured"), [(0.0, 1), (15.0, 2)])
    def test_far_too_few_are_refused_before_more_is_measured(self, prepared, pace, waited, num_measured):
        """Unless most of the time is waiting for images, which may be kept."""
        run, measured = prepared(), pace(30.0, waited=waited)
        with pytest.raises(time_budget.SiTError):
            time_budget.fit_into_time(run, 100, keeps_images=False)
        assert len(measured) == num_measured


def test_the_measured_steps_leave_no_trace(pretrain, pace):
    measured = pace(5.0)
    folder = pretrain("timed", **QUICK, time_budget="50s")
    state = json.loads((folder / "run_state.json").read_text())
    steps = state["step"]
    assert steps == state["chosen"]["max_steps"] == 9 and measured == [7, 7]
    plain = pretrain("plain", **{**QUICK, "max_steps": steps})
    assert_equal(weights_in(folder), weights_in(plain))
    assert losses_of(folder) == losses_of(plain)


def test_a_run_that_goes_on_has_the_same_length_and_measures_nothing(pretrain, pace, monkeypatch):
    pace(5.0)
    arguments = {**QUICK, "checkpointing_steps": "4", "checkpoints_total_limit": 0, "time_budget": "50s"}
    whole = pretrain("whole", **arguments)
    monkeypatch.setattr(time_budget, "_measure", None)
    other = pretrain("other", **arguments, resume_from_checkpoint=checkpoint(whole, 4))
    assert_equal(weights_in(other), weights_in(whole))
    without = {**arguments, "time_budget": None}
    again = pretrain("again", **without, resume_from_checkpoint=checkpoint(whole, 4))
    assert_equal(weights_in(again), weights_in(whole))


@pytest.mark.parametrize("length", [{"num_train_epochs": 1000}, {"max_steps": 1000}])
def test_a_time_overrides_the_length_of_a_recipe(pretrain, pace, length):
    pace(5.0)
    folder = pretrain("timed", **{**QUICK, "preset": "paper", **length}, time_budget="50s")
    assert json.loads((folder / "run_state.json").read_text())["step"] == 9
