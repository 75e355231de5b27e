"""What does a run need? GPU hours, CPU cores, network, disk and memory, by scaling_formulas.py.

    python scripts/benchmarks/scaling.py                                            the tables of docs/scaling.md
    python scripts/benchmarks/scaling.py --images_per_second_per_device 2500      with the speed of your own GPU
    python scripts/benchmarks/scaling.py --measure --dataset D --resize 500x375     decoding and cropping on one CPU core

It prints a measurement as flags for this program, which put it into the tables.
"""

import argparse
import io
import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import PIL.Image
import torch
from scaling_formulas import StageCosts, TrainingPlan, scaling_table

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.data.crops import CropGroup, CropsDataset, DecodedImages, RandomCrops
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

JPEG_QUALITY = 90

# SiT-S/16 on views of 224. Of the first four, docs/scaling.md says by which command and on what they were measured; the
# parameters are counted by the test of that page; the memory of a process with a GPU and the overhead are assumed.
COSTS = StageCosts(
    images_per_second_per_core=391,
    encoded_bytes=40_245,
    decoded_bytes=562_500,
    worker_bytes=992_055_296,
    images_per_second_per_device=871,
    crop_bytes=2 * 3 * 224 * 224,
    num_parameters=47_646_851,
    teacher_parameters=47_646_851,
    projection_size=256,
    process_bytes=4e9,
)
# Neither is measured by this project.
ASSUMED_RATES = {
    "871 images a second on a GPU, as stable-pretraining reports for one H200": 871,
    "10,000 images a second on a GPU, the bound of arithmetic of an H100": 10_000,
}
PLANS = [
    TrainingPlan(num_images=1_000_000, num_epochs=800, num_devices=8),
    TrainingPlan(num_images=14_000_000, num_epochs=100, num_devices=16),
    TrainingPlan(num_images=1_000_000_000, num_epochs=3, num_devices=64),
]


def encoded_image(row: dict) -> bytes:
    return row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()


def resized(images: datasets.Dataset, size: tuple[int, int]) -> datasets.Dataset:
    """The same images as JPEGs of another size."""

    def encode(row: dict) -> dict:
        buffer = io.BytesIO()
        image = PIL.Image.open(io.BytesIO(encoded_image(row))).convert("RGB")
        image.resize(size, PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return {"image": {"bytes": buffer.getvalue(), "path": None}}

    rows = [encode(row) for row in images.select_columns(["image"])]
    return datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(decode=False)}))


def peak_bytes() -> int:
    """This process's peak of resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(dataset: str, num_images: int, size: tuple[int, int] | None, image_size: int) -> dict[str, float]:
    """Read, decode and crop images in this process, which must have one thread. Returns the median rate of three passes."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    images = load_images(dataset)
    train = images.train.select(range(min(num_images, len(images.train))))
    if size is not None:
        train = resized(train, size)
    encoded = [encoded_image(row) for row in train]
    sizes = [PIL.Image.open(io.BytesIO(each)).size for each in encoded]
    random_crops = RandomCrops([CropGroup(2, (image_size, image_size), (0.2, 1.0))], (3 / 4, 4 / 3))
    crops = CropsDataset(DecodedImages(train, 3, random_crops.draft_scale), random_crops)
    rates = []
    for run in range(4):
        # In processor time: what else goes on in the machine does not count.
        started = time.process_time()
        for index in range(len(train)):
            assert not crops[index, index + run * len(train)]["unreadable"]
        rates.append(len(train) / (time.process_time() - started))
    return {
        "images_per_second_per_core": sorted(rates[1:])[1],  # the first pass warms up
        "encoded_bytes": sum(map(len, encoded)) / len(encoded),
        "decoded_bytes": sum(3 * width * height for width, height in sizes) / len(sizes),
        "worker_bytes": peak_bytes(),
    }


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return number


def image_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 500x375, got {text}")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What a run needs, from what its stages cost.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    measuring = parser.add_argument_group("to measure decoding and cropping on one CPU core")
    measuring.add_argument("--measure", action="store_true", help="measure rather than print tables")
    measuring.add_argument("--dataset", default=None, help="images, as pretrain.py takes them")
    measuring.add_argument("--num_images", type=int, default=200, help="of them, how many")
    measuring.add_argument("--image_size", type=int, default=224, help="height and width of the crops in pixels")
    measuring.add_argument(
        "--resize", type=image_size, default=None, help="size that the images are brought to as JPEGs beforehand"
    )
    measuring.add_argument("--output", type=Path, default=None, help="JSON file for what was measured")
    costs = parser.add_argument_group("costs of the tables")
    costs.add_argument(
        "--images_per_second_per_device",
        type=positive,
        default=None,
        help="what one GPU trains on when it never waits; default: the two assumptions of docs/scaling.md",
    )
    for name in ("images_per_second_per_core", "encoded_bytes", "decoded_bytes", "worker_bytes", "process_bytes"):
        costs.add_argument(f"--{name}", type=positive, default=getattr(COSTS, name), help="as of `StageCosts`")
    arguments = parser.parse_args()

    if arguments.measure:
        with one_line_errors():
            if arguments.dataset is None:
                raise SiTError("--measure: give the images by --dataset")
            if arguments.num_images < 1 or arguments.image_size < 1:
                raise SiTError("--num_images and --image_size must be at least 1")
            measured = measure(arguments.dataset, arguments.num_images, arguments.resize, arguments.image_size)
        print(" ".join(f"--{name} {value:.0f}" for name, value in measured.items()))
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            report = {"command": sys.argv, "num_cpus": os.cpu_count(), "measured": measured}
            arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return

    rates = ASSUMED_RATES
    if arguments.images_per_second_per_device is not None:
        rate = arguments.images_per_second_per_device
        rates = {f"{rate:,g} images a second on a GPU": rate}
    given = {
        name: getattr(arguments, name)
        for name in (
            *("images_per_second_per_core", "encoded_bytes", "decoded_bytes"),
            *("worker_bytes", "process_bytes"),
        )
    }
    tables = [
        f"### {title}\n\n" + scaling_table(replace(COSTS, images_per_second_per_device=rate, **given), PLANS)
        for title, rate in rates.items()
    ]
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
