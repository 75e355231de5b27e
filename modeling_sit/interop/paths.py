"""A path to a model: whether something is there, and may be read. Libraries say of what may not that it does not exist."""

from pathlib import Path

from modeling_sit.runtime.errors import SiTError

ARGUMENT = "model_name_or_path"
# What is read of a folder.
READ = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def _model_of_checkpoint(path: Path) -> str | None:
    """What to give in place of a checkpoint of pretraining; `None` for another folder."""
    path = path.absolute()
    if path.parent.name != "checkpoints" or not path.name.startswith("step-"):
        return None
    run = path.parents[1]
    return f"give {run}, which has the model of the newest checkpoint" if (run / "config.json").is_file() else None


def check_exists(name: str) -> None:
    """Raise [`SiTError`] for a folder that holds no model, and for a path where nothing is, or nothing that may be read. A
    name that cannot be an id on the Hub is a path."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    try:
        if is_path and not path.exists():
            raise SiTError(f"{name}: no such folder", argument=ARGUMENT)
        if path.is_dir() and not (path / "config.json").is_file():
            raise SiTError(
                f"{name}: no config.json in this folder, so it holds no model",
                argument=ARGUMENT,
                remedy=_model_of_checkpoint(path),
            )
        for file in [path] if path.is_file() else [file for pattern in READ for file in path.glob(pattern)]:
            with file.open("rb"):
                pass
    except PermissionError as problem:
        raise SiTError(
            f"{problem.filename or name} cannot be read: permission denied",
            argument=ARGUMENT,
            remedy="its owner can change that with chmod, or copy it to a place of yours",
        ) from problem
