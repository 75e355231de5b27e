"""Whether and where decoded images are kept, so that a run of many epochs decodes each image once."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import BinaryIO, Literal, TextIO, TypeVar

import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_sit.data.crops import CropsDataset, DecodedImages
from modeling_sit.data.decoded_cache import (
    SECONDS_FOR_AN_IMAGE,
    CacheTooLarge,
    DecodedImageCache,
    cache_key,
    estimate_bytes,
    write_images,
)
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.device_crops import CropsOnDevice, DeviceImages
from modeling_sit.data.free_memory import free_memory
from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX, replace_file
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import check_place, datasets_cache
from modeling_sit.runtime.locks import LockHeld, take_lock
from modeling_sit.runtime.progress import write_line

Result = TypeVar("Result")

# In fewer epochs than this, a cache saves too little.
MIN_EPOCHS = 3
# The places that `auto` tries, and the fraction of the free room that images may take there; on an accelerator, of all
# its memory, so that the same run chooses the same place again. Then the fraction in the place that the user asks for.
AUTO_FRACTION = {"device": 0.25, "memory": 0.5, "disk": 0.25}
MAX_FRACTION = 0.9
# A cache on disk is called by its [`cache_key`]; what has another name is a user's.
CACHE_FILE = f"{'[0-9a-f]' * 32}.arrow"
CONSEQUENCE = "image caches are not shared while they are made, and old ones stay"
# Caches on disk of one dataset, for different settings.
CACHES_KEPT = 2
# While one process decodes, the others ask for news this often, in seconds. Without that their connections time out.
PATIENCE = 20
# After so many seconds without news a user thinks that the run hangs.
PATIENCE_OF_A_USER = 2
# Seconds between two looks at a lock that another process holds.
LOCK_INTERVAL = 0.5
# What a file raises that is missing, cut short or foreign.
UNUSABLE = (OSError, ValueError, pa.ArrowException)


@dataclass
class ImageCacheArguments:
    """Where decoded images are kept."""

    image_cache: Literal["auto", "device", "memory", "disk", "none"] = field(
        default="auto",
        metadata={
            "help": "Where decoded images are kept, so that each image is decoded once. device: on the accelerator, "
            "which also cuts the crops; they equal the others but for rounding. memory, disk: shared by all workers and "
            "processes of a machine. none: nowhere. Memory, disk and none give the same images to the last bit. auto: "
            f"the first place with enough room, for runs of {MIN_EPOCHS} epochs or more; nowhere for streams and dry "
            "runs."
        },
    )
    image_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": f"Folder of the caches on disk. The {CACHES_KEPT} last used ones of each dataset stay there. "
            "Default: sit_images in the cache of Hugging Face's datasets."
        },
    )

    def __post_init__(self):
        if self.image_cache_dir is not None and self.image_cache not in ("auto", "disk"):
            raise SiTError(
                f'it is for caches on disk, not for `image_cache="{self.image_cache}"`', argument="image_cache_dir"
            )


def cache_images(
    accelerator: Accelerator,
    name: str,
    crops: CropsDataset,
    arguments: ImageCacheArguments,
    num_epochs: float,
    on_device: bool | None = None,
) -> CropsDataset:
    """Decode all images, unless a cache has them, and return crops of the decoded images.

    One process of each machine decodes. Every process must call this.

    Args:
        accelerator (`Accelerator`): The processes, and the device that may cut crops.
        name (`str`): The dataset's name. Its caches on disk share a folder.
        crops (`CropsDataset`): Crops of images that are decoded each time.
        arguments (`ImageCacheArguments`): Where to keep the images.
        num_epochs (`float`): How often each image will be seen.
        on_device (`bool`, *optional*): What `auto` must choose for a run that goes on: whether the device cuts crops,
            which rounds otherwise. Default: where there is room.

    Returns:
        `CropsDataset`: `crops` itself where nothing is kept; a `CropsOnDevice` where the images are on the device.

    Raises:
        [`SiTError`]: If there is no room for the images, or the folder cannot be written.
    """
    too_short = arguments.image_cache == "auto" and num_epochs < MIN_EPOCHS and not on_device
    if arguments.image_cache == "none" or too_short:
        return crops
    folder = _folder(name, arguments.image_cache_dir)
    builder = CacheBuilder(arguments.image_cache, folder, crops.images, accelerator.device, on_device)
    kind, path, key = _call_on_each_machine(accelerator, builder.build)
    if kind == "none":
        return crops
    with sync_errors(accelerator):
        try:
            cache = DecodedImageCache(path, key)
            cache.memory_file = builder.memory_file
            images = DeviceImages(cache, accelerator.device) if kind == "device" else cache
        except (*UNUSABLE, torch.OutOfMemoryError) as problem:
            raise _error(kind, f"cannot use {path}: {str(problem).splitlines()[0]}") from problem
    # The process that made a cache in memory must keep it until all have opened it.
    accelerator.wait_for_everyone()
    return (CropsOnDevice if kind == "device" else CropsDataset)(images, crops.random_crops)


@dataclass
class CacheBuilder:
    """
    Chooses where the images of one machine are kept, and writes them there.

    Args:
        asked (`str`): What the user asks for.
        folder (`Path`): Of the dataset's caches on disk.
        images (`DecodedImages`): What to decode.
        device (`torch.device`): The accelerator.
        on_device (`bool`, *optional*): What `auto` must choose: whether the device cuts crops.
    """

    asked: str
    folder: Path
    images: DecodedImages
    device: torch.device
    on_device: bool | None
    key: str = ""
    # A file in memory has no name. Others open it by way of this process, which must hold it.
    memory_file: BinaryIO | None = None

    @property
    def path(self) -> Path:
        """The file of a cache on disk."""
        return self.folder / f"{self.key}.arrow"

    def build(self) -> tuple[str, Path | None, str]:
        """The kind of cache, its file, and the key of its images."""
        self.key = cache_key(self.images)
        asked = "device" if self.asked == "auto" and self.on_device else self.asked
        if asked != "auto":
            return asked, self._build(asked, MAX_FRACTION), self.key
        reason = ""
        for kind, fraction in AUTO_FRACTION.items():
            if kind == "device" and (self.device.type != "cuda" or self.on_device is not None):
                continue
            if kind == "memory" and self._is_usable():
                continue  # the operating system keeps the file on disk in memory, too
            try:
                return kind, self._build(kind, fraction), self.key
            except SiTError as error:
                if error.argument == "dataset":  # no other place would help
                    raise
                reason = error.problem
        write_line(f"no image cache, every epoch decodes the images again: {reason}")
        return "none", None, self.key

    def _build(self, kind: str, fraction: float) -> Path:
        if kind == "disk":
            try:
                return self._build_on_disk(fraction)
            except OSError as problem:
                reason = f"{self.folder} cannot be written: {problem.strerror or problem}"
                remedy = 'choose another folder (by default it is in HF_HOME), or `image_cache="none"`'
                raise SiTError(reason, argument="image_cache_dir", remedy=remedy) from problem
        if kind == "device" and self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            # The images pass through memory.
            room = min(int(fraction * total), int(MAX_FRACTION * min(free, free_memory())))
        else:
            room = int(fraction * free_memory())
        self._check_room(kind, room)
        return self.path if kind == "device" and self._is_usable() else self._build_in_memory(kind, room)

    def _build_in_memory(self, kind: str, room: int) -> Path:
        if not hasattr(os, "memfd_create"):
            raise _error(kind, "it needs Linux")
        # It is gone with its last reader, even if that is killed. A file in /dev/shm would stay, and containers often
        # limit that folder to 64 MB.
        file = os.fdopen(os.memfd_create("sit-images"), "w+b")
        try:
            self._write(file, kind, room)
        except BaseException as problem:
            file.close()  # the next place may need its memory
            if isinstance(problem, OSError):
                raise _error(kind, f"no memory for it: {problem.strerror}") from problem
            raise
        self.memory_file = file
        return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")

    def _build_on_disk(self, fraction: float) -> Path:
        check_place(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a", encoding="utf-8") as lock:  # a process that is killed lets go of it
            try:
                is_locked = take_lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, CONSEQUENCE)
            except LockHeld:
                write_line(f"image cache: waiting for another process that makes one in {self.folder}")
                is_locked = self._wait_for_other(lock)
            if self._is_usable():
                with suppress(PermissionError):  # of another user
                    os.utime(self.path)
                write_line(f"image cache: {self.path}, made before")
                return self.path
            # Without locks, others may be writing, and nothing says which caches are in use.
            if is_locked:
                for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}{CACHE_FILE}"):  # of a process that was killed
                    leftover.unlink()
                _delete_oldest([path for path in self.folder.glob(CACHE_FILE) if path != self.path])
            room = int(fraction * shutil.disk_usage(self.folder).free)
            self._check_room("disk", room)
            process = "" if is_locked else f"{platform.node()}-{os.getpid()}-"
            with replace_file(self.path, process) as unfinished, open(unfinished, "w+b") as file:
                self._write(file, "disk", room)
        return self.path

    def _wait_for_other(self, lock: TextIO) -> bool:
        """Wait for the lock of a process that makes a cache, as long as its file grows. Whether there is a lock."""
        seen, seen_at = None, time.monotonic()
        while True:
            with suppress(LockHeld):
                return take_lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, CONSEQUENCE)
            written = [(path, path.stat().st_size) for path in self.folder.glob(f"{TEMPORARY_PREFIX}*")]
            if written != seen:
                seen, seen_at = written, time.monotonic()
            elif time.monotonic() - seen_at > SECONDS_FOR_AN_IMAGE:
                raise _error(
                    "disk",
                    f"another process holds {self.folder}, and has written nothing for {SECONDS_FOR_AN_IMAGE} s",
                )
            time.sleep(LOCK_INTERVAL)

    def _is_usable(self) -> bool:
        """Whether the cache is on disk, and its unreadable images still cannot be read."""
        try:
            unreadable = DecodedImageCache(self.path, self.key).index.unreadable
        except UNUSABLE:
            return False
        for index in unreadable:
            with suppress(UnreadableImage):
                self.images[index]
                return False
        return True

    def _check_room(self, kind: str, room: int) -> None:
        needed = estimate_bytes(self.images)
        if needed > room:
            raise _error(kind, f"decoded images take about {_size(needed)}, and there is room for {_size(room)}")

    def _write(self, file: BinaryIO, kind: str, room: int) -> None:
        started = time.perf_counter()
        announcement = Timer(
            PATIENCE_OF_A_USER, write_line, [f"image cache: decoding {len(self.images):,} images, once"]
        )
        announcement.daemon = True
        announcement.start()
        try:
            write_images(file, self.images, self.key, room)
        except CacheTooLarge:
            raise _error(kind, f"decoded images take more than {_size(room)}, for which there is room") from None
        finally:
            announcement.cancel()
        place = {"disk": str(self.path), "memory": "in memory", "device": f"for {self.device}"}[kind]
        made = f"made in {time.perf_counter() - started:.1f} s"
        write_line(f"image cache: {len(self.images):,} images, {_size(file.tell())}, {place}, {made}")


def _call_on_each_machine(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in one process of each machine while the others wait. Each process gets its machine's result.

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


def _folder(name: str, cache_dir: str | None) -> Path:
    """The folder of a dataset's caches on disk."""
    root = Path(os.path.expanduser(cache_dir)) if cache_dir else datasets_cache() / "sit_images"
    path = os.path.expanduser(name)
    identity = str(Path(path).absolute()) if os.path.exists(path) else name
    readable = re.sub(r"\W+", "-", Path(name).name)[:40].strip("-") or "images"
    return root / f"{readable}-{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"


def _delete_oldest(paths: list[Path]) -> None:
    """Make place for one more cache. Caches in use stay, and those of other users."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[CACHES_KEPT - 1 :]:
        # Shared disks lock for writing only what is open for it.
        with suppress(LockHeld, PermissionError), open(path, "r+b") as file:
            if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, CONSEQUENCE):
                path.unlink()


def _error(kind: str, problem: str) -> SiTError:
    other = "another `image_cache_dir`" if kind == "disk" else '`image_cache="disk"`'
    return SiTError(f"{kind}: {problem}", argument="image_cache", remedy=f'choose {other} or `image_cache="none"`')


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
