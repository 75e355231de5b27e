"""What the outcome of a fine-tuning follows from: a run that goes on from a checkpoint must have the same."""

from pathlib import Path
from typing import Any

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.splits import Splits
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.provenance import public_name
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.fingerprints import model_fingerprint


def run_settings(
    arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: Splits
) -> dict[str, Any]:
    """What tells the runs of a folder apart, by name, as JSON knows it.

    The number of steps is not in it: a run may go on for longer. Nor is the place of the dataset, which may move.

    Args:
        arguments, training_arguments: The run's arguments, without any that are left open.
        splits ([`Splits`]): The images.
    """
    return {
        "dataset": public_name(splits.name),
        "num_train": len(splits.train),
        "label_fraction": arguments.label_fraction,
        "model": None if arguments.from_scratch else model_fingerprint(arguments.model_name_or_path),
        "from_scratch": arguments.from_scratch,
        "freeze_backbone": arguments.freeze_backbone,
        "seed": training_arguments.seed,
        "learning_rate": training_arguments.learning_rate,
        "weight_decay": training_arguments.weight_decay,
        "total_batch": training_arguments.train_batch_size
        * training_arguments.gradient_accumulation_steps
        * training_arguments.world_size,
    }


def check_same_settings(saved: dict[str, Any], current: dict[str, Any], checkpoint: str) -> None:
    """Compare what a checkpoint's run had with what the run has that would go on from it.

    Args:
        saved, current (`dict`): Of [`run_settings`]. Names that only one of them has are not compared.
        checkpoint (`str`): Named in the error.

    Raises:
        [`SiTError`]: If something differs.
    """
    names = [name for name in current if name in saved and saved[name] != current[name]]
    if names:
        differences = ", ".join(f"{name}: {current[name]} (the checkpoint: {saved[name]})" for name in names)
        raise SiTError(
            f"{Path(checkpoint)} was written by a run with other settings: {differences}",
            argument="resume_from_checkpoint",
            remedy="give the same settings, or another `output_dir`",
        )
