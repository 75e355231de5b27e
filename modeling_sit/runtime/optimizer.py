"""AdamW as SiT uses it."""

import torch
from torch import nn

# Vectors, which are stored with three dimensions.
NO_DECAY_NAMES = ("cls_token", "position_embeddings")


def parameter_groups(model: nn.Module) -> list[dict]:
    """Trainable parameters in two groups: those with weight decay, and biases, norms, tokens and positions without it.

    The entry `decays` of a group says which one it is, for a schedule of the weight decay.
    """
    decaying, other = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.ndim <= 1 or name.endswith(NO_DECAY_NAMES)
            (other if is_vector else decaying).append(parameter)
    return [{"params": decaying, "decays": True}, {"params": other, "decays": False, "weight_decay": 0.0}]


def create_optimizer(model: nn.Module, betas: tuple[float, float], device: torch.device) -> torch.optim.AdamW:
    """AdamW of [`parameter_groups`]. [`set_hyperparameters`] sets learning rate and weight decay before each step."""
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameter_groups(model), lr=0.0, betas=betas, fused=fused)


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set the learning rate of all groups and the weight decay of the decaying one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["decays"]:
            group["weight_decay"] = weight_decay
