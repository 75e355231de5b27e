"""Runs of contenders, taken in turns; seconds of each stage of a step; memory; the machine."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import accelerate
import datasets
import PIL
import psutil
import torch
import torchvision
import transformers
from reporting import processor_name

OTHER, TOTAL = "other", "total"


class Contender(Protocol):
    """
    Something that trains.

    Args:
        name (`str`): What tables call it.
        num_views (`int`): Views of each image that a step learns from.
        batch_size (`int`): Images in a batch.
        num_workers (`int`): Processes that read ahead for it.
        flops_per_image (`int`): Of its networks' forward and backward passes, counted; 0 where it has none.
    """

    name: str
    num_views: int
    batch_size: int
    num_workers: int
    flops_per_image: int

    def batches(self, count: int) -> Iterator[Any]:
        """So many batches; closing the generator ends what reads ahead for it."""

    def train_on(self, batch: Any) -> torch.Tensor:
        """One whole step; gives the loss."""


@dataclass(frozen=True)
class Length:
    """
    How long a run is.

    Args:
        warmup_steps (`int`): Steps before the clock starts.
        steps (`int`): Measured steps, unless the time is over before.
        seconds (`float`): After this time a run ends, with the step that it is at.
    """

    warmup_steps: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One run of a contender: `steps`, their `images`, all `seconds`, and the seconds `waited` for data."""

    steps: int
    images: int
    seconds: float
    waited: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def data_wait(self) -> float:
        return self.waited / self.seconds


class TimeIsUp(Exception):
    """The time that the user allows is over."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_run(contender: Contender, device: torch.device, length: Length) -> Run:
    """Measure the time of a contender's training."""
    # Workers have read ahead by the end of a slow first step, two batches each: what they did then must not count.
    num_warmup_steps = length.warmup_steps + 2 * contender.num_workers
    with closing(contender.batches(num_warmup_steps + length.steps)) as batches:
        for _ in range(num_warmup_steps):
            contender.train_on(next(batches))
        synchronize(device)
        started, waited, steps = time.perf_counter(), 0.0, 0
        while steps < length.steps and (steps == 0 or time.perf_counter() - started < length.seconds):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            contender.train_on(batch)
            steps += 1
        synchronize(device)
        return Run(steps, steps * contender.batch_size, time.perf_counter() - started, waited)


def take_turns(
    contenders: Sequence[Contender],
    device: torch.device,
    num_runs: int,
    length: Length,
    runs: dict[str, list[Run]],
    deadline: float = float("inf"),
) -> None:
    """Let the contenders run one after the other, and that several times, so that a busy moment of the machine hits all.

    Args:
        runs (`dict`): Gets each contender's runs by its name, as they are done: an interruption leaves those before.
        deadline (`float`, *optional*): Of `time.monotonic()`.

    Raises:
        [`TimeIsUp`]: Before the first run behind the deadline.
    """
    for _ in range(num_runs):
        for contender in contenders:
            if time.monotonic() > deadline:
                raise TimeIsUp
            runs.setdefault(contender.name, []).append(time_run(contender, device, length))
            if device.type != "cpu":
                torch.accelerator.empty_cache()  # what one holds back, the next may need


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians of the runs, and the runs."""
    return {
        "images_per_second": statistics.median(run.images_per_second for run in runs),
        "seconds_per_step": statistics.median(run.seconds / run.steps for run in runs),
        "data_wait": statistics.median(run.data_wait for run in runs),
        "runs": [asdict(run) for run in runs],
    }


class StageClock:
    """
    Adds up how long the stages of a step take, the device's work included. It waits for the device at both ends of each
    stage, so nothing overlaps: a step takes longer than without.

    Args:
        device (`torch.device`): Which device to wait for.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block as this stage; a stage within a stage is part of the outer one."""
        if self._running:
            yield
            return
        self._running = True
        synchronize(self.device)
        started = time.perf_counter()
        try:
            yield
            synchronize(self.device)
        finally:
            self._running = False
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def timed(self, function: Callable, name: str) -> Callable:
        def call(*arguments, **settings):
            with self.stage(name):
                return function(*arguments, **settings)

        return call

    @contextmanager
    def watching(self, functions: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Time every call of these functions while the block lasts.

        Args:
            functions (sequence of (owner, attribute, stage)): Each is looked up in its owner, and put back in the end.

        Raises:
            `AttributeError`: If an owner has no such attribute.
        """
        with ExitStack() as stack:
            for owner, attribute, stage in functions:
                stack.enter_context(replaced(owner, attribute, self.timed(getattr(owner, attribute), stage)))
            yield


@contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an object or module inside the block."""
    # Past a network's own bookkeeping, which takes nothing but modules in a module's place.
    own = vars(owner)
    had, before = attribute in own, own.get(attribute)
    own[attribute] = value
    try:
        yield
    finally:
        if had:
            own[attribute] = before
        else:
            del own[attribute]


def median_stages(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each stage over steps; `other` is what lies between the stages, `total` the whole step."""
    stages = list(dict.fromkeys(name for step in steps for name in step if name != TOTAL))
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in stages}
    between = [step[TOTAL] - sum(step.get(name, 0.0) for name in stages) for step in steps]
    return {**medians, OTHER: statistics.median(between), TOTAL: statistics.median(step[TOTAL] for step in steps)}


class PeakMemory(AbstractContextManager):
    """
    The most memory that the block takes, beyond what was taken before it: PyTorch's on an accelerator, resident memory
    of this process on a CPU. After the block it is in `bytes`; `None` where the system does not count it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cpu":
            _give_free_memory_back()
            self._resets = _reset_peak_resident()
            self._before = psutil.Process().memory_info().rss
        else:
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats(self.device)
            self._before = torch.accelerator.memory_allocated(self.device)
        return self

    def __exit__(self, *exception) -> None:
        if self.device.type != "cpu":
            self.bytes = torch.accelerator.max_memory_allocated(self.device) - self._before
        elif self._resets:
            self.bytes = max(0, _peak_resident() - self._before)


def _give_free_memory_back() -> None:
    """What earlier work has left in the allocator would be used again, and look as if it cost nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _reset_peak_resident() -> bool:
    """Have the kernel reset the peak (Linux, proc(5)). Returns whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _peak_resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine of the figures: processor, accelerator, threads, versions."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_at_start": os.getloadavg()[0],
        "device": device.type if device.type != "cuda" else torch.cuda.get_device_name(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            module.__name__: module.__version__
            for module in (torch, torchvision, transformers, accelerate, datasets, PIL)
        },
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }
