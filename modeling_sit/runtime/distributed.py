"""What the processes of a run do together: raise errors, take turns, share results, and gather what losses need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from modeling_sit.runtime.errors import SiTError

Result = TypeVar("Result")


@contextmanager
def sync_errors(accelerator: Accelerator) -> Iterator[None]:
    """Run a block that may raise [`SiTError`] in some processes, and raise it in all of them.

    The processes wait for each other at the end of the block: each of them must get there, or raise `SiTError`.

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
    """Call `function` in every process: on each machine first in its main process, which may write files for the
    others.

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


def any_process(accelerator: Accelerator, flag: torch.Tensor) -> bool:
    """Whether a flag is set in any process, the same in all. With several processes, every one must call this.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        flag (`torch.Tensor`): Bool, a scalar, this process's.
    """
    if accelerator.num_processes > 1:
        flag = accelerator.reduce(flag.int(), reduction="sum")
    return bool(flag)


def gather_projections(accelerator: Accelerator, projections: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The projections of all processes, and the index of this process's first image among them.

    Gradients flow back to the process that the projections come from, summed over the losses of all processes.
    Data-parallel training averages them over the processes, which gives the gradients of the mean loss.

    Args:
        accelerator (`Accelerator`): Knows the processes. Each of them must call this, with batches of one size.
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): This process's, view 1 first.

    Returns:
        `tuple[torch.Tensor, int]`: `(2 * total_batch, projection_size)`, view 1 of all processes first, float32 at
            least; and the index.
    """
    # The losses compute in float32, and the gradients are summed in it too.
    projections = projections.to(torch.promote_types(projections.dtype, torch.float32))
    if accelerator.num_processes == 1:
        return projections, 0
    return views_first(_GatherFromProcesses.apply(projections)), accelerator.process_index * (len(projections) // 2)


def views_first(gathered: torch.Tensor) -> torch.Tensor:
    """Projections `(processes, 2 * batch, projection_size)`, each process's view 1 first, as
    `(2 * total_batch, projection_size)`, view 1 of all processes first."""
    return gathered.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2)


class _GatherFromProcesses(torch.autograd.Function):
    """Tensors of all processes, stacked; the gradient of each is the sum of all processes' gradients of it."""

    # torch.distributed.nn.functional has this too, but is deprecated since torch 2.15.
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def mean_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """The mean of the processes' tensors, such as of a statistic of a batch that they share.

    Gradients flow back. What each process gets is the mean of all processes' gradients, so that data-parallel training,
    which averages once more, has those of the mean loss where every process's loss is of the mean.

    Args:
        accelerator (`Accelerator`): Knows the processes. Each of them must call this, with tensors of one shape.
        tensor (`torch.Tensor`): This process's.
    """
    return tensor if accelerator.num_processes == 1 else _MeanOfProcesses.apply(tensor)


class _MeanOfProcesses(torch.autograd.Function):
    """Mean of the processes' tensors; the gradient is the mean of their gradients."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return _mean_of_processes(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _mean_of_processes(gradient)


def _mean_of_processes(tensor: torch.Tensor) -> torch.Tensor:
    mean = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def mean_num_corrupted_pixels(accelerator: Accelerator, corruption_mask: torch.Tensor) -> torch.Tensor:
    """Mean over the processes of the number of corrupted pixels. If each process divides its sum by it, the mean of
    the losses of all processes is the loss of all their images together.

    Args:
        accelerator (`Accelerator`): Knows the processes. Each of them must call this.
        corruption_mask (`torch.Tensor` of shape `(2 * batch, 1, height, width)`): Bool, this process's.

    Returns:
        `torch.Tensor`: Scalar, float32.
    """
    return accelerator.reduce(corruption_mask.sum(), reduction="sum") / accelerator.num_processes
