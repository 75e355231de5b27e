"""Batches of crops for the training loop, and what it says of pictures that cannot be read."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import datasets
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_sit.data.crops import DecodedPictures, TwoCropsDataset, TwoRandomCrops, collate_crops
from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice
from modeling_sit.data.sampling import PictureBatches
from modeling_sit.data.sources import Pictures
from modeling_sit.data.streaming import StreamedCrops, StreamingLoader, first_pictures
from modeling_sit.data.views import ViewArguments
from modeling_sit.runtime.errors import UserError


def read_batches(loader: DataLoader | StreamingLoader | CropLoader, dataset: str) -> Iterator[dict]:
    """The batches of a loader; closing this generator ends the loader's workers.

    Raises:
        [`UserError`]: Naming the data set, if too many pictures in a row cannot be read.
    """
    try:
        yield from loader
        return
    except UnreadablePicture as problem:
        error = _naming(dataset, problem)
        # Its frames hold it, and it holds them, and by them the loader's workers, for which the program's end would wait.
        problem.__traceback__ = None
    raise error


@contextmanager
def naming_unreadable(dataset: str) -> Iterator[None]:
    """Turn an `UnreadablePicture` into an error that names the data set."""
    try:
        yield
    except UnreadablePicture as problem:
        raise _naming(dataset, problem) from problem


def _naming(dataset: str, problem: UnreadablePicture) -> UserError:
    # A worker's exception carries its traceback in front of what it says.
    reason = str(problem).strip().splitlines()[-1].rpartition("UnreadablePicture: ")[2]
    return UserError(f"--dataset {dataset} cannot be read: {reason}; mend or remove the damaged files")


class UnreadablePictures:
    """
    The pictures of this process that could not be read, each named once on stderr.

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
                    tqdm.write(f"skipped an unreadable picture: {problem}", file=sys.stderr)

    def named_by_all(self) -> list[str]:
        """Those of all processes. Every process must call this."""
        return sorted(set(gather_object(sorted(self.known))))

    def check(self) -> None:
        """Raise [`UserError`] by the first unreadable picture, if `on_bad_image` asks for it."""
        if self.on_bad_image == "error" and self.known:
            raise UserError(f"{min(self.known)} (--on_bad_image skip would go on without it)")


def create_crops(
    pictures: Pictures, image_shape: tuple[int, int], num_channels: int, arguments: ViewArguments
) -> TwoCropsDataset | StreamedCrops:
    """What decodes the training pictures and crops each of them twice."""
    if is_streamed(pictures):
        return StreamedCrops(image_shape, num_channels, arguments)
    two_crops = TwoRandomCrops(image_shape, arguments)
    return TwoCropsDataset(DecodedPictures(pictures.train, num_channels, two_crops.reduction), two_crops)


def is_streamed(pictures: Pictures) -> bool:
    return isinstance(pictures.train, datasets.IterableDataset)


def crop_first_pictures(
    pictures: Pictures, crops: TwoCropsDataset | StreamedCrops, count: int, seeds: Callable[[int], int]
) -> torch.Tensor:
    """One crop each of the first `count` pictures, or as many as there are, `(pictures, channels, height, width)`, uint8.

    Args:
        seeds (callable): From a picture's number to the seed of its crop.

    Raises:
        [`UserError`]: If they cannot be read.
    """
    with naming_unreadable(pictures.name):
        if isinstance(crops, StreamedCrops):
            first = first_pictures(pictures.train, count, pictures.train_shards)
            items = crops.__getitems__([(picture, seeds(number)) for number, picture in enumerate(first)])
        else:
            items = [crops[number, seeds(number)] for number in range(min(count, len(crops)))]
    return torch.stack([item["crops"][0] for item in items])


def create_loader(
    pictures: Pictures,
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
        pictures (`Pictures`): The data set; `crops` is of it.
        batch_size (`int`): Pictures in a batch of one process.
        seed (`int`): Seed of the order and of the crops.
        first_batch (`int`): Number of the first batch, counted from the start of the run.
        num_batches (`int`): How many batches.
        process_index, num_processes (`int`): Which process this is, of how many.
        shuffle_buffer_size, stream_state (*optional*): As of [`StreamingLoader`], for streamed pictures.
        num_workers, pin_memory, worker_init_fn (*optional*): As of `torch.utils.data.DataLoader`.
    """
    reading = {"num_workers": num_workers, "pin_memory": pin_memory, "worker_init_fn": worker_init_fn}
    if isinstance(crops, StreamedCrops):
        return StreamingLoader(
            pictures.train,
            crops,
            batch_size,
            seed,
            num_batches,
            shuffle_buffer_size,
            start_state=stream_state,
            shards=pictures.train_shards,
            num_pictures=pictures.num_train,
            process_index=process_index,
            num_processes=num_processes,
            **reading,
        )
    batches = PictureBatches(
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
