"""Random masks of patches, in blocks (BEiT, arXiv 2106.08254, section 2.3) or anywhere."""

import math
from collections.abc import Sequence

import torch

# The width of a block divided by its height is between this and its inverse.
BLOCK_RATIO = 0.3
MAX_BLOCKS = 10


def draw_patch_masks(
    num_views: int, grid: tuple[int, int], ratio: Sequence[float], masked_views: float, in_blocks: bool
) -> torch.Tensor:
    """Draw masks from PyTorch's global generator of the CPU.

    A masked view draws its ratio, and with it the number of its patches, at least one. Blocks of random size, shape and place
    fall on it, ten at most, of which those count that do not exceed this number. Single patches make it full.

    Args:
        num_views (`int`): How many masks to draw.
        grid (pair of `int`): Rows and columns of patches.
        ratio (pair of `float`): Range of the fraction of patches that a masked view draws.
        masked_views (`float`): Fraction of the views that are masked, rounded up to a whole view.
        in_blocks (`bool`): Whether there are blocks, or single patches only.

    Returns:
        `torch.Tensor` of shape `(num_views, patches)`: Bool, true where a patch is masked.
    """
    height, width = grid
    num_blocks = MAX_BLOCKS if in_blocks else 0
    draws = torch.rand(num_views, 2 + 4 * num_blocks + height * width)
    wanted = (ratio[0] + (ratio[1] - ratio[0]) * draws[:, 0]).mul(height * width).round().clamp(min=1)
    is_masked = _places(draws[:, 1], dim=0) < math.ceil(masked_views * num_views)
    masks = torch.zeros(num_views, height, width, dtype=torch.bool)
    smallest = max(1, (min(grid) // 3) ** 2)
    for block in draws[:, 2 : 2 + 4 * num_blocks].T.unflatten(0, (num_blocks, 4)):
        missing = wanted - masks.sum(dim=(1, 2))
        size, shape, top, left = block
        side = (smallest + size * (missing - smallest).clamp(min=0)).sqrt()
        stretch = torch.exp((0.5 - shape) * math.log(BLOCK_RATIO))  # the root of width / height
        rows, columns = _spans(height, side / stretch, top), _spans(width, side * stretch, left)
        blocks = rows[:, :, None] & columns[:, None]
        fits = (blocks & ~masks).sum(dim=(1, 2)) <= missing
        masks |= blocks & fits[:, None, None]
    filled = _places(draws[:, -height * width :] - masks.flatten(1).float(), dim=1) < wanted[:, None]
    return filled & is_masked[:, None]


def _places(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The place of each value in their order, 0 for the smallest; of equal ones the first comes first."""
    return values.argsort(dim=dim, stable=True).argsort(dim=dim, stable=True)


def _spans(side: int, length: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Which of `side` rows or columns a block spans, bool `(blocks, side)`, of its length and its place in [0, 1)."""
    length = length.round().clamp(1, side)
    start = (place * (side - length + 1)).floor()
    index = torch.arange(side)
    return (index >= start[:, None]) & (index < (start + length)[:, None])
