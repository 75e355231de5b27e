"""The checkpoint that is converted, and what of it goes into another format."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTModel
from modeling_sit.cli.errors import UserError

MODEL_CLASSES = {
    model_class.__name__: model_class for model_class in (SiTModel, SiTForPreTraining, SiTForImageClassification)
}
# Of the configuration: they change nothing but training.
TRAINING_SETTINGS = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Source:
    """
    A checkpoint with all its heads.

    Args:
        model ([`SiTModel`], [`SiTForPreTraining`] or [`SiTForImageClassification`]):
            In evaluation mode, on the CPU, in float32.
        processor (`BaseImageProcessor`, *optional*): The image processor that goes with it, where there is one.
        notes (`list[str]`): What reading it has left out or assumed, a line each.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor | None
    notes: list[str] = field(default_factory=list)


def load_source(name: str) -> Source:
    """
    Read a SiT repository with all its heads.

    Args:
        name (`str`): A folder that `scripts/pretrain.py` or `scripts/finetune.py` wrote, or the id of one on the Hub.

    Raises:
        [`UserError`]: If there is no such model, it is not SiT, or weights are missing or do not fit.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"FROM {name}: no config.json in this folder, so it holds no model")
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, SiTConfig):
            raise UserError(f"FROM {name}: a model of type {config.model_type}, not SiT")
        architecture = (config.architectures or ["none"])[0]
        if architecture not in MODEL_CLASSES:
            raise UserError(
                f"FROM {name}: config.json names the architecture {architecture}, not one of {', '.join(MODEL_CLASSES)}"
            )
        stored_dtype = config.dtype
        model, info = MODEL_CLASSES[architecture].from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        where = "this model cannot be loaded" if folder.is_dir() else "no such folder, nor a model that the Hub gives"
        raise UserError(f"FROM {name}: {where}: {' '.join(str(problem).split())}") from problem
    if info["missing_keys"]:
        raise UserError(
            f"FROM {name}: weights are not there, and would be random: {', '.join(sorted(info['missing_keys']))}"
        )
    notes = []
    if info["unexpected_keys"]:
        notes.append(f"no weights of a {architecture}, left out: {', '.join(sorted(info['unexpected_keys']))}")
    if stored_dtype not in (None, torch.float32):
        notes.append(f"its weights are {stored_dtype}; they are written as float32, the same numbers")
    processor = load_processor(name)
    if processor is None:
        notes.append("it has no image processor (preprocessor_config.json), so none is written")
    return Source(model.eval(), processor, notes)


def load_processor(name: str) -> BaseImageProcessor | None:
    """The image processor of a repository, set to leave pictures uncorrupted, or `None` where there is none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None
    processor.do_corrupt = False
    return processor


def choose_model(model: PreTrainedModel, outputs: str | None, keeps_heads: bool) -> tuple[PreTrainedModel, list[str]]:
    """
    The part of a model that goes into a format, and lines that say what does not.

    Args:
        outputs (`str`, *optional*):
            `"features"` for the backbone, `"logits"` for it with the classifier. Default: all that the format can hold.
        keeps_heads (`bool`): Whether the format can hold the heads of pretraining.

    Raises:
        [`UserError`]: If logits are asked for of a model without a classifier.
    """
    has_classifier = isinstance(model, SiTForImageClassification) and model.config.num_labels > 0
    if outputs == "logits" and not has_classifier:
        raise UserError("--outputs logits: FROM has no classifier; fine-tune it first, or choose features")
    keeps_all = outputs != "features" and (has_classifier or keeps_heads)
    chosen = model if keeps_all else model.base_model
    left_out = [] if chosen is model else [part for part in model.named_children() if part[1] is not chosen]
    described = [f"{name} ({num_parameters(part):,} parameters)" for name, part in left_out if part is not None]
    return chosen, [f"not in it, for its outputs are features: {', '.join(described)}"] if described else []


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training_settings_left_out(config: SiTConfig, kept: tuple[str, ...] = ()) -> list[str]:
    """A line that names the settings of training that a format has no place for, if there are any that do something."""
    settings = {name: getattr(config, name) for name in TRAINING_SETTINGS if name not in kept}
    said = [f"{name}={value}" for name, value in settings.items() if value > 0]
    return [f"not in it, and without effect but in training: {', '.join(said)}"] if said else []
