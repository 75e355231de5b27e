"""The frozen encoder that the protocols measure, and the same encoder before any training."""

import torch
from transformers import AutoModel, BaseImageProcessor, PreTrainedModel

from modeling_sit.interop.load import load_checkpoint
from modeling_sit.interop.untrained import untrained_config
from modeling_sit.runtime.errors import SiTError

PIXELS = "pixel_values"


def load_encoder(
    model_name_or_path: str, network: str | None = None, num_attention_heads: int | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Load the encoder of a checkpoint, without heads, and its image processor. Of a model of images and texts, such as
    CLIP, it is the encoder of images.

    Args:
        model_name_or_path, network, num_attention_heads: As of [`~interop.load.load_checkpoint`].

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`: The encoder in evaluation mode, on the CPU, in float32, and the
        image processor, which does not corrupt images.

    Raises:
        [`SiTError`]: If there is no such model, a file of it is missing or damaged, it lacks weights of the encoder,
            or it does not encode images.
    """
    loaded = load_checkpoint(model_name_or_path, AutoModel, network=network, num_attention_heads=num_attention_heads)
    loaded.log_notes()
    return _encoder_of_images(loaded.model), loaded.require_processor()


def _encoder_of_images(model: PreTrainedModel) -> PreTrainedModel:
    if model.main_input_name == PIXELS:
        return model
    encoder = getattr(model, "vision_model", None)
    if not isinstance(encoder, PreTrainedModel) or encoder.main_input_name != PIXELS:
        raise SiTError(
            f"a {model.config.model_type} is no encoder of images: it takes {model.main_input_name}",
            argument="model_name_or_path",
        )
    return encoder


def random_encoder(model: PreTrainedModel, model_name_or_path: str, seed: int) -> PreTrainedModel:
    """An encoder like `model`, the one of a checkpoint, with the weights that training starts from. The same seed gives
    the same weights."""
    config = untrained_config(model.config, model_name_or_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=torch.float32).eval()
