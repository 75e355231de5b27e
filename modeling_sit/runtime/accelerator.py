"""Devices, and engines that train on several processes: which of them work, and what sharded models (FSDP2) need
beside Accelerate."""

import atexit
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from modeling_sit.runtime.errors import SiTError

USE_INSTEAD = (
    "use scripts/accelerate_configs/fsdp2.yaml for a model that does not fit one device, multi_gpu.yaml for others"
)

# Seconds that processes wait for one another at least, and beyond what one of them waits for its images.
LEAST_GROUP_TIMEOUT = 1800
GROUP_MARGIN = 300

# What `accelerate launch` sets for engines that do not work.
REFUSED_LAUNCHES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed steps, clips and accumulates by itself, untested with a teacher",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM trains only its own models",
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "parallelism_config splits tensors or sequences between processes, but this training splits images"
    ),
}
REFUSED_TYPES = {
    DistributedType.XLA: "XLA's processes do not use torch.distributed, which the losses need to see all images",
    DistributedType.MULTI_NEURON: "batch norm cannot be synchronized on Neuron cores",
}


def choose_device(name: str | None) -> torch.device:
    """The device of this name; without a name a CUDA device if there is one, else the CPU.

    Raises:
        [`SiTError`]: If there is no such device.
    """
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as problem:
        raise SiTError(f"{name}: {str(problem).splitlines()[0]}", argument="device") from problem


def create_accelerator(**settings) -> Accelerator:
    """An `Accelerator` with these settings, of an engine that works here.

    What this process has settled before is forgotten: its last run may have had another precision, an evaluation another
    device.

    Raises:
        [`SiTError`]: If `accelerate launch` chose an engine or a setting of one that does not work, with the reason.
    """
    check_launch(os.environ)
    join_cpu_processes()
    forget_settings()
    accelerator = Accelerator(**settings)
    check_supported(accelerator, os.environ)
    return accelerator


def patient_processes(seconds: float) -> InitProcessGroupKwargs:
    """How long processes wait for one of them that waits for so many seconds at most: longer, so that its error is the one
    that is told; and half an hour at least, for what one process does alone."""
    return InitProcessGroupKwargs(timeout=timedelta(seconds=max(LEAST_GROUP_TIMEOUT, seconds + GROUP_MARGIN)))


def forget_settings() -> None:
    """Have Accelerate forget precision and device, which are one for all accelerators of a process, so that the next one may
    have others. Accelerators from before cannot be used any more."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def end_training(accelerator: Accelerator) -> None:
    """Finish what an accelerator reports to. Its processes stay joined until they end, for the next run in this program.

    `Accelerator.end_training` has them part. To join again they would look each other's addresses up in the launcher's store,
    and now and then find those of before. So the patience of the first run ([`patient_processes`]) is that of all.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    if dist.is_initialized():
        atexit.unregister(_part)  # once, however many runs there are
        atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def join_cpu_processes() -> None:
    """Have the processes that a launcher started train together on the CPU, where there is no accelerator.

    By default Accelerate lets each of them run alone. Accelerate and transformers' `TrainingArguments` read the
    environment variable that is set here, so call this before either is made.
    """
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Apple has one GPU, and no backend through which processes could exchange its tensors.
    has_accelerator = torch.accelerator.is_available() and torch.accelerator.current_accelerator().type != "mps"
    if num_launched > 1 and not has_accelerator:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def check_launch(environment: Mapping[str, str]) -> None:
    """Raise a [`SiTError`] if the engine that `accelerate launch` chose by this environment does not work."""
    for name, reason in REFUSED_LAUNCHES.items():
        if is_on(environment, name):
            raise SiTError(reason, remedy=USE_INSTEAD)
    if is_on(environment, "ACCELERATE_USE_FSDP") and environment.get("FSDP_VERSION", "1") != "2":
        raise SiTError(
            "FSDP1 flattens parameters, so that the teacher cannot follow them one by one",
            remedy="set fsdp_version: 2 as scripts/accelerate_configs/fsdp2.yaml does",
        )


def check_supported(accelerator: Accelerator, environment: Mapping[str, str]) -> None:
    """Raise a [`SiTError`] if the engine that Accelerate chose, or a setting of it, does not work, with the reason.

    Args:
        accelerator (`Accelerator`): As it was made.
        environment (mapping): What `accelerate launch` or `torchrun` set.
    """
    if accelerator.distributed_type in REFUSED_TYPES:
        raise SiTError(REFUSED_TYPES[accelerator.distributed_type], remedy="use GPUs or CPUs")
    num_launched = int(environment.get("WORLD_SIZE", "1"))
    if num_launched > accelerator.num_processes:
        raise SiTError(
            f"{num_launched} processes were launched, but each would train alone, into the same folder",
            remedy="set the environment variable ACCELERATE_USE_CPU=true to train on CPUs together",
        )
    if is_on(environment, "ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise SiTError(
            "FSDP shards on GPUs only, Accelerate would copy the whole model to each process instead",
            remedy="use scripts/accelerate_configs/multi_gpu.yaml",
        )
    if accelerator.mixed_precision == "fp8":
        raise SiTError(
            "fp8 replaces layers that the teacher has to copy", argument="mixed_precision", remedy="use bf16"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise SiTError("fp16 is for GPUs", argument="mixed_precision", remedy="use bf16 or no")
    if accelerator.distributed_type == DistributedType.FSDP:
        _refuse_sharding(accelerator)


def _refuse_sharding(accelerator: Accelerator) -> None:
    plugin = accelerator.state.fsdp_plugin
    if accelerator.mixed_precision == "fp16":
        raise SiTError(
            "with FSDP2, fp16 scales gradients shard by shard, which was not tested",
            argument="mixed_precision",
            remedy="use bf16",
        )
    set_to_false = "set it to false in Accelerate's configuration"
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise SiTError(
            "fsdp_offload_params leaves parameters on the CPU and the batch norm's statistics on the GPU, which "
            "PyTorch's checkpoints refuse",
            remedy=set_to_false,
        )
    if plugin.cpu_ram_efficient_loading:
        raise SiTError(
            "fsdp_cpu_ram_efficient_loading loads parameters only, not the batch norm's statistics",
            remedy=set_to_false,
        )
    if plugin.activation_checkpointing:
        raise SiTError(
            "fsdp_activation_checkpointing renames the student's layers, so that the teacher cannot be sharded alike",
            remedy=f"{set_to_false}, and set `gradient_checkpointing`",
        )
    if plugin.ignored_modules is not None:
        raise SiTError("fsdp_ignored_modules would shard student and teacher differently", remedy="leave it out")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise SiTError(
            "dynamo_backend with FSDP2 renames the student's modules, so that the teacher cannot be sharded alike",
            remedy="leave dynamo_config out",
        )


def is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1", "yes")


def prepare_student(
    accelerator: Accelerator,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    forward_methods: tuple[str, ...] = (),
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Hand student and optimizer to Accelerate.

    With FSDP2 the student is sharded in place, and its `forward_methods` gather parameters as its forward pass does.
    Weights stay float32 on every engine: mixed precision is autocast's, so the forward pass has to run in
    `accelerator.autocast()`.

    Args:
        accelerator (`Accelerator`): From [`create_accelerator`].
        student (`nn.Module`): Its batch norm is synchronized.
        optimizer (`torch.optim.Optimizer`): Of the student's parameters.
        forward_methods (`tuple` of `str`, *optional*): Methods of the student that are called in place of `forward`.

    Returns:
        `tuple`: The wrapped student and optimizer.
    """
    if accelerator.is_fsdp2:
        # Accelerate's policy rounds the clean images and the losses to 16 bits.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        # Modules that return views of tensors may be sharded where nothing is done in place, as in SiT.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # The stride of a dimension of one, such as the channels of a gray image, has no meaning.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    student, optimizer = accelerator.prepare(student, optimizer)
    for name in forward_methods:
        register_fsdp_forward_method(student, name)
    return student, optimizer


def shard_like(model: nn.Module, sharded: nn.Module, forward_methods: tuple[str, ...] = ()) -> nn.Module:
    """Shard a model module by module as another one is, so that the two have the same shards of the same parameters.

    Args:
        model (`nn.Module`): Sharded in place, such as the teacher's.
        sharded (`nn.Module`): The other, with modules of the same names. If it is not sharded, nothing happens.
        forward_methods (`tuple` of `str`, *optional*): Methods of the model that are called in place of `forward`.

    Returns:
        `nn.Module`: The model. Between calls it holds only shards.
    """
    if not isinstance(sharded, FSDPModule):
        return model
    mesh = next(parameter.device_mesh for parameter in sharded.parameters() if isinstance(parameter, DTensor))
    # From the leaves up: a module takes the parameters that none below it has taken.
    for name, module in reversed(list(sharded.named_modules())):
        if isinstance(module, FSDPModule):
            fully_shard(model.get_submodule(name), mesh=mesh, reshard_after_forward=True)
    for name in forward_methods:
        register_fsdp_forward_method(model, name)
    return model


def reshard(model: nn.Module) -> None:
    """Make `parameters()` give shards again after a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the norm of the gradient of all parameters, of all their shards.

    Args:
        accelerator (`Accelerator`): Has prepared the model.
        model (`nn.Module`): As [`prepare_student`] gave it.
        max_norm (`float`): Above 0; `inf` for no clipping.

    Returns:
        `torch.Tensor`: Scalar, the norm before clipping, the same on every process.
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a plain, data-parallel or sharded model, under the plain model's names. Every process must call
    this.

    Args:
        model (`nn.Module`): Bare or wrapped.

    Returns:
        `dict`: On the main process, tensors on the CPU, which may be the model's own; empty on the others.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_full_state_dict(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what [`full_state_dict`] gave, into a model of any engine. Every process must call this.

    Args:
        model (`nn.Module`): Bare or wrapped.
        state (`dict`): All weights, under the plain model's names. Only the main process's are used.

    Raises:
        `ValueError`: On every process, if a weight is missing, superfluous, or of another shape than the model's.
    """
    several_processes = dist.is_initialized()
    # PyTorch silently leaves weights unchanged that are missing in the state.
    problem = [_describe_misfit(get_model_state_dict(model), state)]
    if several_processes:
        dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise ValueError(problem[0])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several_processes)
    set_model_state_dict(model, dict(state), options=options)


def _describe_misfit(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> str | None:
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (expected, found)]
    wrong = [name for name in {**expected, **found} if shapes[0].get(name) != shapes[1].get(name)]
    if not wrong:
        return None
    return (
        f"{len(wrong)} weights do not fit the model, such as {wrong[0]}: {shapes[1].get(wrong[0], 'none')} where the "
        f"model has {shapes[0].get(wrong[0], 'none')}"
    )
