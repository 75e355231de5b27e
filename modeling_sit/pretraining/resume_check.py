"""What a run's outcome follows from: a run that goes on from a checkpoint must have the same, or be told to differ."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.loading import is_streamed
from modeling_sit.data.sources import ImageDatasets
from modeling_sit.data.views import ViewArguments
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.runtime.errors import SiTError

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
FORM_OF_STREAMS = {"num_processes", "seed", "shuffle_buffer_size", "images"}
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
# Of the processor; the images' size and patches are the configuration's.
CORRUPTION_AND_NORMALizATION = (
    "corruption",
    "noise_ratio",
    "zeros_ratio",
    "replace_ratio",
    "block_size",
    "align_to_patches",
    "image_mean",
    "image_std",
)


def run_fingerprint(
    arguments: PretrainingArguments,
    view_arguments: ViewArguments,
    config: SiTConfig,
    processor: SiTImageProcessor,
    schedules: Schedules,
    images: ImageDatasets,
    accelerator: Accelerator,
    shuffle_buffer_size: int | None,
) -> dict[str, Any]:
    """All that a run's outcome follows from, by name, as JSON knows it.

    Names are the flags' and the configuration's where there is such a flag or field; `max_train_steps` and `warmup_steps`
    are what flags and data make of them, `images` is a fingerprint of the data.
    """
    settings = {
        **{name: getattr(config, name) for name in SiTConfig.__annotations__},
        **{name: getattr(processor, name) for name in CORRUPTION_AND_NORMALizATION},
        **asdict(view_arguments),
        **{name: getattr(arguments, name) for name in FLAGS},
        "max_train_steps": schedules.num_steps,
        "warmup_steps": schedules.num_warmup_steps,
        "engine": "FSDP2" if accelerator.is_fsdp2 else "data parallel",
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "streaming": is_streamed(images),
        "shuffle_buffer_size": shuffle_buffer_size,
        "num_images": images.num_train,
        "images": fingerprint(images),
    }
    return json.loads(json.dumps(settings))


def fingerprint(images: ImageDatasets) -> str:
    """A short checksum that differs, nearly always, where the training images differ or come in another order.

    It is made from the number of images and, for a thousand of them evenly spread, from the path below the dataset's
    folder and the size of the file; of a stream, from the names of its shards. So a dataset that was moved as a
    whole keeps its fingerprint.
    """
    folder = Path(images.name).expanduser().absolute()
    checksum = hashlib.blake2b(str(images.num_train).encode(), digest_size=8)
    if is_streamed(images):
        for shard in images.train_shards or ():
            checksum.update(f"{_below(shard.name, folder)} {shard.first_row}\n".encode())
    else:
        rows = range(0, len(images.train), -(-len(images.train) // NUM_FINGERPRINTED_ROWS))
        for image in images.train.select(rows)["image"]:
            path = (image or {}).get("path") or ""
            checksum.update(f"{_below(path, folder)} {_encoded_size(image, Path(path))}\n".encode())
    return checksum.hexdigest()


def _below(path: str, folder: Path) -> str:
    """A path as it is below the folder; of a file elsewhere, such as a cache, its name."""
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _encoded_size(image: dict[str, Any] | None, path: Path) -> int:
    """Bytes of an encoded image, in memory or in its file; 0 where there is none."""
    encoded = (image or {}).get("bytes")
    if encoded is not None:
        return len(encoded)
    try:
        return path.stat().st_size if path.name else 0
    except OSError:  # whoever decodes it says so
        return 0


def check_resume_compatible(
    saved: dict[str, Any], current: dict[str, Any], checkpoint: Path, allow_changes: bool
) -> list[str]:
    """Compare a checkpoint's settings with those of the run that would go on from it.

    Args:
        saved, current (`dict`): Of [`run_fingerprint`].
        checkpoint (`Path`): Named in errors.
        allow_changes (`bool`): Whether what can be changed may be: all but what the networks' weights hang on.

    Returns:
        `list[str]`: What differs, such as `seed: 1 (the checkpoint: 0)`.

    Raises:
        [`SiTError`]: If something differs that must not.
    """
    saved = {**SETTINGS_BEFORE_THEIR_FIELDS, **saved}
    names = [name for name in current if saved.get(name) != current[name]]
    differences = [f"{name}: {current[name]} (the checkpoint: {saved.get(name)})" for name in names]
    fixed = FORM_OF_CHECKPOINTS | (FORM_OF_STREAMS if current["streaming"] else set())
    if "fp16" in (saved.get("mixed_precision"), current.get("mixed_precision")):
        fixed = fixed | {"mixed_precision"}  # its gradient scaler has a state
    for name in TASKS:
        if bool(saved.get(name)) != bool(current.get(name)):
            fixed = fixed | {name}  # a head that is trained, and what the optimizer knows of it
    unfit = [difference for name, difference in zip(names, differences, strict=True) if name in fixed]
    if unfit:
        raise SiTError(f"checkpoint {checkpoint} is of another model, or in another form: {'; '.join(unfit)}")
    if differences and not allow_changes:
        raise SiTError(
            f"checkpoint {checkpoint} was written by a run with other settings: {'; '.join(differences)}. Give the same "
            "ones, or go on with these by --allow_changed_settings"
        )
    return differences
