"""The argument `time_budget`: how many steps fit into a time, by the speed of a few that are thrown away."""

import time
from contextlib import closing
from functools import partial

from modeling_sit.hub.provenance import describe_duration
from modeling_sit.pretraining.dry_run import NUM_MEASURED_STEPS, NUM_WARMUP_STEPS, DryRun, measure_steps
from modeling_sit.pretraining.loop import Run, training_step
from modeling_sit.pretraining.presets import Choice
from modeling_sit.runtime.distributed import broadcast_from_main
from modeling_sit.runtime.errors import SiTError

# Steps are measured for this fraction of the time, within limits in seconds and in steps.
MEASURED_FRACTION, MEASURED_SECONDS, MEASURED_STEPS = 0.02, 10.0, (NUM_MEASURED_STEPS, 100)
# Rounds of monitors and previews in a run, by default, and one at its end.
NUM_ROUNDS = 11
# Of the time that is left for steps, what checkpoints, previews and slower minutes take; and seconds at the end, for the
# model and its card.
MARGIN, FINISHING = 0.04, 3.0
# With fewer steps nothing is learned.
MIN_STEPS = 100


def fit_into_time(run: Run, seconds: float, keeps_images: bool = True) -> Choice:
    """Measure steps, and the monitors, of a run that is thrown away afterwards. Every process must call this.

    Decoded images stay in `run.data`, where they are kept.

    Args:
        run ([`Run`]): As the run to come, but for its length.
        seconds (`float`): For the whole run, what it has taken already included.
        keeps_images (`bool`, *optional*, defaults to `True`): Whether images may be kept decoded.

    Returns:
        [`Choice`]: The number of steps that fit, and why; the same in every process.

    Raises:
        [`SiTError`]: If too few steps fit.
    """
    accelerator = run.accelerator
    first = _measure(run, NUM_WARMUP_STEPS + NUM_MEASURED_STEPS)
    left = broadcast_from_main(accelerator, lambda: seconds - _elapsed(run))
    pace = broadcast_from_main(accelerator, lambda: first.seconds_per_step)
    fastest = broadcast_from_main(accelerator, lambda: first.seconds_per_step - first.waited)
    if left < MIN_STEPS * fastest:  # even if it never waited for an image
        raise _too_short(seconds, fastest, seconds - left + FINISHING, "at least ")
    if keeps_images:
        run.data.cache(accelerator, run.schedules.epoch(max(1, int(left / pace))) or 0)
    low, high = MEASURED_STEPS
    count = min(max(int(min(MEASURED_FRACTION * seconds, MEASURED_SECONDS) / pace), low), high)
    measured = _measure(run, NUM_WARMUP_STEPS + count)
    started = time.perf_counter()
    run.monitors.run(run.method)
    round_seconds = time.perf_counter() - started if run.monitors.chosen else 0.0

    def fit() -> tuple[int, float, float]:
        every = run.flags.monitors.monitor_steps
        pace = measured.seconds_per_step + (round_seconds / every if every else 0)
        other = (1 if every else NUM_ROUNDS) * round_seconds + FINISHING
        left = (1 - MARGIN) * (seconds - _elapsed(run) - other)
        return int(left / pace), pace, other

    num_steps, pace, other = broadcast_from_main(accelerator, fit)
    if num_steps < MIN_STEPS:
        raise _too_short(seconds, pace, other + _elapsed(run))
    return Choice(
        "max_steps",
        num_steps,
        f"what fits into {describe_duration(seconds)} at {pace:.3g} s a step (median of {count})",
    )


def _too_short(seconds: float, pace: float, other: float, at_least: str = "") -> SiTError:
    """The error that says how much time the fewest steps need, at `pace` seconds a step and with `other` seconds."""
    needed = MIN_STEPS * pace / (1 - MARGIN) + other
    given = f"{seconds:g} seconds" if seconds < 1 else describe_duration(seconds)
    return SiTError(
        f"a time of {given} is too short: a step takes {pace:.2g} s, and {MIN_STEPS} steps with all that "
        f"belongs to them {at_least}{describe_duration(needed)}",
        argument="time_budget",
        remedy="give more time, a smaller `image_size` or `model_size`, or `monitors=none`",
    )


def _elapsed(run: Run) -> float:
    return time.time() - run.started


def _measure(run: Run, num_steps: int) -> DryRun:
    batches = run.data.batches(0, num_steps * run.schedules.batches_per_step)
    with closing(batches):
        return measure_steps(batches, partial(training_step, run), run.schedules, run.accelerator, num_steps)
