"""What tells models and datasets from others, to see whether earlier results belong to a run."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from modeling_sit.runtime.atomic_files import digest

# Files of weights in a model's folder: the first of these names that there is, whole or in parts.
WEIGHTS = (("model.safetensors", "model-*-of-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*-of-*.bin"))

# What says what a model's weights compute, and how it reads images.
CONFIGURATION = ("config.json", "preprocessor_config.json")
# Fields of these files that do not change features.
IRRELEVANT_CONFIG = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "label2id",
        "processor_class",
        "torch_dtype",  # `dtype` in earlier versions of transformers
        "transformers_version",
    }
)


def model_fingerprint(model_name_or_path: str) -> str:
    """What tells a pretrained model from another: the digest of its weights, in one file or in several; or its name where it is neither
    a file of weights nor a folder with any."""
    path = Path(model_name_or_path)
    files = [path] if path.is_file() else _weights_of(path)
    if not files:
        return model_name_or_path
    digests = [digest(file) for file in files]
    return digests[0] if len(digests) == 1 else blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def configuration_fingerprint(model_name_or_path: str) -> str | None:
    """What tells models of the same weights apart: a hash of the configuration and the image processor in a model's folder, without
    the fields that do not change features. `None` where it is no folder with any of them."""
    found = {name: _relevant(path) for name in CONFIGURATION if (path := Path(model_name_or_path) / name).is_file()}
    return blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=8).hexdigest() if found else None


def dataset_fingerprint(dataset: Any) -> Any:
    """What tells a dataset from another, as JSON has it: its name, or the fingerprint of a dataset in memory."""
    if isinstance(dataset, Mapping):
        return {name: dataset_fingerprint(split) for name, split in dataset.items()}
    return getattr(dataset, "_fingerprint", None) or str(dataset)


def _relevant(path: Path) -> Any:
    """The fields of a file that change features; `None` if it is damaged, which loading the model tells."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=_without_irrelevant)
    except (OSError, ValueError):
        return None


def _without_irrelevant(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in IRRELEVANT_CONFIG}


def _weights_of(folder: Path) -> list[Path]:
    kinds = (sorted(file for name in names for file in folder.glob(name)) for names in WEIGHTS)
    return next((files for files in kinds if files), [])
