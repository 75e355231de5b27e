"""The student: the network that is trained."""

import copy

import torch
from safetensors import SafetensorError

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.interop.reading import needs_conversion, read_checkpoint
from modeling_sit.interop.resize import resize_model
from modeling_sit.pretraining.arguments import ModelArguments
from modeling_sit.runtime.errors import SiTError


def create_student(config: SiTConfig, arguments: ModelArguments, seed: int) -> SiTForPreTraining:
    """A student with weights from the seed, or from the checkpoint to go on from; heads without a loss are frozen.

    Raises:
        [`SiTError`]: If there is no such attention implementation, or `--model_name_or_path` cannot be loaded.
    """
    torch.manual_seed(seed)
    if arguments.attn_implementation is not None:
        config._attn_implementation = arguments.attn_implementation
    try:
        student = SiTForPreTraining(config)
    except (ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())
        raise SiTError(f"--attn_implementation {arguments.attn_implementation}: {reason}") from problem
    if arguments.model_name_or_path is not None:
        student = _load_student(config, arguments)
    student.decoder.requires_grad_(config.reconstruction_weight > 0)
    student.projection_head.requires_grad_(config.contrastive_weight > 0)
    if arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def _load_student(config: SiTConfig, arguments: ModelArguments) -> SiTForPreTraining:
    """The checkpoint's weights, its positions interpolated to images of `--image_size`."""
    name = arguments.model_name_or_path
    if needs_conversion(name):
        read = read_checkpoint(name, network=arguments.network, num_attention_heads=arguments.num_attention_heads)
        read.log_notes()
        student = read.create_model(SiTForPreTraining, _of_image_size(config, read.config.image_size))
    elif arguments.image_size is None:
        return _load_saved_student(config, name)
    else:
        saved, _ = SiTConfig.get_config_dict(name)
        student = _load_saved_student(_of_image_size(config, saved.get("image_size", config.image_size)), name)
    if student.config.image_shape == config.image_shape:
        return student
    return resize_model(student, config.image_size)


def _of_image_size(config: SiTConfig, image_size: int | tuple[int, int]) -> SiTConfig:
    config = copy.deepcopy(config)
    config.image_size = image_size
    return config


def _load_saved_student(config: SiTConfig, model_name_or_path: str) -> SiTForPreTraining:
    """The checkpoint's weights; heads that it lacks are new, but every weight of the backbone has to be there."""
    try:
        student, info = SiTForPreTraining.from_pretrained(
            model_name_or_path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise SiTError(f"--model_name_or_path {model_name_or_path}: cannot be loaded: {reason}") from problem
    missing = sorted(name for name in info["missing_keys"] if name.startswith("vit."))
    if missing:
        raise SiTError(
            f"--model_name_or_path {model_name_or_path}: {len(missing)} weights of the backbone are not there, such as "
            f"{missing[0]}; it is no ViT"
        )
    return student
