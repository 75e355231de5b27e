"""Open encoded images with Pillow, without its limits on what lies beside the pixels, and with a limit of pixels that is
checked after a JPEG has been asked to shrink."""

import functools
import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import parent_process
from typing import Any, BinaryIO, TypeVar

import PIL.Image
from PIL import PngImagePlugin

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.waiting import WaitTooLong, limited_wait

# A large file on a slow network takes minutes at most.
SECONDS_FOR_A_FILE = 600.0
PIXEL_LIMIT = "SIT_MAX_IMAGE_PIXELS"
TOO_LARGE = "it is too large"
EMPTY = "it is empty (0 bytes)"
LATE = "it could not be read within {:g} s"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG on which its pixels depend, those of animations and the orientation among them.
PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
# Texts in which some programs keep the orientation.
ORIENTATION_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")

# Pillow knows these formats and cannot decode them: videos and arrays that lie beside the images.
UNDECODABLE_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

Result = TypeVar("Result")


class UnreadableImage(Exception):
    """An image that cannot be decoded. The message names the image and the reason, in one line."""


class UnfitImage(UnreadableImage):
    """An image that is sound, but has other channels than the model takes, or needs a reader that is not installed."""


@functools.cache
def image_extensions() -> tuple[str, ...]:
    """The endings of files that Pillow reads, such as `.png`, in lower case."""
    formats = PIL.Image.registered_extensions()  # fills `OPEN`, too
    readable = set(PIL.Image.OPEN) - UNDECODABLE_FORMATS
    return tuple(extension for extension, format in formats.items() if format in readable)


def max_image_pixels() -> int | None:
    """How many pixels an image may have: of the environment variable `SIT_MAX_IMAGE_PIXELS`, or else Pillow's limit
    `PIL.Image.MAX_IMAGE_PIXELS`. `None` for any number.

    Raises:
        [`SiTError`]: If the environment variable is not a number.
    """
    asked = os.environ.get(PIXEL_LIMIT)
    if not asked:
        return PIL.Image.MAX_IMAGE_PIXELS
    if not asked.replace("_", "").isdecimal() or int(asked) < 1:
        raise SiTError(
            f"the environment variable {PIXEL_LIMIT} is {asked!r}", remedy="set it to a number of pixels, or unset it"
        )
    return int(asked)


def too_large(width: int, height: int, max_pixels: int) -> UnreadableImage:
    """The error about an image of more pixels than the limit."""
    return UnreadableImage(
        f"{TOO_LARGE}: {width} x {height} pixels, and the limit is {max_pixels:,} ({PIXEL_LIMIT} raises it)"
    )


@contextmanager
def timely_listing(folder: str | os.PathLike) -> Iterator[None]:
    """A block that looks at a folder, or at a thousand of its files, and takes [`SECONDS_FOR_A_FILE`] at most.

    Raises:
        [`SiTError`]: If the disk does not answer in time.
    """
    try:
        with limited_wait(SECONDS_FOR_A_FILE):
            yield
    except WaitTooLong as problem:
        raise SiTError(
            f"{os.fspath(folder)}: {LATE.format(problem.seconds)}",
            remedy="see whether its disk or network still answers",
        ) from None


@contextmanager
def opened(image: str | os.PathLike | bytes | None) -> Iterator[BinaryIO]:
    """A path or an encoded image as a binary file.

    What is done with the file is limited to [`SECONDS_FOR_A_FILE`], in the main thread of a program: a file on a network may
    never come. Other processes and threads have limits of their own, for what they are asked for.

    Raises:
        [`UnreadableImage`]: If there is nothing in it, the path is that of a pipe or a device, which may never give
            anything, or the file did not come in time.
        `OSError`: If there is no such file, or it may not be read.
    """
    if image is None:
        raise UnreadableImage("there is no image, neither bytes nor a path")
    if isinstance(image, (bytes, bytearray, memoryview)):
        if not image:
            raise UnreadableImage(EMPTY)
        yield io.BytesIO(image)
        return
    try:
        with limited_wait(SECONDS_FOR_A_FILE) if parent_process() is None else nullcontext():
            status = os.stat(image)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # open() refuses a folder
                raise UnreadableImage("it is a pipe or a device, not a file")
            if status.st_size == 0:
                raise UnreadableImage(EMPTY)
            with open(image, "rb") as file:
                yield file
    except WaitTooLong as problem:
        raise UnreadableImage(LATE.format(problem.seconds)) from None


def content_of(image: dict[str, Any]) -> bytes | None:
    """The encoded bytes of a row of `datasets.Image(decode=False)`; `None` if its file cannot be read."""
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        with opened(image["path"]) as file:
            return file.read()
    except (OSError, UnreadableImage):
        return None


def read_image(file: BinaryIO, read: Callable[[PIL.Image.Image], Result]) -> Result:
    """What `read` makes of the opened image.

    If it fails on a PNG, it is called again with the chunks that the pixels need, and no others. So neither large texts
    and color profiles nor damaged ones cost an image, and texts that would fill the memory are never decompressed.

    Args:
        file (binary file): An encoded image. It stays open.
        read (callable): From the opened image, whose pixels are not loaded, to the result.

    Raises:
        `Exception`: Of any kind, as Pillow or `read` raises it, if there is no readable image.
    """
    try:
        with open_image(file) as opened:
            return read(opened)
    except UnreadableImage:
        raise
    except Exception as error:
        bare = only_pixels(file)
        if bare is None:
            raise
        try:
            with open_image(io.BytesIO(bare)) as opened:
                return read(opened)
        except UnreadableImage:
            raise
        except Exception:
            raise error from None


def open_image(file: BinaryIO) -> PIL.Image.Image:
    """As `PIL.Image.open`, which warns of large images, or refuses them, before a JPEG can be asked to shrink.

    Raises:
        `PIL.UnidentifiedImageError`: If no format of Pillow fits. The message has the reasons of those that recognize the
            file, and is empty if there is none.
    """
    PIL.Image.preinit()  # the usual formats come first, as in Pillow
    PIL.Image.init()
    file.seek(0)
    beginning = file.read(16)
    reasons = []
    for format in PIL.Image.ID:
        factory, accept = PIL.Image.OPEN[format]
        accepted = accept is None or accept(beginning)
        if isinstance(accepted, str):  # the format is known, and its library is not installed
            reasons.append(accepted)
        elif accepted:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as Pillow does
                if accept is not None:
                    reasons.append(f"{format}: {error}")
    raise PIL.UnidentifiedImageError("; ".join(reasons))


def load_pixels(image: PIL.Image.Image) -> None:
    """Load an opened image, of whose size the caller has made sure: of a TIFF, Pillow checks its own limit once more."""
    if image.format == "TIFF" and getattr(image, "_im", None) is None:
        image.im = PIL.Image.core.new(image.mode, getattr(image, "_tile_size", image.size))
    image.load()


def pillow_reads(file: BinaryIO) -> bool:
    """Whether Pillow knows the format and the mode of a file."""
    try:
        with open_image(file):
            return True
    except PIL.UnidentifiedImageError:
        return False


def only_pixels(file: BinaryIO) -> bytes | None:
    """A PNG without the chunks that its pixels do not need. `None` for other files, and if there are none of these."""
    file.seek(0)
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        return None
    encoded = file.read()
    kept = [chunk for kind, chunk in _chunks(encoded) if kind in PIXEL_CHUNKS or _may_tell_orientation(kind, chunk)]
    bare = b"".join([PNG_SIGNATURE, *kept])
    return bare if len(bare) < len(PNG_SIGNATURE) + len(encoded) else None


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and bytes of a PNG's chunks, of which the last may be cut short."""
    start = 0
    while start + 8 <= len(encoded):
        size = 12 + int.from_bytes(
            encoded[start : start + 4], "big"
        )  # length and kind before it, and a checksum behind
        yield encoded[start + 4 : start + 8], encoded[start : start + size]
        start += size


def _may_tell_orientation(kind: bytes, chunk: bytes) -> bool:
    content, checksum = chunk[8:-4], chunk[-4:]
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not content.startswith(ORIENTATION_TEXTS):
        return False
    if len(content) > PngImagePlugin.MAX_TEXT_CHUNK or zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
        return False
    # Compressed ones are rare, and may be as large as they like.
    return kind == b"tEXt" or (kind == b"iTXt" and content.partition(b"\0")[2][:1] == b"\0")
