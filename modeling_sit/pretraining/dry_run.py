"""The argument `dry_run`: a few steps that leave nothing behind, and what they say of the whole run."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from modeling_sit.data.caching import MIN_EPOCHS
from modeling_sit.hub.provenance import describe_duration
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.loop import Run
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.output_folder import holds_results
from modeling_sit.pretraining.schedules import Schedules

# The first steps pay for what later ones find ready: memory, kernels, workers.
NUM_WARMUP_STEPS, NUM_MEASURED_STEPS = 2, 5
BYTES_PER_WEIGHT = 4


@dataclass
class DryRun:
    """
    What a few steps took.

    Args:
        seconds_per_step (`float`): Median over the measured steps, waiting for data included.
        waited (`float`): Of that, seconds of waiting for data.
        peak_memory (`int`): Bytes: the most that PyTorch held on this process's accelerator, or on a CPU the most that
            the process itself held, its libraries included.
    """

    seconds_per_step: float
    waited: float
    peak_memory: int


def num_dry_run_steps(schedules: Schedules) -> int:
    return min(NUM_WARMUP_STEPS + NUM_MEASURED_STEPS, schedules.num_steps)


def measure_steps(
    batches: Iterable[dict],
    train_on: Callable[[tuple[torch.Tensor, ...], int], object],
    schedules: Schedules,
    accelerator: Accelerator,
    num_steps: int | None = None,
) -> DryRun:
    """Train on the batches of a few steps, [`num_dry_run_steps`] by default, and measure. Every process must call this."""
    batches = iter(batches)
    times, waits = [], []
    if accelerator.device.type == "cuda":  # an earlier run of this process may have had more
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    for step in range(num_steps or num_dry_run_steps(schedules)):
        started, waited = time.perf_counter(), 0.0
        for number in range(schedules.batches_per_step):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            train_on(batch["crops"], step * schedules.batches_per_step + number)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        times.append(time.perf_counter() - started)
        waits.append(waited)
    measured = slice(NUM_WARMUP_STEPS if len(times) > NUM_WARMUP_STEPS else 0, None)
    return DryRun(
        statistics.median(times[measured]), statistics.median(waits[measured]), _peak_memory(accelerator.device)
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_plan(dry_run: DryRun, run: Run) -> str:
    """What the run would need and write, in lines to print.

    Args:
        dry_run ([`DryRun`]): What a few steps took.
        run ([`Run`]): The run.
    """
    method, schedules, arguments, accelerator = run.method, run.schedules, run.flags.run, run.accelerator
    student = method.student
    parts = {name: _count(child) for name, child in student.named_children()}
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    total = _count(student)
    model_bytes = BYTES_PER_WEIGHT * _count(method.exported(arguments.export))
    networks = BYTES_PER_WEIGHT * sum(map(_count, method.networks))
    states = BYTES_PER_WEIGHT * trained
    checkpoint_bytes = networks + 2 * states
    images_per_second = (
        arguments.per_device_train_batch_size
        * schedules.batches_per_step
        * accelerator.num_processes
        / dry_run.seconds_per_step
    )
    described = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.2f} M" for name, count in parts.items() if count)
    memory = (
        f"peak of this process {_size(dry_run.peak_memory)}"
        if accelerator.device.type == "cpu"
        else f"peak on {accelerator.device} {_size(dry_run.peak_memory)}"
    )
    seconds = dry_run.seconds_per_step * schedules.num_steps
    monitor_steps = run.flags.monitors.monitor_steps if run.monitors.chosen else 0
    lines = [
        f"parameters: {total / 1e6:.2f} M ({described}){describe_teacher(method)}",
        f"memory: {memory}, of it networks {_size(networks)}, gradients {_size(states)}, optimizer {_size(2 * states)}",
        f"speed: {dry_run.seconds_per_step:.3g} s a step, {images_per_second:.1f} images/s, data wait "
        f"{dry_run.waited / dry_run.seconds_per_step:.0%} (median of {NUM_MEASURED_STEPS} steps at most)",
        f"steps: {schedules.num_steps:,}, in all about {describe_duration(seconds)}, "
        f"checkpoints, previews and monitors not counted{_describe_cache(run)}",
        f"would write to {run.output_dir}{_what_is_there(run.output_dir)}:",
        f"  model.safetensors ({_size(model_bytes)}), config.json, preprocessor_config.json, README.md, loss_curve.png, "
        "run_state.json, code",
        f"  metrics.jsonl: {-(-schedules.num_steps // arguments.logging_steps):,} lines",
        f"  checkpoints/: {_describe_checkpoints(arguments, checkpoint_bytes)}",
        f"  previews/: {_describe_previews(run)}",
        f"  monitors.jsonl: {_count_rounds(monitor_steps, schedules)} lines"
        if monitor_steps != 0
        else "  no monitors.jsonl",
        *([f"  exports/: {_describe_exports(run, model_bytes)}"] if arguments.export_steps else []),
        *(["  logs/: of trackers that keep files"] if arguments.report_to else []),
        "dry run: nothing was written",
    ]
    return "\n".join(lines)


def describe_teacher(method: Method) -> str:
    """How many parameters the teacher has, where there is one: as many as the student, or fewer."""
    if method.teacher is None:
        return ""
    count = _count(method.teacher)
    return f"; the teacher has {'as many' if count == _count(method.student) else f'{count / 1e6:.3g} M'}"


def _count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _describe_checkpoints(arguments: PretrainingArguments, checkpoint_bytes: int) -> str:
    every, limit = arguments.checkpointing_steps, arguments.checkpoints_total_limit
    if every == "no":
        return "none"
    when = "every epoch" if every == "epoch" else f"every {int(every):,} steps"
    kept = "all of them" if limit == 0 else f"the newest {limit}"
    return f"{when} and at the end, {_size(checkpoint_bytes)} each, {kept} kept"


def _describe_exports(run: Run, model_bytes: int) -> str:
    return f"{run.schedules.num_steps // run.flags.run.export_steps:,} models, {_size(model_bytes)} each"


def _describe_cache(run: Run) -> str:
    epochs = run.schedules.epoch(run.schedules.num_steps)
    if run.flags.cache.image_cache == "none" or run.data.is_streamed or epochs is None or epochs < MIN_EPOCHS:
        return ""
    return ". A dry run decodes each image anew; the run decodes it once, if there is room, and is faster then"


def _describe_previews(run: Run) -> str:
    if run.flags.run.preview_steps == 0 or not run.method.has_preview:
        return "none"
    return f"{_count_rounds(run.flags.run.preview_steps, run.schedules):,} images"


def _count_rounds(every: int | None, schedules: Schedules) -> int:
    """How often something is done that is done every so many steps, ten times by default, and at the end."""
    return -(-schedules.num_steps // (every or -(-schedules.num_steps // 10)))


def _what_is_there(output_dir: Path) -> str:
    return " (which holds a run already)" if holds_results(output_dir) else ""


def _size(num_bytes: float) -> str:
    return f"{tqdm.format_sizeof(num_bytes)}B"
