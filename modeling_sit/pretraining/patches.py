"""Images as patches: their grid, masks of them, and their pixels."""

from collections.abc import Sequence

import torch

from modeling_sit.interop.resize import pair

EPSILON = 1e-6  # added to the variance of a patch, as in the authors' code of MAE


def patch_grid(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image; sides in pixels, or pairs of height and width."""
    height, width = (side // patch for side, patch in zip(pair(image_size), pair(patch_size), strict=True))
    return height, width


def draw_places(
    num_views: int, num_places: int, num_drawn: int, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Different places for each view, int64 `(views, num_drawn)`, from 0 to `num_places - 1`, all equally likely.

    Args:
        num_views, num_places, num_drawn (`int`): How many.
        device (`torch.device`): Where they are drawn.
        generator (`torch.Generator`, *optional*): Source of the draws, on that device. Default: PyTorch's global one.
    """
    noise = torch.rand(num_views, num_places, device=device, generator=generator)
    return noise.argsort(dim=1)[:, :num_drawn]


def enlarge_mask(mask: torch.Tensor, grid: tuple[int, int], factors: tuple[int, int]) -> torch.Tensor:
    """A mask of places `(views, places)`, `grid` rows and columns of them, with each place enlarged by the factors, as
    `(views, height, width)`."""
    return mask.unflatten(1, grid).repeat_interleave(factors[0], dim=1).repeat_interleave(factors[1], dim=2)


def patchify(images: torch.Tensor, patch_shape: tuple[int, int]) -> torch.Tensor:
    """Images `(views, channels, height, width)` as patches `(views, patches, channels * patch_height * patch_width)`, row by
    row."""
    patches = images.unflatten(3, (-1, patch_shape[1])).unflatten(2, (-1, patch_shape[0]))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: torch.Tensor, grid: tuple[int, int], patch_shape: tuple[int, int]) -> torch.Tensor:
    """The reverse of [`patchify`]: images of `grid` rows and columns of patches."""
    images = patches.unflatten(2, (-1, *patch_shape)).unflatten(1, grid)
    return images.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation `(views, patches, 1)` of each patch `(views, patches, numbers)`: of the unbiased variance, and
    a little more than 0 for a patch of one color."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + EPSILON).sqrt()
