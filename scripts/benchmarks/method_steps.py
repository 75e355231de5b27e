#!/usr/bin/env python
"""What does a step of each pretraining method cost on a CPU? All of them on the same backbone and images.

    python scripts/benchmarks/method_steps.py --methods sit mae dino --steps 9 --output FILE.json

Each method has the settings that it has for so many images. The methods take their steps in turns, so that other work on the machine
slows all of them equally, and CPU time is measured, reading excluded. A ratio is the median of the ratios to SiT's step of the same
turn. Tokens are those of [`Method.encoder_tokens`]: the student's three times, the teacher's once, heads and decoders left out.
Memory is what a step keeps of an image for its backward pass, which grows with the batch; weights and the optimizer's state, which
do not, come on top.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cpu_step import NUM_WARMUP_STEPS, made_up_images, take_step
from reporting import positive, write_report

from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import Run
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.prepare import prepare
from modeling_sit.runtime.accelerator import create_accelerator
from modeling_sit.runtime.arguments import build_arguments

BASE = "sit"


def prepare_runs(methods: list[str], batch_size: int, side: int, output_dir: str) -> dict[str, Run]:
    """A run of each method, ready for its first batch."""
    images = made_up_images(2 * batch_size, side, "RGB")
    runs = {}
    for method in methods:
        given = {"dataset": images, "output_dir": output_dir, "method": method, "max_steps": 1000}
        given |= {"per_device_train_batch_size": batch_size, "model_size": "mini", "dataloader_num_workers": 0}
        flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, function="pretrain"))
        runs[method] = prepare(flags, create_accelerator(cpu=True))
    return runs


def bytes_kept(run: Run, batches: Iterator) -> int:
    """Take the first step; the bytes that it keeps for the backward pass, weights left out, memory that tensors share once."""
    # By address: all these tensors are alive until the backward pass, so that no two of them have one.
    weights = {value.untyped_storage().data_ptr() for value in run.method.student.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        take_step(run, batches, 0)
    return sum(storages.values())


def measure(methods: list[str], batch_size: int, side: int, steps: int) -> list[dict[str, Any]]:
    """For each method CPU seconds of every step, the ratio to the base's, tokens of an image, megabytes that a step keeps of an
    image, and millions of parameters of the student beside the backbone."""
    with tempfile.TemporaryDirectory() as folder:
        runs = prepare_runs(methods, batch_size, side, folder)
        batches = {name: run.data.batches(0, run.num_batches) for name, run in runs.items()}
        kept = {name: bytes_kept(run, batches[name]) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(1, NUM_WARMUP_STEPS + steps):
            for name, run in runs.items():
                seconds[name].append(take_step(run, batches[name], number)[0])
        for each in batches.values():
            each.close()
    results = []
    for name, run in runs.items():
        timed, base = seconds[name][-steps:], seconds[BASE][-steps:]
        student = run.method.student
        heads = sum(p.numel() for p in student.parameters()) - sum(p.numel() for p in student.vit.parameters())
        results.append(
            {
                "method": name,
                "seconds": timed,
                "ratio": statistics.median(own / other for own, other in zip(timed, base, strict=True)),
                "encoder_tokens": METHODS[name].encoder_tokens(run.method.fingerprint()),
                "kept_megabytes": kept[name] / batch_size / 1e6,
                "head_parameters": heads / 1e6,
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    base = next(each for each in results if each["method"] == BASE)
    lines = [
        "| method | CPU ms a step | step, SiT = 1 | encoder tokens an image | tokens, SiT = 1 | MB kept of an image | "
        "M parameters in heads |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for each in results:
        milliseconds = 1000 * statistics.median(each["seconds"])
        tokens = each["encoder_tokens"]
        lines.append(
            f"| {each['method']} | {milliseconds:.0f} | {each['ratio']:.2f} | {tokens:,} | "
            f"{tokens / base['encoder_tokens']:.2f} | {each['kept_megabytes']:.1f} | {each['head_parameters']:.2f} |"
        )
    return "\n".join(lines)


def add_step_flags(parser: argparse.ArgumentParser, steps: int) -> None:
    """Flags of a benchmark that times steps."""
    parser.add_argument("--batch_size", type=positive, default=32, help="images in a batch")
    parser.add_argument("--image_size", type=positive, default=64, help="side of the images in pixels")
    parser.add_argument("--steps", type=positive, default=steps, help="timed steps of each, after three to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="PyTorch's threads")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for every step's time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a step of each pretraining method on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="beside SiT")
    add_step_flags(parser, steps=9)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    methods = [BASE, *(name for name in arguments.methods if name != BASE)]
    results = measure(methods, arguments.batch_size, arguments.image_size, arguments.steps)
    print(table(results))
    write_report(arguments.output, batch_size=arguments.batch_size, results=results)


if __name__ == "__main__":
    main()
