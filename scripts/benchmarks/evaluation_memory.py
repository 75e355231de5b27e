"""How much memory and time do the protocols of `modeling-sit evaluate` take? Number, size and classes of the features are flags.

    python scripts/benchmarks/evaluation_memory.py --num_train 1000000 --num_validation 10000 --protocols knn --output FILE.json

The features are random: a center for each class, with noise around it. Each protocol measures them on the CPU, with the defaults
of the command, in its own process. `peak` is the peak of that process's resident memory. `start` is its resident memory when the
features exist and before the protocol begins. So `peak` minus `start` is what the protocol adds. Only Linux can reset a peak;
elsewhere `start` is the peak until then.
"""

import argparse
import contextlib
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from reporting import positive, write_report

from modeling_sit.evaluation.features import Features
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.protocols import PROTOCOLS

CHUNK_SIZE = 65536


def clustered_features(
    num_images: int, hidden_size: int, num_classes: int, *, noise: float = 4.0, seed: int
) -> Features:
    """Features of images of every class in turn. They are made chunk by chunk, so only one chunk needs extra memory."""
    centres = torch.randn(num_classes, hidden_size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    features = torch.empty(num_images, hidden_size)
    for chunk, its_labels in zip(features.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
        torch.randn(chunk.shape, generator=generator, out=chunk).mul_(noise).add_(centres[its_labels])
    return Features(features, labels, [])


def forget_peak() -> None:
    """Reset the peak to the resident memory now, if the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_megabytes() -> float:
    """This process's peak of resident memory."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; `getrusage` there begins with the peak of the process that started this one
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def measure(protocol: str, num_train: int, num_validation: int, hidden_size: int, num_classes: int) -> dict:
    """Make the features and run one protocol on them; return the peaks of memory, the time and the results."""
    train = clustered_features(num_train, hidden_size, num_classes, seed=1)
    validation = clustered_features(num_validation, hidden_size, num_classes, seed=2)
    label_names = [str(label) for label in range(num_classes)]
    forget_peak()
    start, started = peak_megabytes(), time.perf_counter()
    measured = PROTOCOLS[protocol](train, validation, label_names, ProtocolArguments(), torch.device("cpu"))
    return {
        "protocol": protocol,
        "features_megabytes": (num_train + num_validation) * hidden_size * 4 / 1024**2,
        "start_megabytes": start,
        "peak_megabytes": peak_megabytes(),
        "seconds": time.perf_counter() - started,
        "metrics": {metric.name: metric.value for metric in measured.metrics},
        "settings": measured.settings,
    }


def protocols(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no protocol {unknown[0]!r}, only {', '.join(PROTOCOLS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure peak memory and time of the protocols of evaluation on random features.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--num_train", type=positive, default=100_000, help="training images")
    parser.add_argument("--num_validation", type=positive, default=10_000, help="validation images")
    parser.add_argument("--hidden_size", type=positive, default=384, help="numbers in the features of an image")
    parser.add_argument("--num_classes", type=positive, default=1000, help="classes, of as many images each")
    parser.add_argument("--protocols", type=protocols, default=list(PROTOCOLS), help="which, separated by commas")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the results")
    arguments = parser.parse_args()

    print(
        "{:>12}{:>16}{:>12}{:>12}{:>12}  {}".format("", "features, MB", "start, MB", "peak, MB", "seconds", "result")
    )
    results = []
    for protocol in arguments.protocols:
        # A process of its own, started anew: peaks never fall.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
            sizes = (arguments.num_train, arguments.num_validation, arguments.hidden_size, arguments.num_classes)
            result = processes.submit(measure, protocol, *sizes).result()
        results.append(result)
        megabytes = (result["features_megabytes"], result["start_megabytes"], result["peak_megabytes"])
        name, value = next(iter(result["metrics"].items()))
        print(
            "{:>12}{:16.1f}{:12.1f}{:12.1f}{:12.1f}  {} {:.3f}".format(
                protocol, *megabytes, result["seconds"], name, value
            ),
            flush=True,
        )

    flags = {name: str(value) for name, value in vars(arguments).items() if value is not None}
    write_report(arguments.output, flags=flags, results=results)


if __name__ == "__main__":
    main()
