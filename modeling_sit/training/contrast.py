"""Contrast over the pictures of all processes."""

import torch
from accelerate import Accelerator


def gather_projections(accelerator: Accelerator, projections: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The teacher's projections of all processes, and which picture among them is this process's first.

    Args:
        accelerator (`Accelerator`): Knows the processes; every one of them must call this.
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): This process's, view 1 first.

    Returns:
        `tuple[torch.Tensor, int]`: `(2 * total_batch, projection_size)`, view 1 of all processes first; the offset.
    """
    num_processes, batch_size = accelerator.num_processes, len(projections) // 2
    gathered = accelerator.gather(projections)
    by_view = gathered.unflatten(0, (num_processes, 2, batch_size)).transpose(0, 1).flatten(0, 2)
    return by_view, accelerator.process_index * batch_size
