"""Linear layers by oneDNN, on CPUs where the library that PyTorch takes for products of matrices is slow."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import once_differentiable


@lru_cache(maxsize=1)
def onednn_pays() -> bool:
    """Whether float32 products are faster by oneDNN than by PyTorch's own choice, MKL.

    MKL has kernels with registers of 512 bits, but takes them on Intel's processors only. oneDNN takes them where they
    are. So it is an AMD processor that has them: on one of 2024 oneDNN did twice as much in a second. On those before it,
    whose units are 256 bits wide, a step takes the same time either way. The answer is from what the machine is, not from
    a measurement, because a run that resumes must round as before.
    """
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor_vendor()
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _processor_vendor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("vendor_id"):
                return line
    return platform.processor()


def use_fast_products(model: nn.Module) -> nn.Module:
    """Have the model's linear layers computed by oneDNN, if the model is on a CPU where that pays.

    Parameters, their names, and hooks stay as they are. Outputs and gradients differ by rounding.

    Args:
        model (`nn.Module`): On the device of its work.

    Returns:
        `nn.Module`: The model, changed in place.
    """
    if onednn_pays() and all(parameter.device.type == "cpu" for parameter in model.parameters()):
        replace_linear_layers(model)
    return model


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """As [`use_fast_products`], for a while: afterwards the model is as it was, for whoever gets it."""
    before = {module for module in model.modules() if type(module) is nn.Linear}
    use_fast_products(model)
    try:
        yield
    finally:
        for module in before:
            restore_linear_layers(module)


def replace_linear_layers(model: nn.Module) -> None:
    """Make every `nn.Linear` of the model an [`OneDNNLinear`]; subclasses, such as quantized layers, stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear


def restore_linear_layers(model: nn.Module) -> None:
    """Take [`replace_linear_layers`] back."""
    for module in model.modules():
        if type(module) is OneDNNLinear:
            module.__class__ = nn.Linear


class OneDNNLinear(nn.Linear):
    """A linear layer that oneDNN computes where it can: float32 without autocast, outside of a compiler or tracer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (
            input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or input.device.type != "cpu"
            or input.ndim < 2
            or input.numel() == 0
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
        ):
            return super().forward(input)
        # With rows apart from each other, such as one token of each image, oneDNN is hundreds of times slower.
        input = input.contiguous()
        if torch.is_grad_enabled():
            return _Linear.apply(input, self.weight, self.bias)
        return _product(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """`input @ weight.T + bias` and its gradients."""

    @staticmethod
    def forward(ctx, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        gradient = gradient.contiguous()  # it may be one number, expanded
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        of_input = of_weight = of_bias = None
        if wants_input:
            of_input = _product(gradient, weight.T)
        rows = gradient.flatten(0, -2)
        if wants_weight:
            # oneDNN is up to 1.7 times as fast where the larger side comes first.
            columns, wide = input.flatten(0, -2).T, weight.shape[1] > weight.shape[0]
            of_weight = _product(columns, rows.T).T if wide else _product(rows.T, columns)
        if wants_bias:
            of_bias = rows.sum(0)
        return of_input, of_weight, of_bias


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`left @ right.T + bias`. The operator is the one that PyTorch's compiler takes for linear layers on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
