"""GMML corruption (Group Masked Model Learning, arXiv 2104.03602, section 3.1) of a batch of normalized images.

Rectangular blocks fall on each image until the wanted fraction of its pixels is covered; noise, zeros or the same place
of another image of the batch fills them. Everything here is pure: inputs stay as they are and every random number
comes from the generator handed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

CORRUPTION_KINDS = ("noise", "zeros", "replace")
CORRUPTIONS = ("none", *CORRUPTION_KINDS, "zeros+replace", "noise+replace")
MAX_CORRUPTION_RATIO = 0.9


@dataclass(frozen=True)
class CorruptionSettings:
    """
    What corrupts, and how much.

    Args:
        corruption (`str`, *optional*, defaults to `"noise+replace"`):
            One of `CORRUPTIONS`. With a combination every image draws one of its kinds with equal chance. `"noise"` is
            standard normal in normalized pixel space, `"zeros"` is the mean color there, `"replace"` is the same place
            of one other image of the batch (of itself only where the batch has one image), `"none"` corrupts nothing.
        noise_ratio, zeros_ratio, replace_ratio (pairs of `float` in [0, 0.9], *optional*):
            Range from which each image draws the fraction of its pixels to corrupt, for each kind. The block that
            reaches the fraction may overshoot it.
        block_size (pair of `float` in (0, 1], *optional*, defaults to `(0.05, 0.25)`):
            Range of a block's height and width, as fractions of the image's. At least one pixel (or patch).
        align_to_patches (`bool`, *optional*, defaults to `False`):
            Whether blocks are made of whole patches.
        patch_size (`int` or pair of `int`, *optional*, defaults to 16):
            Height and width of a patch in pixels; used by `align_to_patches` only.

    Raises:
        `ValueError`: If there is no such corruption, or a value is out of range.
    """

    corruption: str = "noise+replace"
    noise_ratio: Sequence[float] = (0.5, 0.7)
    zeros_ratio: Sequence[float] = (0.5, 0.7)
    replace_ratio: Sequence[float] = (0.3, 0.3)
    block_size: Sequence[float] = (0.05, 0.25)
    align_to_patches: bool = False
    patch_size: int | Sequence[int] = 16

    def __post_init__(self):
        if self.corruption not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {self.corruption!r}")
        for kind in CORRUPTION_KINDS:
            ratio = self.ratio(kind)
            if not _is_pair(ratio) or not 0 <= ratio[0] <= ratio[1] <= MAX_CORRUPTION_RATIO:
                raise ValueError(
                    f"{kind}_ratio must be a pair low <= high within [0, {MAX_CORRUPTION_RATIO}], got {ratio}"
                )
        size = self.block_size
        if not _is_pair(size) or not 0 < size[0] <= size[1] <= 1:
            raise ValueError(f"block_size must be a pair low <= high within (0, 1], got {size}")
        sides = (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else self.patch_size
        if not _is_pair(sides) or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"patch_size must be a whole number above 0, or a pair of them, got {self.patch_size}")

    def ratio(self, kind: str) -> Sequence[float]:
        """Range of the fraction of pixels that a kind of corruption covers."""
        return getattr(self, f"{kind}_ratio")


def corrupt(
    pixel_values: torch.Tensor,
    corruption: str = "noise+replace",
    generator: torch.Generator | None = None,
    num_views: int = 1,
    **settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupt a batch of images.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
            Normalized images, any float dtype, any device. Left unchanged.
        corruption (`str`, *optional*, defaults to `"noise+replace"`):
            One of `CORRUPTIONS`.
        generator (`torch.Generator`, *optional*):
            Source of every random number. Default: PyTorch's global generator of the images' device.
        num_views (`int`, *optional*, defaults to 1):
            How many views of each image there are, view 1 of all images first. What replaces a place in a view is then
            the same view of another image, never another view of its own.
        settings (*optional*): The other fields of [`CorruptionSettings`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The corrupted images, like `pixel_values`, and the corruption mask
        `(batch, 1, height, width)`, bool, true where a pixel was corrupted.

    Raises:
        `ValueError`: If a setting or the shape is out of range.
        `TypeError`: If there is no such setting.

    The authors' code always uses the lower bound of the fraction, and draws a donor again for each block. Here, as in the
    paper's text, the fraction is drawn for every image, and an image has one donor.
    """
    settings = CorruptionSettings(corruption, **settings)
    if pixel_values.ndim != 4 or not pixel_values.is_floating_point():
        raise ValueError(
            "pixel_values must be a floating point tensor (batch, channels, height, width), "
            f"got {pixel_values.dtype} {tuple(pixel_values.shape)}"
        )
    if num_views < 1 or len(pixel_values) % num_views:
        raise ValueError(
            f"pixel_values hold {len(pixel_values)} images, which is no multiple of num_views={num_views}"
        )
    pixel_values = pixel_values.detach()
    batch_size, _, height, width = pixel_values.shape
    device = pixel_values.device
    if corruption == "none" or batch_size == 0:
        return pixel_values.clone(), torch.zeros(batch_size, 1, height, width, dtype=torch.bool, device=device)

    kinds = corruption.split("+")
    draw_device = device if generator is None else generator.device
    kind = torch.randint(len(kinds), (batch_size,), generator=generator, device=draw_device)
    fraction = torch.rand(batch_size, generator=generator, device=draw_device, dtype=_draw_dtype(draw_device))
    low, high = (torch.zeros_like(fraction) for _ in range(2))
    for number, name in enumerate(kinds):
        # Not from a table on the device: the host would wait for the copy that makes it.
        low.masked_fill_(kind == number, settings.ratio(name)[0])
        high.masked_fill_(kind == number, settings.ratio(name)[1])
    fraction = low + fraction * (high - low)
    max_fraction = max(settings.ratio(name)[1] for name in kinds)

    cell_height, cell_width = _patch_shape(settings.patch_size) if settings.align_to_patches else (1, 1)
    if height % cell_height or width % cell_width:
        raise ValueError(
            f"images of {height} x {width} pixels are not made of whole patches of {cell_height} x {cell_width}: "
            "align_to_patches needs them to be"
        )
    grid = (height // cell_height, width // cell_width)
    num_blocks = _sufficient_blocks(*grid, tuple(settings.block_size), max_fraction)
    blocks = _draw_blocks(batch_size, *grid, num_blocks, settings.block_size, generator, draw_device)
    cover = _mask_loop if device.type == "cpu" else _mask_batched
    mask = cover(blocks.to(device), fraction.to(device), *grid)
    if settings.align_to_patches:
        mask = mask.repeat_interleave(cell_height, 1).repeat_interleave(cell_width, 2)
    num_images = batch_size // num_views
    shift = torch.randint(1, max(num_images, 2), (batch_size,), generator=generator, device=draw_device)
    number = torch.arange(batch_size, device=draw_device)
    image = number % num_images
    donor = number - image + (image + shift) % num_images
    fill = _fill_loop if device.type == "cpu" else _fill_batched
    mask = mask.unsqueeze(1)
    return fill(pixel_values, mask, kinds, kind.to(device), donor.to(device), generator, draw_device), mask


def _draw_dtype(device: torch.device) -> torch.dtype:
    """Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _patch_shape(patch_size: int | Sequence[int]) -> tuple[int, int]:
    return (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)


def _side_range(side: int, block_size: Sequence[float]) -> tuple[int, int]:
    """Smallest and largest whole side of a block within `block_size` of an image's side, at least 1."""
    smallest = max(1, int(np.ceil(block_size[0] * side - 1e-9)))
    return smallest, max(smallest, int(block_size[1] * side + 1e-9))


def _draw_blocks(
    batch_size: int,
    height: int,
    width: int,
    num_blocks: int,
    block_size: Sequence[float],
    generator: torch.Generator | None,
    device: torch.device,
) -> torch.Tensor:
    """Blocks `(batch, num_blocks, 4)`, int64: top, left, bottom, right (exclusive), uniform in size, then in place."""
    draws = torch.rand(4, batch_size, num_blocks, generator=generator, device=device, dtype=_draw_dtype(device))
    edges = []
    for side, size_draw, place_draw in ((height, draws[0], draws[1]), (width, draws[2], draws[3])):
        smallest, largest = _side_range(side, block_size)
        size = smallest + (size_draw * (largest - smallest + 1)).long()
        start = (place_draw * (side - size + 1)).long()
        edges.append((start, start + size))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], dim=-1)


@lru_cache(maxsize=64)
def _sufficient_blocks(height: int, width: int, block_size: tuple[float, float], fraction: float) -> int:
    """How many blocks to draw so that falling short of `fraction` has no practical chance.

    A pixel at (y, x) escapes one block with probability 1 - p(y) q(x), so n blocks leave the mean of (1 - p q)^n
    uncovered; n is twice what brings that to a third of what may stay uncovered.
    """
    chances = []
    for side in (height, width):
        smallest, largest = _side_range(side, block_size)
        position = np.arange(side)
        chance = np.zeros(side)
        for size in range(smallest, largest + 1):
            places = side - size + 1
            chance += np.minimum.reduce([position + 1, side - position, np.full(side, min(size, places))]) / places
        chances.append(chance / (largest - smallest + 1))
    escape = 1 - np.clip(np.outer(*chances), 0, 1)
    num_blocks = 16
    while (escape**num_blocks).mean() > (1 - fraction) / 3:
        num_blocks += num_blocks // 4
    return 2 * num_blocks


def _wanted_pixels(fraction: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whole pixels that a fraction of the image takes, rounded up; what is off a whole number by rounding is one."""
    return (fraction * (height * width) - 1e-6).ceil()


def _mask_loop(blocks: torch.Tensor, fraction: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Mask `(batch, height, width)`, bool, of each image's first blocks up to the one that reaches its fraction.

    Counting the mask costs more than writing a block, and blocks cannot cover more than their area: so the mask is
    counted only once the blocks written since the last count could have reached the fraction.
    """
    masks = np.zeros((len(blocks), height, width), dtype=bool)
    wanted_pixels = _wanted_pixels(fraction, height, width).tolist()
    for mask, image_blocks, wanted in zip(masks, blocks.numpy(), wanted_pixels, strict=True):
        missing = wanted
        for top, left, bottom, right in _as_python_numbers(image_blocks):
            if missing <= 0:
                missing = wanted - np.count_nonzero(mask)
                if missing <= 0:
                    break
            mask[top:bottom, left:right] = True
            missing -= (bottom - top) * (right - left)
    return torch.from_numpy(masks)


def _as_python_numbers(blocks: np.ndarray, chunk_size: int = 32) -> Iterator[list[int]]:
    """Rows of `blocks` as Python's numbers, which index faster, a chunk at a time because most rows are never needed."""
    for start in range(0, len(blocks), chunk_size):
        yield from blocks[start : start + chunk_size].tolist()


def _mask_batched(blocks: torch.Tensor, fraction: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The same mask as `_mask_loop`, for accelerators: no loop over images, no synchronization.

    A block is the outer product of the rows and the columns it spans, so a product of matrices counts the blocks over
    each pixel; bisection finds how many blocks each image needs.
    """
    top, left, bottom, right = blocks.unsqueeze(1).unbind(-1)
    row = torch.arange(height, device=blocks.device).view(1, -1, 1)
    column = torch.arange(width, device=blocks.device).view(1, -1, 1)
    rows = ((row >= top) & (row < bottom)).float()
    columns = ((column >= left) & (column < right)).float().transpose(1, 2)
    wanted = _wanted_pixels(fraction, height, width)
    index = torch.arange(blocks.shape[1], device=blocks.device)
    needed = torch.zeros(len(blocks), dtype=torch.long, device=blocks.device)
    step = 1 << (blocks.shape[1].bit_length() - 1)
    while step:
        # The largest number of blocks that falls short, bit by bit from the highest.
        tried = needed + step
        covered = (rows * (index < tried[:, None]).unsqueeze(1)) @ columns > 0
        falls_short = covered.sum((1, 2)) < wanted
        needed = torch.where(falls_short, tried, needed)
        step //= 2
    needed = needed + (wanted > 0)
    return (rows * (index < needed[:, None]).unsqueeze(1)) @ columns > 0


def _fill_loop(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    kinds: list[str],
    kind: torch.Tensor,
    donor: torch.Tensor,
    generator: torch.Generator | None,
    draw_device: torch.device,
) -> torch.Tensor:
    """Images like `pixel_values` with what `kinds[kind]` of each says in place of its masked pixels.

    An image at a time stays in the processor's cache, and noise is drawn only for the pixels that want it.
    """
    corrupted = _empty_in_huge_pages(pixel_values)
    noise = torch.empty(pixel_values[0].numel(), dtype=pixel_values.dtype, device=draw_device)
    zero = pixel_values.new_zeros(())
    for image, (number, other) in enumerate(zip(kind.tolist(), donor.tolist(), strict=True)):
        clean, hole, result = pixel_values[image], mask[image], corrupted[image]
        if kinds[number] == "noise":
            hole = hole.expand_as(clean)
            drawn = noise[: hole.sum()].normal_(generator=generator)
            result.copy_(clean).masked_scatter_(hole, drawn.to(clean.device))
        else:
            torch.where(hole, zero if kinds[number] == "zeros" else pixel_values[other], clean, out=result)
    return corrupted


def _empty_in_huge_pages(like: torch.Tensor) -> torch.Tensor:
    """An uninitialized tensor like `like`, in memory from NumPy, which asks the system for huge pages: touching a batch
    for the first time costs several times as much in PyTorch's small ones."""
    memory = np.empty(like.numel() * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(like.shape)


def _fill_batched(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    kinds: list[str],
    kind: torch.Tensor,
    donor: torch.Tensor,
    generator: torch.Generator | None,
    draw_device: torch.device,
) -> torch.Tensor:
    """As `_fill_loop`, for accelerators: filling every image in every way costs less there than waiting for
    the device to say which image wants what."""
    corrupted = pixel_values
    for number, name in enumerate(kinds):
        if name == "noise":
            filling = torch.randn(
                pixel_values.shape, generator=generator, device=draw_device, dtype=pixel_values.dtype
            ).to(pixel_values.device)
        elif name == "zeros":
            filling = pixel_values.new_zeros(())
        else:
            filling = pixel_values[donor]
        corrupted = torch.where(mask & (kind == number).view(-1, 1, 1, 1), filling, corrupted)
    return corrupted
