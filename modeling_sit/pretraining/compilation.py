"""The argument `torch_compile`: the parts of a training step that PyTorch's compiler makes faster."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.compiler import OPTIONS, check_compiler
from modeling_sit.runtime.errors import SiTError


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
