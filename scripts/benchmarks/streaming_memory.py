"""How much memory does streaming take? One pass over a set, and over one of ten times as many images.

    python scripts/benchmarks/streaming_memory.py --images 4000 --factor 10 --image_kilobytes 30 --output FILE.json

Each set is written as shards, streamed with crops in a process of its own, and deleted; what is printed is the process's
peak of resident memory, workers not counted. `start` is the peak before the first image is read.
"""

import argparse
import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from reporting import positive, write_report

from modeling_sit.data.caching import ImageCacheArguments
from modeling_sit.data.crops import CropGroup
from modeling_sit.data.sampling import LoadingSettings
from modeling_sit.data.sources import load_images
from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.training_data import TrainingData

ROWS_IN_A_GROUP = 100


def encoded_image(kilobytes: int) -> bytes:
    """A small image, with as many bytes behind its end as make the size wanted: reading takes memory, not decoding."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(buffer, "PNG")
    return buffer.getvalue() + bytes(max(0, 1024 * kilobytes - len(buffer.getvalue())))


def write_shards(folder: Path, form: str, num_images: int, images_per_shard: int, image: bytes) -> None:
    for shard, first in enumerate(range(0, num_images, images_per_shard)):
        count = min(images_per_shard, num_images - first)
        path = folder / f"train-{shard:05}.{form}"
        if form == "parquet":
            struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            table = pa.table({"image": pa.array([{"bytes": image, "path": None}] * count, struct)})
            # Neither dictionary nor compression: images are all different, and do not become smaller.
            pq.write_table(table, path, row_group_size=ROWS_IN_A_GROUP, use_dictionary=False, compression="none")
        else:
            with tarfile.open(path, "w") as tar:
                for row in range(count):
                    member = tarfile.TarInfo(f"{first + row:08}.png")
                    member.size = len(image)
                    tar.addfile(member, io.BytesIO(image))


def peak_megabytes() -> float:
    """This process's peak of resident memory."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; `getrusage` there begins with the peak of the process that started this one
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def stream_once(folder: Path, num_images: int, batch_size: int, shuffle_buffer_size: int, num_workers: int) -> dict:
    """Stream one pass and measure the peaks of memory and the speed."""
    datasets.disable_progress_bars()
    data = TrainingData(
        load_images(str(folder), streaming=True),
        [CropGroup(2, (32, 32), (0.2, 1.0))],
        LoadingSettings(batch_size, seed=0, num_workers=num_workers),
        StreamingArguments(streaming=True, shuffle_buffer_size=shuffle_buffer_size),
        ImageCacheArguments(),
    )
    start, started, num_read = peak_megabytes(), time.perf_counter(), 0
    with closing(data.batches(0, num_images // batch_size)) as batches:
        for batch in batches:
            assert not batch["unreadable"]
            (crops,) = batch["crops"]
            num_read += crops.shape[1]
    return {
        "images": num_read,
        "start_megabytes": start,
        "peak_megabytes": peak_megabytes(),
        "images_per_second": num_read / (time.perf_counter() - started),
    }


def measure(num_images: int, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        image = encoded_image(arguments.image_kilobytes)
        write_shards(Path(folder), arguments.form, num_images, arguments.images_per_shard, image)
        # A process of its own, started anew: peaks never fall.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
            settings = (arguments.batch_size, arguments.shuffle_buffer_size, arguments.num_workers)
            return processes.submit(stream_once, Path(folder), num_images, *settings).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Peak memory of streaming a set, and of one several times as large.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--images", type=positive, default=4000, help="images of the smaller set")
    parser.add_argument("--factor", type=positive, default=10, help="how many times as many the larger set has")
    parser.add_argument("--form", choices=["parquet", "tar"], default="parquet", help="form of the shards")
    parser.add_argument("--image_kilobytes", type=positive, default=30, help="size of an encoded image")
    parser.add_argument("--images_per_shard", type=positive, default=500, help="images in a shard")
    parser.add_argument("--shuffle_buffer_size", type=positive, default=1000, help="images shuffled together")
    parser.add_argument("--batch_size", type=positive, default=64, help="images in a batch")
    parser.add_argument("--num_workers", type=int, default=0, help="dataloader workers")
    parser.add_argument("--folder", type=Path, default=None, help="where to write the sets; default: the system's")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    arguments = parser.parse_args()

    print("{:>12}{:>16}{:>16}{:>16}{:>14}".format("images", "data, MB", "start, MB", "peak, MB", "images/s"))
    results = []
    for num_images in (arguments.images, arguments.images * arguments.factor):
        result = measure(num_images, arguments)
        results.append(result)
        size = num_images * arguments.image_kilobytes / 1024
        figures = (result["start_megabytes"], result["peak_megabytes"], result["images_per_second"])
        print(f"{num_images:12}{size:16.1f}{figures[0]:16.1f}{figures[1]:16.1f}{figures[2]:14.0f}", flush=True)
    ratio = results[1]["peak_megabytes"] / results[0]["peak_megabytes"]
    print(f"peak of the larger set / peak of the smaller one: {ratio:.3f}")

    flags = {name: str(value) for name, value in vars(arguments).items() if value is not None}
    write_report(arguments.output, flags=flags, results=results, ratio=ratio)


if __name__ == "__main__":
    main()
