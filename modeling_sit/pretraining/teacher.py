"""The teacher: an exponential moving average of the student."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from modeling_sit.runtime.accelerator import reshard, shard_like
from modeling_sit.runtime.batch_norm import synchronize_batch_norm


class Teacher(nn.Module):
    """
    A copy of the student that follows it by exponential moving average, without gradients.

    Its parameters are averaged. Its batch norm statistics are its own: it stays in training mode, as in the authors'
    code.

    Args:
        model (`nn.Module`): A copy of the student, with parameters of the same names. The method makes it, without
            what is random in training, such as stochastic depth, and without what the student alone has, such as a
            predictor.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.model.requires_grad_(False).train()
        # In a tuple, for as an attribute of its own the student would be a part of this module.
        self._followed: tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]] | None = None

    def prepare(self, student: nn.Module, forward_methods: tuple[str, ...] = ()) -> "Teacher":
        """Make this the teacher of the images of all processes: batch norm over all of them, and shards where the student
        has shards.

        Args:
            student (`nn.Module`): As Accelerate has prepared it; bare where it is not sharded.
            forward_methods (`tuple` of `str`, *optional*): Methods that are called in place of `forward`.
        """
        synchronize_batch_norm(self.model)
        shard_like(self.model, student, forward_methods)
        self._followed = None
        return self

    @torch.no_grad()
    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's projections `(views, size)` of clean views `(views, channels, height, width)`."""
        return self.model.project(pixel_values)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`, parameter by parameter, shard by shard."""
        reshard(self.model)
        reshard(student)
        if self._followed is None or self._followed[0] is not student:
            # Collecting parameters takes longer than telling an accelerator what to do with them. Between steps they stay
            # the same objects, which checkpoints are loaded into.
            parameters = dict(student.named_parameters())
            averages = dict(self.model.named_parameters())
            self._followed = (student, list(averages.values()), [parameters[name] for name in averages])
        _, averages, parameters = self._followed
        get_ema_multi_avg_fn(momentum)(averages, parameters, None)  # one call, in place
