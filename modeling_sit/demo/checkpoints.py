"""A checkpoint as the demo shows it: its encoder, and what else it can do."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit import SiTForPreTraining
from modeling_sit.evaluation.classifiers import load_classifier
from modeling_sit.evaluation.dense_models import ARCHITECTURES, DenseModel, load_dense_model
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.models import load_reconstructing_model, title_of


@dataclass(frozen=True)
class ShownCheckpoint:
    """
    A checkpoint.

    Args:
        name (`str`): What the page calls it.
        encoder (`PreTrainedModel`): In evaluation mode.
        processor (`BaseImageProcessor`): Its image processor, which does not corrupt images.
        reconstructing ([`SiTForPreTraining`], *optional*): The model with its decoder, if it has one.
        no_reconstruction (`str`, *optional*): Why it has none.
        predicting (`PreTrainedModel` or [`DenseModel`], *optional*): The classifier, or the model of boxes, masks or pixels.
        no_prediction (`str`, *optional*): Why there is none.
    """

    name: str
    encoder: PreTrainedModel
    processor: BaseImageProcessor
    reconstructing: SiTForPreTraining | None = None
    no_reconstruction: str | None = None
    predicting: PreTrainedModel | DenseModel | None = None
    no_prediction: str | None = None

    @property
    def pixel_format(self) -> PixelFormat:
        """What images are decoded to."""
        return PixelFormat.of_model(self.encoder.config, self.processor)

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        return getattr(self.encoder.config, "num_hidden_layers", 1)

    @property
    def num_heads(self) -> int:
        """Attention heads of each layer."""
        return getattr(self.encoder.config, "num_attention_heads", 1)

    @property
    def task(self) -> str | None:
        """`"classification"`, `"detection"`, `"segmentation"`, or `None` without a head of a task."""
        if self.predicting is None:
            return None
        if not isinstance(self.predicting, DenseModel):
            return "classification"
        return "segmentation" if self.predicting.outputs == {"pixels"} else "detection"

    def describe(self) -> str:
        """The checkpoint in a line."""
        millions = sum(parameter.numel() for parameter in self.encoder.parameters()) / 1e6
        parts = [f"{self.name}: {self.encoder.config.model_type}, {millions:.1f} M parameters in the encoder"]
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
        [`SiTError`]: If it is no checkpoint, or has no encoder of one token and patches.
    """
    encoder, processor = load_encoder(model_name_or_path, network, num_attention_heads)
    reconstructing = predicting = no_reconstruction = no_prediction = None
    try:
        reconstructing, _ = load_reconstructing_model(model_name_or_path, network, num_attention_heads)
        reconstructing.to(device)
    except SiTError as error:
        no_reconstruction = error.problem
    try:
        predicting = _load_predicting(model_name_or_path, device)
    except SiTError as error:
        no_prediction = error.problem
    return ShownCheckpoint(
        title_of(model_name_or_path),
        encoder.to(device),
        processor,
        reconstructing,
        no_reconstruction,
        predicting,
        no_prediction,
    )


def untrained_twin(checkpoint: ShownCheckpoint, model_name_or_path: str, seed: int) -> ShownCheckpoint:
    """The same encoder before any training."""
    encoder = random_encoder(checkpoint.encoder, model_name_or_path, seed).to(checkpoint.encoder.device)
    reason = "the network before training has no trained head"
    return ShownCheckpoint("before training", encoder, checkpoint.processor, None, reason, None, reason)


def _load_predicting(name: str, device: torch.device | str) -> PreTrainedModel | DenseModel | None:
    classifier = load_classifier(name)
    if classifier is not None:
        return classifier.to(device)
    config = {} if Path(name).is_file() else PreTrainedConfig.get_config_dict(name)[0]
    if (config.get("architectures") or [""])[0].endswith(tuple(ARCHITECTURES)):
        dense = load_dense_model(name)
        dense.model.to(device)
        return dense
    raise SiTError("The checkpoint has no head of a task: fine-tune it first.")
