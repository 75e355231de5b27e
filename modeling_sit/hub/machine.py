"""What a report of trouble says of the machine: versions, devices, free memory and disk, threads, caches."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil
import torch
from tqdm.auto import tqdm

from modeling_sit.data.free_memory import free_memory
from modeling_sit.data.hand_over import free_shared_memory
from modeling_sit.hub.provenance import describe_hardware
from modeling_sit.runtime.hugging_face_cache import CacheError, check_datasets_cache, datasets_cache

PACKAGES = (
    *("modeling-sit", "torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface_hub"),
    *("numpy", "pillow", "pyarrow", "scikit-learn"),
)
OPTIONAL_PACKAGES = (
    *("gradio", "imagecodecs", "onnx", "onnxruntime", "onnxscript", "peft", "pycocotools", "tensorboard"),
    *("tifffile", "timm", "umap-learn", "wandb"),
)
# Those without paths and secrets. Of others a report says nothing.
VARIABLES = (
    *(
        "CUDA_VISIBLE_DEVICES",
        "GOMP_SPINCOUNT",
        "HF_HUB_OFFLINE",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
    ),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "RANK", "SIT_MAX_IMAGE_PIXELS", "WORLD_SIZE"),
)
VARIABLES_OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "NCCL_")


def describe_machine() -> dict[str, Any]:
    """Facts of this machine and of this process, as JSON knows them. No paths, and no names of users.

    Returns:
        `dict`: `versions`, `optional_packages` (`None` for one that is not installed), `system`, `device`, `gpus`, `memory`,
        `disk` (bytes), `cache`, `environment`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and torch.backends.mps.is_available():
        device = torch.device("mps")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "optional_packages": {name: _version(name) for name in OPTIONAL_PACKAGES},
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "device": describe_hardware(device, 1),
        "gpus": list(_gpus()),
        "memory": {
            "total": psutil.virtual_memory().total,
            "free": free_memory(),
            "free_shared": free_shared_memory(),
        },
        "disk": {"current_folder": _free_disk(Path.cwd()), "cache": _free_disk(datasets_cache())},
        "cache": _trouble_with_cache() or "can be written",
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if (name in VARIABLES or name.startswith(VARIABLES_OF_LAUNCHERS)) and os.sep not in value
        },
        "can_reach_hub": not huggingface_hub.is_offline_mode(),
    }


def machine_lines(machine: dict[str, Any]) -> Iterator[str]:
    """The facts of [`describe_machine`] in lines."""
    known = {name: number for name, number in machine["versions"].items() if number is not None}
    yield f"versions: {', '.join(f'{name} {number}' for name, number in known.items())}"
    optional = {name: number for name, number in machine["optional_packages"].items() if number is not None}
    lacking = [name for name, number in machine["optional_packages"].items() if number is None]
    found = ", ".join(f"{name} {number}" for name, number in optional.items()) or "none"
    yield f"optional packages: {found}; not installed: {', '.join(lacking) or 'none'}"
    yield f"system: {machine['system']}"
    yield f"device: {machine['device']}"
    for number, gpu in enumerate(machine["gpus"]):
        bf16 = "with" if gpu["has_bf16"] else "without"
        yield (
            f"GPU {number}: {gpu['name']}, {describe_size(gpu['free_memory'])} of {describe_size(gpu['memory'])} free, compute capability "
            f"{gpu['compute_capability']}, {bf16} bfloat16, CUDA {gpu['cuda']}"
        )
    memory, disk = machine["memory"], machine["disk"]
    shared = "" if memory["free_shared"] is None else f"; {describe_size(memory['free_shared'])} of shared memory free"
    yield f"memory: {describe_size(memory['free'])} of {describe_size(memory['total'])} free{shared}"
    yield f"disk: {describe_size(disk['current_folder'])} free in the current folder, {describe_size(disk['cache'])} for the cache"
    reach = "is asked" if machine["can_reach_hub"] else "is not asked (HF_HUB_OFFLINE)"
    yield f"cache of Hugging Face: {machine['cache']}; the Hub {reach}"
    if machine["environment"]:
        yield f"environment: {', '.join(f'{name}={value}' for name, value in machine['environment'].items())}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> Iterator[dict[str, Any]]:
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        yield {
            "name": properties.name,
            "memory": properties.total_memory,
            "free_memory": torch.cuda.mem_get_info(number)[0],
            "compute_capability": f"{properties.major}.{properties.minor}",
            "has_bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cuda": torch.version.cuda or torch.version.hip,
        }


def _free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is, or would be."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _trouble_with_cache() -> str | None:
    try:
        check_datasets_cache()
    except CacheError as error:
        return f"{error.problem.replace(str(datasets_cache()), 'its folder')}; {error.remedy}"
    return None


def describe_size(num_bytes: float | None) -> str:
    """A number of bytes, in words if it is not known."""
    return "an unknown amount" if num_bytes is None else f"{tqdm.format_sizeof(num_bytes)}B"
