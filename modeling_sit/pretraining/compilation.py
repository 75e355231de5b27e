"""The argument `torch_compile`: the parts of a training step that PyTorch's compiler makes faster."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.errors import SiTError

# Random numbers as without the compiler: a compiled run follows the other to rounding, and resumes bit for bit as that.
OPTIONS = {"fallback_random": True}


def check_compiler(device: torch.device) -> None:
    """Compile a small function.

    Raises:
        [`SiTError`]: If PyTorch cannot compile for the device.
    """
    try:
        torch.compile(lambda numbers: numbers.sin() + 1, options=OPTIONS)(torch.zeros(2, device=device))
    except RuntimeError as problem:  # of dynamo, inductor, Triton
        lines = str(problem).splitlines() or [type(problem).__name__]
        tool = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and a C compiler"
        raise SiTError(
            f"PyTorch cannot compile for {device.type} here ({lines[0].strip()})",
            argument="torch_compile",
            remedy=f"install {tool}, or leave the argument out",
        ) from problem


def compile_training(method: Method, augment: Sequence[nn.Module], device: torch.device) -> None:
    """Compile, in place, the parts of the networks that the method names, and on an accelerator the augmentation.

    Names of weights stay as they are. On a CPU the augmentation is left out: it works on those images alone that an operation
    is drawn for.

    Args:
        method ([`Method`]): Names the parts.
        augment (sequence of `nn.Module`): One for each group of views.
        device (`torch.device`): Of the networks.

    Raises:
        [`SiTError`]: If PyTorch cannot compile for the device, or the student is sharded.
    """
    if isinstance(method.student, FSDPModule):
        raise SiTError(
            "compiling with FSDP2 has not been tested",
            argument="torch_compile",
            remedy="leave the argument out, or use multi_gpu.yaml",
        )
    check_compiler(device)
    for part in method.compiled_parts():
        part.compile(options=OPTIONS)
    if device.type != "cpu":
        for each in augment:
            each.augment_at_once = torch.compile(each.augment_at_once, options=OPTIONS)
