"""How fast is GMML corruption? `SiTImageProcessor.corrupt` against a plain loop over images and blocks, on this CPU.

    python scripts/benchmarks/corruption.py --batch_size 64 --image_size 224 --runs 9 --threads 1 --output FILE.json

The two take turns, so that other work on the machine slows both equally. The ratio is the ratio of their medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import positive, write_report

from modeling_sit import SiTImageProcessor
from modeling_sit.gmml import CORRUPTIONS


def plain_corrupt(
    pixel_values: torch.Tensor, processor: SiTImageProcessor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`processor.corrupt` as a plain loop: drop a block, fill it, count the mask, and repeat."""
    batch_size, channels, height, width = pixel_values.shape
    ratios = {"noise": processor.noise_ratio, "zeros": processor.zeros_ratio, "replace": processor.replace_ratio}
    kinds = processor.corruption.split("+")
    corrupted = pixel_values.clone()
    mask = torch.zeros(batch_size, 1, height, width, dtype=torch.bool)

    def draw(low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=generator))

    for image in range(batch_size):
        kind = kinds[draw(0, len(kinds) - 1)]
        low, high = ratios[kind]
        share = low + (high - low) * float(torch.rand((), generator=generator))
        donor = (image + draw(1, max(batch_size - 1, 1))) % batch_size
        while mask[image].float().mean() < share:
            block_height, block_width = (
                draw(max(1, round(processor.block_size[0] * side)), max(1, round(processor.block_size[1] * side)))
                for side in (height, width)
            )
            top, left = draw(0, height - block_height), draw(0, width - block_width)
            rows, columns = slice(top, top + block_height), slice(left, left + block_width)
            if kind == "noise":
                filling = torch.randn(channels, block_height, block_width, generator=generator)
            elif kind == "zeros":
                filling = torch.zeros(channels, block_height, block_width)
            else:
                filling = pixel_values[donor, :, rows, columns]
            corrupted[image, :, rows, columns] = filling
            mask[image, :, rows, columns] = True
    return corrupted, mask


def seconds(corrupt: Callable[[torch.Generator], object], seed: int) -> float:
    """Seconds for one corruption of the batch."""
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    corrupt(generator)
    return time.perf_counter() - start


def measure(pixel_values: torch.Tensor, corruption: str, runs: int) -> dict:
    """Seconds of each run of both in turns, their medians, and the ratio of the medians."""
    processor = SiTImageProcessor(corruption=corruption)
    contestants = {
        "plain": lambda generator: plain_corrupt(pixel_values, processor, generator),
        "corrupt": lambda generator: processor.corrupt(pixel_values, generator),
    }
    times = {name: [] for name in contestants}
    for run in range(runs + 1):
        for name, corrupt in contestants.items():
            times[name].append(seconds(corrupt, seed=run))
    times = {name: values[1:] for name, values in times.items()}  # the first run warms up
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "corruption": corruption,
        "default": corruption == SiTImageProcessor.corruption,
        "plain_seconds": times["plain"],
        "corrupt_seconds": times["corrupt"],
        "plain_median_seconds": medians["plain"],
        "corrupt_median_seconds": medians["corrupt"],
        "ratio": medians["plain"] / medians["corrupt"],
    }


def row(result: dict) -> str:
    cells = [result["corruption"] + (" (default)" if result["default"] else "")]
    for name in ("plain", "corrupt"):
        times = [1000 * value for value in result[f"{name}_seconds"]]
        cells.append(f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})")
    return "{:24}{:>28}{:>28}{:>9.1f}".format(*cells, result["ratio"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time SiTImageProcessor.corrupt against a plain loop.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--batch_size", type=positive, default=64, help="images in the batch")
    parser.add_argument("--image_size", type=positive, default=224, help="height and width of the images in pixels")
    parser.add_argument("--runs", type=positive, default=9, help="timed runs of each, after one to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="PyTorch's threads")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for every run's time")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    pixel_values = torch.randn(shape, generator=generator)

    print(f"{shape[0]} images of {shape[2]} x {shape[3]} pixels, {arguments.threads} thread(s), {arguments.runs} runs")
    print("{:24}{:>28}{:>28}{:>9}".format("corruption", "plain loop, ms (range)", "corrupt, ms (range)", "ratio"))
    results = []
    for corruption in CORRUPTIONS:
        if corruption != "none":
            results.append(measure(pixel_values, corruption, arguments.runs))
            print(row(results[-1]), flush=True)

    write_report(
        arguments.output,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        runs=arguments.runs,
        results=results,
    )


if __name__ == "__main__":
    main()
