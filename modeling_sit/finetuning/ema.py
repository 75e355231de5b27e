"""An exponential moving average of a model's weights.

`torch.optim.swa_utils.AveragedModel` would not give the same average: it takes the weights after the first step as they
are, has one decay for all steps, and copies the whole model, frozen weights too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback


class ModelEma(TrainerCallback):
    """
    Averages the trainable weights of a model over the steps of a run. As a callback of `Trainer`, it does so after each
    step.

    Args:
        model (`nn.Module`): The model; the average starts at its weights.
        decay (`float` in (0, 1)):
            Fraction of the average that stays at each step; at most (1 + step) / (10 + step), so that the average of a
            short run leaves the start.

    Attributes:
        weights (`dict[str, torch.Tensor]`): The average, by the name of the parameter.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.update(model, state.global_step)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model's weights after a step of the run; `step` counts from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), self._of(model), None)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """In this block, the model's weights are the average; afterwards its own, to the last bit."""
        own = [weight.detach().clone() for weight in self._of(model)]
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._of(model), own)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Set the model's weights to the average."""
        torch._foreach_copy_(self._of(model), list(self.weights.values()))

    def _of(self, model: nn.Module) -> list[torch.Tensor]:
        parameters = dict(model.named_parameters())
        return [parameters[name] for name in self.weights]
