"""The checkpoint that is converted, and what of it goes into another format."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.interop.reading import find_format, read_checkpoint
from modeling_sit.interop.sit_file import MODEL_CLASSES, is_sit_file, read_sit_file
from modeling_sit.runtime.errors import SiTError

# Of transformers' ViT, whose weights have SiT's names in files.
CLASSIFIERS = {"ViTForImageClassification": SiTForImageClassification}
# Of the configuration: they change nothing but training.
TRAINING_SETTINGS = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Source:
    """
    A checkpoint with all its heads.

    Args:
        model ([`SiTModel`], [`SiTForPreTraining`] or [`SiTForImageClassification`]):
            In evaluation mode, on the CPU, in float32.
        processor ([`SiTImageProcessor`], *optional*): What goes with it, where there is one; it leaves images uncorrupted.
        notes (`list[str]`): What reading it has left out or assumed, a line each.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor | None
    notes: list[str] = field(default_factory=list)


def load_source(name: str, network: str | None = None, num_attention_heads: int | None = None) -> Source:
    """
    Read a checkpoint with all the heads that a SiT has a place for.

    Args:
        name (`str`):
            A folder that `scripts/pretrain.py` or `scripts/finetune.py` wrote, or the id of one on the Hub; a file of
            [`write_safetensors`]; a classifier of transformers' ViT; or what [`~interop.reading.read_checkpoint`] reads.
        network, num_attention_heads (*optional*): Of a file of weights, as for [`~interop.reading.read_checkpoint`].

    Raises:
        [`SiTError`]: If there is no such checkpoint, or weights are missing or do not fit.
    """
    if not Path(name).is_file():
        for flag, value in (("network", network), ("num_attention_heads", num_attention_heads)):
            if value is not None:
                raise SiTError(f"--{flag} {value} is for a file of weights; FROM {name} says that itself")
    elif is_sit_file(Path(name)):
        try:
            model, processor = read_sit_file(Path(name))
        except ValueError as problem:
            raise SiTError(f"FROM {name}: {problem}") from problem
        return _source(model, processor, [])
    found = find_format(name)
    if found in (None, SiTConfig.model_type) or (found == "vit" and _architecture(name) in CLASSIFIERS):
        return _load_repository(name)
    read = read_checkpoint(name, network=network, num_attention_heads=num_attention_heads, flag="FROM")
    heads = sorted({weight.partition(".")[0] for weight in read.state_dict} - {"vit"})
    is_whole = {"decoder", "projection_head"} <= set(heads)
    notes = list(read.notes)
    if heads and not is_whole:
        notes.append(f"left out, for pretraining has other heads beside it: {', '.join(heads)}")
    return _source(read.create_model(SiTForPreTraining if is_whole else SiTModel), read.create_processor(), notes)


def _load_repository(name: str) -> Source:
    """A SiT, or a classifier of transformers' ViT, which has a SiT's weights by their names."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SiTError(f"FROM {name}: no config.json in this folder, so it holds no model")
    try:
        architecture = _architecture(name)
        model_class = {**MODEL_CLASSES, **CLASSIFIERS}.get(architecture)
        if model_class is None:
            raise SiTError(
                f"FROM {name}: config.json names the architecture {architecture}, not one of {', '.join(MODEL_CLASSES)}"
            )
        stored_dtype = SiTConfig.from_pretrained(name).dtype
        model, info = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        where = "this model cannot be loaded" if folder.is_dir() else "no such folder, nor a model that the Hub gives"
        raise SiTError(f"FROM {name}: {where}: {' '.join(str(problem).split())}") from problem
    if info["missing_keys"]:
        raise SiTError(
            f"FROM {name}: weights are not there, and would be random: {', '.join(sorted(info['missing_keys']))}"
        )
    notes = []
    if info["unexpected_keys"]:
        notes.append(f"no weights of a {architecture}, left out: {', '.join(sorted(info['unexpected_keys']))}")
    if stored_dtype not in (None, torch.float32):
        notes.append(f"its weights are {stored_dtype}; they are written as float32, the same numbers")
    return _source(model, load_processor(name), notes)


def _architecture(name: str) -> str:
    config, _ = PreTrainedConfig.get_config_dict(name)
    return (config.get("architectures") or ["none"])[0]


def _source(model: PreTrainedModel, processor: BaseImageProcessor | None, notes: list[str]) -> Source:
    if processor is None:
        notes = [*notes, "it has no image processor (preprocessor_config.json), so none is written"]
    else:
        processor.do_corrupt = False
    return Source(model.eval(), processor, notes)


def load_processor(name: str) -> BaseImageProcessor | None:
    """The image processor of a repository, or `None` where there is none."""
    try:
        return SiTImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def choose_model(model: PreTrainedModel, outputs: str | None, keeps_heads: bool) -> tuple[PreTrainedModel, list[str]]:
    """
    The part of a model that goes into a format, and lines that say what does not.

    Args:
        outputs (`str`, *optional*):
            `"features"` for the backbone, `"logits"` for it with the classifier. Default: all that the format can hold.
        keeps_heads (`bool`): Whether the format can hold the heads of pretraining.

    Raises:
        [`SiTError`]: If logits are asked for of a model without a classifier.
    """
    has_classifier = isinstance(model, SiTForImageClassification) and model.config.num_labels > 0
    if outputs == "logits" and not has_classifier:
        raise SiTError("--outputs logits: FROM has no classifier; fine-tune it first, or choose features")
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
