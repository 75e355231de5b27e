"""Checkpoints of other formats as SiT models: which format a checkpoint has, and what is read from it.

Folders of SiT, and what transformers loads itself, need none of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.interop.authors_checkpoint import from_authors_network, is_authors_network
from modeling_sit.interop.encoders import (
    EncoderWeights,
    check_model_type,
    check_transformers_config,
    from_timm_network,
    from_transformers_network,
    name_weights,
)
from modeling_sit.interop.safetensors import (
    check_describes_itself,
    is_sit_file,
    read_processor_settings,
    read_sit_file,
)
from modeling_sit.interop.weights_files import (
    WEIGHTS_NAMES,
    check_is_state_dict,
    load_folder_weights,
    load_weights_file,
)
from modeling_sit.runtime.errors import SiTError

# What `find_format` gives for a file of weights and for a folder of timm's vit_*. Other folders have a `model_type`.
WEIGHTS_FILE, TIMM = "weights file", "timm"
# What SiT's classes load without conversion.
OWN_TYPES = (SiTConfig.model_type, "vit")
# Transformers' Auto classes give no usable encoder of these: MAE's drops three quarters of the patches at random, even
# in evaluation mode.
WITHOUT_AUTO_ENCODER = ("vit_mae",)
TIMM_ARCHITECTURES = ("vit_", "deit_", "deit3_")
# In timm's config: settings that change the outputs and leave no trace in the weights.
UNSEEN_MODEL_ARGS = ("act_layer", "norm_layer", "block_fn", "mlp_layer", "attn_layer", "embed_layer")
# Keys of a file's one network, where training code keeps other things beside it.
WRAPPERS = ("model", "state_dict", "model_state_dict")
NETWORKS = ("teacher", "student")

CROPPING_NOTE = "its image processor cuts out the middle of images; here the whole image is scaled to the model's size, whatever its shape"
IMAGENET_NOTE = "images are normalized as ImageNet's, because the file does not say how they were in training"


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """
    A checkpoint of another format, as weights of a SiT.

    Args:
        name (`str`): The file, the folder or the Hub id.
        config ([`SiTConfig`]): Made from the shapes of the weights, or from the checkpoint's configuration.
        state_dict (`dict[str, torch.Tensor]`):
            Weights in float32, by their names in [`SiTForPreTraining`]. A head that the checkpoint lacks is not among
            them.
        notes (`list[str]`): What was left out or assumed, a line each.
        normalization (`dict[str, list[float]]`): `image_mean` and `image_std`, if the checkpoint gives them.
    """

    name: str
    config: SiTConfig
    state_dict: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    normalization: dict[str, list[float]] = field(default_factory=dict)

    def create_model(
        self, model_class: type, config: SiTConfig | None = None
    ) -> tuple[PreTrainedModel, set[str], set[str]]:
        """
        A model with these weights. Heads that the checkpoint lacks, or that `config` gives other sizes, are new.

        Args:
            model_class (`type`): A class of SiT, or an Auto class of transformers.
            config ([`SiTConfig`], *optional*): Configuration of the model. Default: the checkpoint's.

        Returns:
            `tuple[PreTrainedModel, set[str], set[str]]`: The model, on the CPU, in float32, in evaluation mode; the
                names
            of its weights that are new; the names of the checkpoint's weights that it has no place for.

        Raises:
            [`SiTError`]: If `config` describes another backbone.
        """
        model = create_model(model_class, self.config if config is None else config)
        is_backbone = isinstance(model, SiTModel)
        names = {name: name.removeprefix("vit.") if is_backbone else name for name in self.state_dict}
        wanted = model.state_dict()
        found = {
            ours: self.state_dict[name]
            for name, ours in names.items()
            if ours in wanted and (name.startswith("vit.") or wanted[ours].shape == self.state_dict[name].shape)
        }
        # A part of a head would be neither the checkpoint's nor a new one.
        for head in ("decoder.", "projection_head."):
            of_head = [name for name in wanted if name.startswith(head)]
            if not all(name in found for name in of_head):
                found = {name: value for name, value in found.items() if name not in of_head}
        try:
            model.load_state_dict(found, strict=False)
        except RuntimeError as problem:
            reason = " ".join(str(problem).split())
            raise SiTError(
                f"{self.name} has another backbone than asked for: {reason}", argument="model_name_or_path"
            ) from problem
        model.name_or_path = model.config._name_or_path = self.name
        left_out = {name for name, ours in names.items() if ours not in found}
        return model.eval(), wanted.keys() - found.keys(), left_out

    def create_processor(self) -> SiTImageProcessor:
        """The image processor for images of the config's size. It normalizes as the checkpoint says, or else as for
        ImageNet's images."""
        height, width = self.config.image_shape
        usual = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
        if self.config.num_channels != 3:
            usual = {name: [0.5] * self.config.num_channels for name in usual}
        return SiTImageProcessor(
            size={"height": height, "width": width},
            patch_size=self.config.patch_size,
            **{**usual, **self.normalization},
        )


def create_model(model_class: type, config: PreTrainedConfig) -> PreTrainedModel:
    """A model with new weights in float32, of a class or of the class that an Auto class has for the configuration."""
    return model_class.from_config(config, dtype=torch.float32) if is_auto_class(model_class) else model_class(config)


def is_auto_class(model_class: type) -> bool:
    """Whether it is one of transformers' Auto classes, such as `AutoModel`."""
    return hasattr(model_class, "from_config")


def find_format(model_name_or_path: str) -> str | None:
    """`WEIGHTS_FILE`, `TIMM`, the `model_type` of a folder or a repository on the Hub, or `None` if there is none."""
    if Path(model_name_or_path).is_file():
        return WEIGHTS_FILE
    try:
        config, _ = PreTrainedConfig.get_config_dict(model_name_or_path)
    except (OSError, ValueError):
        return None
    if "architecture" in config and str(config["architecture"]).startswith(TIMM_ARCHITECTURES):
        return TIMM
    return config.get("model_type")


def needs_conversion(model_name_or_path: str) -> bool:
    """Whether SiT's classes cannot load it without [`read_checkpoint`]. `False` if nothing is there."""
    return find_format(model_name_or_path) not in (None, *OWN_TYPES)


def has_no_auto_encoder(model_name_or_path: str) -> bool:
    """Whether transformers' Auto classes give no encoder of whole images, so that it has to be converted."""
    return find_format(model_name_or_path) in (WEIGHTS_FILE, TIMM, *WITHOUT_AUTO_ENCODER)


def read_checkpoint(
    model_name_or_path: str, *, network: str | None = None, num_attention_heads: int | None = None
) -> ConvertedCheckpoint:
    """
    Read a checkpoint of another format. Nothing that it holds is run.

    Args:
        model_name_or_path (`str`):
            A file of weights, `.safetensors` or a pickle of `torch.save`, by the names of the authors' code or timm's,
            or a file of [`~interop.safetensors.write_safetensors`]; a folder or repository of timm's (`vit_*`) or
            transformers' (`vit`, `deit`, `vit_mae`, `vit_msn`, `dinov2`).
        network (`str`, *optional*):
            `"teacher"` or `"student"` of a file that has both. Default: the teacher, which is the better encoder.
        num_attention_heads (`int`, *optional*):
            Attention heads, which a file of weights does not give. Default: as many as models of this width usually
            have.

    Raises:
        [`SiTError`]: If it cannot be read, a pickle holds more than weights, or a SiT cannot give its outputs. The
            message names all weights that are missing or have no place.
    """
    try:
        found = find_format(model_name_or_path)
        if found == WEIGHTS_FILE:
            read = _read_file(Path(model_name_or_path), network, num_attention_heads)
        elif found == TIMM:
            read = _read_timm_folder(model_name_or_path)
        else:
            read = _read_transformers_folder(model_name_or_path, found)
    except (ValueError, OSError) as problem:
        reason = " ".join(str(problem).split())
        raise SiTError(f"{model_name_or_path}: {reason}", argument="model_name_or_path") from problem
    return replace(read, name=str(model_name_or_path))


def _read_file(path: Path, network: str | None, num_attention_heads: int | None) -> ConvertedCheckpoint:
    if is_sit_file(path):
        check_describes_itself(network, num_attention_heads)
        return _read_sit_file(path)
    if path.name in WEIGHTS_NAMES and path.with_name("config.json").is_file():
        raise ValueError("this file belongs to a model's folder; give the folder")
    weights, notes = _choose_network(load_weights_file(path), network)
    if is_authors_network(weights):
        encoder = from_authors_network(weights, num_attention_heads)
    else:
        encoder = from_timm_network(weights, num_attention_heads)
    encoder.notes = notes + encoder.notes
    return _as_checkpoint(encoder, {})


def _read_sit_file(path: Path) -> ConvertedCheckpoint:
    model, processor = read_sit_file(path)
    prefix = "vit." if isinstance(model, SiTModel) else ""
    state_dict = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    notes = []
    if not isinstance(model, (SiTModel, SiTForPreTraining)):
        heads = sorted({name.partition(".")[0] for name in state_dict} - {"vit"})
        state_dict = {name: value for name, value in state_dict.items() if name.startswith("vit.")}
        notes.append(f"left out, because it is of another task: its {', '.join(heads)}")
    normalization = {}
    if processor is None:
        notes.append(IMAGENET_NOTE)
    else:
        normalization = normalization_in(processor.to_dict())
    return ConvertedCheckpoint("", model.config, state_dict, notes, normalization)


def _choose_network(contents: Any, network: str | None) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of one network in a file, without `module.` in front of their names, and a note that says which."""
    there = [name for name in NETWORKS if isinstance(contents, dict) and isinstance(contents.get(name), dict)]
    notes = []
    if network is not None and network not in there:
        others = f"only the {' and the '.join(there)}" if there else "but one network without a name; leave this out"
        raise SiTError(f"the file holds no {network}, {others}", argument="network")
    if there:
        chosen = network or there[0]
        weights, what = contents[chosen], f"its {chosen}"
        notes.append(f"{what} is used" + (f", not the {there[1 - there.index(chosen)]}" if len(there) > 1 else ""))
    else:
        wrapper = next((name for name in WRAPPERS if isinstance(contents, dict) and name in contents), None)
        weights, what = (contents, "it") if wrapper is None else (contents[wrapper], f"its {wrapper}")
    check_is_state_dict(weights, what)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return dict(weights), notes


def _read_timm_folder(model_name_or_path: str) -> ConvertedCheckpoint:
    config, _ = PreTrainedConfig.get_config_dict(model_name_or_path)
    model_args, described = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    unseen = [f"{name}={model_args[name]}" for name in UNSEEN_MODEL_ARGS if model_args.get(name)]
    if unseen:
        raise ValueError(f"a SiT cannot have this vit_*'s {', '.join(unseen)}")
    weights = load_folder_weights(model_name_or_path)
    check_is_state_dict(weights, "it")
    input_size = described.get("input_size")
    image_shape = tuple(input_size[1:]) if isinstance(input_size, list) and len(input_size) == 3 else None
    encoder = from_timm_network(weights, model_args.get("num_heads"), image_shape)
    read = _as_checkpoint(encoder, read_normalization(model_name_or_path))
    # timm scales images to the size divided by `crop_pct`, and cuts out the middle. By `center` it keeps their shape.
    crop_pct, crop_mode = described.get("crop_pct"), described.get("crop_mode") or "center"
    is_cut = crop_pct is not None and (crop_pct < 1 or crop_mode == "center")
    return replace(read, notes=[*read.notes, CROPPING_NOTE]) if is_cut else read


def _read_transformers_folder(model_name_or_path: str, model_type: str | None) -> ConvertedCheckpoint:
    check_model_type(model_type)
    config = AutoConfig.from_pretrained(model_name_or_path)
    check_transformers_config(config)
    weights = load_folder_weights(model_name_or_path)
    check_is_state_dict(weights, "it")
    read = _as_checkpoint(from_transformers_network(weights, config), read_normalization(model_name_or_path))
    return replace(read, notes=[*read.notes, *_notes_of_cropping(model_name_or_path)])


def _notes_of_cropping(model_name_or_path: str) -> list[str]:
    """What becomes of the cropping of a folder's image processor."""
    try:
        settings, _ = SiTImageProcessor.get_image_processor_dict(model_name_or_path)
    except (OSError, ValueError):
        return []
    return [CROPPING_NOTE] if settings.get("do_center_crop") else []


def read_normalization(model_name_or_path: str) -> dict[str, list[float]]:
    """`image_mean`, `image_std` and `intensity_range` of a checkpoint, if it gives them."""
    found = find_format(model_name_or_path)
    try:
        if found == WEIGHTS_FILE:
            path = Path(model_name_or_path)
            settings = read_processor_settings(path) if is_sit_file(path) else {}
        elif found == TIMM:
            config, _ = PreTrainedConfig.get_config_dict(model_name_or_path)
            described = config.get("pretrained_cfg") or {}
            settings = {"image_mean": described.get("mean"), "image_std": described.get("std")}
        else:
            settings, _ = SiTImageProcessor.get_image_processor_dict(model_name_or_path)
    except (OSError, ValueError):
        return {}
    return normalization_in(settings)


def normalization_in(settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """`image_mean`, `image_std` and `intensity_range` among the settings of an image processor, if they are there. Where it does not
    normalize, they are those that change nothing."""
    if settings.get("do_normalize") is False:
        num_channels = len(settings.get("image_mean") or [0.0] * 3)
        settings = {**settings, "image_mean": [0.0] * num_channels, "image_std": [1.0] * num_channels}
    return {
        name: list(settings[name]) for name in ("image_mean", "image_std", "intensity_range") if settings.get(name)
    }


def range_of(model_name_or_path: str | None, intensity_range: Sequence[float | str] | None) -> Sequence[float] | None:
    """The range of values that a run reads images by: the one that is given, or else the model's own, if it has one."""
    if intensity_range is not None or model_name_or_path is None:
        return intensity_range
    return read_normalization(model_name_or_path).get("intensity_range")


def _as_checkpoint(encoder: EncoderWeights, normalization: dict[str, list[float]]) -> ConvertedCheckpoint:
    config = SiTConfig(**encoder.settings)
    state_dict = {f"vit.{name}": value for name, value in encoder.weights.items()} | encoder.heads
    state_dict = {name: value.float() if value.is_floating_point() else value for name, value in state_dict.items()}
    _check_heads(encoder.heads, config)
    notes = list(encoder.notes)
    if encoder.left_out:
        notes.append(f"left out, because a SiT has no place for them: {name_weights(encoder.left_out)}")
    if not normalization.keys() & {"image_mean", "image_std"}:
        notes.append(IMAGENET_NOTE)
    return ConvertedCheckpoint(
        name="",
        config=config,
        state_dict=state_dict,
        notes=notes,
        normalization=normalization,
    )


def _check_heads(heads: dict[str, torch.Tensor], config: SiTConfig) -> None:
    """Raise `ValueError` if a head is there in part, or not as the config describes it."""
    with torch.device("meta"):
        wanted = SiTForPreTraining(config).state_dict()
    present = {name.partition(".")[0] for name in heads}
    lacking = [name for name in wanted if name.partition(".")[0] in present and name not in heads]
    unfit = [name for name in heads if name not in wanted or heads[name].shape != wanted[name].shape]
    if lacking or unfit:
        said = [
            f"{what} {name_weights(names)}"
            for what, names in (("lack", lacking), ("also have, or in other shapes,", unfit))
            if names
        ]
        raise ValueError(f"its heads are not those of the authors' code: they {' and '.join(said)}")
