"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from modeling_sit.finetuning.ema import ModelEma


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_closed_form(model):
    """Sum over the steps of what was added times all later decays, which rise from 2/11."""
    average = ModelEma(model, 0.5)
    values, steps = [model[0].weight.detach().clone()], range(1, 20)
    for step in steps:
        with torch.no_grad():
            model[0].weight.normal_()
        values.append(model[0].weight.detach().clone())
        average.update(model, step)
    decays = [min(0.5, (1 + step) / (10 + step)) for step in steps]
    assert decays[0] == 2 / 11 and decays[-1] == 0.5
    expected = values[0]
    for decay, value in zip(decays, values[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.weights["0.weight"], expected)
    assert average.weights["0.bias"].equal(model[0].bias)


def test_applied_only_inside(model):
    average = ModelEma(model, 0.9)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError), average.applied(model):
        assert model.state_dict()["0.weight"].equal(start["0.weight"])
        raise RuntimeError
    assert all(own[name].equal(value) for name, value in model.state_dict().items())
    assert average.weights["0.weight"].equal(start["0.weight"])


def test_frozen_weights_are_not_followed(model):
    model[0].requires_grad_(False)
    assert set(ModelEma(model, 0.9).weights) == {"1.weight", "1.bias"}
