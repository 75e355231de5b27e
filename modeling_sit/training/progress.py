"""What a run tells while it goes: its losses, its speed, and what it waits for."""

import time
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from modeling_sit.modeling_sit import SiTForPreTrainingOutput
from modeling_sit.training.metrics_log import MetricsLog

LOSSES = ("loss", "reconstruction_loss", "contrastive_loss")


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


class RunProgress:
    """
    Gathers losses and times batch by batch, and tells them: progress bar, `metrics.jsonl`, Accelerate's trackers.

    Losses stay on their device until they are told, so that the host does not wait for the device at every batch.

    Args:
        accelerator (`Accelerator`): Knows the main process, the only one that tells, and the trackers.
        output_dir (`Path`): The run's folder.
        first_step (`int`): Steps done before; logged lines beyond are dropped.
        num_steps (`int`): Steps of the whole run.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, first_step: int, num_steps: int):
        self.accelerator = accelerator
        self.log = MetricsLog(output_dir / "metrics.jsonl", first_step) if accelerator.is_main_process else None
        self.bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=not accelerator.is_main_process)
        self._start_window()

    def _start_window(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []
        self._start, self._num_pictures, self._waited = time.perf_counter(), 0, 0.0

    def wait_for(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Iterate over `batches`, measuring how long each is waited for."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, output: SiTForPreTrainingOutput, num_pictures: int) -> None:
        """Count a batch of `num_pictures` (of all processes) and its losses; one that was not computed counts as 0."""
        losses = [output.get(name, output.loss.new_zeros(())) for name in LOSSES]
        self._losses.append(torch.stack([loss.detach().float() for loss in losses]))
        self._num_pictures += num_pictures

    def count_gradient(self, norm: torch.Tensor) -> None:
        """Count the norm of a step's gradient, before clipping."""
        self._gradient_norms.append(torch.as_tensor(norm).detach())

    def check_gradients(self, batches_per_step: int) -> None:
        """Raise [`NonFiniteLoss`] if a gradient since the last telling is not finite, for a finite loss can have one.

        With float16 such a step is left out by the gradient scaler, and does no harm.
        """
        if self.accelerator.mixed_precision == "fp16" or not self._gradient_norms:
            return
        for steps_ago, is_finite in enumerate(torch.stack(self._gradient_norms).isfinite().tolist()[::-1]):
            if not is_finite:
                raise NonFiniteLoss(steps_ago * batches_per_step, ["gradient"])

    def check_losses(self) -> None:
        """Raise [`NonFiniteLoss`] if a loss since the last telling is not finite."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        for number, batch in enumerate(losses):
            terms = [name for name, loss in zip(LOSSES, batch, strict=True) if not isfinite(loss)]
            if terms:
                # The sum is named only where no term of it is to blame.
                raise NonFiniteLoss(len(losses) - 1 - number, terms[1:] or terms)

    def tell(self, step: int, epoch: float, schedule: dict[str, float]) -> None:
        """Tell mean losses and speed since the last telling, after `step` steps. Every process must call this."""
        means = self.accelerator.reduce(torch.stack(self._losses).mean(dim=0), reduction="mean").tolist()
        elapsed = time.perf_counter() - self._start
        metrics = {
            "step": step,
            "epoch": round(epoch, 4),
            **dict(zip(LOSSES, means, strict=True)),
            **schedule,
            "images_per_second": round(self._num_pictures / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 4),
        }
        if self.log is not None:
            self.log.write(metrics)
        self.bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}, reconstruction {metrics['reconstruction_loss']:.3f}, contrast "
            f"{metrics['contrastive_loss']:.3f}, {metrics['images_per_second']:.0f} images/s, data wait "
            f"{metrics['data_wait']:.0%}"
        )
        self.accelerator.log(metrics, step=step)
        self._start_window()

    def advance(self) -> None:
        """One more step is done."""
        self.bar.update()

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
