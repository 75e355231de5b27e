"""Whether and where decoded images are kept, so that thousands of epochs decode them once."""

import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from modeling_sit.data.crops import CropsDataset, DecodedImages
from modeling_sit.data.decoded_cache import (
    CacheTooLarge,
    DecodedImageCache,
    cache_key,
    estimate_bytes,
    lock_against_deletion,
    write_images,
)
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.device_crops import CropsOnDevice, DeviceImages
from modeling_sit.data.free_memory import free_memory
from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX, replace_file, write_errors
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError

Result = TypeVar("Result")

# Below this many looks at each image, to decode all of them beforehand saves too little.
MIN_EPOCHS = 3
# Of what is free (on an accelerator: of all that it has, so that the same run chooses the same again), the share that
# `auto` takes unasked, and the share that it may be told to take.
UNASKED = {"device": 0.25, "memory": 0.5, "disk": 0.25}
AT_MOST = {"device": 0.9, "memory": 0.9, "disk": 0.95}
# Of one dataset, with the settings of different runs; the others were not used for longer.
CACHES_KEPT = 2
SUFFIX = ".images"
# While one process decodes, the others look after it this often, in seconds: their connections would time out otherwise.
PATIENCE = 20


@dataclass
class ImageCacheArguments:
    """Where decoded images are kept."""

    image_cache: Literal["auto", "device", "memory", "disk", "none"] = field(
        default="auto",
        metadata={
            "help": "Where decoded images are kept, so that each is decoded once: on the accelerator (crops are cut there, "
            "equal to the others' but for rounding), in memory or on disk, shared by all workers and processes; or nowhere. "
            f"Default: the first of these with room enough, for runs of {MIN_EPOCHS} epochs or more; nowhere for streams and "
            "dry runs. Memory, disk and none give the same images to the last bit."
        },
    )
    image_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": f"Folder of the caches on disk, where `auto` comes to one; the {CACHES_KEPT} last used of each dataset stay there. Default: "
            "`sit_images` in the cache of Hugging Face's datasets."
        },
    )

    def __post_init__(self):
        if self.image_cache_dir is not None and self.image_cache not in ("auto", "disk"):
            raise ValueError(f"--image_cache_dir is for caches on disk, not for --image_cache {self.image_cache}")


def cache_images(
    accelerator: Accelerator,
    name: str,
    crops: CropsDataset,
    arguments: ImageCacheArguments,
    num_epochs: float,
    on_device: bool | None = None,
) -> CropsDataset:
    """Decode all images, if that was not done before, and give what crops them from where they are kept then.

    On each machine one process does it. Every process must call this.

    Args:
        accelerator (`Accelerator`): The processes, and the device that crops may be cut on.
        name (`str`): The dataset's name, by which its caches lie together.
        crops (`CropsDataset`): What decodes images anew; given back where none are kept.
        arguments (`ImageCacheArguments`): What was asked for.
        num_epochs (`float`): How often each image will be seen.
        on_device (`bool`, *optional*): What `auto` must come to, for a run that goes on: whether crops are cut on the
            device, which rounds otherwise. Default: what there is room for.

    Returns:
        `CropsDataset`: `crops` itself where nothing is kept; a `CropsOnDevice` where images are on the device.

    Raises:
        [`SiTError`]: If there is no room where the images are to be kept, or it cannot be written there.
    """
    too_short = arguments.image_cache == "auto" and num_epochs < MIN_EPOCHS and not on_device
    if arguments.image_cache == "none" or too_short:
        return crops
    keeper = _Keeper(accelerator.device, name, crops.images, arguments, on_device)
    kind, path, key = _call_on_each_machine(accelerator, keeper.keep)
    if kind == "none":
        return crops
    with sync_errors(accelerator):
        try:
            cache = DecodedImageCache(path, key)
        except (OSError, ValueError) as problem:
            raise SiTError(f"--image_cache {kind}: {path} cannot be read: {problem}; choose none") from problem
        cache.made_in = keeper.file_in_memory
        if kind == "device":
            try:
                crops = CropsOnDevice(DeviceImages(cache, accelerator.device), crops.random_crops)
            except torch.OutOfMemoryError as problem:
                raise SiTError(
                    f"--image_cache {arguments.image_cache}: no room on {accelerator.device} for decoded images of "
                    f"{_size(cache.index.num_bytes)}; choose memory, disk or none"
                ) from problem
        else:
            crops = CropsDataset(cache, crops.random_crops)
    # Who made the file in memory may let go of it only when all have it.
    accelerator.wait_for_everyone()
    return crops


class _Keeper:
    """Chooses where the images of one machine are kept, and puts them there."""

    def __init__(
        self,
        device: torch.device,
        name: str,
        images: DecodedImages,
        arguments: ImageCacheArguments,
        on_device: bool | None,
    ):
        self.device = device
        self.on_device = on_device
        self.images = images
        self.arguments = arguments
        self.folder = _folder_of(name, arguments)
        # Others open it by this process: it must hold it as long as they may.
        self.file_in_memory: BinaryIO | None = None

    def keep(self) -> tuple[str, Path | None, str]:
        """What kind of cache it is, the path of its file and its key."""
        key = cache_key(self.images)
        asked = self.arguments.image_cache
        if asked != "auto":
            return asked, self._keep_in(asked, key, AT_MOST[asked]), key
        if self.on_device:
            return "device", self._keep_in("device", key, AT_MOST["device"]), key
        may_be_on_device = self.on_device is None and self.device.type == "cuda"
        reason = ""
        for kind in ("device", "memory", "disk") if may_be_on_device else ("memory", "disk"):
            if kind == "memory" and self._is_complete(key):
                kind = "disk"  # which the operating system keeps in memory, too
            try:
                return kind, self._keep_in(kind, key, UNASKED[kind]), key
            except SiTError as problem:
                reason = str(problem)
        _tell(f"no image cache, every epoch decodes anew: {reason}")
        return "none", None, key

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _is_complete(self, key: str) -> bool:
        """Whether there is a whole cache on the disk, without images that can be read again since it was made."""
        try:
            cache = DecodedImageCache(self._path(key), key)
        except (OSError, ValueError):
            return False
        return not any(self._can_be_read(index) for index in cache.index.unreadable)

    def _can_be_read(self, index: int) -> bool:
        try:
            self.images[index]
        except UnreadableImage:
            return False
        return True

    def _keep_in(self, kind: str, key: str, share: float) -> Path:
        if kind == "disk":
            return self._keep_on_disk(key, share)
        room = self._room(kind, share)
        if kind == "device":
            if self._is_complete(key):
                self._check_room(kind, room)
                return self._path(key)
            room = min(room, self._room("memory", AT_MOST["memory"]))  # from where they go to the accelerator
        return self._keep_in_memory(kind, key, room)

    def _room(self, kind: str, share: float) -> int:
        if kind == "memory" or (kind == "device" and self.device.type != "cuda"):
            return int(share * free_memory())
        if kind == "device":
            free, total = torch.cuda.mem_get_info(self.device)
            return min(int(share * total), int(AT_MOST["device"] * free))
        with self._naming_the_folder():
            self.folder.mkdir(parents=True, exist_ok=True)
            return int(share * shutil.disk_usage(self.folder).free)

    def _keep_in_memory(self, kind: str, key: str, room: int) -> Path:
        if not hasattr(os, "memfd_create"):
            raise SiTError(f"--image_cache {kind} needs Linux; choose disk or none")
        self._check_room(kind, room)
        started = time.perf_counter()
        # A file without a name is gone when its last reader is, however that ends; and unlike those in /dev/shm, which
        # containers often limit to 64 MB, it may be as large as the memory.
        file = os.fdopen(os.memfd_create("sit-images"), "w+b")
        try:
            self._write(file, kind, key, room)
        except OSError as problem:
            file.close()
            raise SiTError(
                f"--image_cache {kind}: no memory for it: {problem.strerror}; choose disk or none"
            ) from problem
        except BaseException:
            file.close()  # its memory is for what is tried next
            raise
        self.file_in_memory = file
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        self._tell_of(DecodedImageCache(path, key), "in memory" if kind == "memory" else f"for {self.device}", started)
        return path

    def _keep_on_disk(self, key: str, share: float) -> Path:
        path, started = self._path(key), time.perf_counter()
        with self._naming_the_folder():
            self.folder.mkdir(parents=True, exist_ok=True)
            with _building_alone(self.folder):
                if self._is_complete(key):
                    os.utime(path)
                    self._tell_of(DecodedImageCache(path, key), str(path), None)
                    return path
                for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):  # of a process that was killed
                    leftover.unlink(missing_ok=True)
                _delete_others(self.folder, path, CACHES_KEPT - 1)
                room = self._room("disk", share)
                self._check_room("disk", room)
                with replace_file(path) as unfinished, open(unfinished, "w+b") as file:
                    self._write(file, "disk", key, room)
        self._tell_of(DecodedImageCache(path, key), str(path), started)
        return path

    def _check_room(self, kind: str, room: int) -> None:
        needed = estimate_bytes(self.images)
        if needed > room:
            raise self._no_room(kind, needed, room)

    def _write(self, file: BinaryIO, kind: str, key: str, room: int) -> None:
        indices = tqdm(
            range(len(self.images)), desc="decoding images", unit="image", leave=False, delay=2, file=sys.stderr
        )
        try:
            write_images(file, self.images, key, room, indices, num_threads=_num_cores())
        except CacheTooLarge:
            raise self._no_room(kind, None, room) from None

    @staticmethod
    def _no_room(kind: str, needed: int | None, room: int) -> SiTError:
        size = "more than that" if needed is None else f"about {_size(needed)}"
        return SiTError(
            f"--image_cache {kind}: decoded images take {size}, and there is room for {_size(room)}; choose "
            f"{'another place by --image_cache_dir' if kind == 'disk' else 'disk'}, or none"
        )

    def _naming_the_folder(self):
        return write_errors(self.folder, "choose another --image_cache_dir, or --image_cache none")

    def _tell_of(self, cache: DecodedImageCache, place: str, started: float | None) -> None:
        made = "made before" if started is None else f"made in {time.perf_counter() - started:.1f} s"
        _tell(f"image cache: {len(cache):,} images, {_size(cache.index.num_bytes)}, {place}, {made}")


def _call_on_each_machine(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in one process of each machine, while the others wait, and give all what that of theirs returned.

    Raises: As [`sync_errors`].
    """
    if accelerator.num_processes == 1:
        return function()
    with ThreadPoolExecutor(1) as thread:
        running = [thread.submit(function)] if accelerator.is_local_main_process else []
        while not all(gather_object([not wait(running, timeout=PATIENCE).not_done])):
            pass
    result = None
    with sync_errors(accelerator):
        if running:
            result = running[0].result()
    return gather_object([result])[accelerator.process_index - accelerator.local_process_index]


def _folder_of(name: str, arguments: ImageCacheArguments) -> Path:
    root = Path(arguments.image_cache_dir or datasets.config.HF_DATASETS_CACHE / "sit_images").expanduser()
    identity = str(Path(name).expanduser().absolute()) if os.path.exists(os.path.expanduser(name)) else name
    readable = re.sub(r"\W+", "-", Path(name).name)[:40].strip("-") or "images"
    return root / f"{readable}-{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"


@contextmanager
def _building_alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes a cache in this folder, and keep others from it."""
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _tell(f"image cache: waiting for another process that makes one in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _delete_others(folder: Path, path: Path, kept: int) -> None:
    """Delete the caches in a folder other than `path`, but for the last used ones and those in use."""
    others = [other for other in folder.glob(f"*{SUFFIX}") if other != path]
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)[kept:]:
        with open(other, "r+b") as file:  # shared disks lock for writing only what is open for it
            if lock_against_deletion(file):
                other.unlink()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"
