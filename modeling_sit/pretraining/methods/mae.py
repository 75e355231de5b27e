"""MAE: encode a few patches of an image, and predict the pixels of all others (arXiv 2111.06377)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.modeling_sit import SiTEncoder, sincos_position_embeddings
from modeling_sit.pretraining.masked import PLAIN_VIEWS, MaskArguments, MaskedImageModeling, choose_plain_views
from modeling_sit.pretraining.method import BACKBONE, DEFAULTS
from modeling_sit.pretraining.patches import draw_places, patch_grid, patch_statistics, patchify, unpatchify
from modeling_sit.pretraining.presets import EVERYTHING, look_up
from modeling_sit.pretraining.students import Student, create_peer
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = """@inproceedings{he2022mae,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""
# Of the decoder, by the backbone's width. Small ones have one or two blocks (mae-lite); the paper has 8 of width 512 for ViT-B.
DECODER_DEPTH = ((128, 1), (384, 2), (EVERYTHING, 8))
MAX_DECODER_WIDTH, HEAD_WIDTH = 512, 32


@dataclass
class MAEArguments(MaskArguments):
    """What is masked, and what predicts it.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    decoder_width: int | None = field(
        default=None, metadata={"help": "Width of the decoder's blocks. Default: by `preset`; the paper's is 512."}
    )
    decoder_depth: int | None = field(
        default=None, metadata={"help": "Number of the decoder's blocks. Default: by `preset`; the paper's is 8."}
    )
    normalize_targets: bool | None = field(
        default=None, metadata={"help": "Whether the pixels to predict are normalized in each patch. Default: yes."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, step in (("decoder_width", 4), ("decoder_depth", 1)):  # the positions have four parts
            value = getattr(self, name)
            if value is not None and (value < step or value % step):
                raise SiTError(f"must be a multiple of {step}, at least {step}, got {value}", argument=name)


class MAEDecoder(nn.Module):
    """
    Encoded patches to the pixels of all patches: mask tokens take the places of those that were dropped, and transformer
    blocks read them all, at fixed sine and cosine positions.

    Args:
        config ([`SiTConfig`]): The backbone's.
        width, depth (`int`): Of the blocks.
    """

    def __init__(self, config: SiTConfig, width: int, depth: int):
        super().__init__()
        like_the_backbone = {name: getattr(config, name) for name in ("hidden_act", "layer_norm_eps", "qkv_bias")}
        heads = max(n for n in range(1, max(1, width // HEAD_WIDTH) + 1) if width % n == 0)
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        self.config = SiTConfig(**sizes, **like_the_backbone, drop_path_rate=0.0)
        self.embedding = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=config.initializer_range))
        positions = sincos_position_embeddings(width, *patch_grid(config.image_size, config.patch_size))
        self.register_buffer("positions", positions)
        self.encoder = SiTEncoder(self.config)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.num_channels * math.prod(config.patch_shape))

    def forward(self, tokens: torch.Tensor, kept_patches: torch.Tensor) -> torch.Tensor:
        """All patches `(views, patches, numbers)`, as of [`patchify`], from encoded tokens `(views, 1 + kept, hidden_size)`,
        the contrastive one first, of patches `(views, kept)`."""
        tokens = self.embedding(tokens)
        everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), self.positions.shape[1], -1)
        places = nn.functional.pad(kept_patches + 1, (1, 0))  # the contrastive token is at place 0
        tokens = everywhere.scatter(1, places.unsqueeze(-1).expand_as(tokens), tokens)
        decoded = self.encoder(tokens + self.positions).last_hidden_state
        return self.projection(self.layernorm(decoded[:, 1:]))


class MAEStudent(Student):
    """The backbone, and a decoder as head."""

    def __init__(self, config: SiTConfig, arguments: MAEArguments):
        super().__init__(config, MAEDecoder(config, arguments.decoder_width, arguments.decoder_depth))
        self.head.config._attn_implementation = self.config._attn_implementation
        self.normalize_targets = arguments.normalize_targets

    def forward(self, pixel_values: torch.Tensor, kept_patches: torch.Tensor) -> ModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(views, channels, height, width)`): Clean views.
            kept_patches (`torch.Tensor` of shape `(views, kept)`): Int64, the patches that the encoder reads.

        Returns:
            `ModelOutput`: `loss` and `reconstruction_loss`, the mean squared error of the masked patches; `reconstruction`
            `(views, patches, numbers)` in the space of the targets; `masked_patches`, bool `(views, patches)`.
        """
        tokens = self.vit(pixel_values, kept_patches=kept_patches).last_hidden_state
        reconstruction = self.head(tokens, kept_patches)
        target = patchify(pixel_values.float(), self.config.patch_shape)
        if self.normalize_targets:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        masked = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device).scatter(1, kept_patches, False)
        error = (reconstruction.float() - target).square().mean(dim=-1)
        # Every image has as many masked patches: the mean over processes is the mean over their images.
        loss = (error * masked).sum() / masked.sum()
        return ModelOutput(loss=loss, reconstruction_loss=loss, reconstruction=reconstruction, masked_patches=masked)


class MAE(MaskedImageModeling):
    """
    The encoder reads a quarter of the patches, which makes a step cheap; a small decoder predicts the others. The loss is the
    squared error of the masked patches, by default of their pixels normalized patch by patch.

    Args:
        config ([`SiTConfig`]): The backbone.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    title = "MAE (masked autoencoder, [arXiv 2111.06377](https://arxiv.org/abs/2111.06377))"
    citation = CITATION
    preview_rows = MaskedImageModeling.preview_rows + (
        " (with `normalize_targets`, each patch is predicted up to its mean and standard deviation, which are the clean patch's)"
    )
    fixed = BACKBONE | {"decoder_width", "decoder_depth"}
    Arguments = MAEArguments
    defaults = DEFAULTS | {"adam_beta2": 0.95, "pooling": "mean", "mask_ratio": 0.75, "normalize_targets": True}
    paper: Mapping[str, Any] = {
        "base_learning_rate": 1.5e-4,
        "warmup_epochs": 40.0,
        "max_grad_norm": 0.0,
        "drop_path_rate": 0.0,
        "decoder_width": 512,
        "decoder_depth": 8,
        "crop_scale": [0.2, 1.0],
        **PLAIN_VIEWS,
    }

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        self.num_patches, ratio = math.prod(self.grid), self.arguments.mask_ratio
        self.num_kept = num_kept(self.num_patches, ratio)
        if not 0 < self.num_kept < self.num_patches:
            problem = f"{ratio} of {self.num_patches} patches leaves {self.num_kept} to read"
            raise SiTError(problem, argument="mask_ratio", remedy="choose another one, or smaller patches")
        create = partial(MAEStudent, arguments=self.arguments)
        self.student = create_peer(create, config, flags.model, flags.run.seed)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        width = choosing["hidden_size"]
        half = min(math.ceil(width / 2 / HEAD_WIDTH) * HEAD_WIDTH, MAX_DECODER_WIDTH)
        choosing.choose("decoder_width", half, f"about half the width of {width}")
        choosing.choose("decoder_depth", look_up(DECODER_DEPTH, width), f"for a width of {width}")
        choosing.choose("drop_path_rate", 0.0, "MAE has no stochastic depth")
        choose_plain_views(choosing, [0.2, 1.0])

    def draw_masks(
        self, num_views: int, device: torch.device, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        return {"kept_patches": draw_places(num_views, self.num_patches, self.num_kept, device, generator)}

    def pixels(self, reconstruction: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        if self.arguments.normalize_targets:
            mean, std = patch_statistics(patchify(clean, self.config.patch_shape))
            reconstruction = reconstruction * std + mean
        return unpatchify(reconstruction, self.grid, self.config.patch_shape)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.student.vit, self.student.head]

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        num_patches = math.prod(patch_grid(settings["image_size"], settings["patch_size"]))
        return 3 * (1 + num_kept(num_patches, settings["mask_ratio"]))


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Patches that the encoder reads, rounded down as in the authors' code."""
    return int(num_patches * (1 - mask_ratio))
