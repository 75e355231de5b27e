"""Batch norm of two processes is that of one with all their images."""

import pytest
import torch
from torch import nn
from two_processes import BATCH_NORM_CASES, batch_norm_inputs, run_batch_norm

from modeling_sit import SiTForPreTraining
from modeling_sit.runtime import batch_norm
from modeling_sit.runtime.batch_norm import SynchronizedBatchNorm1d, synchronize_batch_norm


@pytest.fixture
def as_if_several_processes(monkeypatch):
    monkeypatch.setattr(batch_norm, "has_several_processes", lambda: True)


@pytest.mark.parametrize("case", BATCH_NORM_CASES)
def test_equals_one_process_with_all_images(replicated, case):
    module, inputs, gradient = batch_norm_inputs(case)
    expected = run_batch_norm(module.double(), [values.double() for values in inputs], gradient.double())
    first, second = (results[f"batch_norm.{case}"] for results in replicated)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("buffer."):
            assert torch.equal(first[name], second[name]), name  # the same on every process
            found = first[name]
        elif name in ("gradient.weight", "gradient.bias"):
            found = first[name] + second[name]  # what averages gradients over processes sums them
        else:
            found = torch.cat([first[name], second[name]])
        tolerances = {"rtol": 1e-2, "atol": 1e-2} if case == "bfloat16" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found.double(), value.double(), **tolerances)


def test_bfloat16_stays_bfloat16(replicated):
    results = replicated[0]["batch_norm.bfloat16"]
    assert results["output.0"].dtype == results["gradient.0"].dtype == torch.bfloat16


class TestSynchronizeBatchNorm:
    def test_one_process_keeps_its_own(self, tiny_config):
        model = SiTForPreTraining(tiny_config())
        assert synchronize_batch_norm(model) is model
        assert not any(isinstance(module, SynchronizedBatchNorm1d) for module in model.modules())

    def test_keeps_tensors_names_settings_and_modes(self, tiny_config, as_if_several_processes):
        model = SiTForPreTraining(tiny_config()).train()
        model.projection_head.mlp[1].eval().momentum = 0.3
        state, settings = (
            model.state_dict(keep_vars=True),
            [str(module) for module in model.modules() if is_norm(module)],
        )
        random_state = torch.get_rng_state()
        assert synchronize_batch_norm(model) is model
        assert torch.equal(torch.get_rng_state(), random_state)

        norms = [module for module in model.modules() if is_norm(module)]
        assert [type(module) for module in norms] == [SynchronizedBatchNorm1d] * len(settings)
        assert [str(module).removeprefix("Synchronized") for module in norms] == settings
        assert [module.training for module in norms] == [False] + [True] * (len(norms) - 1)
        converted = model.state_dict(keep_vars=True)
        assert converted.keys() == state.keys()
        assert all(converted[name] is value for name, value in state.items())

    def test_accelerators_get_pytorchs_own(self, tiny_config, as_if_several_processes):
        model = SiTForPreTraining(tiny_config()).to("meta")
        keys = model.state_dict().keys()
        synchronize_batch_norm(model)
        assert all(type(module) is nn.SyncBatchNorm for module in model.modules() if is_norm(module))
        assert model.state_dict().keys() == keys


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
