"""What a run says where memory is short."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from modeling_sit.runtime.errors import SiTError

# What PyTorch's allocators say: `Tried to allocate 2.00 GiB` of a GPU, `you tried to allocate 4096 bytes` of the CPU.
ASKED = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)
GIBIBYTE = 2**30


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
