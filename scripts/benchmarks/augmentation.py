"""How fast are two views augmented after their crop? Ours in batch, torchvision's image by image, kornia's in batch.

    python scripts/benchmarks/augmentation.py --batch_size 64 --image_size 224 --runs 9 --threads 1 --output FILE.json
    python scripts/benchmarks/augmentation.py --device cuda --batch_size 256

All use the defaults of `modeling-sit pretrain`, and draw random numbers for every image. They take turns, so that other work on
the machine slows all of them equally. Ratios are ratios of medians. kornia takes part if it is installed; the package does not
need it.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import positive, write_report
from throughput.measuring import synchronize
from throughput.plain import plain_augmentation
from torch import nn

from modeling_sit import SiTImageProcessor
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments

Augment = Callable[[torch.Tensor], torch.Tensor]


def by_torchvision(arguments: ViewArguments, image_shape: tuple[int, int], image_mean, image_std) -> Augment:
    """torchvision's transforms, image by image: on a batch they would draw once for all images."""
    transforms = [plain_augmentation(arguments, view, image_shape, image_mean, image_std) for view in range(2)]

    def augment(crops: torch.Tensor) -> torch.Tensor:
        views = [transform(crop) for transform, view in zip(transforms, crops, strict=True) for crop in view]
        return torch.stack(views)

    return augment


def by_kornia(arguments: ViewArguments, image_shape: tuple[int, int], image_mean, image_std) -> Augment:
    """kornia's augmentations, which draw for each image of a batch."""
    import kornia.augmentation as K

    brightness, contrast, saturation, hue = arguments.color_jitter
    sigma = tuple(value * max(image_shape) / 224 for value in arguments.blur_sigma)
    kernel_size = 2 * max(1, round(2 * sigma[1])) + 1
    shared = nn.Sequential(
        K.RandomHorizontalFlip(p=arguments.horizontal_flip_probability),
        K.ColorJitter(brightness, contrast, saturation, hue, p=arguments.color_jitter_probability),
        K.RandomGrayscale(p=arguments.grayscale_probability),
    )
    threshold = (arguments.solarize_threshold,) * 2
    of_view = [
        nn.Sequential(
            K.RandomGaussianBlur((kernel_size, kernel_size), sigma, p=arguments.blur_probability[view]),
            K.RandomSolarize(threshold, (0.0, 0.0), p=arguments.solarize_probability[view]),
        )
        for view in range(2)
    ]
    normalize = K.Normalize(torch.tensor(image_mean), torch.tensor(image_std))

    def augment(crops: torch.Tensor) -> torch.Tensor:
        views = shared(crops.flatten(0, 1).float() / 255).chunk(2)
        views = [augment_view(view) for augment_view, view in zip(of_view, views, strict=True)]
        return normalize(torch.cat(views).clamp(0, 1))

    return augment


def seconds(augment: Augment, crops: torch.Tensor, seed: int) -> float:
    """Seconds for one augmentation of the batch."""
    torch.manual_seed(seed)
    synchronize(crops.device)
    start = time.perf_counter()
    augment(crops)
    synchronize(crops.device)
    return time.perf_counter() - start


def measure(batch_size: int, image_size: int, runs: int, device: torch.device) -> list[dict]:
    """Seconds of every run of every installed contestant, and the ratio of its median to ours."""
    processor = SiTImageProcessor()
    image_shape = (image_size, image_size)
    settings = (ViewArguments(**PAPER_VIEWS), image_shape, processor.image_mean, processor.image_std)
    contestants = {"ours, in batch": ViewAugmentation(*settings).to(device)}
    contestants["torchvision, image by image"] = by_torchvision(*settings)
    if importlib.util.find_spec("kornia"):
        contestants["kornia, in batch"] = by_kornia(*settings)
    generator = torch.Generator().manual_seed(0)
    # Of low frequency, as images are.
    small = torch.rand(2 * batch_size, 3, 8, 8, generator=generator)
    large = nn.functional.interpolate(small, image_shape, mode="bicubic").clamp(0, 1)
    crops = (255 * large).byte().unflatten(0, (2, batch_size)).to(device)

    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(runs + 1):
        for name, augment in contestants.items():
            times[name].append(seconds(augment, crops, seed=run))
    times = {name: values[1:] for name, values in times.items()}  # the first run warms up
    ours = statistics.median(times["ours, in batch"])
    return [
        {"name": name, "seconds": values, "times_ours": statistics.median(values) / ours}
        for name, values in times.items()
    ]


def row(result: dict, num_views: int) -> str:
    times = [1000 * value / num_views for value in result["seconds"]]
    spread = f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
    return "{:34}{:>30}{:>12.2f}".format(result["name"], spread, result["times_ours"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time the augmentation of two views against torchvision's and kornia's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--batch_size", type=positive, default=64, help="images in the batch, of two views each")
    parser.add_argument("--image_size", type=positive, default=224, help="height and width of the views in pixels")
    parser.add_argument("--runs", type=positive, default=9, help="timed runs of each, after one to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="PyTorch's threads")
    parser.add_argument("--device", type=torch.device, default="cpu", help="where: cpu or cuda")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for every run's time")
    arguments = parser.parse_args()
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")

    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.batch_size} images, two views of {arguments.image_size} x {arguments.image_size} pixels, "
        f"{arguments.device}, {arguments.threads} thread(s), {arguments.runs} runs"
    )
    print("{:34}{:>30}{:>12}".format("", "ms a view (range)", "x ours"))
    results = measure(arguments.batch_size, arguments.image_size, arguments.runs, arguments.device)
    for result in results:
        print(row(result, 2 * arguments.batch_size))

    write_report(
        arguments.output,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        runs=arguments.runs,
        device=str(arguments.device),
        results=results,
    )


if __name__ == "__main__":
    main()
