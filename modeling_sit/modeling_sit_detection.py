"""SiT for object detection and instance segmentation: Faster R-CNN and Mask R-CNN on the feature pyramid of a plain ViT."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple, requires_backends

from .configuration_sit import SiTConfig
from .detection_heads import (
    ImageSizes,
    detection_targets,
    init_as_torchvision,
    named_levels,
    region_heads,
    region_proposal_network,
    stack_detections,
)
from .feature_pyramid import SiTFeaturePyramid, patch_map
from .modeling_sit import SiTModel, SiTPreTrainedModel, other_heads

# The sampler of regions draws the same in every evaluation.
EVALUATION_SEED = 0


@dataclass
class SiTDetectionOutput(ModelOutput):
    """
    Output of [`SiTForObjectDetection`] and [`SiTForInstanceSegmentation`]. The losses are there where there are labels, the
    detections outside training. `Q` is `config.detections_per_image`; the best come first.

    Args:
        loss (`torch.Tensor`, scalar): Sum of the losses below.
        loss_objectness (`torch.Tensor`, scalar): Cross-entropy of whether an anchor holds an object.
        loss_rpn_box_reg (`torch.Tensor`, scalar): Smooth L1 of the proposed boxes.
        loss_classifier (`torch.Tensor`, scalar): Cross-entropy of the regions' classes.
        loss_box_reg (`torch.Tensor`, scalar): Smooth L1 of the regions' boxes.
        loss_mask (`torch.Tensor`, scalar): Binary cross-entropy of the masks' pixels.
        scores (`torch.Tensor` of shape `(batch, Q)`): From 0 to 1; 0 where there is nothing.
        pred_labels (`torch.Tensor` of shape `(batch, Q)`): Int64, classes from 0; -1 where there is nothing.
        pred_boxes (`torch.Tensor` of shape `(batch, Q, 4)`):
            Center x, center y, width and height, relative to the image without its padding where there is a `pixel_mask`.
        pred_masks (`torch.Tensor` of shape `(batch, Q, 28, 28)`): Chance from 0 to 1 that a cell of the box is of the object.
        hidden_states, attentions: As in the output of [`SiTModel`].
    """

    loss: torch.Tensor | None = None
    loss_objectness: torch.Tensor | None = None
    loss_rpn_box_reg: torch.Tensor | None = None
    loss_classifier: torch.Tensor | None = None
    loss_box_reg: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    pred_labels: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SiTForObjectDetection(SiTPreTrainedModel):
    """
    The backbone with a [`SiTFeaturePyramid`] and torchvision's heads of Faster R-CNN (ViTDet, arXiv 2203.16527, with global
    attention). The pyramid and the heads compute in float32 whatever the backbone does: half precision moves a box by
    pixels, and some of their operators do not know it.

    Args:
        config ([`SiTConfig`]): Describes the model; `num_labels`, `id2label` and `label2id` the classes.

    Raises:
        `ValueError`: If the patches do not fit the feature pyramid.
        `ImportError`: If torchvision is missing.
    """

    _keys_to_ignore_on_load_unexpected = [*other_heads("pyramid", "rpn", "roi_heads"), r"^roi_heads\.mask_"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["pyramid", "rpn", "roi_heads"]  # noqa: RUF012 transformers reads class attributes
    _no_split_modules = [  # noqa: RUF012
        *SiTPreTrainedModel._no_split_modules,
        "SiTFeaturePyramid",
        "RegionProposalNetwork",
        "RoIHeads",
    ]
    # Tells transformers' Trainer to divide the loss by the accumulated batches itself.
    accepts_loss_kwargs = False
    has_masks = False

    def __init__(self, config: SiTConfig):
        requires_backends(self, "torchvision")
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = SiTModel(config)
        self.pyramid = SiTFeaturePyramid(config)
        self.rpn = region_proposal_network(config)
        self.roi_heads = region_heads(config, self.has_masks)
        self._heads_to_float32()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_as_torchvision(module, [*self.rpn.modules(), *self.roi_heads.modules()])

    def _apply(self, *args, **kwargs):
        # Moves and casts, such as `to` and `bfloat16`, come here.
        super()._apply(*args, **kwargs)
        self._heads_to_float32()
        return self

    def _heads_to_float32(self) -> None:
        for head in (self.pyramid, self.rpn, self.roi_heads):
            head.float()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs,
    ) -> SiTDetectionOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalized images, padded on the right and below to multiples of 32 pixels.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                1 for pixels of the image, 0 for those of its padding. Default: all are of the image.
            labels (`list[dict]`, *optional*):
                For each image `class_labels` `(objects,)`, int64 from 0, and `boxes` `(objects, 4)`, center x, center y,
                width and height relative to the image with its padding; for instance segmentation also `masks`
                `(objects, height, width)`; *optional* `iscrowd` `(objects,)`. Images may have no objects. Crowds and objects
                without area do not count.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`):
                Whether to interpolate the positions for images of another size than `config.image_size`.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict` of [`SiTModel`].

        Raises:
            `ValueError`: If the images' size does not fit the model, or the labels do not fit the images.
        """
        size = tuple(pixel_values.shape[-2:])
        self.pyramid.check_size(*size)
        encoded = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        patches = patch_map(encoded.last_hidden_state, size, self.config.patch_shape)
        image_sizes = _image_sizes(pixel_values, pixel_mask)
        with torch.autocast(patches.device.type, enabled=False):
            levels = named_levels(self.pyramid(patches.float()))
            losses = {} if labels is None else self._losses(levels, image_sizes, labels, size)
            detections = {}
            if labels is None or not self.training:
                found, _ = self._run_heads(levels, image_sizes, None)
                detections = stack_detections(found, image_sizes, self.config.detections_per_image)
        return SiTDetectionOutput(
            loss=sum(losses.values()) if losses else None,
            **losses,
            **detections,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _losses(
        self,
        levels: dict[str, torch.Tensor],
        image_sizes: list[tuple[int, int]],
        labels: list[dict[str, torch.Tensor]],
        size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        if len(labels) != len(image_sizes):
            raise ValueError(f"there are labels of {len(labels)} images, but {len(image_sizes)} images")
        device = next(iter(levels.values())).device
        labels = [{name: value.to(device) for name, value in label.items()} for label in labels]
        targets = detection_targets(labels, size, self.num_labels, self.has_masks)
        with nullcontext() if self.training else _fixed_random_numbers(device):
            return self._run_heads(levels, image_sizes, targets)[1]

    def _run_heads(
        self,
        levels: dict[str, torch.Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[dict[str, torch.Tensor]] | None,
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """Detections of each image, or with targets the losses. torchvision's modules decide by their mode which of them they
        give, and a mode makes no other difference to them: they have neither dropout nor batch norm."""
        for head in (self.rpn, self.roi_heads):
            head.training = targets is not None
        try:
            proposals, losses = self.rpn(ImageSizes(image_sizes), levels, targets)
            found, region_losses = self.roi_heads(levels, proposals, image_sizes, targets)
        finally:
            for head in (self.rpn, self.roi_heads):
                head.training = self.training
        return found, {**losses, **region_losses}


class SiTForInstanceSegmentation(SiTForObjectDetection):
    """
    [`SiTForObjectDetection`] with Mask R-CNN's mask head, which gives each object a mask of 28 x 28 cells of its box.

    Args:
        config ([`SiTConfig`]): Describes the model; `num_labels`, `id2label` and `label2id` the classes.

    Raises:
        `ValueError`: If the patches do not fit the feature pyramid.
        `ImportError`: If torchvision is missing.
    """

    _keys_to_ignore_on_load_unexpected = other_heads("pyramid", "rpn", "roi_heads")
    has_masks = True


def _image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each image in pixels, without its padding."""
    if pixel_mask is None:
        return [tuple(pixel_values.shape[-2:])] * len(pixel_values)
    mask = pixel_mask.bool()
    heights, widths = (mask.any(dim=other).sum(dim=1).tolist() for other in (2, 1))
    return list(zip(heights, widths, strict=True))


@contextmanager
def _fixed_random_numbers(device: torch.device) -> Iterator[None]:
    """Random numbers that are the same each time, and that leave those of the program as they are."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(EVALUATION_SEED)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(EVALUATION_SEED)
        yield


__all__ = ["SiTDetectionOutput", "SiTForInstanceSegmentation", "SiTForObjectDetection"]
