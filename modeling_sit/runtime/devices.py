"""Which device a program computes on."""

import torch

from modeling_sit.runtime.errors import SiTError


def choose_device(name: str | None) -> torch.device:
    """The device of that name, known to be there.

    Raises:
        [`SiTError`]: If it is not.
    """
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as problem:
        raise SiTError(f"--device {name}: {str(problem).splitlines()[0]}") from problem
