"""Run a program as Accelerate would on GPUs where FSDP2 is asked for, but on CPUs: `fsdp2_on_cpu.py PROGRAM FLAGS`.

PyTorch shards over gloo as well as over NCCL. Accelerate takes FSDP's word on GPUs only, and copies the model to each
process otherwise; here it takes it on CPUs too. Everything else is Accelerate's own.

A program that ends well leaves without the interpreter's own end. The sharded model keeps gloo's threads alive after the
process group is destroyed, and one that still has a tensor to let go of while the interpreter ends aborts the process.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

original_init = AcceleratorState.__init__


def init_with_fsdp(state: AcceleratorState, *arguments, fsdp_plugin=None, **settings) -> None:
    original_init(state, *arguments, fsdp_plugin=fsdp_plugin, **settings)
    if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
        if state.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(state.mixed_precision)
        state.fsdp_plugin = fsdp_plugin
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = init_with_fsdp
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
