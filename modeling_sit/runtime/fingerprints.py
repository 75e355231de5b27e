"""What tells models and datasets from others, to see whether earlier results belong to a run."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from modeling_sit.runtime.atomic_files import digest

# Files of weights in a model's folder: the first of these names that there is, whole or in parts.
WEIGHTS = (("model.safetensors", "model-*-of-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*-of-*.bin"))


def model_fingerprint(model_name_or_path: str) -> str:
    """What tells a pretrained model from another: the digest of its weights, in one file or in several; or its name where it is neither
    a file of weights nor a folder with any."""
    path = Path(model_name_or_path)
    files = [path] if path.is_file() else _weights_of(path)
    if not files:
        return model_name_or_path
    digests = [digest(file) for file in files]
    return digests[0] if len(digests) == 1 else blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def dataset_fingerprint(dataset: Any) -> Any:
    """What tells a dataset from another, as JSON has it: its name, or the fingerprint of a dataset in memory."""
    if isinstance(dataset, Mapping):
        return {name: dataset_fingerprint(split) for name, split in dataset.items()}
    return getattr(dataset, "_fingerprint", None) or str(dataset)


def _weights_of(folder: Path) -> list[Path]:
    kinds = (sorted(file for name in names for file in folder.glob(name)) for names in WEIGHTS)
    return next((files for files in kinds if files), [])
