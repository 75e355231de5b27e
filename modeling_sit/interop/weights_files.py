"""Read files of weights from strangers without running anything that they name."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers.utils import cached_file

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


class Discarded:
    """Stands for an object that a pickle holds beside its weights. It accepts any state and keeps nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# Training code leaves its flags, and learning rates that NumPy computed, in its checkpoints beside tensors. Nobody
# here needs them, so the class above stands for them: no code of argparse or NumPy runs on what the file says.
DISCARDED_NAMES = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def load_weights_file(path: Path) -> Any:
    """
    The contents of a `.safetensors` file, or of a pickle that `torch.save` wrote, on the CPU.

    PyTorch's weights-only reader reads pickles. It looks up no name in any module: it knows tensors, containers and
    numbers, and here [`Discarded`] for the names of `DISCARDED_NAMES`. It refuses anything else.

    Raises:
        `ValueError`: If the file cannot be read, or names anything else. The message says what, and the remedy.
    """
    if path.suffix == ".safetensors":
        try:
            # safetensors says of a file that may not be read that there is none.
            with path.open("rb"):
                return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as problem:
            raise ValueError(f"this safetensors file cannot be read: {problem}") from problem
    stand_ins = [(Discarded, name) for name in DISCARDED_NAMES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # Mapped, so that the optimizer's state, twice as large as the network, is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:  # a damaged pickle can raise anything
        named = _refused_names(problem)
        if not named:
            raise ValueError(f"this file of weights cannot be read: {_first_sentence(problem)}") from problem
        raise ValueError(
            f"this pickle holds more than weights: it names {named}, which is not loaded: it could run anything; "
            "if you trust the file, save its weights alone with torch.save(model.state_dict(), FILE) or as safetensors"
        ) from problem


def load_folder_weights(model_name_or_path: str) -> dict[str, torch.Tensor]:
    """The weights of a folder or of a repository on the Hub, in one file or in shards.

    Raises:
        `ValueError`: If there are none, or they cannot be read.
        `OSError`: If there is no such folder or repository.
    """
    for name in WEIGHTS_NAMES:
        found = _find_file(model_name_or_path, name)
        if found is not None:
            return load_weights_file(found)
        index = _find_file(model_name_or_path, f"{name}.index.json")
        if index is not None:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            parts = [load_weights_file(Path(cached_file(model_name_or_path, shard))) for shard in shards]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ValueError(f"it has neither {' nor '.join(WEIGHTS_NAMES)}")


def check_is_state_dict(weights: Any, what: str) -> None:
    """Raise `ValueError` unless `weights`, called `what` in the message, is a dict from names to tensors."""
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{what} is no dict of weights, but {type(weights).__name__}")
    others = [str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{what} is no dict of weights: {', '.join(others)} are no tensors")


def _find_file(model_name_or_path: str, name: str) -> Path | None:
    found = cached_file(model_name_or_path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _refused_names(problem: Exception) -> str:
    """The names that the weights-only reader refused to look up."""
    if not isinstance(problem, pickle.UnpicklingError):
        return ""
    return ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+\w)", str(problem))))


def _first_sentence(problem: Exception) -> str:
    return " ".join(str(problem).split()).partition(". ")[0] or type(problem).__name__
