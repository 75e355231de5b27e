"""What tells models and datasets from others, to see whether earlier results belong to a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling_sit.runtime.atomic_files import digest


def model_fingerprint(model_name_or_path: str) -> str:
    """What tells a pretrained model from another: the digest of its weights, or its name where it is neither a file of weights nor a
    folder with one."""
    path = Path(model_name_or_path)
    weights = path if path.is_file() else path / "model.safetensors"
    return digest(weights) if weights.is_file() else model_name_or_path


def dataset_fingerprint(dataset: Any) -> Any:
    """What tells a dataset from another, as JSON has it: its name, or the fingerprint of a dataset in memory."""
    if isinstance(dataset, Mapping):
        return {name: dataset_fingerprint(split) for name, split in dataset.items()}
    return getattr(dataset, "_fingerprint", None) or str(dataset)
