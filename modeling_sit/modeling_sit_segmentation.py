"""SiT for semantic segmentation: a class for every pixel."""

import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .configuration_sit import SiTConfig
from .feature_pyramid import PYRAMID_STRIDES, SiTFeaturePyramid, patch_map
from .modeling_sit import SiTModel, SiTPreTrainedModel, other_heads


class SiTForSemanticSegmentation(SiTPreTrainedModel):
    """
    The backbone with a head that gives every pixel a class. `config.segmentation_head` is `"fpn"`, the sum of the levels of
    a [`SiTFeaturePyramid`], or `"linear"`, one linear layer on the patch tokens: the measure of frozen features. Neither has
    batch norm, so that a batch of one trains too.

    Args:
        config ([`SiTConfig`]): Describes the model; `num_labels`, `id2label` and `label2id` the classes.

    Raises:
        `ValueError`: If the patches do not fit the feature pyramid.
    """

    _keys_to_ignore_on_load_unexpected = other_heads("pyramid", "segmentation_head")
    # Tells transformers' Trainer to divide the loss by the accumulated batches itself.
    accepts_loss_kwargs = False

    def __init__(self, config: SiTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = SiTModel(config)
        has_pyramid = config.segmentation_head == "fpn"
        self.pyramid = SiTFeaturePyramid(config) if has_pyramid else None
        channels = config.pyramid_size if has_pyramid else config.hidden_size
        self.segmentation_head = nn.Conv2d(channels, config.num_labels, kernel_size=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalized images. Sides are multiples of 32 (`"fpn"`), or of the patch size and 4 (`"linear"`).
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                Int64, each pixel's class from 0, or `config.semantic_loss_ignore_index` where it has none.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                Which pixels are of the image and not of its padding. It has no effect: the labels say what counts.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`):
                Whether to interpolate the positions for images of another size than `config.image_size`.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict` of [`SiTModel`].

        Returns:
            `SemanticSegmenterOutput`: `logits` `(batch, num_labels, height / 4, width / 4)`; `loss`, the cross-entropy of the
            pixels that have a class, after bilinear upsampling to the size of `labels`.

        Raises:
            `ValueError`: If the images' size does not fit the model.
        """
        size = tuple(pixel_values.shape[-2:])
        self._check_size(*size)
        encoded = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        patches = patch_map(encoded.last_hidden_state, size, self.config.patch_shape)
        finest = tuple(side // PYRAMID_STRIDES[0] for side in size)
        if self.pyramid is None:
            logits = _upsample(self.segmentation_head(patches), finest)
        else:
            levels = self.pyramid(patches)
            summed = levels[0] + sum(_upsample(level, finest) for level in levels[1:])
            logits = self.segmentation_head(nn.functional.gelu(summed))
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device)),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _check_size(self, height: int, width: int) -> None:
        if self.pyramid is not None:
            self.pyramid.check_size(height, width)
            return
        for side, patch in zip((height, width), self.config.patch_shape, strict=True):
            if side % patch or side % PYRAMID_STRIDES[0]:
                raise ValueError(
                    f"pixel_values are {height} x {width} pixels, but the sides must be multiples of patch_size="
                    f"{self.config.patch_size} and of {PYRAMID_STRIDES[0]}; pad the images on the right and below"
                )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ignored = self.config.semantic_loss_ignore_index
        upsampled = _upsample(logits.float(), tuple(labels.shape[-2:]))
        total = nn.functional.cross_entropy(upsampled, labels, ignore_index=ignored, reduction="sum")
        # A batch without any class has no loss, and the mean of nothing would not be a number.
        return total / (labels != ignored).sum().clamp(min=1)


def _upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


__all__ = ["SiTForSemanticSegmentation"]
