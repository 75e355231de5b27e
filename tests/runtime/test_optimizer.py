"""Which parameters decay, and that every trainable one is optimized once."""

import pytest
import torch

from modeling_sit import SiTForPreTraining
from modeling_sit.runtime.optimizer import create_optimizer, parameter_groups, set_hyperparameters


@pytest.fixture
def model(tiny_config) -> SiTForPreTraining:
    return SiTForPreTraining(tiny_config())


def names_of(model, parameters) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in parameters}


def test_matrices_decay_and_nothing_else(model):
    decaying, other = parameter_groups(model)
    names = dict(model.named_parameters())
    expected = {
        name
        for name, parameter in names.items()
        if name.endswith(".weight") and "norm" not in name and parameter.ndim > 1
    }
    assert names_of(model, decaying["params"]) == expected
    assert names_of(model, other["params"]) == set(names) - expected
    for name in ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "vit.layernorm.weight"):
        assert name in names_of(model, other["params"])
    for name in ("vit.embeddings.patch_embeddings.projection.weight", "decoder.projection.weight"):
        assert name in names_of(model, decaying["params"])
    assert (decaying["decays"], other["decays"], other["weight_decay"]) == (True, False, 0.0)


def test_every_trainable_parameter_once(model):
    parameters = [parameter for group in parameter_groups(model) for parameter in group["params"]]
    assert len({id(parameter) for parameter in parameters}) == len(parameters) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out(model, tiny_config):
    model.decoder.requires_grad_(False)
    names = {name for group in parameter_groups(model) for name in names_of(model, group["params"])}
    assert names and not any(name.startswith("decoder.") for name in names)

    fixed = SiTForPreTraining(tiny_config(position_embedding_type="sincos"))
    names = {name for group in parameter_groups(fixed) for name in names_of(fixed, group["params"])}
    assert "vit.embeddings.position_embeddings" not in names


def test_hyperparameters(model):
    optimizer = create_optimizer(model, (0.8, 0.95), torch.device("cpu"))
    set_hyperparameters(optimizer, learning_rate=0.3, weight_decay=0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.7, 0.0]
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    set_hyperparameters(optimizer, learning_rate=0.1, weight_decay=0.2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_a_step_without_gradient_signal_decays_matrices_only(model):
    """AdamW with zero gradients multiplies what decays by 1 - rate * decay."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = create_optimizer(model, (0.9, 0.999), torch.device("cpu"))
    set_hyperparameters(optimizer, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decaying = names_of(model, parameter_groups(model)[0]["params"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in decaying else 1.0))
