"""Batches of crops for the training loop, and what it says of images that cannot be read."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import datasets
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_sit.data.crops import DecodedImages, TwoCropsDataset, TwoCropsTransform, collate_crops
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice
from modeling_sit.data.sampling import ResumableBatchSampler
from modeling_sit.data.sources import ImageDatasets
from modeling_sit.data.streaming import StreamedCrops, StreamingLoader, first_images
from modeling_sit.data.views import ViewArguments
from modeling_sit.runtime.errors import SiTError


def read_batches(loader: DataLoader | StreamingLoader | CropLoader, dataset: str) -> Iterator[dict]:
    """The batches of a loader; closing this generator ends the loader's workers.

    Raises:
        [`SiTError`]: Naming the dataset, if too many images in a row cannot be read.
    """
    try:
        yield from loader
        return
    except UnreadableImage as problem:
        error = _naming(dataset, problem)
        # Its frames hold it, and it holds them, and by them the loader's workers, for which the program's end would wait.
        problem.__traceback__ = None
    raise error


@contextmanager
def naming_unreadable(dataset: str) -> Iterator[None]:
    """Turn an `UnreadableImage` into an error that names the dataset."""
    try:
        yield
    except UnreadableImage as problem:
        raise _naming(dataset, problem) from problem


def _naming(dataset: str, problem: UnreadableImage) -> SiTError:
    # A worker's exception carries its traceback in front of what it says.
    reason = str(problem).strip().splitlines()[-1].rpartition("UnreadableImage: ")[2]
    return SiTError(f"--dataset {dataset} cannot be read: {reason}; mend or remove the damaged files")


class UnreadableImages:
    """
    The images of this process that could not be read, each named once on stderr.

    Args:
        on_bad_image (`str`): `"skip"`, or `"error"`: [`check`] raises then, if there was one.
        known (`list` of `str`, *optional*): Those that the run has named before.
    """

    def __init__(self, on_bad_image: str, known: Iterable[str] = ()):
        self.on_bad_image = on_bad_image
        self.known = set(known)

    def add(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.known:
                self.known.add(problem)
                if self.on_bad_image == "skip":
                    tqdm.write(f"skipped an unreadable image: {problem}", file=sys.stderr)

    def named_by_all(self) -> list[str]:
        """Those of all processes. Every process must call this."""
        return sorted(set(gather_object(sorted(self.known))))

    def check(self) -> None:
        """Raise [`SiTError`] by the first unreadable image, if `on_bad_image` asks for it."""
        if self.on_bad_image == "error" and self.known:
            raise SiTError(f"{min(self.known)} (--on_bad_image skip would go on without it)")


def create_crops(
    images: ImageDatasets, image_shape: tuple[int, int], num_channels: int, arguments: ViewArguments
) -> TwoCropsDataset | StreamedCrops:
    """What decodes the training images and crops each of them twice."""
    if is_streamed(images):
        return StreamedCrops(image_shape, num_channels, arguments)
    two_crops = TwoCropsTransform(image_shape, arguments)
    return TwoCropsDataset(DecodedImages(images.train, num_channels, two_crops.reduction), two_crops)


def is_streamed(images: ImageDatasets) -> bool:
    return isinstance(images.train, datasets.IterableDataset)


def crop_first_images(
    images: ImageDatasets, crops: TwoCropsDataset | StreamedCrops, count: int, seeds: Callable[[int], int]
) -> torch.Tensor:
    """One crop each of the first `count` images, or as many as there are, `(images, channels, height, width)`, uint8.

    Args:
        seeds (callable): From an image's number to the seed of its crop.

    Raises:
        [`SiTError`]: If they cannot be read.
    """
    with naming_unreadable(images.name):
        if isinstance(crops, StreamedCrops):
            first = first_images(images.train, count, images.train_shards)
            items = crops.__getitems__([(image, seeds(number)) for number, image in enumerate(first)])
        else:
            items = [crops[number, seeds(number)] for number in range(min(count, len(crops)))]
    return torch.stack([item["crops"][0] for item in items])


def create_loader(
    images: ImageDatasets,
    crops: TwoCropsDataset | StreamedCrops,
    *,
    batch_size: int,
    seed: int,
    first_batch: int,
    num_batches: int,
    process_index: int,
    num_processes: int,
    shuffle_buffer_size: int | None = None,
    stream_state: dict | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader | StreamingLoader | CropLoader:
    """Batches of one process, as [`collate_crops`] makes them.

    Args:
        images (`ImageDatasets`): The dataset; `crops` is of it.
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Seed of the order and of the crops.
        first_batch (`int`): Number of the first batch, counted from the start of the run.
        num_batches (`int`): How many batches.
        process_index, num_processes (`int`): Which process this is, of how many.
        shuffle_buffer_size, stream_state (*optional*): As of [`StreamingLoader`], for streamed images.
        num_workers, pin_memory, worker_init_fn (*optional*): As of `torch.utils.data.DataLoader`.
    """
    reading = {"num_workers": num_workers, "pin_memory": pin_memory, "worker_init_fn": worker_init_fn}
    if isinstance(crops, StreamedCrops):
        return StreamingLoader(
            images.train,
            crops,
            batch_size,
            seed,
            num_batches,
            shuffle_buffer_size,
            start_state=stream_state,
            shards=images.train_shards,
            num_images=images.num_train,
            process_index=process_index,
            num_processes=num_processes,
            **reading,
        )
    batches = ResumableBatchSampler(
        len(crops),
        batch_size,
        seed,
        start=first_batch,
        stop=first_batch + num_batches,
        process_index=process_index,
        num_processes=num_processes,
    )
    if isinstance(crops, CropsOnDevice):
        return CropLoader(crops, batch_sampler=batches, **reading)
    return DataLoader(crops, batch_sampler=batches, collate_fn=collate_crops, **reading)
