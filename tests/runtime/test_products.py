"""Linear layers by oneDNN: outputs, gradients, and what is left to PyTorch."""

import copy

import pytest
import torch
from torch import nn

from modeling_sit import SiTForPreTraining
from modeling_sit.runtime import products
from modeling_sit.runtime.products import OneDNNLinear, fast_products, replace_linear_layers, use_fast_products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="PyTorch without oneDNN",
)


def twins(num_in: int, num_out: int, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    """The same layer in double precision by PyTorch, and in single precision by oneDNN."""
    torch.manual_seed(0)
    layer = nn.Linear(num_in, num_out, bias=bias)
    fast = copy.deepcopy(layer)
    replace_linear_layers(fast)
    assert type(fast) is OneDNNLinear
    return layer.double(), fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 8), (5, 7, 8), (2, 3, 4, 8), (1, 8)])
@pytest.mark.parametrize("num_out", [8, 24, 3])
def test_outputs_and_gradients_are_those_of_the_layer(shape, num_out, bias):
    exact, fast = twins(8, num_out, bias)
    images = torch.randn(shape)
    inputs = [images.double().requires_grad_(), images.clone().requires_grad_()]
    outputs = [exact(inputs[0]), fast(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0].float())
    weights = torch.randn_like(outputs[1])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad.float())
    for name, parameter in fast.named_parameters():
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, exact.get_parameter(name).grad.float())


def test_inputs_and_gradients_that_are_views():
    exact, fast = twins(8, 16, True)
    tokens = torch.randn(4, 9, 8)
    inputs = [tokens.double().requires_grad_(), tokens.clone().requires_grad_()]
    for layer, each in zip((exact, fast), inputs, strict=True):
        layer(each[:, 1:]).sum().backward()  # the gradient is one number, expanded
        layer(each.transpose(0, 1))[1].mean().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad.float())
    torch.testing.assert_close(fast.weight.grad, exact.weight.grad.float())
    torch.testing.assert_close(fast.bias.grad, exact.bias.grad.float())


def test_frozen_parts_have_no_gradient():
    _, fast = twins(8, 16, True)
    fast.weight.requires_grad_(False)
    fast(torch.randn(3, 8)).sum().backward()
    assert fast.weight.grad is None and fast.bias.grad is not None
    assert not fast.requires_grad_(False)(torch.randn(3, 8)).requires_grad


def test_pytorch_keeps_what_is_not_float32():
    _, fast = twins(8, 16, True)
    plain = nn.Linear(8, 16)
    plain.load_state_dict(fast.state_dict())
    images = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(images).dtype == torch.bfloat16
        assert torch.equal(fast(images), plain(images))
    for each in (images[0], images[:0]):
        assert torch.equal(fast(each), plain(each))
    assert torch.equal(fast.double()(images.double()), plain.double()(images.double()))


def test_a_model_keeps_its_weights_and_what_it_computes(tiny_config, monkeypatch):
    model = SiTForPreTraining(tiny_config()).train()
    fast = copy.deepcopy(model)
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    use_fast_products(fast)
    assert any(isinstance(module, OneDNNLinear) for module in fast.modules())
    assert list(fast.state_dict()) == list(model.state_dict())
    config = model.config
    clean = torch.randn(8, config.num_channels, *config.image_shape)
    inputs = {"target_pixel_values": clean, "teacher_projections": torch.randn(8, config.projection_size)}
    for each in (model, fast):
        torch.manual_seed(0)
        each(clean + 1, **inputs).loss.backward()
    for parameter, other in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_for_a_while(monkeypatch):
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(KeyError), fast_products(model):
        with fast_products(model):
            pass
        assert type(model[0]) is OneDNNLinear
        raise KeyError
    assert type(model[0]) is nn.Linear


def test_other_devices_and_processors_keep_their_layers(monkeypatch):
    for pays, device in ((False, "cpu"), (True, "meta")):
        monkeypatch.setattr(products, "onednn_pays", lambda pays=pays: pays)
        model = use_fast_products(nn.Sequential(nn.Linear(4, 4, device=device)))
        assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("vendor", "capability", "pays"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
    ],
)
def test_only_where_mkl_leaves_registers_unused(vendor, capability, pays, monkeypatch):
    monkeypatch.setattr(products, "_processor_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.onednn_pays.__wrapped__() == (pays and torch.backends.mkl.is_available())
