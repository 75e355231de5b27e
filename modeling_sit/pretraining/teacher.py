"""The teacher: an exponential moving average of the student."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from modeling_sit.modeling_sit import SiTForPreTraining
from modeling_sit.runtime.accelerator import reshard, shard_like
from modeling_sit.runtime.batch_norm import synchronize_batch_norm


class Teacher(nn.Module):
    """
    A copy of the student that follows it by exponential moving average, without gradients.

    Its parameters are averaged; its batch norm statistics are its own, for it stays in training mode (as in the
    authors' code), without stochastic depth.

    Args:
        student ([`SiTForPreTraining`]): The model to copy and to follow; bare, not wrapped.
    """

    def __init__(self, student: SiTForPreTraining):
        super().__init__()
        config = copy.deepcopy(student.config)
        config.drop_path_rate = config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        self.model = SiTForPreTraining(config).to(student.device)
        self.model.load_state_dict(student.state_dict())
        self.model.requires_grad_(False).train()
        # In a tuple, for as an attribute of its own the student would be a part of this module.
        self._followed: tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]] | None = None

    def spread(self, student: SiTForPreTraining) -> "Teacher":
        """Make this the teacher of all processes' images: batch norm over all of them, and shards where the student has
        shards.

        Args:
            student ([`SiTForPreTraining`]): As Accelerate has prepared it; bare where it is not sharded.
        """
        synchronize_batch_norm(self.model)
        shard_like(self.model, student)
        self._followed = None
        return self

    @torch.no_grad()
    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projections `(2 * batch, projection_size)` of clean views `(2 * batch, channels, height, width)`."""
        return self.model.project(pixel_values)

    @torch.no_grad()
    def update(self, student: SiTForPreTraining, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`, parameter by parameter, shard by shard."""
        reshard(self.model)
        reshard(student)
        if self._followed is None or self._followed[0] is not student:
            # Collecting parameters takes longer than telling an accelerator what to do with them. Between steps they stay
            # the same objects, which checkpoints are loaded into.
            self._followed = (student, list(self.model.parameters()), list(student.parameters()))
        _, averages, parameters = self._followed
        get_ema_multi_avg_fn(momentum)(averages, parameters, None)  # one call, in place
