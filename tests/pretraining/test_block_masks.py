"""Masks of patches: how many, how many views, and blocks that are blocks."""

import pytest
import torch

from modeling_sit.pretraining.block_masks import draw_patch_masks


def draw(num_views=200, grid=(8, 12), ratio=(0.1, 0.5), masked_views=0.5, in_blocks=True, seed=0) -> torch.Tensor:
    torch.manual_seed(seed)
    return draw_patch_masks(num_views, grid, ratio, masked_views, in_blocks)


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("grid", [(8, 12), (14, 14), (2, 2), (1, 5)])
def test_numbers(grid, in_blocks):
    masks, patches = draw(grid=grid, in_blocks=in_blocks), grid[0] * grid[1]
    assert masks.shape == (200, patches) and masks.dtype == torch.bool
    counts = masks.sum(dim=1)
    assert (counts > 0).sum() == 100
    counts = counts[counts > 0]
    assert counts.min() == max(1, round(0.1 * patches)) and counts.max() == round(0.5 * patches)
    assert counts.double().mean().item() == pytest.approx(0.3 * patches, abs=max(0.5, 0.03 * patches))


@pytest.mark.parametrize(("masked_views", "expected"), [(0.5, 4), (0.01, 1), (1.0, 7)])
def test_fraction_of_views(masked_views, expected):
    assert draw(7, masked_views=masked_views).any(dim=1).sum() == expected


def test_which_views_and_patches_is_random():
    for in_blocks in (True, False):
        masks = torch.stack([draw(8, ratio=(0.3, 0.3), in_blocks=in_blocks, seed=seed) for seed in range(300)])
        assert (masks.any(dim=2).float().mean(dim=0) - 0.5).abs().max() < 0.12
        often = masks.float().mean(dim=(0, 1)).view(8, 12)
        assert (often - often.flip(0)).abs().max() < 0.05 and (often - often.flip(1)).abs().max() < 0.05
        if not in_blocks:  # of blocks, fewer reach the corners
            assert (often - 0.15).abs().max() < 0.04
    assert torch.equal(draw(seed=3), draw(seed=3)) and not torch.equal(draw(seed=3), draw(seed=4))


def test_blocks_lie_together():
    """Of a masked patch the neighbor on the right is masked more often than patches are."""

    def together(in_blocks: bool) -> float:
        masks = draw(grid=(14, 14), ratio=(0.4, 0.4), masked_views=1.0, in_blocks=in_blocks).unflatten(1, (14, 14))
        return (masks[..., 1:] & masks[..., :-1]).sum().item() / masks[..., :-1].sum().item()

    assert together(False) == pytest.approx(0.4, abs=0.02)
    assert together(True) > 0.7


def test_blocks_that_fit_exactly_are_taken():
    """Two patches of a row of eight: often beside each other, as one block."""
    masks = draw(2000, grid=(1, 8), ratio=(0.25, 0.25), masked_views=1.0).reshape(2000, 8)
    assert (masks[:, 1:] & masks[:, :-1]).any(dim=1).float().mean() > 0.4
