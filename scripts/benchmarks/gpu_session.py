#!/usr/bin/env python
"""What a GPU is worth in ten minutes: its tests, the throughput of pretraining, and two models, with one command.

    python scripts/benchmarks/gpu_session.py --flowers12 FLOWERS --cifar10 CIFAR10 --output_dir outputs/gpu [--wheels WHEELS]
    python scripts/benchmarks/gpu_session.py --profile smoke --output_dir outputs/smoke

Its parts are `tests` (`pytest -m gpu`), `throughput` (`pretraining_throughput.py --profile gpu`), and `flowers12` and `cifar10`
(`timed_training.py` on these folders, for the minutes that are left). Each part has a time of its own. If one fails or is too slow,
the others go on. `results.json`, `results.md` and the logs are written after every part, and hold what is known until then. The
program ends with code 0 if all parts are done, else with 1. Test images are not used unless `--split test` says so.

Packages that are missing are named before anything runs. On a machine without a network, `--wheels` installs those of a folder,
for this session only.
"""

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from session.packages import how_to_bring, install_wheels, missing_packages, requirements_of
from session.parts import Part, PartResult, limit_of, run_part
from session.report import describe_session

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("tests", "throughput", "flowers12", "cifar10")
# Shares of the time that is left when a part starts, among those of the parts from there on; and minutes at most for the parts that
# end by themselves.
WEIGHTS = {"tests": 25, "throughput": 30, "flowers12": 16, "cifar10": 29}
MAX_MINUTES = {"tests": 3.0, "throughput": 4.0}
# What is left to write the report, of all seconds.
REPORTING = 0.01
# The plain reference and transformers' models would take most of the time; the whole benchmark has them.
CONTENDERS = ["--contenders", "files", "synthetic", "bare"]
LOOK_AT_MACHINE = """
import json, os, accelerate, torch, torchvision, transformers
has_gpu = torch.cuda.is_available()
print(json.dumps({
    "device": torch.cuda.get_device_name() if has_gpu else "CPU",
    "memory": torch.cuda.get_device_properties(0).total_memory if has_gpu else None,
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "versions": {module.__name__: module.__version__ for module in (torch, torchvision, transformers, accelerate)},
    "has_gpu": has_gpu,
}))
"""


class Terminated(Exception):
    """SIGTERM."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder for results.json, results.md and logs/")
    add("--flowers12", help="labeled images of a few hundred flowers, a folder with train.parquet and test.parquet")
    add("--cifar10", help="labeled images of 32 pixels, a folder with train.parquet and test.parquet")
    add(
        "--profile",
        choices=("gpu", "smoke"),
        default="gpu",
        help="`smoke`: tiny sizes on a CPU, digits for both folders",
    )
    add(
        "--minutes",
        type=float,
        default=10.0,
        help="for everything; default: 10. `smoke` needs one or two on an idle machine",
    )
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run; default: all")
    add("--wheels", type=Path, help="folder of wheels of the packages that are missing here")
    add(
        "--split",
        choices=("held_out", "test"),
        default="held_out",
        help="what the models are measured on; default: held_out",
    )
    add("--pretraining_recipe", help="recipe for the models, in place of the settings of timed_training.py")
    add("--torch_compile", action="store_true", help="compile the models that are trained; it takes a minute of each")
    add("--dry_run", action="store_true", help="say what is missing, and what would be run")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {arguments.minutes}")
    for name in ("flowers12", "cifar10"):
        folder = getattr(arguments, name)
        if folder is not None and folder != "digits" and not Path(folder).exists():
            parser.error(f"--{name} {folder}: no such folder")
        if folder is not None and folder != "digits":
            setattr(arguments, name, str(Path(folder).resolve()))
    if arguments.pretraining_recipe is not None and Path(arguments.pretraining_recipe).is_file():
        arguments.pretraining_recipe = str(Path(arguments.pretraining_recipe).resolve())
    if arguments.wheels is not None and not arguments.wheels.is_dir():
        parser.error(f"--wheels {arguments.wheels}: no such folder")
    return arguments


def main() -> None:
    started = time.monotonic()
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare_environment(arguments, Path(folder))
        parts = create_parts(arguments, Path(folder))
        if arguments.dry_run:
            describe_plan(parts, arguments)
            return
        sys.exit(run_session(arguments, parts, environment, started))


def prepare_environment(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Variables for the parts, after a look at the packages.

    Raises:
        `SystemExit`: With code 1, and what is missing on stderr.
    """
    paths = [str(ROOT)]
    if arguments.wheels is not None:
        problem = install_wheels(arguments.wheels, folder / "packages")
        if problem is not None:
            sys.exit(f"error: --wheels {arguments.wheels}: {problem}")
        paths.append(str(folder / "packages"))
    missing = missing_packages([*requirements_of(ROOT / "setup.cfg", ["train"]), "pytest"])
    if missing:
        sys.exit(f"error: these packages are missing: {', '.join(missing)}\n{how_to_bring(missing)}")
    earlier = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([earlier] if earlier else [])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        # torchao, where it is installed, has PyTorch warn of itself.
        "TORCH_LOGS": os.environ.get("TORCH_LOGS", "-torch.utils._pytree"),
    }
    if arguments.profile == "smoke":
        # Tiny models are slower with several threads, and much slower where other programs run.
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment["ACCELERATE_USE_CPU"] = "true"
    return environment


def create_parts(arguments: argparse.Namespace, folder: Path) -> list[Part]:
    """The parts that are asked for; those without images have the reason."""
    parts = []
    for name in PARTS:
        if name not in arguments.parts:
            continue
        missing = None
        if name == "tests":
            command = partial(tests_command, folder / "tests.xml")
            read = partial(read_tests, folder / "tests.xml", arguments.profile)
        elif name == "throughput":
            command = partial(throughput_command, folder / "throughput.json", arguments.profile)
            read = partial(read_throughput, folder / "throughput.json")
        else:
            dataset = getattr(arguments, name) or ("digits" if arguments.profile == "smoke" else None)
            missing = None if dataset else f"no folder of images: give --{name} FOLDER"
            command = partial(training_command, dataset, folder / f"{name}.json", arguments)
            read = partial(read_training, folder / f"{name}.json")
        most = 60 * MAX_MINUTES.get(name, float("inf"))
        parts.append(Part(name, command, WEIGHTS[name], most, read, missing))
    return parts


def tests_command(output: Path, seconds: float) -> list[str]:
    # Of the whole suite the other files need packages of their own only to be looked through.
    tests = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    one_process = ["-n", "0"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *one_process, "-q", "--tb=short", "-p", "no:cacheprovider"]
    return [*command, f"--junitxml={output}", *(str(path.relative_to(ROOT)) for path in tests)]


def throughput_command(output: Path, profile: str, seconds: float) -> list[str]:
    command = [sys.executable, str(HERE / "pretraining_throughput.py"), "--profile", profile, "--output", str(output)]
    # A run that has begun by then goes on to its end.
    limit = ["--time_limit", f"{0.8 * seconds / 60:.3f}"]
    return [*command, *CONTENDERS, *limit, *(["--steps", "1", "--num_images", "8"] if profile == "smoke" else [])]


def training_command(dataset: str, output: Path, arguments: argparse.Namespace, seconds: float) -> list[str]:
    command = [sys.executable, str(HERE / "timed_training.py"), "--dataset", dataset, "--profile", arguments.profile]
    command += ["--seconds", f"{seconds:.1f}", "--split", arguments.split, "--output", str(output)]
    if arguments.pretraining_recipe is not None:
        command += ["--pretraining_recipe", arguments.pretraining_recipe]
    return [*command, *(["--torch_compile"] if arguments.torch_compile else [])]


def read_tests(path: Path, profile: str) -> tuple[dict[str, Any], str | None]:
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    results = {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "failures": [
            f"{case.get('classname')}::{case.get('name')}"
            for suite in suites
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ],
    }
    return results, "no test ran" if profile == "gpu" and not results["passed"] else None


def read_throughput(path: Path) -> tuple[dict[str, Any], str | None]:
    report = json.loads(path.read_text(encoding="utf-8"))
    scenarios = {scenario["name"]: scenario["contenders"] for scenario in report["scenarios"]}
    measured = [contender for contenders in scenarios.values() for contender in contenders if contender.get("runs")]
    end_to_end = [contender for contender in measured if contender["kind"] == "files"]
    fastest = max(end_to_end, key=lambda contender: contender["images_per_second"], default=None)
    results: dict[str, Any] = {
        "profile": report["flags"]["profile"],
        "stopped": report["stopped"],
        "finished": report["stopped"] != "interrupted",
        "matrix_rates": report["matrix_rates"],
        "scenarios": {
            name: [
                {key: value for key, value in contender.items() if key != "stage_steps"} for contender in contenders
            ]
            for name, contenders in scenarios.items()
        },
        "reading": {scenario["name"]: scenario["reading"] for scenario in report["scenarios"]},
        "fastest": fastest
        and {name: fastest[name] for name in ("name", "batch_size", "images_per_second", "data_wait")},
    }
    if fastest is not None and fastest["stages"]:
        stages = {name: seconds for name, seconds in fastest["stages"].items() if name != "total"}
        results |= {"staged": fastest["name"], "stages": stages}
    return results, None if fastest is not None else "no run from files was measured"


def read_training(path: Path) -> tuple[dict[str, Any], str | None]:
    results = json.loads(path.read_text(encoding="utf-8"))
    return results, None if results.get("finished") else "not all was measured"


def describe_plan(parts: list[Part], arguments: argparse.Namespace) -> None:
    """Print what would be run, if each part took all of its time."""
    left = 60 * arguments.minutes * (1 - REPORTING)
    for part in parts:
        if part.missing is not None:
            print(f"{part.name}: left out, {part.missing}")
            continue
        limit = limit_of(part, parts, left)
        print(f"{part.name}, at most {limit:.0f} s of {left:.0f}: {shlex.join(part.command(limit))}")
        left -= limit


def run_session(arguments: argparse.Namespace, parts: list[Part], environment: dict[str, str], started: float) -> int:
    """Run all parts, and write the report. Gives the exit code."""
    deadline = started + 60 * arguments.minutes * (1 - REPORTING)
    settings = {"cwd": ROOT, "env": environment}
    signal.signal(signal.SIGTERM, terminate)
    logs = arguments.output_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        sys.exit(f"error: --output_dir {arguments.output_dir} cannot be written: {problem.strerror}")
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "profile": arguments.profile,
        "minutes": arguments.minutes,
        "seconds": 0.0,
        "machine": look_at_machine(settings, deadline - time.monotonic()),
        "parts": [],
    }
    if arguments.profile == "gpu" and not report["machine"].get("has_gpu"):
        reason = report["machine"].get("error", "PyTorch finds no CUDA device here")
        sys.exit(f"error: --profile gpu: {reason}; --profile smoke needs none")
    print(f"{report['machine'].get('device', 'machine unknown')}; {arguments.minutes:g} minutes", flush=True)
    results: list[PartResult] = []
    stopped_by = 0
    try:
        for part in parts:
            results.append(run_next(part, parts, deadline, logs, settings))
            write_report(report, results, arguments.output_dir, started)
    except (KeyboardInterrupt, Terminated) as stop:
        stopped_by = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        missing = parts[len(results) :]
        results += [PartResult(part.name, "left out", "the session was stopped") for part in missing]
    print("\n" + write_report(report, results, arguments.output_dir, started))
    print(f"written to {arguments.output_dir}/results.md, results.json and logs/")
    if stopped_by:
        return 128 + stopped_by
    return 0 if all(result.status == "done" for result in results) else 1


def run_next(part: Part, parts: list[Part], deadline: float, logs: Path, settings: dict[str, Any]) -> PartResult:
    """Run a part, with a line before and after it."""
    if part.missing is not None:
        print(f"{part.name}: left out, {part.missing}", flush=True)
        return PartResult(part.name, "left out", part.missing)
    left = deadline - time.monotonic()
    if left <= 1:
        return PartResult(part.name, "left out", "no time was left")
    limit = limit_of(part, parts, left)
    print(f"{part.name}: {limit:.0f} s at most, of {left:.0f} s", flush=True)
    result = run_part(part, limit, logs / f"{part.name}.log", settings)
    reason = "" if result.reason is None else f", {result.reason}"
    print(f"{part.name}: {result.status} after {result.seconds:.0f} s{reason}", flush=True)
    return result


def look_at_machine(settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Device, cores and versions, or an `error`. In another process: it imports torch, and holds memory of the GPU."""
    command = [sys.executable, "-c", LOOK_AT_MACHINE]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=max(1.0, seconds), **settings
        )
        if result.returncode == 0:
            return json.loads(result.stdout.strip().splitlines()[-1])
        lines = result.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit code {result.returncode}"}
    except subprocess.TimeoutExpired:
        return {"error": "the libraries took all the time to import"}
    except (ValueError, IndexError) as problem:
        return {"error": f"it says nothing of itself: {problem}"}


def write_report(report: dict[str, Any], results: list[PartResult], output_dir: Path, started: float) -> str:
    """Write what is known. Gives it as Markdown."""
    report["parts"] = [asdict(result) for result in results]
    report["seconds"] = round(time.monotonic() - started, 1)
    text = describe_session(report)
    (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output_dir / "results.md").write_text(text, encoding="utf-8")
    return text


def terminate(number: int, frame: Any) -> None:
    raise Terminated


if __name__ == "__main__":
    main()
