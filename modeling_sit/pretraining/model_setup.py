"""The model that the arguments describe: configuration, image processor, and the student with its first weights."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.image_modes import MAX_CHANNELS
from modeling_sit.interop.convert_in import find_format, read_normalization
from modeling_sit.interop.load import check_weights_file_arguments, load_checkpoint, read_config
from modeling_sit.pretraining.arguments import CorruptionArguments, ModelArguments
from modeling_sit.pretraining.presets import MODEL_SIZES, RECONSTRUCTION_WEIGHT, look_up
from modeling_sit.runtime.arguments import did_you_mean, split_assignments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.words import counted


def create_config(arguments: ModelArguments, num_images: int | None) -> SiTConfig:
    """The configuration that the arguments describe, or that of `model_name_or_path` with the arguments' loss weights.

    Args:
        arguments ([`ModelArguments`]): What the user asked for.
        num_images (`int`, *optional*): Images to train on. `None`, for a stream of unknown length, counts as many.

    Raises:
        [`SiTError`]: If a field does not exist or has a value that does not fit, or the checkpoint cannot be read.
    """
    settings = {
        "reconstruction_weight": arguments.reconstruction_weight,
        "contrastive_weight": arguments.contrastive_weight,
        "rotation_weight": arguments.rotation_weight,
        "temperature": arguments.temperature,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    settings = {**parse_config_overrides(arguments.config_overrides), **settings}
    count = math.inf if num_images is None else num_images
    default_weight = {"reconstruction_weight": look_up(RECONSTRUCTION_WEIGHT, count)}
    check_weights_file_arguments(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads)
    try:
        if arguments.model_name_or_path is None:
            sizes = {
                **MODEL_SIZES[arguments.model_size or "small"],
                "image_size": 224 if arguments.image_size is None else arguments.image_size,
                "patch_size": 16 if arguments.patch_size is None else arguments.patch_size,
            }
            config = SiTConfig(**{**sizes, **default_weight, **settings})
        else:
            saved, is_sit = _read_saved_config(arguments)
            if not is_sit:
                settings = {**default_weight, **settings}
            config = SiTConfig.from_dict({**saved, **settings})
    except (ValueError, TypeError) as problem:
        raise SiTError(f"the model's configuration: {problem}") from problem
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    if height % patch_height or width % patch_width:
        unit = math.lcm(patch_height, patch_width)
        raise SiTError(
            f"{config.image_size} is not made of whole patches of {config.patch_size}",
            argument="image_size",
            remedy=f"give a multiple of `patch_size`, such as {max(1, round(height / unit)) * unit}",
        )
    if config.reconstruction_weight == config.contrastive_weight == config.rotation_weight == 0:
        raise SiTError(
            "all weights of losses are 0, so there is nothing to learn",
            argument="reconstruction_weight",
            remedy="give `reconstruction_weight`, `contrastive_weight` or `rotation_weight` a value above 0",
        )
    return config


def _read_saved_config(arguments: ModelArguments) -> tuple[dict[str, Any], bool]:
    """The checkpoint's configuration, for images of `image_size`, and whether it is a SiT's folder. The other sizes must
    not be contradicted."""
    name = arguments.model_name_or_path
    saved = read_config(name, network=arguments.network, num_attention_heads=arguments.num_attention_heads)
    return _with_asked_sizes(saved, arguments), find_format(name) == SiTConfig.model_type


def _with_asked_sizes(saved: dict[str, Any], arguments: ModelArguments) -> dict[str, Any]:
    name, patch_size = arguments.model_name_or_path, arguments.patch_size
    if patch_size is not None and saved.get("patch_size", patch_size) not in (patch_size, [patch_size] * 2):
        raise SiTError(
            f"got {patch_size}, but {name} was made for patches of {saved['patch_size']}",
            argument="patch_size",
            remedy="leave it out",
        )
    num_channels = parse_config_overrides(arguments.config_overrides).get("num_channels")
    if num_channels is not None and saved.get("num_channels", num_channels) != num_channels:
        raise SiTError(
            f"got num_channels={num_channels}, but {name} was made for images of {counted(saved['num_channels'], 'channel')}",
            argument="config_overrides",
            remedy="leave it out, and give such images, or another model",
        )
    if arguments.model_size is not None:
        raise SiTError(
            f"got {arguments.model_size}, but the size is that of {name}", argument="model_size", remedy="leave it out"
        )
    return saved if arguments.image_size is None else {**saved, "image_size": arguments.image_size}


def create_processor(
    config: SiTConfig,
    arguments: ModelArguments,
    corruption_arguments: CorruptionArguments,
    dataset_arguments: DatasetArguments | None = None,
) -> SiTImageProcessor:
    """The image processor that goes with the configuration, with the corruption, the normalization and the range of the
    arguments, or those of the checkpoint that the run starts from.

    Raises:
        [`SiTError`]: If a setting is out of range, or images cannot be read with the configuration's channels.
    """
    if config.num_channels > MAX_CHANNELS:
        raise SiTError(
            f"num_channels={config.num_channels}: images are read with 1 (gray), 3 (RGB) or up to {MAX_CHANNELS} channels",
            argument="config_overrides",
        )
    no_color = None if config.num_channels == 3 else [0.5] * config.num_channels
    saved = _read_saved_processor(arguments.model_name_or_path)
    image_mean = arguments.image_mean or saved.get("image_mean") or no_color or list(IMAGENET_DEFAULT_MEAN)
    image_std = arguments.image_std or saved.get("image_std") or no_color or list(IMAGENET_DEFAULT_STD)
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != config.num_channels:
            raise SiTError(
                f"takes one number for each of {config.num_channels} channels, got {len(values)}", argument=name
            )
    if min(image_std) <= 0:
        raise SiTError(f"must be above 0, got {image_std}", argument="image_std")
    intensity_range = saved.get("intensity_range")
    if dataset_arguments is not None and dataset_arguments.intensity_range is not None:
        dataset_arguments.check_intensity_range(config.num_channels)
        intensity_range = list(dataset_arguments.intensity_range)
    height, width = config.image_shape
    # A ratio that no kind of corruption needs may have no value: the processor has its own.
    corruption = {name: value for name, value in asdict(corruption_arguments).items() if value is not None}
    try:
        return SiTImageProcessor(
            size={"height": height, "width": width},
            image_mean=image_mean,
            image_std=image_std,
            patch_size=config.patch_size,
            intensity_range=intensity_range,
            **corruption,
        )
    except ValueError as problem:  # it begins with the name of the setting
        name, _, rest = str(problem).partition(" ")
        raise SiTError(rest, argument=name.strip("`:")) from problem


def _read_saved_processor(model_name_or_path: str | None) -> dict[str, Any]:
    """`image_mean`, `image_std` and `intensity_range` of the checkpoint's image processor, if it has one."""
    return {} if model_name_or_path is None else read_normalization(model_name_or_path)


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """`"hidden_size=64,qkv_bias=false,image_size=[32,64]"` as a dict of SiTConfig's fields, values as YAML reads them.

    Raises:
        [`SiTError`]: If there is no such field, or a value cannot be read.
    """
    overrides = {}
    known = {item.name for item in fields(SiTConfig) if not item.name.startswith("_")}
    for assignment in split_assignments(text or ""):
        if not assignment.strip():
            continue
        name, separator, value = (part.strip() for part in assignment.partition("="))
        if not separator:
            raise SiTError(
                f"takes field=value, separated by commas, got {assignment.strip()!r}", argument="config_overrides"
            )
        if name not in known:
            raise SiTError(f"SiTConfig has no field {name!r}{did_you_mean(name, known)}", argument="config_overrides")
        overrides[name] = _parse_value(name, value)
    return overrides


def _parse_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise SiTError(f"{name}={text} is no value", argument="config_overrides") from problem
    if isinstance(value, str):
        # YAML reads 1e-6, for want of a dot, as a word.
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def create_student(config: SiTConfig, arguments: ModelArguments, seed: int) -> SiTForPreTraining:
    """SiT's student with weights from the seed, or from the checkpoint to go on from. Heads without a loss are frozen.

    Raises:
        [`SiTError`]: If there is no such attention implementation, or the checkpoint cannot be loaded.
    """
    student = build_student(SiTForPreTraining, config, arguments, seed)
    if arguments.model_name_or_path is not None:
        student = load_start(SiTForPreTraining, config, arguments)
    student.decoder.requires_grad_(config.reconstruction_weight > 0)
    student.projection_head.requires_grad_(config.contrastive_weight > 0)
    if arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def build_student(
    create: Callable[[SiTConfig], PreTrainedModel], config: SiTConfig, arguments: ModelArguments, seed: int
) -> PreTrainedModel:
    """A network with weights from the seed, and the attention that the arguments ask for.

    Raises:
        [`SiTError`]: If there is no such attention implementation.
    """
    torch.manual_seed(seed)
    if arguments.attn_implementation is not None:
        config._attn_implementation = arguments.attn_implementation
    try:
        return create(config)
    except (ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())
        if arguments.attn_implementation is None:
            raise SiTError(reason, argument="config_overrides") from problem
        raise SiTError(f"{arguments.attn_implementation}: {reason}", argument="attn_implementation") from problem


def load_start(model_class: type[PreTrainedModel], config: SiTConfig, arguments: ModelArguments) -> PreTrainedModel:
    """The checkpoint to go on from, as a model of a class. What it lacks is told.

    Raises:
        [`SiTError`]: If it cannot be loaded.
    """
    loaded = load_checkpoint(
        arguments.model_name_or_path,
        model_class,
        network=arguments.network,
        num_attention_heads=arguments.num_attention_heads,
        config=config,
    )
    loaded.log_notes()
    return loaded.model
