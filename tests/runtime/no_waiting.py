"""What an accelerator's host must not do in a training step, told from operations on the CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Reading a value, results of a size that depends on values, and copies of the host's numbers to the device.
WAITING = (
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_scatter",
    "masked_select",
    "nonzero",
    "nonzero_static",
    "unique",
    "unique2",
)


class NoWaiting(TorchDispatchMode):
    """Fails at operations for which the host would wait for an accelerator; `names` are all operations called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.names.add(name)
        operation = name.split(".")[1]
        assert operation.strip("_") not in [waiting.strip("_") for waiting in WAITING], f"the host would wait: {name}"
        if operation in ("index", "index_put", "index_put_"):
            masked = any(index is not None and index.dtype == torch.bool for index in args[1])
            assert not masked, f"the host would wait: {name}"
        return function(*args, **(kwargs or {}))
