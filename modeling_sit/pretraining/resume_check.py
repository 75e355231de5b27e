"""What a run's outcome follows from: a run that goes on from a checkpoint must have the same, or say that it differs."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from modeling_sit.data.training_data import TrainingData
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.runtime.errors import SiTError

# How weights began before there was a choice.
FIRST_INITIALIZATION = "normal"
# What checkpoints of before there were such fields do not say.
SETTINGS_BEFORE_THEIR_FIELDS = {
    "decoder_num_hidden_layers": 2,
    "projection_first_act": "gelu",
    "tf32": False,
    "torch_compile": False,
    "method": "sit",
    "initialization": FIRST_INITIALIZATION,
    "batch_norm_views": "together",
}
# Names that settings had in earlier checkpoints.
EARLIER_NAMES = {"max_train_steps": "max_steps", "num_pictures": "num_images", "pictures": "images"}
# A checkpoint fits no other value of these, whatever the method.
FIXED = {"method", "engine", "streaming"}
# A stream's place depends on these, too.
FIXED_OF_STREAMS = {"num_processes", "seed", "shuffle_buffer_size", "images"}
# Arguments that go into the outcome as they are. Others are in the method's fingerprint and the schedules.
ARGUMENTS = (
    "method",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "base_learning_rate",
    "min_learning_rate",
    "weight_decay",
    "weight_decay_end",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "teacher_momentum",
    "seed",
    "train_split",
    "intensity_range",
    "tf32",
    "torch_compile",
)


def run_fingerprint(
    flags: PretrainingFlags, method: Method, schedules: Schedules, data: TrainingData, accelerator: Accelerator
) -> dict[str, Any]:
    """All that a run's outcome follows from, by name, as JSON knows it.

    Names are those of the arguments and of the method's settings. `max_steps` and `warmup_steps` are what arguments and
    data make of them, `images` is a fingerprint of the data.
    """
    settings = {
        **method.fingerprint(),
        **asdict(flags.views),
        **{name: getattr(flags.run, name) for name in ARGUMENTS},
        "max_steps": schedules.num_steps,
        "warmup_steps": schedules.num_warmup_steps,
        "engine": "FSDP2" if accelerator.is_fsdp2 else "data parallel",
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "streaming": data.is_streamed,
        "shuffle_buffer_size": flags.streaming.shuffle_buffer_size,
        "num_images": data.num_images,
        "images": data.fingerprint(),
    }
    return json.loads(json.dumps(settings))


def check_resume_compatible(
    saved: dict[str, Any], current: dict[str, Any], checkpoint: Path, method: Method, allow_changes: bool
) -> list[str]:
    """Compare a checkpoint's settings with those of the run that would go on from it.

    Args:
        saved, current (`dict`): Of [`run_fingerprint`].
        checkpoint (`Path`): Named in errors.
        method ([`Method`]): Says which settings its weights are made for.
        allow_changes (`bool`): Whether the other settings may differ.

    Returns:
        `list[str]`: What differs, such as `seed: 1 (the checkpoint: 0)`.

    Raises:
        [`SiTError`]: If something differs that must not.
    """
    saved = {EARLIER_NAMES.get(name, name): value for name, value in saved.items()}
    saved = {**SETTINGS_BEFORE_THEIR_FIELDS, **saved}
    names = [name for name in current if saved.get(name) != current[name]]
    differences = [f"{name}: {current[name]} (the checkpoint: {saved.get(name)})" for name in names]
    fixed = _fixed_settings(saved, current, method)
    unfit = [difference for name, difference in zip(names, differences, strict=True) if name in fixed]
    if unfit:
        raise SiTError(
            f"checkpoint {checkpoint} is of another model, or in another form: {', '.join(unfit)}",
            argument="resume_from_checkpoint",
        )
    if differences and not allow_changes:
        raise SiTError(
            f"checkpoint {checkpoint} was written by a run with other settings: {', '.join(differences)}",
            argument="resume_from_checkpoint",
            remedy="give the same settings, or go on with these by `allow_changed_settings`",
        )
    return differences


def _fixed_settings(saved: dict[str, Any], current: dict[str, Any], method: Method) -> Collection[str]:
    """Names of the settings that must be the checkpoint's."""
    fixed = FIXED | method.fixed | (FIXED_OF_STREAMS if current["streaming"] else set())
    if "fp16" in (saved.get("mixed_precision"), current.get("mixed_precision")):
        fixed = fixed | {"mixed_precision"}  # its gradient scaler has a state
    for name in method.loss_weights:
        if bool(saved.get(name)) != bool(current.get(name)):
            fixed = fixed | {name}  # a head that is trained, and what the optimizer knows of it
    return fixed
