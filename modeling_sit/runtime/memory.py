"""What a run says where memory is short, and memory that is kept for the next step."""

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from modeling_sit.runtime.errors import SiTError

# What PyTorch's allocators say: `Tried to allocate 2.00 GiB` of a GPU, `you tried to allocate 4096 bytes` of the CPU.
ASKED = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)
GIBIBYTE = 2**30
# Parameters of glibc's `mallopt`, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Raise [`SiTError`] in place of PyTorch's errors of a GPU or a CPU whose memory is full. A decorator, too.

    Args:
        remedy (`str`): What needs less memory.
    """
    try:
        yield
    except RuntimeError as problem:
        if not should_reduce_batch_size(problem):
            raise
        found = ASKED.search(str(problem))
        asked = "" if found is None else f", for {_in_words(float(found[1]), found[2])} more"
        raise SiTError(f"not enough memory{asked}", remedy=remedy) from problem


def _in_words(number: float, unit: str) -> str:
    return f"{number / GIBIBYTE:,.1f} GiB" if unit == "bytes" else f"{number:g} {unit}"


def keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, and take it for what is allocated next (glibc only; elsewhere nothing changes).

    By itself it gives large blocks back to the system. Then each step of a small model on a CPU asks for the same blocks again, and
    waits until the system has cleared them. The process holds on to the most that it ever used. So this is for a process that a
    command line started, not for one that a library shares.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # glibc before 2.35 refuses more than 32 MiB. The trim threshold alone would have it give back all that is larger than 128 KiB.
        if library.mallopt(M_MMAP_THRESHOLD, GIBIBYTE) or library.mallopt(M_MMAP_THRESHOLD, GIBIBYTE // 32):
            library.mallopt(M_TRIM_THRESHOLD, 2 * GIBIBYTE - 1)
