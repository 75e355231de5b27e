"""The model to fine-tune: a pretrained backbone, or the same from scratch, with a new classifier."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from modeling_sit import SiTConfig, SiTForImageClassification
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.lora import is_of_head
from modeling_sit.interop.reading import (
    ConvertedCheckpoint,
    check_weights_file_flags,
    has_no_auto_encoder,
    read_checkpoint,
)
from modeling_sit.interop.resize import check_image_size, resize_model, resize_processor
from modeling_sit.runtime.errors import SiTError


def load_classifier(
    arguments: FinetuningArguments, label_names: list[str], multi_label: bool
) -> tuple[BaseImageProcessor, PreTrainedModel]:
    """The image processor, and the model with a new classifier for these labels, of the size that is asked for.

    Raises:
        [`SiTError`]: If there is no such model, it lacks weights of the backbone, or a flag does not suit it.
    """
    name = arguments.model_name_or_path
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise SiTError(f"--model_name_or_path {name}: no config.json in this folder, so it holds no model")
    check_weights_file_flags(name, arguments.network, arguments.num_attention_heads)
    read = None
    if has_no_auto_encoder(name):
        read = read_checkpoint(name, network=arguments.network, num_attention_heads=arguments.num_attention_heads)
        read.log_notes()
    try:
        processor, model, missing = _load(arguments, _classifier_settings(label_names, multi_label), read)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise SiTError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from problem
    missing = sorted(key for key in missing if not is_of_head(model, key))
    if missing:
        raise SiTError(
            f"--model_name_or_path {name}: {len(missing)} weights of the backbone are not there, such as {missing[0]}"
        )
    if arguments.image_size is not None:
        resize_processor(processor, arguments.image_size)
        if not arguments.from_scratch:
            model = resize_model(model, arguments.image_size)
    if arguments.freeze_backbone:
        model.base_model.requires_grad_(False)
    return processor, model


def _classifier_settings(label_names: list[str], multi_label: bool) -> dict[str, Any]:
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: number for number, label in enumerate(label_names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }


def _load(
    arguments: FinetuningArguments, settings: dict[str, Any], read: ConvertedCheckpoint | None
) -> tuple[BaseImageProcessor, PreTrainedModel, list[str]]:
    name = arguments.model_name_or_path
    of_sit = {
        key: getattr(arguments, key) for key in ("pooling", "drop_path_rate") if getattr(arguments, key) is not None
    }
    if read is None:
        config = AutoConfig.from_pretrained(name, **settings, **of_sit)
    else:
        config = SiTConfig.from_dict({**read.config.to_dict(), **settings, **of_sit})
    for key in of_sit:
        if key not in config.to_dict():
            raise SiTError(f"--{key}: {type(config).__name__} has no such setting")
    if arguments.image_size is not None:
        check_image_size(config, arguments.image_size)
    processor = AutoImageProcessor.from_pretrained(name) if read is None else read.create_processor()
    if arguments.from_scratch:
        if arguments.image_size is not None:
            config.image_size = arguments.image_size
        return processor, AutoModelForImageClassification.from_config(config), []
    if read is not None:
        return processor, read.create_model(SiTForImageClassification, config), []
    model, info = AutoModelForImageClassification.from_pretrained(
        name, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, output_loading_info=True
    )
    return processor, model, list(info["missing_keys"])
