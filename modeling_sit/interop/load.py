"""The one loader of checkpoints, for pretraining, fine-tuning, evaluation, figures and conversion."""

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.interop.convert_in import (
    ConvertedCheckpoint,
    create_model,
    find_format,
    has_no_auto_encoder,
    is_auto_class,
    needs_conversion,
    read_checkpoint,
)
from modeling_sit.interop.encoders import name_weights, names_of_heads
from modeling_sit.interop.paths import ARGUMENT, check_exists
from modeling_sit.interop.resize import check_image_size, pair, resize_model, resize_processor
from modeling_sit.interop.safetensors import MODEL_CLASSES, check_describes_itself, is_sit_file, read_sit_file
from modeling_sit.interop.untrained import untrained_config
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import cache_error

# SiT's class for a class of transformers' ViT whose weights have SiT's names in files.
CLASSIFIERS = {"ViTForImageClassification": SiTForImageClassification}
# A backbone for transformers' models has the weights of the encoder.
BACKBONES = {"SiTBackbone": SiTModel}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """
    A model, and what belongs to it.

    Args:
        name (`str`): The file, the folder or the Hub id.
        model (`PreTrainedModel`): On the CPU, in float32, in evaluation mode.
        processor (`BaseImageProcessor`, *optional*):
            The image processor. It does not corrupt images. `None` if the checkpoint has none.
        notes (`list[str]`): What was left out or assumed, a line each.
        missing_keys (`list[str]`):
            Weights that the checkpoint lacks, or has in other shapes, sorted. They are new. None of them is of the
            backbone, unless the model was made from scratch.
        processor_problem (`str`, *optional*): Why there is no image processor.
    """

    name: str
    model: PreTrainedModel
    processor: BaseImageProcessor | None
    notes: list[str] = field(default_factory=list)
    missing_keys: list[str] = field(default_factory=list)
    processor_problem: str | None = None

    def require_processor(self) -> BaseImageProcessor:
        """The image processor.

        Raises:
            [`SiTError`]: If the checkpoint has none.
        """
        if self.processor is None:
            reason = f": {self.processor_problem}" if self.processor_problem else ""
            raise SiTError(f"{self.name}: it has no image processor{reason}", argument=ARGUMENT)
        return self.processor

    def log_notes(self) -> None:
        """Print the notes on stderr, in the first process of a run."""
        if os.environ.get("RANK", "0") == "0":
            for note in self.notes:
                print(f"{self.name}: {note}", file=sys.stderr)


def load_checkpoint(
    model_name_or_path: str,
    model_class: type | None = None,
    *,
    network: str | None = None,
    num_attention_heads: int | None = None,
    image_size: int | None = None,
    config: PreTrainedConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    from_scratch: bool = False,
) -> LoadedCheckpoint:
    """
    Load a model and its image processor. Pickles are read without running anything that they name.

    Every weight of the backbone has to be there. Heads that the checkpoint lacks are new.

    Args:
        model_name_or_path (`str`):
            A folder of `save_pretrained`, the id of a model on the Hub, or a file of weights: what transformers loads
            as `model_class`, or what [`~interop.convert_in.read_checkpoint`] reads.
        model_class (`type`, *optional*):
            What to load. An Auto class of transformers, such as `AutoModel` for the encoder or
            `AutoModelForImageClassification`; or a class of SiT, such as [`SiTForPreTraining`], to which other plain
            ViTs are converted. Default: SiT's class with all the heads that the checkpoint has, each of them whole.
        network, num_attention_heads (*optional*):
            Of a file of weights, as for [`~interop.convert_in.read_checkpoint`].
        image_size (`int`, *optional*):
            Height and width of images in pixels, for the model, whose positions are interpolated, and the image
            processor. Default: those of `config`, or else of the checkpoint.
        config (`PreTrainedConfig`, *optional*):
            Configuration of the model. If its images are of another size than the checkpoint's, positions are
            interpolated. Default: the checkpoint's.
        settings (mapping, *optional*):
            Fields of the checkpoint's configuration to replace, such as `num_labels` or `id2label`. With these, a head
            of other shapes than the checkpoint's is new.
        from_scratch (`bool`, *optional*, defaults to `False`): Whether all weights are new.

    Returns:
        [`LoadedCheckpoint`]

    Raises:
        [`SiTError`]: If there is no such checkpoint, it cannot be loaded, it lacks weights, or an argument does not
            fit it. Its argument is `model_name_or_path`, or the one that does not fit.
    """
    name = str(model_name_or_path)
    check_exists(name)
    check_weights_file_arguments(name, network, num_attention_heads)
    with _loading_errors(name):
        source = _open(name, model_class, network, num_attention_heads)
        is_whole = model_class is None
        model_class = source.own_class() if is_whole else model_class
        if config is None:
            config = _own_config(source, model_class, settings or {})
        if image_size is not None:
            check_image_size(config, image_size)
            config = _with_image_size(config, image_size)
        if from_scratch:
            model, report = create_model(model_class, untrained_config(config, name)), _Report()
        else:
            model, report = _load_weights(source, model_class, config, is_resized=image_size is not None)
            report.check(name, model, is_whole, can_differ=settings is not None)
        processor, problem = source.load_processor(SiTImageProcessor if is_whole else AutoImageProcessor)
    if processor is not None and image_size is not None:
        resize_processor(processor, image_size)
    notes = [*source.notes, *(report.notes(model, config) if is_whole else [])]
    return LoadedCheckpoint(name, model.eval(), _uncorrupted(processor), notes, report.new, problem)


def read_config(
    model_name_or_path: str, *, network: str | None = None, num_attention_heads: int | None = None
) -> dict[str, Any]:
    """
    The configuration of a checkpoint as fields of [`SiTConfig`].

    Args:
        model_name_or_path, network, num_attention_heads: As for [`load_checkpoint`].

    Raises:
        [`SiTError`]: If there is no such checkpoint, or a SiT cannot be like it.
    """
    name = str(model_name_or_path)
    check_exists(name)
    check_weights_file_arguments(name, network, num_attention_heads)
    with _loading_errors(name):
        if needs_conversion(name):
            read = read_checkpoint(name, network=network, num_attention_heads=num_attention_heads)
            return read.config.to_dict()
        saved, _ = SiTConfig.get_config_dict(name)
        if not saved:
            raise OSError("no config.json")
        return saved


def check_weights_file_arguments(name: str | None, network: str | None, num_attention_heads: int | None) -> None:
    """Raise [`SiTError`] if an argument for files of weights is given with something else, or with nothing."""
    if name is not None and Path(name).is_file():
        return
    reason = f"{name} says that itself" if name else "there is none"
    for argument, value in (("network", network), ("num_attention_heads", num_attention_heads)):
        if value is not None:
            raise SiTError(f"{value} is for a `{ARGUMENT}` that is a file of weights: {reason}", argument=argument)


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        is_here, of_the_cache = Path(name).exists(), cache_error(problem)
        if of_the_cache is not None and not is_here:
            raise of_the_cache from problem
        where = "this model cannot be loaded" if is_here else "no such folder, and the Hub gives no such model"
        raise SiTError(f"{name}: {where}: {' '.join(str(problem).split())}", argument=ARGUMENT) from problem


def _open(
    name: str, model_class: type | None, network: str | None, num_attention_heads: int | None
) -> "_Repository | _SitFile | _Converted":
    if model_class is None and is_sit_file(Path(name)):
        check_describes_itself(network, num_attention_heads)
        return _SitFile(*read_sit_file(Path(name)))
    if _has_to_be_converted(name, model_class):
        return _Converted(read_checkpoint(name, network=network, num_attention_heads=num_attention_heads))
    return _Repository(name)


def _has_to_be_converted(name: str, model_class: type | None) -> bool:
    if model_class is None:
        is_classifier = find_format(name) == "vit" and _architecture(name) in CLASSIFIERS
        return find_format(name) not in (None, SiTConfig.model_type) and not is_classifier
    return has_no_auto_encoder(name) if is_auto_class(model_class) else needs_conversion(name)


def _architecture(name: str) -> str:
    config, _ = PreTrainedConfig.get_config_dict(name)
    return (config.get("architectures") or ["none"])[0]


def _own_config(
    source: "_Repository | _SitFile | _Converted", model_class: type, settings: Mapping[str, Any]
) -> PreTrainedConfig:
    config = source.load_config(model_class, settings)
    for name in settings:
        if not hasattr(config, name):
            raise SiTError(f"{type(config).__name__} has no such setting", argument=name)
    return config


def _with_image_size(config: PreTrainedConfig, image_size: int | tuple[int, int]) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.image_size = image_size
    return config


def _load_weights(
    source: "_Repository | _SitFile | _Converted", model_class: type, config: PreTrainedConfig, is_resized: bool
) -> tuple[PreTrainedModel, "_Report"]:
    """The model for images of the config's size, whatever size the checkpoint's images have."""
    own_size = source.image_size()
    if own_size is None or (not is_resized and pair(own_size) == pair(config.image_size)):
        return source.load_model(model_class, config)
    model, report = source.load_model(model_class, _with_image_size(config, own_size))
    return resize_model(model, config.image_size), report


def _uncorrupted(processor: BaseImageProcessor | None) -> BaseImageProcessor | None:
    """The processor, which may have been saved with corruption switched on, for images as they are."""
    if getattr(processor, "do_corrupt", False):
        processor.do_corrupt = False
    return processor


@dataclass
class _Report:
    """
    How a checkpoint's weights fit a model.

    Args:
        missing (`set[str]`): Weights that the checkpoint lacks.
        mismatched (`set[str]`): Weights that it has in other shapes.
        unexpected (`set[str]`): Weights that the model has no place for.
    """

    missing: set[str] = field(default_factory=set)
    mismatched: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)

    @property
    def new(self) -> list[str]:
        return sorted(self.missing | self.mismatched)

    def check(self, name: str, model: PreTrainedModel, is_whole: bool, can_differ: bool) -> None:
        """Raise [`SiTError`] if a weight is new that must not be.

        Args:
            name (`str`): The checkpoint.
            is_whole (`bool`): Whether the checkpoint has to hold every weight of the heads too.
            can_differ (`bool`): Whether heads may have other shapes in the checkpoint.
        """
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        heads = names_of_heads(model)

        def refuse(weights: set[str], are_refused: bool, problem: str) -> None:
            # Most checkpoints have no pooler of ViT, and no features come from it.
            of_backbone = {weight for weight in weights if weight.startswith(prefix) and weight not in heads}
            of_backbone = {weight for weight in of_backbone if not weight.startswith(f"{prefix}pooler.")}
            refused, whose = (weights, "") if are_refused else (of_backbone, " of the backbone")
            if refused:
                raise SiTError(
                    f"{name}: {len(refused)} weights{whose} {problem}, such as {min(refused)}", argument=ARGUMENT
                )

        refuse(self.missing, is_whole, "are missing")
        refuse(self.mismatched, not can_differ, "have other shapes than the model")

    def notes(self, model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
        notes = []
        if self.unexpected:
            left_out = name_weights(sorted(self.unexpected))
            notes.append(f"left out, because a {type(model).__name__} has no place for them: {left_out}")
        if config.dtype not in (None, torch.float32):
            notes.append(f"its weights are {config.dtype}; they are loaded as float32, the same numbers")
        return notes


@dataclass(frozen=True)
class _Repository:
    """A folder of `save_pretrained`, or such a repository on the Hub, which the model's class loads itself."""

    name: str
    notes: tuple[str, ...] = ()

    def own_class(self) -> type[PreTrainedModel]:
        architecture, known = _architecture(self.name), {**MODEL_CLASSES, **CLASSIFIERS, **BACKBONES}
        if architecture not in known:
            raise ValueError(f"config.json names the architecture {architecture}, not one of {', '.join(known)}")
        return known[architecture]

    def image_size(self) -> int | tuple[int, int] | None:
        return PreTrainedConfig.get_config_dict(self.name)[0].get("image_size")

    def load_config(self, model_class: type, settings: Mapping[str, Any]) -> PreTrainedConfig:
        config_class = AutoConfig if is_auto_class(model_class) else model_class.config_class
        return config_class.from_pretrained(self.name, **settings)

    def load_model(self, model_class: type, config: PreTrainedConfig) -> tuple[PreTrainedModel, _Report]:
        if is_auto_class(model_class) and type(config) not in model_class._model_mapping:
            # Transformers would import all the hundreds that it knows, and list them.
            raise ValueError(f"transformers' {model_class.__name__} knows no {config.model_type}")
        model, info = model_class.from_pretrained(
            self.name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        mismatched = {weight for weight, *_ in info["mismatched_keys"]}
        return model, _Report(set(info["missing_keys"]) - mismatched, mismatched, set(info["unexpected_keys"]))

    def load_processor(self, processor_class: type) -> tuple[BaseImageProcessor | None, str | None]:
        try:
            return processor_class.from_pretrained(self.name), None
        except (OSError, ValueError) as problem:
            return None, " ".join(str(problem).split())


@dataclass(frozen=True)
class _SitFile:
    """A file of [`~interop.safetensors.write_safetensors`] with all its heads."""

    model: PreTrainedModel
    processor: BaseImageProcessor | None
    notes: tuple[str, ...] = ()

    def own_class(self) -> type[PreTrainedModel]:
        return type(self.model)

    def image_size(self) -> int | tuple[int, int]:
        return self.model.config.image_size

    def load_config(self, model_class: type, settings: Mapping[str, Any]) -> SiTConfig:
        return SiTConfig.from_dict({**self.model.config.to_dict(), **settings})

    def load_model(self, model_class: type, config: SiTConfig) -> tuple[PreTrainedModel, _Report]:
        model = create_model(model_class, config)
        model.load_state_dict(self.model.state_dict())
        return model, _Report()

    def load_processor(self, processor_class: type) -> tuple[BaseImageProcessor | None, None]:
        return self.processor, None


@dataclass(frozen=True)
class _Converted:
    """A checkpoint of another format."""

    read: ConvertedCheckpoint

    @property
    def notes(self) -> list[str]:
        return self.read.notes

    def own_class(self) -> type[PreTrainedModel]:
        heads = {weight.partition(".")[0] for weight in self.read.state_dict}
        return SiTForPreTraining if {"decoder", "projection_head"} <= heads else SiTModel

    def image_size(self) -> int | tuple[int, int]:
        return self.read.config.image_size

    def load_config(self, model_class: type, settings: Mapping[str, Any]) -> SiTConfig:
        config = copy.deepcopy(self.read.config)
        return SiTConfig.from_dict({**config.to_dict(), **settings}) if settings else config

    def load_model(self, model_class: type, config: SiTConfig) -> tuple[PreTrainedModel, _Report]:
        model, missing, left_out = self.read.create_model(model_class, config)
        return model, _Report(missing=missing, unexpected=left_out)

    def load_processor(self, processor_class: type) -> tuple[BaseImageProcessor, None]:
        return self.read.create_processor(), None
