#!/usr/bin/env python
"""How fast does a small model train on a CPU while other programs keep cores busy? With short waits between threads, and with long ones.

    python scripts/benchmarks/busy_cores.py --recipe digits --batch_size 32 --seconds 10 --runs 3 --output FILE.json

GCC's OpenMP, with which PyTorch shares its work among threads on Linux, reads `GOMP_SPINCOUNT` when it is loaded: how often a thread
looks for the others before it sleeps. `long` is the library's own value, `short` is the one of this package. Each run is a process of
its own, with as many threads as cores; the two take turns, first on cores that are idle but for this, then beside busy programs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpu_step import MADE_UP, NUM_WARMUP_STEPS, RECIPES, made_up_images, prepare_run, take_step
from reporting import positive, write_report

SPINS = {"long": "300000", "short": "1000"}
NUM_IMAGES = 256


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs beside this one, each of which keeps a core busy. Each is a session, as another user's would be."""
    program = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(program, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for each in programs:
            each.kill()
            each.wait()


def train(recipe: str, batch_size: int, seconds: float) -> float:
    """Images a second of a run of a shipped recipe in this process."""
    with tempfile.TemporaryDirectory() as folder:
        images = made_up_images(NUM_IMAGES, *MADE_UP[recipe]) if recipe in MADE_UP else recipe
        run = prepare_run(recipe, images, batch_size, folder)
        batches = run.data.batches(0, run.num_batches)
        for number in range(NUM_WARMUP_STEPS):
            take_step(run, batches, number)
        number, started = 0, time.monotonic()
        while number == 0 or time.monotonic() - started < seconds:
            take_step(run, batches, NUM_WARMUP_STEPS + number)
            number += 1
        took = time.monotonic() - started
        batches.close()
    return number * batch_size / took


def train_in_a_process(arguments: argparse.Namespace, spins: str) -> float:
    """Images a second of a process that waits so long between its threads."""
    flags = ["--recipe", arguments.recipe, "--batch_size", arguments.batch_size, "--seconds", arguments.seconds]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    program = [sys.executable, __file__, *map(str, flags), "--here"]
    result = subprocess.run(
        program, env={**environment, "GOMP_SPINCOUNT": spins}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time pretraining of a small model on a CPU beside busy programs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="digits", help="network and views")
    parser.add_argument("--batch_size", type=positive, default=32, help="images in a batch, 256 at most")
    parser.add_argument("--seconds", type=positive, default=10, help="how long each run trains")
    parser.add_argument("--runs", type=positive, default=3, help="runs of each, in turns")
    parser.add_argument("--busy", type=positive, default=1, help="programs that each keep a core busy")
    parser.add_argument("--here", action="store_true", help="train in this process, and print images a second")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the images a second of every run")
    arguments = parser.parse_args()
    if arguments.batch_size > NUM_IMAGES:
        parser.error(f"--batch_size must be at most {NUM_IMAGES}, got {arguments.batch_size}")
    if arguments.here:
        print(train(arguments.recipe, arguments.batch_size, arguments.seconds))
        return

    print(f"{'images a second':20}{'long':>10}{'short':>10}{'ratio':>10}", flush=True)
    results = []
    for busy in (0, arguments.busy):
        with busy_programs(busy):
            speeds = [
                {name: train_in_a_process(arguments, spins) for name, spins in SPINS.items()}
                for _ in range(arguments.runs)
            ]
        ratio = statistics.median(each["short"] / each["long"] for each in speeds)
        results.append({"busy": busy, "images_per_second": speeds, "ratio": ratio})
        long, short = (statistics.median(each[name] for each in speeds) for name in SPINS)
        print(f"{f'busy programs: {busy}':20}{long:10.1f}{short:10.1f}{ratio:10.2f}", flush=True)
    write_report(arguments.output, recipe=arguments.recipe, batch_size=arguments.batch_size, results=results)


if __name__ == "__main__":
    main()
