"""What the outcome of a fine-tuning follows from: a run that goes on from a checkpoint must have the same."""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from modeling_sit.data.dense.rows import OBJECTS
from modeling_sit.data.labeled import labels_of
from modeling_sit.evaluation.feature_files import paths_of
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.trainer import Task
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.provenance import public_name
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.fingerprints import configuration_fingerprint, model_fingerprint


def given_settings(arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments) -> dict[str, Any]:
    """What tells the runs of a folder apart, by name, as far as it is known before the images are read.

    Args:
        arguments, training_arguments: The run's arguments.
    """
    settings = {
        "task": arguments.task,
        "label_fraction": arguments.label_fraction,
        "model": None if arguments.from_scratch else public_name(model_fingerprint(arguments.model_name_or_path)),
        "configuration": configuration_fingerprint(arguments.model_name_or_path),
        "from_scratch": arguments.from_scratch,
        "freeze_backbone": arguments.freeze_backbone,
        "intensity_range": arguments.intensity_range,
        "do_reduce_labels": arguments.do_reduce_labels,
        "seed": training_arguments.seed,
        "weight_decay": training_arguments.weight_decay,
    }
    if settings["configuration"] is None:  # not compared
        del settings["configuration"]
    return json.loads(json.dumps(settings))


def run_settings(
    arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, task: Task
) -> dict[str, Any]:
    """All that tells the runs of a folder apart, by name, as JSON knows it.

    The number of steps is not in it: a run may go on for longer. Nor are augmentation and schedule, nor the place of the dataset,
    which may move.

    Args:
        arguments, training_arguments: The run's arguments, without any that are left open.
        task ([`Task`]): The images, and the model.
    """
    splits, config = task.splits, task.model.config
    batch_size = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    settings = {
        "dataset": public_name(splits.name),
        "num_train": len(splits.train),
        "labels": digest_of_labels(splits.label_names, splits.train),
        "objects": digest_of_objects(splits.train),
        # The same weights are another function with others of these.
        **{name: getattr(config, name, None) for name in ("pooling", "num_attention_heads", "anchor_sizes")},
        "image_size": getattr(task, "image_size", getattr(config, "image_size", None)),
        "lora_alpha": arguments.lora_alpha,
        "learning_rate": training_arguments.learning_rate,
        "total_batch": batch_size * training_arguments.world_size,
    }
    return {**given_settings(arguments, training_arguments), **json.loads(json.dumps(settings))}


def digest_of_labels(label_names: Sequence[str], images: datasets.Dataset) -> str:
    """A hash of the names of the classes, the names of the images' files and of their folders, and the labels, where each image has
    some of these classes."""
    found = hashlib.blake2b("\n".join(label_names).encode(), digest_size=8)
    for path in paths_of(images).to_pylist():
        found.update("/".join(Path(path or "").parts[-2:]).encode())
    label = images.features.get("label")
    if label is not None and not isinstance(label, datasets.Image):
        found.update(labels_of(images).numpy().tobytes())
    return found.hexdigest()


def digest_of_objects(images: datasets.Dataset) -> str | None:
    """A hash of the boxes of images with objects, `(x, y, width, height)` in pixels, and of their classes; `None` without objects.
    Masks are not read for it."""
    if OBJECTS not in images.column_names:
        return None
    found = hashlib.blake2b(digest_size=8)
    for objects in images.select_columns([OBJECTS])[OBJECTS]:
        found.update(np.array([len(objects["category"]), *objects["category"]], dtype=np.int64).tobytes())
        found.update(np.array(objects["bbox"], dtype=np.float64).tobytes())
    return found.hexdigest()


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
            remedy=f"give the same settings{_of_batch(names, saved)}, or another `output_dir`",
        )


def _of_batch(names: Collection[str], saved: dict[str, Any]) -> str:
    if "total_batch" not in names:
        return ""
    return f" (a total batch of {saved['total_batch']}: `per_device_train_batch_size` x `gradient_accumulation_steps` x processes)"
