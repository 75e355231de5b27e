"""SIGReg: projections are to be distributed like a standard Gaussian along every direction (arXiv 2511.08544)."""

from collections.abc import Callable

import torch
from accelerate.utils import broadcast
from torch.nn import functional as F

# Characteristic functions are compared at so many places, from 0 to the last.
NUM_PLACES, LAST_PLACE = 17, 3.0


def random_directions(size: int, number: int, device: torch.device) -> torch.Tensor:
    """Unit vectors `(size, number)`, drawn by the main process for all. Every process must call this."""
    return broadcast(F.normalize(torch.empty(size, number, device=device).normal_(), dim=0))


def sigreg_loss(
    projections: torch.Tensor,
    directions: torch.Tensor,
    average: Callable[[torch.Tensor], torch.Tensor],
    num_images: int,
) -> torch.Tensor:
    """How far the projections of a batch are from an isotropic Gaussian (SIGReg; arXiv 2511.08544).

    Of each view, along each direction: the test of Epps and Pulley, the squared difference between the empirical
    characteristic function and the normal distribution's, `exp(-t^2 / 2)`, weighed by the latter, integrated from -3 to 3 by
    the trapezoidal rule, times the number of images. The function of -t is the conjugate of that of t, so t from 0 on counts
    twice.

    Args:
        projections (`torch.Tensor` of shape `(views, batch, size)`): This process's; float32.
        directions (`torch.Tensor` of shape `(size, slices)`): Unit vectors, the same in all processes.
        average (`Callable`): Mean over the processes, with gradients.
        num_images (`int`): In the batches of all processes together.

    Returns:
        `torch.Tensor`: Scalar: the mean over views and directions.
    """
    places = torch.linspace(0, LAST_PLACE, NUM_PLACES, device=projections.device)
    normal = torch.exp(-places.square() / 2)
    weights = 2 * LAST_PLACE / (NUM_PLACES - 1) * normal
    weights[[0, -1]] /= 2
    angles = (projections @ directions).unsqueeze(-1) * places
    real, imaginary = average(torch.stack([angles.cos().mean(dim=1), angles.sin().mean(dim=1)]))
    return num_images * (((real - normal).square() + imaginary.square()) @ weights).mean()
