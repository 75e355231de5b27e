"""What a run logs while it goes: its losses, its speed, and what it waits for."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from modeling_sit.hub.provenance import describe_duration
from modeling_sit.runtime.progress import shows_bar, write_line
from modeling_sit.runtime.trackers import MetricsLog, log_image
from modeling_sit.runtime.words import counted

# The figures first: on a narrow terminal it is the bar that gives way.
BAR = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}] {bar}"
# The first steps of a process pay for what later ones find ready. Then so many steps tell the pace, or those until some
# seconds are over.
WARMUP_STEPS, PACE_STEPS, PACE_SECONDS = 2, 15, 8.0


class NonFiniteLoss(Exception):
    """
    A loss was infinite or not a number.

    Args:
        batches_ago (`int`): How many batches before the newest one.
        terms (`list[str]`): Which losses.
    """

    def __init__(self, batches_ago: int, terms: list[str]):
        super().__init__(f"{' and '.join(terms)} not finite")
        self.batches_ago = batches_ago
        self.terms = terms


class MetricLogger:
    """
    Gathers losses and times batch by batch, and logs them: progress bar (lines where stderr is no terminal),
    `metrics.jsonl`, `monitors.jsonl`, Accelerate's trackers.

    Losses stay on their device until they are logged, so that the host does not wait for the device at every batch.

    Args:
        accelerator (`Accelerator`): Knows the main process, the only one that logs, and the trackers.
        output_dir (`Path`): The run's folder.
        first_step (`int`): Steps done before; logged lines beyond are dropped.
        num_steps (`int`): Steps of the whole run.
        losses (`tuple` of `str`): Names of the losses, as the student's output has them; the total first.
        window (`dict`, *optional*): What [`state_dict`] gave at `first_step`, so that the next line is the same.
        monitored (`bool`, *optional*, defaults to `False`): Whether there will be a `monitors.jsonl`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        first_step: int,
        num_steps: int,
        losses: tuple[str, ...],
        window: dict[str, Any] | None = None,
        monitored: bool = False,
    ):
        self.accelerator = accelerator
        self.losses = losses
        self.first_step, self.step, self.num_steps = first_step, first_step, num_steps
        is_main_process, has_bar = accelerator.is_main_process, shows_bar(sys.stderr)
        self.metrics_log = MetricsLog(output_dir / "metrics.jsonl", first_step) if is_main_process else None
        # Without monitors, too, what was measured after the first step is of a run that does not go on.
        monitors = output_dir / "monitors.jsonl"
        has_monitors = is_main_process and (monitored or monitors.exists())
        self.monitor_log = MetricsLog(monitors, first_step) if has_monitors else None
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not (is_main_process and has_bar),
        )
        self._writes_lines = is_main_process and not has_bar
        self._started = time.perf_counter()
        self._pace_started: tuple[int, float] | None = None  # step and time from which the pace is measured
        self._has_told_time = False
        self._start_window()
        if window is not None:
            self._num_images, self._waited = window["num_images"], window["waited"]
            self._window_started -= window["elapsed"]
            if window["losses"]:
                losses = torch.tensor(window["losses"], device=accelerator.device)
                is_as_before = len(losses) == accelerator.num_processes
                self._losses = list(losses[accelerator.process_index] if is_as_before else losses.mean(dim=0))

    def _start_window(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []
        self._window_started, self._num_images, self._waited = time.perf_counter(), 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was counted since the last line of the log, as JSON knows it. Every process must call this, after [`check`]."""
        losses = []  # of each process, of each batch
        if self._losses:
            # Of each process, for their mean would be rounded otherwise than in the line of a run that was not stopped.
            losses = self.accelerator.gather(torch.stack(self._losses)[None]).tolist()
        return {
            "losses": losses,
            "num_images": self._num_images,
            "waited": self._waited,
            "elapsed": time.perf_counter() - self._window_started,
        }

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Iterate over `batches`, measuring how long each is waited for."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def update(self, output: ModelOutput, num_images: int) -> None:
        """Count a batch of `num_images` (of all processes) and its losses; one that was not computed counts as 0."""
        losses = [output.get(name, output.loss.new_zeros(())) for name in self.losses]
        self._losses.append(torch.stack([loss.detach().float() for loss in losses]))
        self._num_images += num_images

    def update_gradient(self, norm: torch.Tensor) -> None:
        """Count the norm of a step's gradient, before clipping."""
        self._gradient_norms.append(torch.as_tensor(norm).detach())

    def check(self, batches_per_step: int) -> None:
        """Raise [`NonFiniteLoss`] if a loss or a gradient counted since the last line of the log is not finite. A finite
        loss can have a gradient that is not.

        With float16 a step of such a gradient is left out by the gradient scaler, and does no harm.
        """
        losses = torch.stack(self._losses).tolist() if self._losses else []
        for number, batch in enumerate(losses):
            terms = [name for name, loss in zip(self.losses, batch, strict=True) if not isfinite(loss)]
            if terms:
                # The sum is named only where no term of it is to blame.
                raise NonFiniteLoss(len(losses) - 1 - number, terms[1:] or terms)
        if self.accelerator.mixed_precision == "fp16" or not self._gradient_norms:
            return
        for steps_ago, is_finite in enumerate(torch.stack(self._gradient_norms).isfinite().tolist()[::-1]):
            if not is_finite:
                raise NonFiniteLoss(steps_ago * batches_per_step, ["gradient"])

    def log(self, epoch: float | None, schedule: Mapping[str, float]) -> None:
        """Log mean losses and speed since the last line. Every process must call this."""
        means = self.accelerator.reduce(torch.stack(self._losses).mean(dim=0), reduction="mean").tolist()
        now = time.perf_counter()
        elapsed = now - self._window_started
        metrics = {
            "step": self.step,
            "epoch": round(epoch, 4),
            **dict(zip(self.losses, means, strict=True)),
            **schedule,
            "images_per_second": round(self._num_images / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 4),
        }
        if self.metrics_log is not None:
            self.metrics_log.write(metrics)
        terms = ", ".join(f"{name.removesuffix('_loss')} {metrics[name]:.3f}" for name in self.losses)
        values = f"{terms}, {metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait']:.0%}"
        self.bar.set_postfix_str(
            ", ".join(f"{name.removesuffix('_loss')[:5]} {metrics[name]:.3g}" for name in self.losses)
            + f", {metrics['images_per_second']:.0f} img/s, wait {metrics['data_wait']:.0%}"
        )
        if self._writes_lines:
            seconds_left = (now - self._started) / (self.step - self.first_step) * (self.num_steps - self.step)
            left = tqdm.format_interval(seconds_left)
            write_line(f"step {self.step:,}/{self.num_steps:,}, epoch {epoch:.4g}: {values}, {left} left")
        self.accelerator.log(metrics, step=self.step)
        self._start_window()

    def log_monitors(self, epoch: float, values: dict[str, float], warning: str | None = None) -> None:
        """Log what the monitors measured, and a warning."""
        if not values:
            return
        if self.monitor_log is not None:
            self.monitor_log.write({"step": self.step, "epoch": round(epoch, 4), **values})
            write_line(f"step {self.step:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
            if warning is not None:
                write_line(f"step {self.step:,}: {warning}")
        self.accelerator.log({f"monitors/{name}": value for name, value in values.items()}, step=self.step)

    def log_preview(self, path: Path) -> None:
        """Give the trackers a preview that was saved."""
        if self.accelerator.is_main_process and path.exists():
            log_image(self.accelerator, "preview", path, self.step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the time of the block out of the logged speed."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self._window_started += elapsed
        if self._pace_started is not None:
            step, pace_started = self._pace_started
            self._pace_started = (step, pace_started + elapsed)

    def sync_logs(self) -> None:
        """Have all that was logged on the disk, before a checkpoint counts on it."""
        for log in (self.metrics_log, self.monitor_log):
            if log is not None:
                log.sync()

    def count_step(self) -> None:
        """Count one more step that is done."""
        self.step += 1
        self.bar.update()
        if not self._has_told_time:
            self._tell_time()

    def _tell_time(self) -> None:
        """Say how long the rest of the run takes, as soon as some steps tell."""
        now, done = time.perf_counter(), self.step - self.first_step
        if done == WARMUP_STEPS:
            self._pace_started = (self.step, now)
        if self._pace_started is None:
            return
        step, started = self._pace_started
        measured = self.step - step
        if measured >= PACE_STEPS or (measured and now - self._started >= PACE_SECONDS):
            self._has_told_time = True
            pace, left = (now - started) / measured, self.num_steps - self.step
            if left > 0 and self.metrics_log is not None:
                write_line(
                    f"expected: about {describe_duration(pace * left)} for the other {counted(left, 'step')} on "
                    f"{self.accelerator.device.type} ({pace:.2g} s a step), monitors and previews not counted"
                )

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
