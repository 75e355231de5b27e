"""A model for images of another size than those that it was trained with."""

import copy

import torch
from torch import nn
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel

from modeling_sit.runtime.errors import SiTError

POSITIONS = "embeddings.position_embeddings"


def image_shape(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width in pixels of the images that the processor gives the model."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return (size.height or size.shortest_edge, size.width or size.shortest_edge)


def resize_processor(processor: BaseImageProcessor, image_size: int) -> None:
    """Make the processor give square images of `image_size` pixels."""
    square = {"height": image_size, "width": image_size}
    if getattr(processor, "do_center_crop", False):
        ratio = (processor.size.shortest_edge or processor.size.height) / image_shape(processor)[0]
        processor.size = type(processor.size)(shortest_edge=round(ratio * image_size))
        processor.crop_size = type(processor.crop_size)(**square)
    else:
        processor.size = type(processor.size)(**square)


def check_image_size(config: PretrainedConfig, image_size: int) -> None:
    """Raise [`SiTError`] if a model cannot take images of that height and width, which have to be whole patches."""
    if getattr(config, "patch_size", None) is None:
        raise SiTError(f"a model of type {config.model_type} has no positions to interpolate", argument="image_size")
    for patch in pair(config.patch_size):
        if image_size % patch:
            raise SiTError(
                f"{image_size} is not made of whole patches",
                argument="image_size",
                remedy=f"give a multiple of {patch}, such as {max(1, round(image_size / patch)) * patch}",
            )


def resize_model(model: PreTrainedModel, image_size: int | tuple[int, int]) -> PreTrainedModel:
    """The same model for images of another size. Its positions are interpolated (bicubic) and are part of its weights,
    so it is saved and loaded as a model of that size.

    Args:
        model (`PreTrainedModel`): A Vision Transformer with one embedding for each position, tokens first.
        image_size (`int` or pair of `int`): Height and width in pixels, multiples of the patches'.

    Raises:
        [`SiTError`]: If the model has no such positions.
    """
    weights = model.state_dict()
    name = next((name for name in weights if name.endswith(POSITIONS)), None)
    if name is None:
        raise SiTError(f"{type(model).__name__} has no position embeddings to interpolate", argument="image_size")
    config = copy.deepcopy(model.config)
    config.image_size = image_size
    patches = pair(config.patch_size)
    old_grid = tuple(side // patch for side, patch in zip(pair(model.config.image_size), patches, strict=True))
    new_grid = tuple(side // patch for side, patch in zip(pair(image_size), patches, strict=True))
    weights[name] = interpolate_positions(weights[name], old_grid, new_grid)
    resized = type(model)(config)
    resized.load_state_dict(weights)
    return resized


def interpolate_positions(
    positions: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Positions `(1, tokens + patches, hidden_size)` for another grid of patches, rows x columns. The positions of the
    tokens, which come first, stay as they are."""
    num_tokens = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :num_tokens], positions[:, num_tokens:]
    patches = patches.unflatten(1, old_grid).permute(0, 3, 1, 2).float()
    patches = nn.functional.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([tokens, patches.flatten(2).transpose(1, 2).to(tokens.dtype)], dim=1)


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Height and width from the `image_size` or `patch_size` of a configuration."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
