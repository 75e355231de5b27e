"""What a run's outcome follows from: a run that goes on from a checkpoint must have the same, or be told to differ."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.loading import is_streamed
from modeling_sit.data.sources import Pictures
from modeling_sit.data.views import ViewArguments
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.runtime.errors import UserError

NUM_FINGERPRINTED_ROWS = 1000

# What a checkpoint's files are made for: no flag makes them fit others.
FORM_OF_CHECKPOINTS = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "position_embedding_type",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "projection_hidden_size",
    "projection_first_act",
    "projection_size",
    "projection_output_norm",
    "use_teacher",
    "engine",
    "streaming",
}
# What checkpoints of before there were such fields do not say.
SETTINGS_BEFORE_THEIR_FIELDS = {
    "decoder_num_hidden_layers": 2,
    "projection_first_act": "gelu",
    "tf32": False,
    "torch_compile": False,
}
# A weight of 0 leaves out the task's head.
TASKS = ("reconstruction_weight", "contrastive_weight", "rotation_weight")
# What a stream's place hangs on, beside.
FORM_OF_STREAMS = {"num_processes", "seed", "shuffle_buffer_size", "pictures"}
# Of the flags: those that go into the outcome as they are. Others are in the configuration, processor and schedules.
FLAGS = (
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
    "tf32",
    "torch_compile",
)
# Of the processor; the pictures' size and patches are the configuration's.
CORRUPTION_AND_NORMALISATION = (
    "corruption",
    "noise_ratio",
    "zeros_ratio",
    "replace_ratio",
    "block_size",
    "align_to_patches",
    "image_mean",
    "image_std",
)


def determining_settings(
    arguments: PretrainingArguments,
    view_arguments: ViewArguments,
    config: SiTConfig,
    processor: SiTImageProcessor,
    schedules: Schedules,
    pictures: Pictures,
    accelerator: Accelerator,
    shuffle_buffer_size: int | None,
) -> dict[str, Any]:
    """All that a run's outcome follows from, by name, as JSON knows it.

    Names are the flags' and the configuration's where there is such a flag or field; `max_train_steps` and `warmup_steps`
    are what flags and data make of them, `pictures` is a fingerprint of the data.
    """
    settings = {
        **{name: getattr(config, name) for name in SiTConfig.__annotations__},
        **{name: getattr(processor, name) for name in CORRUPTION_AND_NORMALISATION},
        **asdict(view_arguments),
        **{name: getattr(arguments, name) for name in FLAGS},
        "max_train_steps": schedules.num_steps,
        "warmup_steps": schedules.num_warmup_steps,
        "engine": "FSDP2" if accelerator.is_fsdp2 else "data parallel",
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "streaming": is_streamed(pictures),
        "shuffle_buffer_size": shuffle_buffer_size,
        "num_pictures": pictures.num_train,
        "pictures": fingerprint(pictures),
    }
    return json.loads(json.dumps(settings))


def fingerprint(pictures: Pictures) -> str:
    """A short checksum that differs, nearly always, where the training pictures differ or come in another order.

    It is made from the number of pictures and, for a thousand of them evenly spread, from the path below the data set's
    folder and the size of the file; of a stream, from the names of its shards. So a data set that was moved as a
    whole keeps its fingerprint.
    """
    folder = Path(pictures.name).expanduser().absolute()
    checksum = hashlib.blake2b(str(pictures.num_train).encode(), digest_size=8)
    if is_streamed(pictures):
        for shard in pictures.train_shards or ():
            checksum.update(f"{_below(shard.name, folder)} {shard.first_row}\n".encode())
    else:
        rows = range(0, len(pictures.train), -(-len(pictures.train) // NUM_FINGERPRINTED_ROWS))
        for image in pictures.train.select(rows)["image"]:
            path = (image or {}).get("path") or ""
            checksum.update(f"{_below(path, folder)} {_encoded_size(image, Path(path))}\n".encode())
    return checksum.hexdigest()


def _below(path: str, folder: Path) -> str:
    """A path as it is below the folder; of a file elsewhere, such as a cache, its name."""
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _encoded_size(image: dict[str, Any] | None, path: Path) -> int:
    """Bytes of an encoded picture, in memory or in its file; 0 where there is none."""
    encoded = (image or {}).get("bytes")
    if encoded is not None:
        return len(encoded)
    try:
        return path.stat().st_size if path.name else 0
    except OSError:  # whoever decodes it says so
        return 0


def check_settings(saved: dict[str, Any], current: dict[str, Any], checkpoint: Path, allow_changes: bool) -> list[str]:
    """Compare a checkpoint's settings with those of the run that would go on from it.

    Args:
        saved, current (`dict`): Of [`determining_settings`].
        checkpoint (`Path`): Named in errors.
        allow_changes (`bool`): Whether what can be changed may be: all but what the networks' weights hang on.

    Returns:
        `list[str]`: What differs, such as `seed: 1 (the checkpoint: 0)`.

    Raises:
        [`UserError`]: If something differs that must not.
    """
    saved = {**SETTINGS_BEFORE_THEIR_FIELDS, **saved}
    names = [name for name in current if saved.get(name) != current[name]]
    differences = [f"{name}: {current[name]} (the checkpoint: {saved.get(name)})" for name in names]
    fixed = FORM_OF_CHECKPOINTS | (FORM_OF_STREAMS if current["streaming"] else set())
    if "fp16" in (saved.get("mixed_precision"), current.get("mixed_precision")):
        fixed = fixed | {"mixed_precision"}  # its gradient scaler has a state
    for name in TASKS:
        if bool(saved.get(name)) != bool(current.get(name)):
            fixed = fixed | {name}  # a head that is trained, and what the optimiser knows of it
    unfit = [difference for name, difference in zip(names, differences, strict=True) if name in fixed]
    if unfit:
        raise UserError(f"checkpoint {checkpoint} is of another model, or in another form: {'; '.join(unfit)}")
    if differences and not allow_changes:
        raise UserError(
            f"checkpoint {checkpoint} was written by a run with other settings: {'; '.join(differences)}. Give the same "
            "ones, or go on with these by --allow_changed_settings"
        )
    return differences
