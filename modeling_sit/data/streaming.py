"""Images that are streamed, from datasets larger than the disk: in shuffled blocks, resumable at any image.

One thread of each process reads encoded rows, in an order that is a function of the seed, and sends them to the
dataloader workers, which decode and crop them. So the batches do not depend on the number of workers, and the training
process knows its place in the stream.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fsspec
import torch

from modeling_sit.data.crops import RandomCrops, as_pixels, collate_crops
from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.loaders import BatchLoader
from modeling_sit.data.sampling import CROPS, ORDER, LoadingSettings, derive_seed
from modeling_sit.data.shard_reading import EncodedImage, ProcessStream
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError

DEFAULT_BUFFER_SIZE = 1000
READER_THREAD = "image-stream"
# How long a stream that is closed waits for the read that goes on.
CLOSING_SECONDS = 10


@dataclass
class StreamingArguments:
    """How images are streamed."""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Whether to read images only when they are needed, instead of a copy of the dataset on disk "
            "first. For datasets larger than the disk."
        },
    )
    shuffle_buffer_size: int | None = field(
        default=None,
        metadata={
            "help": "With `streaming`: encoded images that are shuffled together. Two times as many are kept in memory, "
            f"in each process. Default: {DEFAULT_BUFFER_SIZE}."
        },
    )

    def __post_init__(self):
        if self.shuffle_buffer_size is None:
            self.shuffle_buffer_size = DEFAULT_BUFFER_SIZE if self.streaming else None
        elif not self.streaming:
            raise SiTError(
                "does nothing without `streaming`",
                argument="shuffle_buffer_size",
                remedy="give both, or none of the two",
            )
        elif self.shuffle_buffer_size < 1:
            raise SiTError(f"must be at least 1, got {self.shuffle_buffer_size}", argument="shuffle_buffer_size")


class StreamedCrops(torch.utils.data.Dataset):
    """
    Decodes and crops batches of encoded images, in a worker or in the training process.

    Args:
        random_crops ([`RandomCrops`]): Cuts the crops.
        pixel_format ([`PixelFormat`] or `int`): What images are decoded to; a number is one of channels.

    The key of a batch is a list of ([`EncodedImage`], seed). The batch is a list of items like those of
    [`~modeling_sit.data.crops.CropsDataset`]. The next readable image of the batch replaces an unreadable one, with other
    crops.
    """

    def __init__(self, random_crops: RandomCrops, pixel_format: PixelFormat | int):
        self.random_crops = random_crops
        self.pixel_format = PixelFormat.of(pixel_format)

    def __getitems__(self, batch: list[tuple[EncodedImage, int]]) -> list[dict]:
        items: list[dict] = []
        for image, seed in batch:
            try:
                items.append({"crops": self._crop(image, seed), "unreadable": []})
            except UnreadableImage as problem:
                items.append({"crops": None, "unreadable": [str(problem)]})
                kind = type(problem)
        readable = [place for place, item in enumerate(items) if item["crops"] is not None]
        if not readable:
            problems = "; ".join(problem for item in items for problem in item["unreadable"])
            raise kind(f"none of the {len(batch)} images of a batch: {problems}")
        for place, item in enumerate(items):
            if item["crops"] is None:
                stand_in = next((other for other in readable if other > place), readable[0])
                # Decoded a second time: keeping decoded images for this would take the memory of a batch of them.
                item["crops"] = self._crop(batch[stand_in][0], batch[place][1])
        return items

    def _crop(self, image: EncodedImage, seed: int) -> tuple[torch.Tensor, ...]:
        encoded = image.image
        if encoded is not None and encoded["bytes"] is None and "://" in (encoded["path"] or ""):
            encoded = _fetch(encoded["path"], image.name)
        decoded = decode_image(encoded, self.pixel_format, name=image.name, draft_scale=self.random_crops.draft_scale)
        return self.random_crops(as_pixels(decoded), seed)


def _fetch(address: str, name: str) -> bytes:
    """The content of a remote file, on the Hub or elsewhere, or of a file in a remote archive."""
    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except Exception as error:  # file systems raise errors of many kinds
        raise UnreadableImage(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error


class _Block(NamedTuple):
    """Images in shuffled order, and the stream's state before and after them."""

    images: list[EncodedImage]
    start: dict
    end: dict


class StreamingLoader:
    """
    Batches of one process from a stream of images, resumable after every batch.

    Rows are read in blocks of `shuffle_buffer_size`, and each block is shuffled. The next block is read in the background.
    The stream has no end: one pass follows another, and a batch may hold the last images of one and the first of the
    next. Everything is a function of the seed, the process and the number of the image in the process's stream.

    Args:
        images ([`ImageDatasets`]): Its training split is streamed.
        crops ([`StreamedCrops`]): Decodes and crops the images.
        loading ([`LoadingSettings`]): Batch size, seed, process and workers.
        num_batches (`int`): How many batches to give, starting from `start_state`.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000): Images in a block.
        start_state (`dict`, *optional*): Where to continue, from [`~StreamingLoader.state_dict`] of the same process.

    Iterating raises [`SiTError`] if the process has no image to read or a shard is damaged, and
    [`~modeling_sit.data.decoding.UnreadableImage`] for a batch without a single readable image.

    Raises:
        [`SiTError`]: If `start_state` is of another seed, buffer, number of processes or of shards.
    """

    def __init__(
        self,
        images: ImageDatasets,
        crops: StreamedCrops,
        loading: LoadingSettings,
        num_batches: int,
        shuffle_buffer_size: int = DEFAULT_BUFFER_SIZE,
        start_state: dict | None = None,
    ):
        self.images = images
        self.crops = crops
        self.loading = loading
        self.num_batches = num_batches
        self.shuffle_buffer_size = shuffle_buffer_size
        self._order_depends_on = {
            "seed": loading.seed,
            "shuffle_buffer_size": shuffle_buffer_size,
            "number of processes": loading.num_processes,
            "process": loading.process_index,
            "number of shards": images.train.num_shards,
        }
        if start_state is not None:
            # States of earlier versions name the flags.
            saved = {name.lstrip("-"): value for name, value in start_state["of"].items()}
            for name, value in self._order_depends_on.items():
                if saved.get(name) != value:
                    raise SiTError(
                        f"the {name} of the checkpoint's stream was {saved.get(name)}, and is {value} now",
                        argument=name if name in ("seed", "shuffle_buffer_size") else None,
                        remedy="continue with the settings that the stream began with",
                    )
        self._state = start_state or {
            "of": self._order_depends_on,
            "num_samples": 0,
            "position": 0,
            "stream": self._open_stream(None).state_dict(),
        }

    def state_dict(self) -> dict:
        """Where to continue after the last batch that was given, as JSON values."""
        return self._state

    @property
    def epoch(self) -> float | int:
        """Passes so far: of all processes through the dataset if its size is known, or else whole passes of this process."""
        if self.images.num_train is None:
            return self._state["stream"]["epoch"]
        return self._state["num_samples"] * self.loading.num_processes / self.images.num_train

    def __iter__(self) -> Iterator[dict]:
        states: deque[dict] = deque()  # of the batches that the workers have not returned yet
        loader = BatchLoader(
            self.crops,
            batch_sampler=self._batches(states),
            collate_fn=collate_crops,
            generator=torch.Generator(),  # so that nothing is drawn from the global one
            **self.loading.for_loader,
        )
        for batch in loader:
            self._state = states.popleft()
            self.num_batches -= 1
            yield batch

    def _batches(self, states: deque[dict]) -> Iterator[list[tuple[EncodedImage, int]]]:
        """Batches of images with the seeds of their crops. The state after each is added to `states`."""
        stop = threading.Event()
        try:
            images = self._images(stop)
            for _ in range(self.num_batches):
                batch = []
                while len(batch) < self.loading.batch_size:
                    image, seed, state = next(images)
                    batch.append((image, seed))
                states.append(state)
                yield batch
        finally:
            stop.set()  # ends the reading in the background

    def _images(self, stop: threading.Event) -> Iterator[tuple[EncodedImage, int, dict]]:
        """Each image, with the seed of its crops and the loader's state after it."""
        num_samples, position = self._state["num_samples"], self._state["position"]
        for block in _read_ahead(self._blocks(self._state["stream"], stop)):
            for place in range(position, len(block.images)):
                seed = derive_seed(self.loading.seed, CROPS, self.loading.process_index, num_samples)
                num_samples += 1
                is_last = place + 1 == len(block.images)
                state = {
                    "of": self._order_depends_on,
                    "num_samples": num_samples,
                    "position": 0 if is_last else place + 1,
                    "stream": block.end if is_last else block.start,
                }
                yield block.images[place], seed, state
            position = 0

    def _blocks(self, state: dict, stop: threading.Event) -> Iterator[_Block]:
        stream = self._open_stream(state)
        end = state
        while True:
            start, epoch, number = end, stream.epoch, stream.block
            images = stream.read_block(self.shuffle_buffer_size, stop)
            if stop.is_set():
                return
            end = stream.state_dict()
            if not images and number == 0:
                raise SiTError(
                    f"process {self.loading.process_index + 1} of {self.loading.num_processes} has no image to read: "
                    "there are fewer images, or fewer shards with images, than processes",
                    remedy="start fewer processes",
                )
            if images:
                seed = derive_seed(self.loading.seed, ORDER, self.loading.process_index, epoch, number)
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
                yield _Block([images[place] for place in order], start, end)

    def _open_stream(self, state: dict | None) -> ProcessStream:
        loading = self.loading
        return ProcessStream(
            self.images.train,
            self.images.train_shards,
            loading.seed,
            loading.process_index,
            loading.num_processes,
            state,
        )


def _read_ahead(blocks: Iterable[Any]) -> Iterator[Any]:
    """The same blocks. Each is read in a thread while the one before it is in use."""
    blocks = iter(blocks)
    coming = _read_in_background(blocks)
    try:
        while True:
            block = coming.result()
            coming = _read_in_background(blocks)
            yield block
    finally:
        # The garbage collector may close this in the reader's own thread, which cannot wait for itself.
        if not threading.current_thread().name.startswith(READER_THREAD):
            wait([coming], timeout=CLOSING_SECONDS)


def _read_in_background(blocks: Iterator[Any]) -> Future:
    """The next block, which a thread reads. A program that ends does not wait for a read that hangs."""
    block: Future = Future()

    def read() -> None:
        try:
            block.set_result(next(blocks))
        except BaseException as problem:  # whoever asks for the block gets it
            block.set_exception(problem)

    threading.Thread(target=read, name=READER_THREAD, daemon=True).start()
    return block
