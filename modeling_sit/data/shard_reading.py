"""Rows of a stream as one process reads them: shard by shard, in an order that depends on the seed, resumable at any
image."""

import io
import textwrap
import threading
from typing import NamedTuple

import datasets
import PIL.Image
import torch
from datasets.distributed import split_dataset_by_node

from modeling_sit.data.image_datasets import Shard
from modeling_sit.data.sampling import ORDER, derive_seed
from modeling_sit.runtime.errors import SiTError

# Shards that are read in turns, so that a block holds images of several classes if the dataset is sorted by class.
SHARDS_AT_A_TIME = 8
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class EncodedImage(NamedTuple):
    """An image that is not decoded yet.

    Args:
        image (`dict` of `bytes` and `path`, or `None`): As `datasets.Image(decode=False)` gives it.
        name (`str`): What to call it in a log.
    """

    image: dict | None
    name: str


class _OpenShard:
    """The rows of one shard that belong to a process, starting from a state."""

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
            reason = str(error).removeprefix(f"{self.shard.name}: ") or type(error).__name__
            reason = textwrap.shorten(reason, 300, placeholder=" ...")
            raise SiTError(
                f"{self.shard.name} cannot be read beyond row {self._row()}: {reason}", argument="dataset"
            ) from error
        self._state = None
        if row is None:
            return None
        encoded = row["image"]
        if isinstance(encoded, PIL.Image.Image):  # a step such as `filter` has decoded it
            encoded = _encode(encoded)
        image = EncodedImage(encoded, self._name(encoded or {}))
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
        # Before the first row is read, the library does not return the state that it was given.
        return {"num_read": self.num_read, "rows": self._state or self.rows.state_dict()}


def _encode(image: PIL.Image.Image) -> dict:
    """An image without loss, as `datasets.Image(decode=False)` gives it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if image.mode in PNG_MODES else "TIFF", exif=image.getexif())
    return {"bytes": buffer.getvalue(), "path": None}


class ProcessStream:
    """
    The rows of one process, pass after pass through the dataset, in an order that depends on the seed.

    Each pass has its own order of the shards. They are dealt to the processes in turn. Those left over, fewer than there
    are processes, are divided row by row. `SHARDS_AT_A_TIME` shards are read in turns.

    Args:
        stream (`datasets.IterableDataset`): Column `image` of encoded images.
        shards (`list[Shard]`, *optional*): What to call the stream's shards.
        seed (`int`): Seed of the shards' order.
        process_index (`int`): Which process this is.
        num_processes (`int`): How many there are.
        state (`dict`, *optional*): Where to continue, from [`~ProcessStream.state_dict`].
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
        """Numbers of this process's shards in this pass, and whether each is divided among the processes."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, self.epoch))
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        num_dealt = len(order) - len(order) % self.num_processes
        dealt = order[self.process_index : num_dealt : self.num_processes]
        return [(number, False) for number in dealt] + [(number, True) for number in order[num_dealt:]]

    def _open_shard(self, number: int, is_shared: bool, state: dict | None = None) -> _OpenShard:
        part = (0, 1)
        if is_shared:
            # Another process begins each time. Otherwise the last ones would get nothing of many small shards.
            part = ((self.process_index + number) % self.num_processes, self.num_processes)
        return _OpenShard(self.stream, self.shards[number], number, *part, state)

    def read_block(self, size: int, stop: threading.Event | None = None) -> list[EncodedImage]:
        """The next block of images.

        Args:
            size (`int`): Number of images. The last block of a pass may have fewer.
            stop (`threading.Event`, *optional*): Once it is set, the call returns early, and the result is of no use.

        Returns:
            `list[EncodedImage]`: Empty at the end of a pass. The next block is then of the next pass.
        """
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
        """Where the stream stands, as JSON values."""
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
    """The first `count` images of a stream in its own order, or all if there are fewer. The stream is left unchanged."""
    images: list[EncodedImage] = []
    for number in range(stream.num_shards):
        shard = _OpenShard(stream, shards[number] if shards else Shard(f"shard {number}"), number, 0, 1)
        while len(images) < count and (image := shard.read()) is not None:
            images.append(image)
        if len(images) == count:
            break
    return images
