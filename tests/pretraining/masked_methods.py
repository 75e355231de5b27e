"""MAE and SimMIM on a few small images, and their weights in transformers' classes."""

import re

import torch
from torch import nn

from modeling_sit.pretraining.masked import MaskedImageModeling
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.model_setup import create_processor

# The names of a backbone's weights in transformers' classes.
BACKBONE_NAMES = (
    (r"^vit\.encoder\.layer\.", "vit.layers."),
    (r"\.attention\.attention\.(query|key|value)", lambda found: f".attention.{found[1][0]}_proj"),
    (r"\.attention\.output\.dense", ".attention.o_proj"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
)


def create_method(flags_of, tiny_config, fields: dict | None = None, **arguments) -> MaskedImageModeling:
    """A method with weights that are not those of the start, biases and norms included."""
    config = tiny_config(**{"patch_size": 4, "pooling": "mean", "drop_path_rate": 0.0, **(fields or {})})
    flags = flags_of(**arguments)
    method = METHODS[arguments["method"]](config, create_processor(config, flags.model, flags.corruption), flags)
    torch.manual_seed(1)
    for parameter in method.student.parameters():
        parameter.data.normal_(std=0.2)
    return method


def images(count: int = 4, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def renamed(name: str, names: tuple) -> str:
    """A weight's name with these patterns replaced, one after the other."""
    for pattern, new in names:
        name = re.sub(pattern, new, name)
    return name


def assert_halves_make_the_whole(student: nn.Module, views: torch.Tensor, masks: torch.Tensor) -> None:
    """The gradients of the mean of two halves' losses, as two processes compute them, are those of the whole batch."""
    student(views, masks).loss.backward()
    whole = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        (student(views[half], masks[half]).loss / 2).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)
