"""What students of the peer methods have in common: SiT's backbone, and a head on what the method trains."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from modeling_sit import SiTConfig, SiTModel
from modeling_sit.modeling_sit import SiTDropPath, SiTPreTrainedModel, pool
from modeling_sit.pretraining.arguments import ModelArguments
from modeling_sit.pretraining.model_setup import build_student, load_start

StudentType = TypeVar("StudentType", bound="Student")


def feature_size(config: SiTConfig) -> int:
    """How many numbers the features of a view have: those of the tokens that `config.pooling` names."""
    return config.hidden_size * (2 if config.pooling == "token_mean" else 1)


class Student(SiTPreTrainedModel):
    """
    A backbone with a head. Weights of the head begin as the configuration says, like the backbone's.

    A subclass gives the head, and `forward(**inputs)`, which returns a `ModelOutput` with `loss` and the losses that its method
    logs.

    Args:
        config ([`SiTConfig`]): The backbone; `pooling` says which tokens the features are of.
        head (`nn.Module`): From features `(batch, width)` to projections `(batch, size)`.
    """

    def __init__(self, config: SiTConfig, head: nn.Module):
        super().__init__(config)
        self.vit = SiTModel(config)
        self.head = head
        self.post_init()

    def features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Features `(views, width)` of views `(views, channels, height, width)`: of the tokens that `config.pooling` names."""
        tokens = self.vit(pixel_values, interpolate_pos_encoding, token_only=True).last_hidden_state
        return pool(tokens, self.config.pooling)

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(views, width)`, and their projections `(views, size)`."""
        features = self.features(pixel_values)
        return features, self.head(features)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projections `(views, size)`: what a teacher has to give."""
        return self.encode(pixel_values)[1]


def create_peer(
    create: Callable[[SiTConfig], StudentType], config: SiTConfig, arguments: ModelArguments, seed: int
) -> StudentType:
    """A student of a peer method, with weights from the seed, and the backbone's from the checkpoint to go on from.

    Args:
        create (`Callable`): Makes the student of a configuration.
        config ([`SiTConfig`]): As of [`~modeling_sit.pretraining.model_setup.create_config`].
        arguments ([`ModelArguments`]): What the user asked for.
        seed (`int`): Of the first weights.

    Raises:
        [`SiTError`]: If there is no such attention implementation, or the checkpoint cannot be loaded.
    """
    student = build_student(create, config, arguments, seed)
    if arguments.model_name_or_path is not None:
        student.vit.load_state_dict(load_start(SiTModel, config, arguments).state_dict())
    if arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def without_dropout(student: StudentType) -> StudentType:
    """A copy of a student for its teacher, without dropout and stochastic depth."""
    model = copy.deepcopy(student)
    model.config.drop_path_rate = model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, SiTDropPath):
            module.drop_probability = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def projector(widths: list[int], *, activation: type[nn.Module] = nn.ReLU, output_norm: bool = True) -> nn.Sequential:
    """Linear layers without biases, with batch norm and an activation between them, as heads of contrastive methods are.

    Args:
        widths (`list[int]`): Of the input, of each hidden layer, and of the output.
        activation (`type`, *optional*, defaults to `nn.ReLU`): Makes an activation.
        output_norm (`bool`, *optional*, defaults to `True`): Whether a batch norm without affine parameters ends the head.
    """
    layers: list[nn.Module] = []
    for number, (width_in, width) in enumerate(pairwise(widths), start=1):
        layers.append(nn.Linear(width_in, width, bias=False))
        if number < len(widths) - 1:
            layers += [nn.BatchNorm1d(width), activation()]
        elif output_norm:
            layers.append(nn.BatchNorm1d(width, affine=False))
    return nn.Sequential(*layers)
