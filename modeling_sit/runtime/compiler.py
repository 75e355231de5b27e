"""PyTorch's compiler: whether it works here, and where it keeps what it has compiled."""

import errno
import os

import torch

from modeling_sit.runtime.errors import SiTError

# Random numbers as without the compiler: a compiled run follows the other to rounding, and resumes bit for bit as that.
OPTIONS = {"fallback_random": True}
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def check_compiler(device: torch.device) -> None:
    """Compile a small function.

    Raises:
        [`SiTError`]: If PyTorch cannot compile for the device, or cannot write its cache.
    """
    try:
        torch.compile(lambda numbers: numbers.sin() + 1, options=OPTIONS)(torch.zeros(2, device=device))
    except OSError as problem:  # it cannot even make the folder
        raise _cache_error(problem) from problem
    except RuntimeError as problem:  # of dynamo, inductor, Triton
        inner = getattr(problem, "inner_exception", None)
        if isinstance(inner, OSError) and inner.errno in UNWRITABLE:
            raise _cache_error(inner) from problem
        lines = str(problem).splitlines() or [type(problem).__name__]
        tool = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and a C compiler"
        raise SiTError(
            f"PyTorch cannot compile for {device.type} here ({lines[0].strip()})",
            argument="torch_compile",
            remedy=f"install {tool}, or leave the argument out",
        ) from problem


def _cache_error(problem: OSError) -> SiTError:
    where = problem.filename or os.environ.get("TORCHINDUCTOR_CACHE_DIR", "of this user")
    return SiTError(
        f"the cache of PyTorch's compiler, {where}, cannot be written: {problem.strerror or problem}",
        argument="torch_compile",
        remedy="set the environment variable TORCHINDUCTOR_CACHE_DIR to a folder that can be written and has room, or leave "
        "the argument out",
    )
