"""Compare the outputs of a model that was written in another format with those of its source."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedModel

from modeling_sit import (
    SiTForImageClassification,
    SiTForObjectDetection,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
)
from modeling_sit.feature_pyramid import PYRAMID_STRIDES

Outputs = dict[str, torch.Tensor]
# A format's reader returns this: from images `(batch, channels, height, width)` to outputs by name.
Predict = Callable[[torch.Tensor], Outputs]
DETECTIONS = ("scores", "pred_labels", "pred_boxes", "pred_masks")


@torch.no_grad()
def outputs_of(model: PreTrainedModel, pixel_values: torch.Tensor) -> Outputs:
    """
    The outputs of a SiT for normalized images, by name.

    Returns:
        `dict[str, torch.Tensor]`: For a classifier and for semantic segmentation `logits`. For a detector the fields of
        [`~modeling_sit_detection.SiTDetectionOutput`] that are detections. For a backbone `last_hidden_state`, `pooler_output` (the
        tokens that `config.pooling` names) and `contrastive_token`. For a pretraining model those of the backbone,
        `reconstruction` and `projection`.
    """
    if isinstance(model, (SiTForImageClassification, SiTForSemanticSegmentation)):
        return {"logits": model(pixel_values).logits}
    if isinstance(model, SiTForObjectDetection):
        return {name: value for name, value in model(pixel_values).items() if name in DETECTIONS}
    encoded = model.base_model(pixel_values)
    outputs = {
        "last_hidden_state": encoded.last_hidden_state,
        "pooler_output": encoded.pooler_output,
        "contrastive_token": encoded.last_hidden_state[:, 0],
    }
    if isinstance(model, SiTForPreTraining):
        heads = model(pixel_values)
        outputs |= {"reconstruction": heads.reconstruction, "projection": heads.projection}
    return {name: output for name, output in outputs.items() if output is not None}


def input_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Height and width in pixels of the images that a model is for: those of its configuration, and for detection and
    segmentation the next multiples of the coarsest stride."""
    height, width = model.config.image_shape
    if not isinstance(model, (SiTForSemanticSegmentation, SiTForObjectDetection)):
        return height, width
    multiple = math.lcm(PYRAMID_STRIDES[-1], *model.config.patch_shape)
    return math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple


def random_images(model: PreTrainedModel, count: int, seed: int) -> torch.Tensor:
    """Images `(count, channels, height, width)` of standard normal pixels, of a size that the model takes. The same seed gives
    the same images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.config.num_channels, *input_shape(model), generator=generator)


def one_and_the_rest(images: torch.Tensor) -> list[torch.Tensor]:
    """Images as batches of two sizes, so that a batch size fixed in a format shows."""
    return [batch for batch in (images[:1], images[1:]) if len(batch) > 0]


@torch.no_grad()
def largest_differences(
    model: PreTrainedModel, predict: Predict, batches: Iterable[torch.Tensor]
) -> Mapping[str, float]:
    """
    The largest absolute difference between the outputs of a written model and those of its source, for each output.

    Args:
        model (`PreTrainedModel`): The source, in evaluation mode.
        predict (`Callable`): The written model, read back.
        batches (`Iterable[torch.Tensor]`): Normalized images, `(batch, channels, height, width)` each.

    Raises:
        `ValueError`: If an output is unknown, has another shape, or is not finite in one of the models.
    """
    largest: dict[str, float] = {}
    for pixel_values in batches:
        expected, found = outputs_of(model, pixel_values), predict(pixel_values)
        for name, output in found.items():
            if name not in expected:
                raise ValueError(f"{name} is no output of a {type(model).__name__}")
            if output.shape != expected[name].shape:
                raise ValueError(f"{name} has shape {tuple(output.shape)}, not {tuple(expected[name].shape)}")
            for side, values in (("of the source", expected[name]), ("of the written model", output)):
                if not values.isfinite().all():
                    raise ValueError(f"{name} {side} is not finite")
            difference = (output.double() - expected[name].double()).abs().max().item()
            largest[name] = max(largest.get(name, 0.0), difference)
    if not largest:
        raise ValueError("there is nothing to compare")
    return largest
