"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEma:
    """
    Follows the trainable weights of a model by exponential moving average. All else of the model is as it is.

    Args:
        model (`nn.Module`): The model; the average starts at its weights.
        decay (`float` in (0, 1)):
            Share of the average that stays at each step; at most (1 + step) / (10 + step), so that a short run's average
            leaves the start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the model by one step, the `step`th of the run, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), self._of(model), None)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the average for weights; afterwards its own, to the last bit."""
        own = [weight.detach().clone() for weight in self._of(model)]
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._of(model), own)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model the average for weights."""
        torch._foreach_copy_(self._of(model), list(self.weights.values()))

    def _of(self, model: nn.Module) -> list[torch.Tensor]:
        parameters = dict(model.named_parameters())
        return [parameters[name] for name in self.weights]
