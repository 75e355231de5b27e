"""The feature pyramid: strides, its layer norm, and the sizes that it takes."""

import pytest
import torch
from torch import nn

from modeling_sit import SiTConfig
from modeling_sit.feature_pyramid import PYRAMID_STRIDES, SiTChannelLayerNorm, SiTFeaturePyramid, patch_map


def config(patch_size) -> SiTConfig:
    return SiTConfig(hidden_size=16, num_attention_heads=2, image_size=64, patch_size=patch_size, pyramid_size=6)


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16, 32])
def test_strides_are_the_same_whatever_the_patch(patch_size):
    pyramid = SiTFeaturePyramid(config(patch_size))
    levels = pyramid(torch.randn(2, 16, 64 // patch_size, 96 // patch_size))
    assert [tuple(level.shape) for level in levels] == [(2, 6, 64 // s, 96 // s) for s in PYRAMID_STRIDES]


def test_a_level_sees_its_place():
    """A cell of every level reads what lies at its place in the image, and its neighbors at the most."""
    pyramid = SiTFeaturePyramid(config(8))
    patches = torch.randn(1, 16, 16, 16, requires_grad=True)
    for stride, level in zip(PYRAMID_STRIDES, pyramid(patches), strict=True):
        row, column = 64 // stride, 96 // stride
        (gradient,) = torch.autograd.grad(level[0, 0, row, column], patches, retain_graph=True)
        rows, columns = gradient.abs().sum(dim=(0, 1)).nonzero().T
        reach = max(stride, 8)  # the 3 x 3 convolution reads one cell on each side
        for read, place in ((rows, 64), (columns, 96)):
            assert 8 * read.min() >= place - reach and 8 * (read.max() + 1) <= place + 2 * reach
            assert 8 * read.min() <= place < 8 * (read.max() + 1)


def test_layer_norm_is_over_the_channels():
    norm = SiTChannelLayerNorm(5, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps = torch.randn(2, 5, 3, 4)
    normed = norm(maps)
    for image, row, column in ((0, 0, 0), (1, 2, 3)):
        cell = maps[image, :, row, column]
        expected = (cell - cell.mean()) / (cell.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
        assert torch.allclose(normed[image, :, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("patch_size", [12, (8, 16), (16, 8)])
def test_other_patches_are_refused(patch_size):
    with pytest.raises(ValueError, match="power of two, got patch_size="):
        SiTFeaturePyramid(SiTConfig(hidden_size=16, num_attention_heads=2, image_size=48, patch_size=patch_size))


@pytest.mark.parametrize(
    ("patch_size", "size", "multiple"), [(8, (72, 64), 32), (16, (64, 80), 32), (64, (64, 96), 64)]
)
def test_sizes_beside_the_grid_are_refused(patch_size, size, multiple):
    pyramid = SiTFeaturePyramid(config(patch_size))
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels.*multiples of {multiple}; pad"):
        pyramid.check_size(*size)
    pyramid.check_size(128, 192)


def test_patch_map_puts_tokens_in_their_places():
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    maps = patch_map(tokens, (16, 24), (8, 8))
    assert maps.shape == (2, 3, 2, 3)
    assert torch.equal(maps[1, :, 1, 2], tokens[1, 6])
    assert torch.equal(maps[0, :, 0, 1], tokens[0, 2])
