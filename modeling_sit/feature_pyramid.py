"""The simple feature pyramid of ViTDet: maps at several strides from the last map of a plain ViT (arXiv 2203.16527)."""

import torch
from torch import nn

from .configuration_sit import SiTConfig

# Pixels of an image to one of a level, finest first, whatever the patch: heads are tuned to these.
PYRAMID_STRIDES = (4, 8, 16, 32)


class SiTChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of maps `(batch, channels, height, width)`. Only what is called a layer norm does
    transformers initialize as one."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SiTFeaturePyramid(nn.Module):
    """
    Maps of strides 4, 8, 16 and 32 from the map of the last block. A level finer than the patches begins with transposed
    convolutions of 2 x 2, each with half the channels, layer norm and GELU between them; a coarser one with max pooling.
    Then follow a convolution of 1 x 1 and one of 3 x 3, each with layer norm.

    Args:
        config ([`SiTConfig`]): Of the backbone; `pyramid_size` is the number of channels of every level.

    Raises:
        `ValueError`: If the patches are not square, or their side is no power of two.
    """

    def __init__(self, config: SiTConfig):
        super().__init__()
        height, width = config.patch_shape
        if height != width or height & (height - 1):
            raise ValueError(
                f"a feature pyramid needs square patches whose side is a power of two, got patch_size="
                f"{config.patch_size}"
            )
        self.patch_size = height
        self.levels = nn.ModuleList(_level(config, height, stride) for stride in PYRAMID_STRIDES)

    def check_size(self, height: int, width: int) -> None:
        """Raise `ValueError` if an image of this size is not made of whole cells of every level: the levels would lie beside
        one another."""
        multiple = max(self.patch_size, PYRAMID_STRIDES[-1])
        if height % multiple or width % multiple:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels, but both sides must be multiples of {multiple}; pad the "
                "images on the right and below"
            )

    def forward(self, patches: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            patches (`torch.Tensor` of shape `(batch, hidden_size, height / patch_size, width / patch_size)`): See
                [`patch_map`].

        Returns:
            `list[torch.Tensor]`: `(batch, pyramid_size, height / stride, width / stride)` of each stride.
        """
        return [level(patches) for level in self.levels]


def _level(config: SiTConfig, patch_size: int, stride: int) -> nn.Sequential:
    channels, layers = config.hidden_size, nn.Sequential()
    while patch_size > stride:
        if len(layers):
            layers.extend([SiTChannelLayerNorm(channels, eps=config.layer_norm_eps), nn.GELU()])
        narrower = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, narrower, kernel_size=2, stride=2))
        channels, patch_size = narrower, patch_size // 2
    if patch_size < stride:
        layers.append(nn.MaxPool2d(stride // patch_size))
    for kernel_size in (1, 3):
        layers.extend(
            [
                nn.Conv2d(channels, config.pyramid_size, kernel_size, padding=kernel_size // 2, bias=False),
                SiTChannelLayerNorm(config.pyramid_size, eps=config.layer_norm_eps),
            ]
        )
        channels = config.pyramid_size
    return layers


def patch_map(tokens: torch.Tensor, size: tuple[int, int], patch_shape: tuple[int, int]) -> torch.Tensor:
    """Tokens `(batch, 1 + patches, channels)` of images of `size` pixels as a map `(batch, channels, rows, columns)`, without
    the contrastive token."""
    grid = tuple(side // patch for side, patch in zip(size, patch_shape, strict=True))
    return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
