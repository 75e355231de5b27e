#!/usr/bin/env python
"""How fast is pretraining, where does the time go, and how close is this to the limit of the machine?

    python scripts/benchmarks/pretraining_throughput.py --profile cpu|gpu|smoke [--dataset IMAGES] [--output FILE.json]
    python scripts/benchmarks/pretraining_throughput.py --profile cpu --sweep all --output FILE.json --figure FILE.png

These take turns in one process, with the same encoder, images and batch: our run from JPEG files, our step on images that are
already on the device, the networks alone, a plain reference of our step, and transformers' ViTMAEForPreTraining and
ViTForMaskedImageModeling. The report has medians of several runs, without the first steps. transformers' models see one view of
an image in a step; ours and the plain reference see two. Ctrl-C reports the results until then.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from throughput import ours
from throughput.arguments import ThroughputArguments
from throughput.arithmetic import matrix_rate
from throughput.drawing import sweeps_figure
from throughput.linearity import describe_growth
from throughput.measuring import (
    Contender,
    Length,
    PeakMemory,
    Run,
    TimeIsUp,
    describe_machine,
    median_stages,
    summary,
    take_turns,
    time_run,
)
from throughput.photographs import HEIGHT, WIDTH, write_photographs
from throughput.plain import PlainReference
from throughput.report import describe_report
from throughput.scenarios import Entry, Scenario, Sweep, create_scenarios, create_sweeps
from throughput.transformers_models import create_mae, create_mim
from transformers.utils import logging as transformers_logging

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import ExampleHelpFormatter, RecipeArgumentParser
from modeling_sit.hub.provenance import typed_command
from modeling_sit.runtime.accelerator import create_accelerator
from modeling_sit.runtime.errors import SiTError

NUM_IMAGES = {"cpu": 512, "gpu": 2048, "smoke": 16}
TIME_LIMITS = {"cpu": None, "gpu": 9.0, "smoke": None}  # minutes
NUM_STAGED_STEPS = 4
# Of bfloat16's matrix rate against float32's: some of it is lost to conversions.
BF16_PAYS = 1.3
INTERRUPTED = "interrupted"


@dataclass
class Bench:
    """
    What all measurements have in common.

    Args:
        arguments (`ThroughputArguments`): The flags.
        accelerator (`Accelerator`): One for all, for a process has one precision.
        dataset (`str`): The images.
        folder (`Path`): Temporary, for what runs would write.
        deadline (`float`): Of `time.monotonic()`, after which no run begins.
        matrix_rates (`dict`): FLOPs a second by precision.
        prepared (`dict`): Networks of our runs by their flags: contenders of one scenario share them.
    """

    arguments: ThroughputArguments
    accelerator: Accelerator
    dataset: str
    folder: Path
    deadline: float
    matrix_rates: dict[str, float]
    prepared: dict[tuple, Any] = field(default_factory=dict)

    def flags(self, scenario: Scenario, entry: Entry | None = None):
        """Of `modeling-sit pretrain`, for a contender."""
        flags = {**scenario.flags, **({} if entry is None else entry.flags)}
        # Images that are kept on the disk are not to be found there by the next measurement.
        if flags.get("image_cache", "auto") in ("auto", "disk"):
            flags["image_cache_dir"] = self.folder / "cache"
        return ours.parse_flags(dataset=self.dataset, output_dir=self.folder / "run", **flags)

    def prepare(self, scenario: Scenario, flags: dict[str, Any]):
        """The networks of these flags, beside the scenario's."""
        key = tuple(sorted(flags.items()))
        if key not in self.prepared:
            self.prepared[key] = ours.prepare(self.flags(scenario, Entry("", "", flags)), self.accelerator)
        return self.prepared[key]

    def create(self, scenario: Scenario, entry: Entry) -> Contender:
        if entry.kind in ("files", "synthetic", "bare"):
            kinds = {"files": ours.OurRun, "synthetic": ours.SyntheticRun, "bare": ours.BareArithmetic}
            return kinds[entry.kind](entry.name, self.prepare(scenario, entry.flags))
        # What images and sizes are is asked of a run of ours.
        flags = next((other.flags for other in scenario.entries if other.kind == "files"), {})
        run = self.prepare(scenario, flags)
        config = run.method.config
        shared = {
            "images": run.data.images.train,
            "processor": run.method.processor,
            "batch_size": run.flags.run.per_device_train_batch_size,
            "num_workers": ours.num_workers_of(run),
        }
        if entry.kind == "plain":
            return PlainReference(
                entry.name,
                run.method.student,
                views=run.flags.views,
                schedule=run.schedule,
                attention=self.arguments.plain_attention,
                flops_per_image=ours.count_pretraining_flops(config),
                **shared,
            )
        create = {"mae": create_mae, "mim": create_mim}[entry.kind]
        return create(entry.name, config, accelerator=self.accelerator, **shared)

    def forget(self) -> None:
        """Free what the scenario's contenders hold."""
        self.prepared.clear()
        self.accelerator.free_memory()
        gc.collect()
        if self.accelerator.device.type != "cpu":
            torch.accelerator.empty_cache()

    def matrix_rate(self, kind: str) -> float:
        return self.matrix_rates["no" if kind == "plain" else self.accelerator.mixed_precision]


def main() -> None:
    parser = RecipeArgumentParser((ThroughputArguments,), description=__doc__, formatter_class=ExampleHelpFormatter)
    with one_line_errors(parser.flags):
        (arguments,) = parser.parse()
        measure(arguments)


def measure(arguments: ThroughputArguments) -> None:
    """Measure what the flags ask for, print it, and write it."""
    figure = figure_path(arguments)
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    accelerator = create_bench_accelerator(arguments)
    minutes = arguments.time_limit or TIME_LIMITS[arguments.profile]
    report: dict[str, Any] = {
        "command": typed_command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "flags": vars(arguments),
        "machine": describe_machine(accelerator.device),
        "images": describe_images(arguments),
        "matrix_rates": {},
        "scenarios": [],
        "sweeps": [],
        "stopped": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            report["matrix_rates"] |= measure_matrix_rates(accelerator)
            bench = Bench(
                arguments,
                accelerator,
                arguments.dataset or str(write_photographs(Path(folder) / "images", num_images(arguments))),
                Path(folder),
                deadline=float("inf") if minutes is None else started + 60 * minutes,
                matrix_rates=report["matrix_rates"],
            )
            if arguments.sweep:
                for sweep in create_sweeps(arguments):
                    measure_sweep(bench, sweep, report["sweeps"])
            else:
                for scenario in choose_scenarios(arguments):
                    measure_scenario(bench, scenario, report["scenarios"])
        except KeyboardInterrupt:
            report["stopped"] = INTERRUPTED
        except TimeIsUp:
            report["stopped"] = f"the time limit of {minutes:g} minutes is over"
    report["seconds"] = time.monotonic() - started
    tell(report, arguments, figure)
    if report["stopped"] == INTERRUPTED:
        raise KeyboardInterrupt


def figure_path(arguments: ThroughputArguments) -> Path | None:
    """The file for the curves of a sweep."""
    if not arguments.sweep:
        if arguments.figure is not None:
            raise SiTError(f"--figure {arguments.figure}: only a sweep has curves; give --sweep, or leave this out")
        return None
    if arguments.figure is None and arguments.output is None:
        raise SiTError("--sweep draws curves: give --figure FILE.png, or --output FILE.json to have them beside it")
    return Path(arguments.figure or Path(arguments.output).with_suffix(".png"))


def create_bench_accelerator(arguments: ThroughputArguments) -> Accelerator:
    on_gpu = arguments.profile == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise SiTError("--profile gpu: PyTorch finds no CUDA device here; use --profile cpu")
    return create_accelerator(cpu=not on_gpu, mixed_precision=arguments.mixed_precision or choose_precision(arguments))


def choose_precision(arguments: ThroughputArguments) -> str:
    """The precision that pays on this machine. Most CPUs emulate bfloat16, and are slower in it; newer ones have
    instructions for it."""
    if arguments.profile != "cpu":
        return {"gpu": "bf16", "smoke": "no"}[arguments.profile]
    cpu = torch.device("cpu")
    pays = matrix_rate(cpu, torch.bfloat16) > BF16_PAYS * matrix_rate(cpu, torch.float32)
    return "bf16" if pays else "no"


def num_images(arguments: ThroughputArguments) -> int:
    return arguments.num_images or NUM_IMAGES[arguments.profile]


def describe_images(arguments: ThroughputArguments) -> str:
    if arguments.dataset is not None:
        return f"images of {arguments.dataset}"
    return f"{num_images(arguments):,} made-up JPEG files of {WIDTH} x {HEIGHT} pixels"


def measure_matrix_rates(accelerator: Accelerator) -> dict[str, float]:
    """FLOPs a second in the run's precision, and in float32, which the plain reference has."""
    dtypes = {"no": torch.float32, "bf16": torch.bfloat16}
    return {name: matrix_rate(accelerator.device, dtypes[name]) for name in {"no", accelerator.mixed_precision}}


def choose_scenarios(arguments: ThroughputArguments) -> list[Scenario]:
    scenarios = create_scenarios(arguments)
    names = [scenario.name for scenario in scenarios]
    for name in arguments.scenarios:
        if name not in names:
            raise SiTError(f"--scenarios {name}: --profile {arguments.profile} has {', '.join(names)}")
    return [scenario for scenario in scenarios if not arguments.scenarios or scenario.name in arguments.scenarios]


def measure_scenario(bench: Bench, scenario: Scenario, results: list[dict[str, Any]]) -> None:
    """Measure the contenders of a scenario. `results` has what is known, also after an interruption."""
    result = {
        "name": scenario.name,
        "title": scenario.title,
        "flags": scenario.flags,
        "batch_size": scenario.flags["per_device_train_batch_size"],
        "contenders": [],
        "reading": [],
    }
    results.append(result)
    narrate(f"{scenario.title}: preparing")
    if scenario.reads:
        measure_reading(bench, scenario, result["reading"])
    runs: dict[str, list[Run]] = {}
    contenders = []
    try:
        for entry in scenario.entries:
            contender, told = try_contender(bench, scenario, entry)
            result["contenders"].append(told)
            if contender is not None:
                contenders.append(contender)
        narrate(f"{scenario.title}: {len(contenders)} contenders, {scenario.runs} runs each")
        length = Length(scenario.warmup_steps, scenario.steps, bench.arguments.seconds)
        take_turns(contenders, bench.accelerator.device, scenario.runs, length, runs, bench.deadline)
    finally:
        # A busy moment hides what the device can: the best of all moments counts.
        for name, rate in measure_matrix_rates(bench.accelerator).items():
            bench.matrix_rates[name] = max(rate, bench.matrix_rates[name])
        summarize(bench, result["contenders"], runs)
        contenders.clear()
        bench.forget()


def try_contender(bench: Bench, scenario: Scenario, entry: Entry) -> tuple[Contender | None, dict[str, Any]]:
    """Make a contender and let it take a few steps, for what they take of memory, and of our run from files the stages."""
    told: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "flags": entry.flags, "views": 2}
    if time.monotonic() > bench.deadline:
        raise TimeIsUp
    has_networks = entry.kind in ("plain", "mae", "mim") or tuple(sorted(entry.flags.items())) not in bench.prepared
    if entry.kind in ("plain", "mae", "mim"):  # what they ask of our run is not their memory
        bench.prepare(scenario, next((other.flags for other in scenario.entries if other.kind == "files"), {}))
    stages = []
    try:
        with PeakMemory(bench.accelerator.device) as memory:
            contender = bench.create(scenario, entry)
            if entry.kind == "files":
                stages = contender.time_stages(scenario.warmup_steps, min(scenario.steps, NUM_STAGED_STEPS))
            else:
                time_run(contender, bench.accelerator.device, Length(0, 1, bench.arguments.seconds))
    except torch.OutOfMemoryError:
        return None, {**told, "error": "out of memory"}
    return contender, {
        **told,
        "views": contender.num_views,
        "num_workers": contender.num_workers,
        "batch_size": contender.batch_size,
        "flops_per_image": contender.flops_per_image,
        # Of contenders that share their networks, the first has taken what they take.
        "peak_memory_bytes": memory.bytes if has_networks else None,
        "stages": median_stages(stages) if stages else None,
        "stage_steps": stages,
    }


def summarize(bench: Bench, contenders: list[dict[str, Any]], runs: dict[str, list[Run]]) -> None:
    """Add medians, and their ratios to the plain reference's and to those of the networks alone."""
    for contender in contenders:
        if runs.get(contender["name"]):
            contender |= summary(runs[contender["name"]])
            rate = bench.matrix_rate(contender["kind"])
            contender["utilization"] = contender["images_per_second"] * contender["flops_per_image"] / rate
    measured = [contender for contender in contenders if contender.get("runs")]
    plain = [contender for contender in measured if contender["kind"] == "plain"]
    bare = [contender for contender in measured if contender["kind"] == "bare"]
    for contender in measured:
        # The networks alone as this contender has them: compiled or not.
        alike = [other for other in bare if _is_compiled(other) == _is_compiled(contender)]
        for name, others in (("times_plain", plain), ("times_bare", alike)):
            speeds = [other["images_per_second"] for other in others]
            contender[name] = contender["images_per_second"] / speeds[0] if speeds else None


def _is_compiled(contender: dict[str, Any]) -> bool:
    return bool(contender["flags"].get("torch_compile"))


def measure_reading(bench: Bench, scenario: Scenario, readings: list[dict[str, Any]]) -> None:
    """Measure the time of epochs that only read: without a cache, and with one that is empty at first."""
    for entry in scenario.entries:
        if entry.kind == "files" and not _is_compiled({"flags": entry.flags}):
            narrate(f"{scenario.title}: reading, {entry.name}")
            reading = ours.time_reading(bench.flags(scenario, entry), bench.accelerator, num_epochs=2)
            readings.append({"cache": entry.flags.get("image_cache", "none"), **reading})
            bench.forget()


def measure_sweep(bench: Bench, sweep: Sweep, results: list[dict[str, Any]]) -> None:
    """Measure how the cost grows with one size. `results` has what is known, also after an interruption."""
    result: dict[str, Any] = {
        "name": sweep.name,
        "title": sweep.title,
        "x_label": sweep.x_label,
        "y_label": sweep.y_label,
        "flags": sweep.scenario.flags,
    }
    scenarios: list[dict[str, Any]] = []
    try:
        measure_scenario(bench, sweep.scenario, scenarios)
    finally:
        result["contenders"] = scenarios[0]["contenders"]
        result["points"] = [
            sweep_point(sweep, size, contender)
            for size, contender in zip(sweep.sizes, result["contenders"], strict=False)
            if contender.get("runs")
        ]
        if len(result["points"]) > 1:
            x, y = ([point[name] for point in result["points"]] for name in ("x", "y"))
            result["growth"] = describe_growth(sweep.title, sweep.x_label, sweep.y_label, x, y)
            if sweep.name == "image_size":
                first = result["points"][0]
                for point in result["points"]:
                    point["arithmetic"] = first["y"] * point["flops_per_image"] / first["flops_per_image"]
        results.append(result)


def sweep_point(sweep: Sweep, size: int | str, contender: dict[str, Any]) -> dict[str, Any]:
    """The point of a contender on the curve."""
    per_image = [run["seconds"] / run["images"] for run in contender["runs"]]
    if sweep.name == "batch":
        x, values = size, [run["seconds"] / run["steps"] for run in contender["runs"]]
    elif sweep.name == "workers":
        x, values = size, [1 / seconds for seconds in per_image]
    elif sweep.name == "image_size":
        x, values = (size // sweep.scenario.flags.get("patch_size", 16)) ** 2, per_image
    else:
        x, values = contender["flops_per_image"] / 1e9, per_image
    return {
        "size": size,
        "x": x,
        "y": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "data_wait": contender["data_wait"],
        "flops_per_image": contender["flops_per_image"],
        "utilization": contender["utilization"],
    }


def narrate(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tell(report: dict[str, Any], arguments: ThroughputArguments, figure: Path | None) -> None:
    """Print the tables; write the figures, and the curves."""
    print("\n" + describe_report(report))
    if arguments.output is not None:
        write(
            Path(arguments.output),
            lambda path: path.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8"),
        )
    drawn = [sweep for sweep in report["sweeps"] if sweep["points"]]
    if figure is not None and drawn:
        machine = report["machine"]
        where = (
            f"{machine['processor']}, {machine['threads']} threads"
            if machine["device"] == "cpu"
            else machine["device"]
        )
        subtitle = f"Our step on {where}: medians and ranges of runs"
        write(figure, lambda path: sweeps_figure(drawn, subtitle).savefig(path, dpi=150))


def write(path: Path, save: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
    except (OSError, ValueError) as problem:
        raise SiTError(f"{path} cannot be written: {problem}") from problem


if __name__ == "__main__":
    main()
