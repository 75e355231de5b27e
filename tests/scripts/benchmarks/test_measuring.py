"""Runs in turns, stages, growth: what is told of times is what the clock said."""

import time

import pytest
import torch
from throughput import measuring
from throughput.linearity import departures, describe_growth
from throughput.measuring import Length, PeakMemory, Run, StageClock, TimeIsUp, median_stages, take_turns, time_run

CPU = torch.device("cpu")


class Sleeper:
    """A contender whose batches and steps take known times, its first step much longer."""

    num_views, batch_size, flops_per_image = 2, 5, 0

    def __init__(self, name: str = "sleeper", read: float = 0.0, step: float = 0.0, num_workers: int = 0):
        self.name, self.read, self.step, self.num_workers = name, read, step, num_workers
        self.asked, self.done, self.closed = [], 0, 0

    def batches(self, count):
        self.asked.append(count)
        try:
            for _ in range(count):
                time.sleep(self.read)
                yield None
        finally:
            self.closed += 1

    def train_on(self, batch):
        time.sleep(self.step if self.done else 0.2)
        self.done += 1


def test_a_run_is_steps_and_their_time_without_the_first():
    sleeper = Sleeper(read=0.01, step=0.03)
    run = time_run(sleeper, CPU, Length(warmup_steps=1, steps=4, seconds=60))
    assert (run.steps, run.images, sleeper.done, sleeper.closed) == (4, 20, 5, 1)
    assert 0.16 <= run.seconds < 0.19 + 0.1
    assert 0.04 <= run.waited < 0.4 * run.seconds
    assert run.images_per_second == 20 / run.seconds and run.data_wait == run.waited / run.seconds


def test_a_run_ends_with_its_time():
    run = time_run(Sleeper(step=0.02), CPU, Length(warmup_steps=1, steps=1000, seconds=0.03))
    assert 1 <= run.steps <= 3


def test_what_workers_read_ahead_is_not_measured():
    sleeper = Sleeper(num_workers=3)
    time_run(sleeper, CPU, Length(warmup_steps=1, steps=2, seconds=60))
    assert sleeper.asked == [1 + 2 * 3 + 2] and sleeper.done == 9


def test_contenders_take_turns(monkeypatch):
    order = []

    def record(contender, device, length):
        order.append(contender.name)
        return Run(1, 1, float(len(order)), 0.0)

    monkeypatch.setattr(measuring, "time_run", record)
    runs = {}
    take_turns([Sleeper("a"), Sleeper("b")], CPU, 3, Length(0, 1, 1), runs)
    assert order == ["a", "b"] * 3
    assert [run.seconds for run in runs["b"]] == [2, 4, 6]
    with pytest.raises(TimeIsUp):
        take_turns([Sleeper("a")], CPU, 3, Length(0, 1, 1), runs, deadline=time.monotonic() - 1)
    assert len(runs["a"]) == 3


def test_stages_are_timed_and_functions_put_back():
    class Step:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            self.inner()
            time.sleep(0.01)

    step, module, clock = Step(), torch.nn.Linear(1, 1), StageClock(CPU)
    forward = module.forward
    watched = [(step, "inner", "inside"), (step, "outer", "outside"), (module, "forward", "module")]
    with clock.watching(watched):
        step.outer()
        step.inner()
        module(torch.ones(1, 1))
    # A stage within a stage belongs to the outer one: no second counts twice.
    assert 0.03 <= clock.seconds["outside"] < 0.08
    assert 0.02 <= clock.seconds["inside"] < 0.06
    assert clock.seconds["module"] > 0
    assert vars(step) == {} and module.forward == forward and "forward" not in vars(module)
    with pytest.raises(AttributeError), clock.watching([(step, "nothing", "stage")]):
        pass


def test_medians_of_stages():
    steps = [{"a": 1.0, "b": 2.0, "total": 4.0}, {"a": 3.0, "total": 4.0}, {"a": 2.0, "b": 1.0, "total": 5.0}]
    assert median_stages(steps) == {"a": 2.0, "b": 1.0, "other": 1.0, "total": 4.0}


@pytest.mark.skipif(not measuring._reset_peak_resident(), reason="the kernel does not count peaks anew")
def test_peak_memory_is_what_the_block_takes_at_most():
    big = torch.ones(50_000_000)  # before, and no longer there: not the block's
    del big
    with PeakMemory(CPU) as memory:
        block = torch.ones(15_000_000)
        del block
    assert 55e6 < memory.bytes < 90e6


def test_growth_in_proportion_and_otherwise():
    assert departures([1, 2, 4], [3.0, 6.5, 12.0]) == []
    (late,) = departures([1, 2, 4, 8], [1.0, 2.0, 4.0, 16.0])
    assert (late.start, late.end, late.size_growth, late.cost_growth) == (4, 8, 2, 4)
    (early,) = departures([1, 2, 4], [1.0, 1.1, 2.2])
    assert (early.start, early.end) == (1, 2)
    assert "linear throughout" in describe_growth("Batch", "images", "seconds", [1, 2], [1, 2])
    line = describe_growth("Batch", "images", "seconds", [1, 2, 4], [1, 2, 9])
    assert line == "Batch: seconds against images, from 1 to 4: not linear in 2 to 4 (x 2.00 gives x 4.50)"
