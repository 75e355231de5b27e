"""SiT as a backbone of transformers' own models of detection and segmentation."""

import torch
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from .configuration_sit import SiTConfig
from .feature_pyramid import patch_map
from .modeling_sit import SiTModel


class SiTBackbone(BackboneMixin, SiTModel):
    """
    [`SiTModel`] that gives maps of its blocks' outputs, for the models of transformers that take a `backbone_config`, such
    as UperNet, MaskFormer, Mask2Former and DETR. The maps of all blocks have the stride of the patches. Images may have any
    size: positions are interpolated.

    `AutoBackbone.from_pretrained` of transformers takes no folders; this class does. The other models make their backbone
    with new weights: load this class, and hand its `state_dict` on.

    Args:
        config ([`SiTConfig`]):
            Describes the model. `out_indices` says which maps: 0 for the embeddings, `n` for block `n`. Default: the last.

    Example:

    ```python
    >>> import torch
    >>> from modeling_sit import SiTBackbone, SiTConfig

    >>> config = SiTConfig(image_size=64, patch_size=8, hidden_size=48, num_attention_heads=3, out_indices=[3, 6, 9, 12])
    >>> backbone = SiTBackbone(config)
    >>> [tuple(maps.shape) for maps in backbone(torch.zeros(1, 3, 64, 96)).feature_maps]
    [(1, 48, 8, 12), (1, 48, 8, 12), (1, 48, 8, 12), (1, 48, 8, 12)]
    ```
    """

    def __init__(self, config: SiTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    # The mixin reads the configuration's private fields, which are empty where the last map is meant.
    @property
    def out_features(self) -> list[str]:
        return self.config.out_features

    @out_features.setter
    def out_features(self, out_features: list[str]) -> None:
        self.config.out_features = out_features

    @property
    def out_indices(self) -> list[int]:
        return self.config.out_indices

    @out_indices.setter
    def out_indices(self, out_indices: list[int]) -> None:
        self.config.out_indices = out_indices

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BackboneOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalized images of any size.
            output_hidden_states, output_attentions, return_dict: As for [`SiTModel`].

        Returns:
            `BackboneOutput`: `feature_maps`, for each of `out_indices` the output of that block after the last layer norm,
            `(batch, hidden_size, height / patch_size, width / patch_size)` without the contrastive token.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoded = SiTModel.forward(
            self,
            pixel_values,
            interpolate_pos_encoding=True,
            output_hidden_states=True,
            output_attentions=output_attentions,
            return_dict=True,
        )
        size, patch_shape = tuple(pixel_values.shape[-2:]), self.config.patch_shape
        return BackboneOutput(
            feature_maps=tuple(
                patch_map(self.layernorm(tokens), size, patch_shape).contiguous()
                for stage, tokens in zip(self.stage_names, encoded.hidden_states, strict=True)
                if stage in self.out_features
            ),
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )


__all__ = ["SiTBackbone"]
