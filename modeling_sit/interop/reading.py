"""Checkpoints of other formats as SiT models: which format it is, and what is read from it.

Folders of SiT, and what transformers reads itself, need nothing of this.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.interop.authors_checkpoint import from_authors_network, is_authors_network
from modeling_sit.interop.encoders import (
    Encoder,
    check_model_type,
    check_transformers_config,
    from_timm_network,
    from_transformers_network,
    name_weights,
)
from modeling_sit.interop.sit_file import is_sit_file, read_sit_file
from modeling_sit.interop.weights_files import (
    WEIGHTS_NAMES,
    check_is_state_dict,
    load_folder_weights,
    load_weights_file,
)
from modeling_sit.runtime.errors import SiTError

# What a file of weights is called by `find_format`; a folder by its config's `model_type`, and one of timm's vit_* by this.
WEIGHTS_FILE, TIMM = "weights file", "timm"
# What SiT's classes load as it is.
OWN_TYPES = (SiTConfig.model_type, "vit")
# What transformers' Auto classes give no encoder of: MAE's drops three quarters of the patches, by chance, even in
# evaluation mode.
WITHOUT_AUTO_ENCODER = ("vit_mae",)
TIMM_ARCHITECTURES = ("vit_", "deit_", "deit3_")
# In timm's config: what would change the outputs and leaves no trace in the weights.
UNSEEN_MODEL_ARGS = ("act_layer", "norm_layer", "block_fn", "mlp_layer", "attn_layer", "embed_layer")
# What a file's one network can be under, beside what else training code keeps.
WRAPPERS = ("model", "state_dict", "model_state_dict")
NETWORKS = ("teacher", "student")

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """
    A checkpoint of another format, as SiT has it.

    Args:
        name (`str`): The file, folder or repository.
        config ([`SiTConfig`]): What its shapes or its configuration say.
        state_dict (`dict[str, torch.Tensor]`): Float32, by their names in [`SiTForPreTraining`]; a head that the source
            has not is not among them.
        notes (`list[str]`): What its user has to know, a line each: what was left out, what was assumed.
        normalization (`dict[str, list[float]]`): `image_mean` and `image_std`, as far as the source says them.
    """

    name: str
    config: SiTConfig
    state_dict: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    normalization: dict[str, list[float]] = field(default_factory=dict)

    @property
    def reconstructs(self) -> bool:
        """Whether the pixel decoder is there."""
        return any(name.startswith("decoder.") for name in self.state_dict)

    def create_model(self, model_class: type[Model], config: SiTConfig | None = None) -> Model:
        """
        A model with these weights; heads that the source has not, or of other sizes in `config`, are new.

        Args:
            model_class (`type`): [`SiTModel`], [`SiTForPreTraining`] or [`SiTForImageClassification`].
            config ([`SiTConfig`], *optional*): Of the model. Default: the checkpoint's.

        Returns:
            `PreTrainedModel`: On the CPU, float32, in evaluation mode.

        Raises:
            [`SiTError`]: If the config is of another backbone.
        """
        model = model_class(self.config if config is None else config)
        names = {name: name.removeprefix("vit.") if model_class is SiTModel else name for name in self.state_dict}
        wanted = model.state_dict()
        found = {
            ours: self.state_dict[name]
            for name, ours in names.items()
            if ours in wanted and (name.startswith("vit.") or wanted[ours].shape == self.state_dict[name].shape)
        }
        # A head in part would be neither the source's nor a new one.
        for head in ("decoder.", "projection_head."):
            of_head = [name for name in wanted if name.startswith(head)]
            if not all(name in found for name in of_head):
                found = {name: value for name, value in found.items() if name not in of_head}
        try:
            model.load_state_dict(found, strict=False)
        except RuntimeError as problem:
            raise SiTError(f"{self.name} is of another backbone than asked for: {problem}") from problem
        model.name_or_path = model.config._name_or_path = self.name
        return model.eval()

    def create_processor(self) -> SiTImageProcessor:
        """The image processor for images of the config's size, normalized as the source says, else as ImageNet's."""
        height, width = self.config.image_shape
        usual = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
        if self.config.num_channels == 1:
            usual = {"image_mean": [0.5], "image_std": [0.5]}
        return SiTImageProcessor(
            size={"height": height, "width": width},
            patch_size=self.config.patch_size,
            **{**usual, **self.normalization},
        )

    def log_notes(self) -> None:
        """Print the notes on stderr, in the first process of a run."""
        if os.environ.get("RANK", "0") == "0":
            for note in self.notes:
                print(f"{self.name}: {note}", file=sys.stderr)


def find_format(model_name_or_path: str) -> str | None:
    """`WEIGHTS_FILE`, `TIMM`, the `model_type` of a folder or of a repository on the Hub, or `None` if there is none."""
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
    """Whether SiT's classes load it by way of [`read_checkpoint`], if at all; `False` where there is nothing."""
    return find_format(model_name_or_path) not in (None, *OWN_TYPES)


def has_no_auto_encoder(model_name_or_path: str) -> bool:
    """Whether transformers' Auto classes give no encoder, or not that of whole images, so that it has to be converted."""
    return find_format(model_name_or_path) in (WEIGHTS_FILE, TIMM, *WITHOUT_AUTO_ENCODER)


def check_weights_file_flags(
    model_name_or_path: str | None, network: str | None, num_attention_heads: int | None
) -> None:
    """Raise [`SiTError`] if a flag for files of weights is given beside something else."""
    if model_name_or_path is not None and Path(model_name_or_path).is_file():
        return
    for flag, value in (("network", network), ("num_attention_heads", num_attention_heads)):
        if value is not None:
            reason = f"{model_name_or_path} says that itself" if model_name_or_path else "there is none"
            raise SiTError(f"--{flag} {value} is for a --model_name_or_path that is a file of weights: {reason}")


def read_checkpoint(
    model_name_or_path: str,
    *,
    network: str | None = None,
    num_attention_heads: int | None = None,
    flag: str = "--model_name_or_path",
) -> ConvertedCheckpoint:
    """
    Read a checkpoint of another format. Nothing that it holds is run.

    Args:
        model_name_or_path (`str`):
            A file of weights, `.safetensors` or a pickle of `torch.save`, by the names of the authors' code or timm's, or of
            [`~interop.sit.write_safetensors`]; a folder or repository of timm's (`vit_*`) or transformers' (`vit`, `deit`, `vit_mae`, `vit_msn`, `dinov2`).
        network (`str`, *optional*):
            `"teacher"` or `"student"` of a checkpoint that has both. Default: the teacher, the better encoder.
        num_attention_heads (`int`, *optional*):
            Of a file of weights, which does not say it. Default: as wide as the family's.
        flag (`str`, *optional*, defaults to `"--model_name_or_path"`): What names it in errors.

    Raises:
        [`SiTError`]: If it cannot be read, a pickle holds more than weights, or a SiT cannot give its outputs. Weights that
            are missing, or have no place, are all named.
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
        raise SiTError(f"{flag} {model_name_or_path}: {reason}") from problem
    return replace(read, name=str(model_name_or_path))


def _read_file(path: Path, network: str | None, num_attention_heads: int | None) -> ConvertedCheckpoint:
    if is_sit_file(path):
        for flag, value in (("network", network), ("num_attention_heads", num_attention_heads)):
            if value is not None:
                raise ValueError(f"--{flag} {value} is for other files of weights; this one says that itself")
        return _read_sit_file(path)
    if path.name in WEIGHTS_NAMES and path.with_name("config.json").is_file():
        raise ValueError("a file of a model's folder; give the folder that it lies in")
    weights, notes = _choose_network(load_weights_file(path), network)
    if is_authors_network(weights):
        encoder = from_authors_network(weights, num_attention_heads)
    else:
        encoder = from_timm_network(weights, num_attention_heads)
    encoder.notes = notes + encoder.notes
    read = _as_read(encoder, {})
    read.notes.append("normalized as ImageNet's images are, for the file does not say how it was trained")
    return read


def _read_sit_file(path: Path) -> ConvertedCheckpoint:
    model, processor = read_sit_file(path)
    prefix = "vit." if isinstance(model, SiTModel) else ""
    state_dict = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    notes = []
    if isinstance(model, SiTForImageClassification):
        state_dict = {name: value for name, value in state_dict.items() if name.startswith("vit.")}
        notes.append("left out, for it is another task's: its classifier")
    normalization = {}
    if processor is None:
        notes.append("normalized as ImageNet's images are, for the file does not say how it was trained")
    else:
        normalization = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    return ConvertedCheckpoint("", model.config, state_dict, notes, normalization)


def _choose_network(contents: Any, network: str | None) -> tuple[dict[str, torch.Tensor], list[str]]:
    """One network's weights of what a file holds, `module.` taken off their names, and a note of which it is."""
    there = [name for name in NETWORKS if isinstance(contents, dict) and isinstance(contents.get(name), dict)]
    notes = []
    if network is not None and network not in there:
        others = f"it has the {' and '.join(there)}" if there else "it holds one network, and no flag is needed"
        raise ValueError(f"there is no {network} in it for --network: {others}")
    if there:
        chosen = network or there[0]
        weights, what = contents[chosen], f"its {chosen}"
        notes.append(f"{what} is taken" + (f", not the {there[1 - there.index(chosen)]}" if len(there) > 1 else ""))
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
    return _as_read(encoder, read_normalization(model_name_or_path))


def _read_transformers_folder(model_name_or_path: str, model_type: str | None) -> ConvertedCheckpoint:
    check_model_type(model_type)
    config = AutoConfig.from_pretrained(model_name_or_path)
    check_transformers_config(config)
    weights = load_folder_weights(model_name_or_path)
    check_is_state_dict(weights, "it")
    return _as_read(from_transformers_network(weights, config), read_normalization(model_name_or_path))


def read_normalization(model_name_or_path: str) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of a checkpoint, as far as it says them."""
    found = find_format(model_name_or_path)
    try:
        if found == WEIGHTS_FILE:
            return {}
        if found == TIMM:
            config, _ = PreTrainedConfig.get_config_dict(model_name_or_path)
            described = config.get("pretrained_cfg") or {}
            settings = {"image_mean": described.get("mean"), "image_std": described.get("std")}
        else:
            settings, _ = SiTImageProcessor.get_image_processor_dict(model_name_or_path)
    except (OSError, ValueError):
        return {}
    return {name: list(settings[name]) for name in ("image_mean", "image_std") if settings.get(name)}


def _as_read(encoder: Encoder, normalization: dict[str, list[float]]) -> ConvertedCheckpoint:
    config = SiTConfig(**encoder.settings)
    state_dict = {f"vit.{name}": value for name, value in encoder.weights.items()} | encoder.heads
    state_dict = {name: value.float() if value.is_floating_point() else value for name, value in state_dict.items()}
    _check_heads(encoder.heads, config)
    notes = list(encoder.notes)
    if encoder.left_out:
        notes.append(f"left out, for a SiT has no place for them: {name_weights(encoder.left_out)}")
    return ConvertedCheckpoint(
        name="",
        config=config,
        state_dict=state_dict,
        notes=notes,
        normalization=normalization,
    )


def _check_heads(heads: dict[str, torch.Tensor], config: SiTConfig) -> None:
    """Raise `ValueError` unless each head is there as the config describes it, or not at all."""
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
