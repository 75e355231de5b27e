"""A checkpoint as the demo shows it: its encoder, and what else it can do."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit import SiTForImageClassification, SiTForPreTraining
from modeling_sit.evaluation.classifiers import ARCHITECTURE, load_classifier
from modeling_sit.evaluation.dense_models import ARCHITECTURES, DenseModel, load_dense_model
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.interop.safetensors import is_sit_file
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.attention import attention_maps
from modeling_sit.visualization.models import load_reconstructing_model, title_of

NO_HEAD = "The checkpoint has no head of a task: fine-tune it first."
NO_DECODER = (
    "The checkpoint reconstructs nothing: a SiT does that was pretrained with reconstruction, and is not fine-tuned."
)
NO_ENCODER = "The model ({}) has no encoder that gives a token of the whole image beside those of patches."


@dataclass(frozen=True, eq=False)
class ShownCheckpoint:
    """
    A checkpoint.

    Args:
        name (`str`): What the page calls it.
        processor (`BaseImageProcessor`): Its image processor, which does not corrupt images.
        encoder (`PreTrainedModel`, *optional*): In evaluation mode. It gives a token of the whole image.
        reconstructing ([`SiTForPreTraining`], *optional*): The model with its decoder, if it has one.
        predicting (`PreTrainedModel` or [`DenseModel`], *optional*): The classifier, or the model of boxes, masks or pixels.
        missing (`dict[str, str]`): What it cannot do, of `"encode"`, `"attend"`, `"reconstruct"` and `"predict"`, and why.
    """

    name: str
    processor: BaseImageProcessor
    encoder: PreTrainedModel | None = None
    reconstructing: SiTForPreTraining | None = None
    predicting: PreTrainedModel | DenseModel | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        """The encoder; without one, the model that predicts."""
        if self.encoder is not None:
            return self.encoder
        return self.predicting.model if isinstance(self.predicting, DenseModel) else self.predicting

    @property
    def pixel_format(self) -> PixelFormat:
        """What images are decoded to."""
        if self.encoder is None and isinstance(self.predicting, DenseModel):
            return self.predicting.pixel_format
        return PixelFormat.of_model(self.model.config, self.processor)

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        return self.model.config.num_hidden_layers

    @property
    def num_heads(self) -> int:
        """Attention heads of each layer."""
        return self.model.config.num_attention_heads

    @property
    def task(self) -> str | None:
        """`"classification"`, `"detection"`, `"segmentation"`, or `None` without a head of a task."""
        if self.predicting is None:
            return None
        if not isinstance(self.predicting, DenseModel):
            return "classification"
        return "segmentation" if self.predicting.outputs == {"pixels"} else "detection"

    def require(self, ability: str) -> None:
        """Raise a [`SiTError`] with the reason if it cannot do that, as in `missing`."""
        if ability in self.missing:
            raise SiTError(self.missing[ability])

    def describe(self) -> str:
        """The checkpoint in a line."""
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        part = "the encoder" if self.encoder is not None else "the model"
        parts = [f"{self.name}: {self.model.config.model_type}, {millions:.1f} M parameters in {part}"]
        parts += ["reconstructs"] if self.reconstructing is not None else []
        parts += [self.task] if self.task is not None else []
        return ", ".join(parts)


def load_shown(
    model_name_or_path: str,
    network: str | None = None,
    num_attention_heads: int | None = None,
    device: torch.device | str = "cpu",
) -> ShownCheckpoint:
    """
    Load a checkpoint with all that it can do.

    Args:
        model_name_or_path, network, num_attention_heads: As of [`~interop.load.load_checkpoint`].
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where it computes.

    Raises:
        [`SiTError`]: If it is no checkpoint, or one that can show nothing: it has neither an encoder that gives a token of the
            whole image nor the head of a task.
    """
    given, title, missing = (model_name_or_path, network, num_attention_heads), title_of(model_name_or_path), {}

    def reason(error: SiTError) -> str:
        return error.problem.replace(str(model_name_or_path), title)  # the page does not say where a checkpoint lies

    encoder = processor = reconstructing = predicting = problem = None
    try:
        encoder, processor = load_encoder(*given)
        _check_encoder(encoder, processor)
    except SiTError as error:
        encoder, problem = None, error
    try:
        predicting, own_processor = _load_predicting(model_name_or_path)
        processor = own_processor or processor
    except SiTError as error:
        if problem is not None:
            raise (problem if error.problem == NO_HEAD else error) from None
        missing["predict"] = reason(error)
    if processor is None:
        raise problem
    if encoder is None:
        model_type = getattr(predicting, "model", predicting).config.model_type
        missing["encode"] = NO_ENCODER.format(model_type)
    else:
        try:
            attention_maps(encoder, _blank_values(encoder, processor))
        except SiTError as error:
            missing["attend"] = reason(error)
    try:
        reconstructing, _ = load_reconstructing_model(*given)
    except SiTError:
        missing["reconstruct"] = NO_DECODER
    shown = ShownCheckpoint(title, processor, encoder, reconstructing, predicting, missing)
    for model in (shown.model, reconstructing, getattr(predicting, "model", predicting)):
        if model is not None:
            model.to(device)
    return shown


def untrained_twin(checkpoint: ShownCheckpoint, model_name_or_path: str, seed: int) -> ShownCheckpoint:
    """The same encoder before any training.

    Raises:
        [`SiTError`]: If the checkpoint has no encoder.
    """
    if checkpoint.encoder is None:
        raise SiTError(checkpoint.missing["encode"], argument="compare_with", remedy="give another checkpoint")
    encoder = random_encoder(checkpoint.encoder, model_name_or_path, seed).to(checkpoint.encoder.device)
    reason = "the network before training has no trained head"
    missing = {**checkpoint.missing, "reconstruct": reason, "predict": reason}
    return ShownCheckpoint("before training", checkpoint.processor, encoder, missing=missing)


def _load_predicting(name: str) -> tuple[PreTrainedModel | DenseModel, BaseImageProcessor | None]:
    """The model with the head of a task, and its image processor where it is not the encoder's.

    Raises:
        [`SiTError`]: If it has none, or none that is read.
    """
    if Path(name).is_file():
        if is_sit_file(Path(name)):  # the one file of weights that says which heads are in it
            loaded = load_checkpoint(name)
            if isinstance(loaded.model, SiTForImageClassification):
                return loaded.model, None
            if type(loaded.model).__name__.endswith(tuple(ARCHITECTURES)):
                return DenseModel.of(loaded.model, loaded.require_processor(), name), loaded.processor
        raise SiTError(NO_HEAD)
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError):
        config = {}  # the loader of the encoder says why
    architecture = (config.get("architectures") or [""])[0]
    if architecture.endswith(ARCHITECTURE):
        classifier = load_classifier(name)
        if classifier is not None:
            return classifier, None
    elif architecture.endswith(tuple(ARCHITECTURES)):
        dense = load_dense_model(name)
        return dense, dense.processor
    if ARCHITECTURE in architecture or config.get("num_classes"):
        raise SiTError(f"The head of a {architecture or 'timm model'} is not read: fine-tune it first.")
    raise SiTError(NO_HEAD)


def _check_encoder(encoder: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Raise a [`SiTError`] unless an encoder gives a token of the whole image in front of the patches'."""
    config = encoder.config
    patch = getattr(config, "patch_size", None)
    height, width = patch if isinstance(patch, tuple | list) else (patch, patch)
    pixel_values, reason = _blank_values(encoder, processor), ""
    try:
        num_patches = (pixel_values.shape[2] // height) * (pixel_values.shape[3] // width)
        with torch.no_grad():
            tokens = encoder(pixel_values=pixel_values).last_hidden_state
        num_others = 1 + getattr(config, "num_register_tokens", 0)
        is_fit = tokens.ndim == 3 and tokens.shape[1] >= num_others + num_patches
    except (AttributeError, TypeError):  # it has no patches, or gives no tokens
        is_fit = False
    except ValueError as problem:  # it reads other images, or more than an image
        is_fit, reason = False, f" {problem}"
    if not is_fit:
        raise SiTError(f"{NO_ENCODER.format(config.model_type)}{reason}", argument="model_name_or_path")


def _blank_values(encoder: PreTrainedModel, processor: BaseImageProcessor) -> torch.Tensor:
    """A gray image as an encoder gets it, `(1, channels, height, width)`."""
    image = PixelFormat.of_model(encoder.config, processor).blank()
    try:
        return processor(images=[image], return_tensors="pt")["pixel_values"]
    except ValueError as problem:
        text = f"its image processor does not take the model's images: {problem}"
        raise SiTError(text, argument="model_name_or_path") from problem
