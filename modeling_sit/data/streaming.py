"""Images that are read as they come, from sets larger than the disk: in shuffled blocks, resumable at any image.

Encoded rows are read by one thread of each process, in an order that is a function of the seed, and travel to the
dataloader workers, which decode and crop them. So what a run sees does not depend on the number of workers, and where it
stands in its stream is known to the process that trains.
"""

import textwrap
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import fsspec
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from modeling_sit.data.crops import TwoCropsTransform, as_pixels, collate_crops
from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.sampling import CROPS, ORDER, derive_seed
from modeling_sit.data.sources import Shard
from modeling_sit.data.views import ViewArguments
from modeling_sit.runtime.errors import SiTError

DEFAULT_BUFFER_SIZE = 1000
# Read in turns, so that a block holds images of several places of a set that is sorted by class.
SHARDS_AT_A_TIME = 8


@dataclass
class StreamingArguments:
    """How images are streamed."""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read images as they come instead of laying the dataset out on disk first; for sets larger than "
            "the disk."
        },
    )
    shuffle_buffer_size: int | None = field(
        default=None,
        metadata={
            "help": "With --streaming: encoded images that are shuffled together. Two times as many are kept in memory, "
            f"in each process. Default: {DEFAULT_BUFFER_SIZE}."
        },
    )

    def __post_init__(self):
        if self.shuffle_buffer_size is None:
            self.shuffle_buffer_size = DEFAULT_BUFFER_SIZE if self.streaming else None
        elif not self.streaming:
            raise ValueError("--shuffle_buffer_size is for --streaming; set both or none")
        elif self.shuffle_buffer_size < 1:
            raise ValueError(f"--shuffle_buffer_size must be at least 1, got {self.shuffle_buffer_size}")


class EncodedImage(NamedTuple):
    """An image on its way to where it is decoded.

    Args:
        image (`dict` of `bytes` and `path`, or `None`): As `datasets.Image(decode=False)` gives it.
        name (`str`): What to call it in a log.
    """

    image: dict | None
    name: str


class _OpenShard:
    """The rows of one shard that belong to a process, from a state on."""

    def __init__(
        self,
        stream: datasets.IterableDataset,
        shard: Shard,
        number: int,
        process_index: int,
        num_processes: int,
        state: dict | None = None,
    ):
        self.shard, self.number = shard, number
        self.process_index, self.num_processes = process_index, num_processes
        self.rows = stream.shard(num_shards=stream.num_shards, index=number)
        if num_processes > 1:
            self.rows = split_dataset_by_node(self.rows, process_index, num_processes)
        self.num_read = 0
        self._state = None
        if state is not None:
            self.num_read, self._state = state["num_read"], state["rows"]
            self.rows.load_state_dict(self._state)
        self._iterator = iter(self.rows)

    def read(self) -> EncodedImage | None:
        """The next image, or `None` after the last one."""
        try:
            row = next(self._iterator, None)
        except Exception as error:  # readers raise nearly everything on a damaged file
            reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
            raise SiTError(f"{self.shard.name} cannot be read beyond row {self._row()}: {reason}") from error
        self._state = None
        if row is None:
            return None
        image = EncodedImage(row["image"], self._name(row["image"] or {}))
        self.num_read += 1
        return image

    def _row(self) -> int:
        return self.shard.first_row + self.num_read * self.num_processes + self.process_index

    def _name(self, image: dict) -> str:
        path = image.get("path")
        if path and image.get("bytes") is None:
            return path
        row = f"row {self._row()} of {self.shard.name}"
        return f"{row} ({path})" if path else row

    def state_dict(self) -> dict:
        # Before the first row is read, the library does not tell the state that it was given.
        return {"num_read": self.num_read, "rows": self._state or self.rows.state_dict()}


class ProcessStream:
    """
    The rows of one process, pass after pass through the dataset, in an order that the seed decides.

    In each pass, the shards are in another order. Each process gets every so-manieth of them; those left over, fewer than
    there are processes, are shared row by row. [`SHARDS_AT_A_TIME`] shards are read in turns.

    Args:
        stream (`datasets.IterableDataset`): Column `image` of encoded images.
        shards (`list[Shard]`, *optional*): What to call the stream's shards.
        seed (`int`): Seed of the shards' order.
        process_index (`int`): Which process this is.
        num_processes (`int`): How many there are.
        state (`dict`, *optional*): Where to go on, from [`~ProcessStream.state_dict`].
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        shards: list[Shard] | None,
        seed: int,
        process_index: int,
        num_processes: int,
        state: dict | None = None,
    ):
        self.stream = stream
        self.shards = shards or [Shard(f"shard {number}") for number in range(stream.num_shards)]
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        # The pass, and which block of it comes next.
        self.epoch, self.block = (state["epoch"], state["block"]) if state else (0, 0)
        self._order = self._order_of_shards()
        self._num_opened = state["num_opened"] if state else 0
        self._turn = state["turn"] if state else 0
        self._open = [self._open_shard(**shard) for shard in state["open"]] if state else []

    def _order_of_shards(self) -> list[tuple[int, bool]]:
        """Numbers of this process's shards in this pass, and whether each is shared with the other processes."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, self.epoch))
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        num_dealt = len(order) - len(order) % self.num_processes
        dealt = order[self.process_index : num_dealt : self.num_processes]
        return [(number, False) for number in dealt] + [(number, True) for number in order[num_dealt:]]

    def _open_shard(self, number: int, is_shared: bool, state: dict | None = None) -> _OpenShard:
        part = (0, 1)
        if is_shared:
            # Not always the same process begins, or the last ones would get nothing of many small shards.
            part = ((self.process_index + number) % self.num_processes, self.num_processes)
        return _OpenShard(self.stream, self.shards[number], number, *part, state)

    def read_block(self, size: int, stop: threading.Event | None = None) -> list[EncodedImage]:
        """The next `size` images of this pass, or the fewer that are left; none if all were read before, and the next
        block is then of the next pass. Ends early, and in vain, once `stop` is set."""
        images: list[EncodedImage] = []
        while len(images) < size and not (stop is not None and stop.is_set()):
            while len(self._open) < SHARDS_AT_A_TIME and self._num_opened < len(self._order):
                self._open.append(self._open_shard(*self._order[self._num_opened]))
                self._num_opened += 1
            if not self._open:
                self.epoch, self.block = self.epoch + 1, 0
                self._order, self._num_opened, self._turn = self._order_of_shards(), 0, 0
                return images
            self._turn %= len(self._open)
            image = self._open[self._turn].read()
            if image is None:
                del self._open[self._turn]
            else:
                images.append(image)
                self._turn += 1
        self.block += 1
        return images

    def state_dict(self) -> dict:
        """Where the stream stands, in what JSON can hold."""
        return {
            "epoch": self.epoch,
            "block": self.block,
            "num_opened": self._num_opened,
            "turn": self._turn,
            "open": [
                {"number": shard.number, "is_shared": shard.num_processes > 1, "state": shard.state_dict()}
                for shard in self._open
            ],
        }


def first_images(
    stream: datasets.IterableDataset, count: int, shards: list[Shard] | None = None
) -> list[EncodedImage]:
    """The first `count` images of a stream in its own order, or as many as there are; to be looked at again and again."""
    images: list[EncodedImage] = []
    for number in range(stream.num_shards):
        shard = _OpenShard(stream, shards[number] if shards else Shard(f"shard {number}"), number, 0, 1)
        while len(images) < count and (image := shard.read()) is not None:
            images.append(image)
        if len(images) == count:
            break
    return images


class StreamedCrops(torch.utils.data.Dataset):
    """
    Decodes and crops batches of encoded images, in whichever process.

    Args:
        image_shape (pair of `int`): Height and width of the crops in pixels.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        arguments (`ViewArguments`): Ranges of the crops' area and ratio.

    A batch is asked for by a list of ([`EncodedImage`], seed), and is a list of items like
    [`~modeling_sit.data.crops.TwoCropsDataset`]'s. The next readable image of the batch stands in for an unreadable one,
    with crops of its own.
    """

    def __init__(self, image_shape: tuple[int, int], num_channels: int, arguments: ViewArguments):
        self.num_channels = num_channels
        self.two_crops = TwoCropsTransform(image_shape, arguments)

    def __getitems__(self, batch: list[tuple[EncodedImage, int]]) -> list[dict]:
        items: list[dict] = []
        for image, seed in batch:
            try:
                items.append({"crops": self._crop(image, seed), "unreadable": []})
            except UnreadableImage as problem:
                items.append({"crops": None, "unreadable": [str(problem)]})
        readable = [place for place, item in enumerate(items) if item["crops"] is not None]
        if not readable:
            problems = "; ".join(problem for item in items for problem in item["unreadable"])
            raise UnreadableImage(f"none of the {len(batch)} images of a batch: {problems}")
        for place, item in enumerate(items):
            if item["crops"] is None:
                stand_in = next((other for other in readable if other > place), readable[0])
                # Decoded once more: to keep images at hand for this would take the memory of a batch of them.
                item["crops"] = self._crop(batch[stand_in][0], batch[place][1])
        return items

    def _crop(self, image: EncodedImage, seed: int) -> torch.Tensor:
        encoded = image.image
        if encoded is not None and encoded["bytes"] is None and "://" in (encoded["path"] or ""):
            encoded = _fetch(encoded["path"], image.name)
        decoded = decode_image(encoded, self.num_channels, name=image.name, reduction=self.two_crops.reduction)
        return self.two_crops(as_pixels(decoded), seed)


def _fetch(address: str, name: str) -> bytes:
    """The content of a file on the Hub or elsewhere, also of one in an archive there."""
    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except Exception as error:  # of whichever file system
        raise UnreadableImage(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error


class _Block(NamedTuple):
    """Images in shuffled order, and the stream's state before and after them."""

    images: list[EncodedImage]
    start: dict
    end: dict


class StreamingLoader:
    """
    Batches of one process from a stream of images, resumable after every batch.

    Rows are read in blocks of `shuffle_buffer_size`, and each block is shuffled; the next one is read in the background.
    The stream has no end: after a pass comes the next, and a batch may hold the last images of one and the first of
    another. All of it is a function of the seed, the process and the number of the image in the process's stream.

    Args:
        stream (`datasets.IterableDataset`): Column `image` of encoded images.
        crops (`StreamedCrops`): Decodes and crops them.
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Seed of the order and of the crops.
        num_batches (`int`): How many batches to give out, from `start_state` on.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000): Images in a block.
        start_state (`dict`, *optional*): What [`~StreamingLoader.state_dict`] of the same process gave, to go on from there.
        shards (`list[Shard]`, *optional*): What to call the stream's shards in messages.
        num_images (`int`, *optional*): Images of the whole dataset, if known.
        process_index (`int`, *optional*, defaults to 0): Which process this is.
        num_processes (`int`, *optional*, defaults to 1): How many processes share the stream.
        num_workers (`int`, *optional*, defaults to 0): Processes that decode; the results do not depend on it.
        pin_memory (`bool`, *optional*, defaults to `False`): As of `torch.utils.data.DataLoader`.
        worker_init_fn (callable, *optional*): As of `torch.utils.data.DataLoader`.

    Iterating raises [`SiTError`] if the process has no image to read or a shard is damaged, and
    [`~modeling_sit.data.decoding.UnreadableImage`] for a batch without a single readable image.

    Raises:
        [`SiTError`]: If `start_state` is of another seed, buffer, number of processes or of shards.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        crops: StreamedCrops,
        batch_size: int,
        seed: int,
        num_batches: int,
        shuffle_buffer_size: int = DEFAULT_BUFFER_SIZE,
        start_state: dict | None = None,
        shards: list[Shard] | None = None,
        num_images: int | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
    ):
        self.stream = stream
        self.crops = crops
        self.batch_size = batch_size
        self.seed = seed
        self.num_batches = num_batches
        self.shuffle_buffer_size = shuffle_buffer_size
        self.shards = shards
        self.num_images = num_images
        self.process_index = process_index
        self.num_processes = num_processes
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.worker_init_fn = worker_init_fn
        self._order_depends_on = {
            "--seed": seed,
            "--shuffle_buffer_size": shuffle_buffer_size,
            "number of processes": num_processes,
            "process": process_index,
            "number of shards": stream.num_shards,
        }
        if start_state is not None:
            for name, value in self._order_depends_on.items():
                if start_state["of"].get(name) != value:
                    raise SiTError(
                        f"a stream goes on only as it began: {name} was {start_state['of'].get(name)}, and is {value} now"
                    )
        self._state = start_state or {
            "of": self._order_depends_on,
            "num_samples": 0,
            "position": 0,
            "stream": self._open_stream(None).state_dict(),
        }

    def state_dict(self) -> dict:
        """Where to go on after the last batch given out, in what JSON can hold."""
        return self._state

    @property
    def epoch(self) -> float | int:
        """Passes so far: of the dataset by all processes if its size is known, or else whole ones of this process."""
        if self.num_images is None:
            return self._state["stream"]["epoch"]
        return self._state["num_samples"] * self.num_processes / self.num_images

    def __iter__(self) -> Iterator[dict]:
        states: deque[dict] = deque()  # of the batches on their way through the workers
        loader = DataLoader(
            self.crops,
            batch_sampler=self._batches(states),
            collate_fn=collate_crops,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator(),  # not the global one, from which nothing is drawn here
        )
        for batch in loader:
            self._state = states.popleft()
            self.num_batches -= 1
            yield batch

    def _batches(self, states: deque[dict]) -> Iterator[list[tuple[EncodedImage, int]]]:
        """Batches of images with the seeds of their crops; the state after each is left in `states`."""
        stop = threading.Event()
        try:
            images = self._images(stop)
            for _ in range(self.num_batches):
                batch = []
                while len(batch) < self.batch_size:
                    image, seed, state = next(images)
                    batch.append((image, seed))
                states.append(state)
                yield batch
        finally:
            stop.set()  # what is read in the background is not wanted any more

    def _images(self, stop: threading.Event) -> Iterator[tuple[EncodedImage, int, dict]]:
        """Image by image, with the seed of its crops and the loader's state after it."""
        num_samples, position = self._state["num_samples"], self._state["position"]
        for block in _read_ahead(self._blocks(self._state["stream"], stop)):
            for place in range(position, len(block.images)):
                seed = derive_seed(self.seed, CROPS, self.process_index, num_samples)
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
                    f"process {self.process_index + 1} of {self.num_processes} has no image to read: there are fewer "
                    "images, or fewer shards with images, than processes; start fewer of them"
                )
            if images:
                seed = derive_seed(self.seed, ORDER, self.process_index, epoch, number)
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
                yield _Block([images[place] for place in order], start, end)

    def _open_stream(self, state: dict | None) -> ProcessStream:
        return ProcessStream(self.stream, self.shards, self.seed, self.process_index, self.num_processes, state)


def _read_ahead(blocks: Iterable[Any]) -> Iterator[Any]:
    """The same, each read in a thread while the one before is in use."""
    blocks = iter(blocks)
    with ThreadPoolExecutor(1, thread_name_prefix="image-stream") as reader:
        coming = reader.submit(next, blocks)
        while True:
            block = coming.result()
            coming = reader.submit(next, blocks)
            yield block
