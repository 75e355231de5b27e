"""`--torch_compile`: the parts of a training step that PyTorch's compiler makes faster."""

import torch
from torch.distributed.fsdp import FSDPModule

from modeling_sit import SiTForPreTraining
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.pretraining.teacher import Teacher
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
            f"--torch_compile: PyTorch cannot compile for {device.type} here ({lines[0].strip()}): install {tool}, or leave "
            "the flag out"
        ) from problem


def compile_training(
    augment: ViewAugmentation, student: SiTForPreTraining, teacher: Teacher | None, device: torch.device
) -> None:
    """Compile, in place, backbone and decoder of student and teacher, and on an accelerator the augmentation.

    Names of weights stay as they are. The projection heads are left out, a few large products of matrices between batch norms
    that may speak to other processes; so is the augmentation on a CPU, which works on what each image wants.

    Raises:
        [`SiTError`]: If PyTorch cannot compile for the device, or the student is sharded.
    """
    if isinstance(student, FSDPModule):
        raise SiTError("--torch_compile with FSDP2 has not been tested: leave the flag out, or use multi_gpu.yaml")
    check_compiler(device)
    for model in [student] if teacher is None else [student, teacher.model]:
        model.vit.compile(options=OPTIONS)
        model.decoder.compile(options=OPTIONS)
    if device.type != "cpu":
        augment.augment_at_once = torch.compile(augment.augment_at_once, options=OPTIONS)
