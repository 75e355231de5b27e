"""What the processes of a run do together: fail, take turns, and agree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from modeling_sit.runtime.errors import SiTError

Result = TypeVar("Result")


@contextmanager
def sync_errors(accelerator: Accelerator) -> Iterator[None]:
    """Run a block that may end by [`SiTError`] in some processes; then all of them raise it.

    Every process must reach the end of its block, or raise `SiTError` on the way: there they wait for each other.

    Raises:
        [`SiTError`]: In every process, the first that any process raised. With several processes it `is_shared`.
    """
    error = None
    try:
        yield
    except SiTError as problem:
        if accelerator.num_processes == 1:
            raise
        error = problem
    if accelerator.num_processes == 1:
        return
    errors = [found for found in gather_object([error]) if found is not None]
    if errors:
        errors[0].is_shared = True
        raise errors[0] from error


def main_process_first(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in every process, on each machine first in its main one, which may leave files for the others.

    Raises: As [`sync_errors`].
    """
    result = None
    for goes_first in (True, False):
        with sync_errors(accelerator):
            if accelerator.is_local_main_process == goes_first:
                result = function()
    return result


def broadcast_from_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in the main process alone, and give every process what it returned.

    Raises: As [`sync_errors`].
    """
    result = None
    with sync_errors(accelerator):
        if accelerator.is_main_process:
            result = function()
    return broadcast_object_list([result])[0]
