"""SiT models: the ViT backbone, and its heads for pretraining and classification (arXiv 2104.03602, section 3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_sit import SiTConfig
from .losses import contrastive_loss, nt_xent_loss, reconstruction_loss, rotation_loss

logger = logging.get_logger(__name__)

# As large as the fixed sine and cosine positions (root mean square), which MAE and MoCo-v3 add to patches embedded by Xavier's
# weights. Positions of 0.02 drown in those for hundreds of steps.
LEARNABLE_POSITION_STD = 0.5**0.5
# What the classes of a checkpoint have beside the backbone, by the first part of the weights' names.
HEADS = (
    "decoder",
    "projection_head",
    "rotation_head",
    "classifier",
    "pyramid",
    "segmentation_head",
    "rpn",
    "roi_heads",
)
# A plain ViT's, which no class has a place for.
OF_PLAIN_VITS = (r"^(vit\.)?pooler\.", r"^(vit\.)?embeddings\.mask_token$")


def other_heads(*own: str) -> list[str]:
    """Patterns of the weights that a class with the heads `own` leaves out when it loads the checkpoint of another class:
    leaving them out is what loading the backbone means."""
    return [*OF_PLAIN_VITS, *(rf"^{head}\." for head in HEADS if head not in own)]


@dataclass
class SiTForPreTrainingOutput(ModelOutput):
    """
    Output of [`SiTForPreTraining`]. What was not asked for is `None`.

    Args:
        loss (`torch.Tensor`, scalar):
            `reconstruction_weight * reconstruction_loss + contrastive_weight * contrastive_loss + rotation_weight *
            rotation_loss`, of those that exist.
        reconstruction_loss (`torch.Tensor`, scalar): Distance to the clean images, unweighted.
        contrastive_loss (`torch.Tensor`, scalar): Contrast between the views, unweighted.
        reconstruction (`torch.Tensor` of shape `(2 * batch, channels, height, width)`): In normalized pixel space.
        projection (`torch.Tensor` of shape `(2 * batch, projection_size)`): Of the contrastive tokens, not normalized.
        hidden_states (`tuple` of `num_hidden_layers + 1` tensors `(2 * batch, 1 + patches, hidden_size)`):
            Embeddings and every block's output, before the last layer norm.
        attentions (`tuple` of `num_hidden_layers` tensors `(2 * batch, heads, 1 + patches, 1 + patches)`):
            Attention weights.
        rotation_loss (`torch.Tensor`, scalar): Cross-entropy of the views' quarter turns, unweighted.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    projection: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    rotation_loss: torch.Tensor | None = None


def sincos_position_embeddings(hidden_size: int, grid_height: int, grid_width: int) -> torch.Tensor:
    """Fixed two-dimensional sine and cosine positions, zero for the contrastive token.

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row, at frequencies from 1
    down to 1/10000 (Vaswani et al. 2017 in two dimensions, as in MoCo v3 and MAE).

    Returns:
        `torch.Tensor` of shape `(1, 1 + grid_height * grid_width, hidden_size)`.
    """
    frequency = 10000.0 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    row, column = torch.meshgrid(torch.arange(grid_height), torch.arange(grid_width), indexing="ij")
    angles = [position.flatten()[:, None] * frequency for position in (column, row)]
    patches = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([patches.new_zeros(1, hidden_size), patches]).float()[None]


class SiTPatchEmbeddings(nn.Module):
    """Images `(batch, channels, height, width)` to patch embeddings `(batch, patches, hidden_size)`."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_shape, stride=config.patch_shape
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class SiTEmbeddings(nn.Module):
    """The contrastive token and the patch embeddings, with positions."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.config = config
        (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
        self.grid = (height // patch_height, width // patch_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = SiTPatchEmbeddings(config)
        positions = torch.zeros(1, 1 + self.grid[0] * self.grid[1], config.hidden_size)
        if config.position_embedding_type == "learnable":
            self.position_embeddings = nn.Parameter(positions)
        else:
            self.register_buffer("position_embeddings", positions)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """Positions for images of `height` x `width` pixels, `(1, 1 + patches, hidden_size)`, bicubic."""
        grid = (height // self.config.patch_shape[0], width // self.config.patch_shape[1])
        if grid == self.grid:
            return self.position_embeddings
        token, patches = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        patches = patches.unflatten(1, self.grid).permute(0, 3, 1, 2)
        patches = nn.functional.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False)
        return torch.cat([token, patches.to(token.dtype).flatten(2).transpose(1, 2)], dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        kept_patches: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch_size, num_channels, height, width = pixel_values.shape
        if num_channels != self.config.num_channels:
            raise ValueError(
                f"pixel_values have {num_channels} channels, but the model was made for num_channels="
                f"{self.config.num_channels}"
            )
        if interpolate_pos_encoding:
            positions = self.interpolate_pos_encoding(height, width)
        elif (height, width) == self.config.image_shape:
            positions = self.position_embeddings
        else:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels, but the model was made for image_size="
                f"{self.config.image_size}; interpolate_pos_encoding=True fits its positions to them"
            )
        patches = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            patches = torch.where(bool_masked_pos.unsqueeze(-1), mask_token.to(patches.dtype), patches)
        tokens = torch.cat([self.cls_token.expand(batch_size, -1, -1), patches], dim=1) + positions
        if kept_patches is not None:
            places = nn.functional.pad(kept_patches + 1, (1, 0))  # the contrastive token is at place 0
            tokens = tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return self.dropout(tokens)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the one implementation that also gives its weights."""
    weights = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


# The nesting of the modules below gives the weights ViT's classic key names, so that plain ViT classes load them.
class SiTSelfAttention(nn.Module):
    """Multi-head self-attention by transformers' attention interface."""

    is_causal = False

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False, token_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        asking = hidden_states[:, :1] if token_only else hidden_states
        query, key, value = (
            layer(tokens).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, tokens in ((self.query, asking), (self.key, hidden_states), (self.value, hidden_states))
        )
        # The fused implementations do not give their weights; who asks for them gets the one that does.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        context, weights = attend(
            self,
            query,
            key,
            value,
            None,
            scaling=self.head_size**-0.5,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )
        return context.flatten(2), weights if output_attentions else None


class SiTSelfOutput(nn.Module):
    """Linear layer after attention."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(context))


class SiTAttention(nn.Module):
    """Self-attention and its linear layer."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.attention = SiTSelfAttention(config)
        self.output = SiTSelfOutput(config)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False, token_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, weights = self.attention(hidden_states, output_attentions, token_only)
        return self.output(context), weights


class SiTIntermediate(nn.Module):
    """First layer of a block's MLP."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class SiTOutput(nn.Module):
    """Second layer of a block's MLP."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(hidden_states))


class SiTDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a branch for whole images and scales up the others."""

    def __init__(self, drop_probability: float):
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_probability == 0:
            return branch
        keep_prob = 1 - self.drop_probability
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) < keep_prob
        return branch * kept.to(branch.dtype) / keep_prob

    def extra_repr(self) -> str:
        return f"drop_probability={self.drop_probability:.3f}"


class SiTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: SiTConfig, drop_path_rate: float):
        super().__init__()
        self.attention = SiTAttention(config)
        self.intermediate = SiTIntermediate(config)
        self.output = SiTOutput(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.drop_path = SiTDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False, token_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        branch, weights = self.attention(self.layernorm_before(hidden_states), output_attentions, token_only)
        if token_only:
            hidden_states = hidden_states[:, :1]
        hidden_states = hidden_states + self.drop_path(branch)
        branch = self.output(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(branch), weights


class SiTEncoder(nn.Module):
    """The blocks; stochastic depth rises linearly over them."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        self.layer = nn.ModuleList(
            SiTLayer(config, config.drop_path_rate * number / last) for number in range(config.num_hidden_layers)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        token_only: bool = False,
    ) -> BaseModelOutput:
        all_hidden_states = [hidden_states]
        all_weights = []
        last = len(self.layer) - 1
        for number, layer in enumerate(self.layer):
            hidden_states, weights = layer(hidden_states, output_attentions, token_only and number == last)
            all_hidden_states.append(hidden_states)
            all_weights.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
        )


class SiTProjectionHead(nn.Module):
    """Contrastive token `(batch, hidden_size)` to projection `(batch, projection_size)`: three linear layers, batch norm
    and an activation between them, and on request a batch norm without affine parameters at the end (the authors'
    code)."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        width = config.projection_hidden_size
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, width),
            nn.BatchNorm1d(width),
            ACT2FN[config.projection_first_act],
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.GELU(),
            nn.Linear(width, config.projection_size),
        )
        if config.projection_output_norm:
            self.mlp.append(nn.BatchNorm1d(config.projection_size, affine=False))

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.mlp(token)


class SiTUnpatchify(nn.ConvTranspose2d):
    """Patches `(batch, patches, width)` to pixels `(batch, channels, height, width)`.

    A transposed convolution whose patches do not overlap is one product of matrices, which PyTorch computes faster as such,
    on a CPU seven times as fast forward.
    """

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        pixels = nn.functional.linear(
            patches, self.weight.flatten(1).T, self.bias.repeat_interleave(self.weight[0, 0].numel())
        )
        pixels = pixels.unflatten(2, self.weight.shape[1:]).unflatten(1, grid)
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class SiTDecoder(nn.Module):
    """Patch tokens `(batch, patches, hidden_size)` to pixels: linear layers with GELU, then a transposed convolution."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        width_in, width = config.hidden_size, config.decoder_hidden_size
        self.mlp = nn.Sequential()
        for _ in range(config.decoder_num_hidden_layers):
            self.mlp.extend([nn.Linear(width_in, width), nn.GELU()])
            width_in = width
        self.projection = SiTUnpatchify(
            config.decoder_hidden_size,
            config.num_channels,
            kernel_size=config.patch_shape,
            stride=config.patch_shape,
        )

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.projection(self.mlp(patches), grid)


def _xavier_uniform(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Fill the weight by its layer's width. A convolution whose patches do not overlap is a linear layer from or to the pixels
    of a patch, and gets the range of that layer."""
    weight = module.weight
    # Of a transposed convolution these are the other way round: the sum is the same.
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    init.uniform_(weight, -bound, bound)


class SiTPreTrainedModel(PreTrainedModel):
    """Weight initialization, and what transformers needs to know of every SiT model."""

    config_class = SiTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiTEmbeddings", "SiTLayer"]  # noqa: RUF012 transformers reads class attributes
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            heads_of_classes = [
                getattr(self, name, None) for name in ("classifier", "rotation_head", "segmentation_head")
            ]
            is_small = self.config.initialization == "normal" and not self._is_of_pyramid(module)
            if is_small or any(module is head for head in heads_of_classes):
                init.trunc_normal_(module.weight, mean=0.0, std=std)
            else:
                _xavier_uniform(module)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SiTEmbeddings):
            init.trunc_normal_(module.cls_token, mean=0.0, std=std)
            if self.config.position_embedding_type == "learnable":
                position_std = std if self.config.initialization == "normal" else LEARNABLE_POSITION_STD
                init.trunc_normal_(module.position_embeddings, mean=0.0, std=position_std)
            else:
                positions = sincos_position_embeddings(self.config.hidden_size, *module.grid)
                init.copy_(module.position_embeddings, positions)
        else:
            super()._init_weights(module)

    def _is_of_pyramid(self, module: nn.Module) -> bool:
        """Whether it is a layer of the feature pyramid, whose weights are filled by their width whatever the backbone's: layer
        norms undo their size, but not how far a step of training goes in proportion to it."""
        pyramid = getattr(self, "pyramid", None)
        return pyramid is not None and any(module is layer for layer in pyramid.modules())


class SiTModel(SiTPreTrainedModel):
    """
    The backbone: a plain ViT whose first token is the contrastive token. Its weights carry ViT's key names, so that
    `ViTModel` and `SiTModel` load each other's checkpoints.

    Args:
        config ([`SiTConfig`]): Describes the model.
    """

    _keys_to_ignore_on_load_unexpected = other_heads()

    def __init__(self, config: SiTConfig):
        super().__init__(config)
        self.embeddings = SiTEmbeddings(config)
        self.encoder = SiTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_only: bool = False,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        kept_patches: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalized images.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions for images of another size than `config.image_size`.
            output_hidden_states (`bool`, *optional*): Whether to return every block's output.
            output_attentions (`bool`, *optional*): Whether to return attention weights (computed eagerly then).
            return_dict (`bool`, *optional*): Whether to return an output object rather than a tuple. Only by its name.
            token_only (`bool`, *optional*, defaults to `False`):
                Whether the last block computes the contrastive token only, and `last_hidden_state` has no other. The
                block then costs about a sixth. It has no effect with another `config.pooling` than `"token"`, and
                with other attention than `"eager"` and `"sdpa"`.
            bool_masked_pos (`torch.Tensor` of shape `(batch, patches)`, *optional*):
                Bool, true where a patch's embedding is replaced by `mask_token`, before positions are added (SimMIM, iBOT).
            mask_token (`torch.Tensor` of shape `(1, 1, hidden_size)`, *optional*): What replaces it.
            kept_patches (`torch.Tensor` of shape `(batch, kept)`, *optional*):
                Int64, indices of the patches that the blocks read, in their order; the others are dropped after positions
                are added (MAE). Default: all patches.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` `(batch, 1 + patches, hidden_size)` after the last layer
            norm, contrastive token first (`1 + kept` tokens with `kept_patches`); `pooler_output` `(batch, hidden_size)`
            (twice that for `"token_mean"`), what `config.pooling` says; `hidden_states` before the last layer norm.

        Raises:
            `ValueError`: If the images' size or number of channels is not the model's.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        embeddings = self.embeddings(pixel_values, interpolate_pos_encoding, bool_masked_pos, mask_token, kept_patches)
        # What else computes attention may want as many queries as keys.
        token_only = (
            token_only and self.config.pooling == "token" and self.config._attn_implementation in ("eager", "sdpa")
        )
        encoded = self.encoder(embeddings, output_hidden_states, output_attentions, token_only)
        last_hidden_state = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=pool(last_hidden_state, self.config.pooling),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def pool(last_hidden_state: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector an image from its tokens `(batch, 1 + patches, hidden_size)`: the contrastive `"token"`, the `"mean"`
    of the patch tokens, or `"token_mean"`, both side by side (the authors' later code)."""
    if pooling == "token":
        return last_hidden_state[:, 0]
    mean = last_hidden_state[:, 1:].mean(dim=1)
    return mean if pooling == "mean" else torch.cat([last_hidden_state[:, 0], mean], dim=-1)


class SiTForPreTraining(SiTPreTrainedModel):
    """
    SiT's pretraining model: the backbone, the pixel decoder on the patch tokens, the projection head on the contrastive
    token, and with `config.rotation_weight` above 0 a linear rotation head on the mean of the patch tokens: the two views
    of an image are rotated apart, and the contrastive token is to be the same for both. It never corrupts and draws no
    masks: [`SiTImageProcessor`] does.

    Args:
        config ([`SiTConfig`]): Describes the model and its losses.

    Raises:
        `ValueError`: If the image is not made of whole patches.
    """

    # A checkpoint with the optional task goes on without it.
    _keys_to_ignore_on_load_unexpected = [r"^rotation_head\."]  # noqa: RUF012
    # Tells transformers' Trainer to divide the loss by the accumulated batches itself.
    accepts_loss_kwargs = False

    def __init__(self, config: SiTConfig):
        super().__init__(config)
        if any(side % patch for side, patch in zip(config.image_shape, config.patch_shape, strict=True)):
            raise ValueError(
                f"image_size={config.image_size} is not made of whole patches: it must be a multiple of "
                f"patch_size={config.patch_size}"
            )
        self.vit = SiTModel(config)
        self.decoder = SiTDecoder(config)
        self.projection_head = SiTProjectionHead(config)
        self.rotation_head = nn.Linear(config.hidden_size, 4) if config.rotation_weight > 0 else None
        self.post_init()

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Contrastive tokens `(batch, hidden_size)` of images after the last layer norm, the features that transfer, and
        their projections `(batch, projection_size)`."""
        token = self.vit(pixel_values, token_only=True).last_hidden_state[:, 0]
        return token, self.projection_head(token)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projections `(batch, projection_size)` of images, and nothing else: what a teacher has to give."""
        return self.encode(pixel_values)[1]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        target_pixel_values: torch.Tensor | None = None,
        corruption_mask: torch.Tensor | None = None,
        teacher_projections: torch.Tensor | None = None,
        teacher_projections_offset: int = 0,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rotation_labels: torch.Tensor | None = None,
        num_corrupted_pixels: torch.Tensor | None = None,
        gather_projections: Callable[[torch.Tensor], tuple[torch.Tensor, int]] | None = None,
        contrastive_pixel_values: torch.Tensor | None = None,
        **kwargs,
    ) -> SiTForPreTrainingOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(2 * batch, channels, height, width)`):
                Corrupted views, view 1 of all images first.
            target_pixel_values (`torch.Tensor` like `pixel_values`, *optional*):
                Clean views. Without them there is no reconstruction loss.
            corruption_mask (`torch.Tensor` of shape `(2 * batch, 1, height, width)`, *optional*):
                Bool, true where a pixel was corrupted. Without it the reconstruction loss counts all pixels.
            teacher_projections (`torch.Tensor` of shape `(2 * total_batch, projection_size)`, *optional*):
                The teacher's projections of the clean views of all processes, view 1 of all of them first. Without them
                there is no contrastive loss, unless `config.use_teacher` is false: NT-Xent then (in evaluation mode only
                of an even number of images).
            teacher_projections_offset (`int`, *optional*, defaults to 0):
                Which of the `total_batch` images is this process's first.
            interpolate_pos_encoding, output_hidden_states, output_attentions, return_dict: As for [`SiTModel`].
            rotation_labels (`torch.Tensor` of shape `(2 * batch,)`, *optional*):
                Int64, by how many quarter turns each view, corrupted and clean, was rotated, 0 to 3. Without them there is
                no rotation loss.
            num_corrupted_pixels (`torch.Tensor`, scalar, *optional*):
                With several processes, the mean over them of the number of corrupted pixels in `corruption_mask`, what
                [`~losses.reconstruction_loss`] divides by; its `num_pixels`. Default: this mask's own number.
            gather_projections (`Callable`, *optional*):
                With several processes and no teacher, gives for this process's projections those of all processes, view
                1 of all of them first and with gradients, and which of their images is this process's first; NT-Xent's
                candidates. Default: this process's own.
            contrastive_pixel_values (`torch.Tensor` like `pixel_values`, *optional*):
                Views to contrast, in another pass through the encoder, such as clean ones. Default: `pixel_values`.

        A weight of 0 in the configuration leaves out its loss and its output, `reconstruction` or `projection`. The decoder
        and the projection head stay in the model; the rotation head does not exist then.

        Raises:
            `ValueError`: If shapes do not fit each other or the model.
            `TypeError`: If there is no argument of a given name.
        """
        check_unused(kwargs)
        encoded = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        losses: dict[str, torch.Tensor] = {}
        reconstruction = projection = None
        # Where `device_map` has put the heads on several devices, their outputs meet where the targets are.
        device = pixel_values.device
        if self.config.reconstruction_weight > 0:
            sides = zip(pixel_values.shape[2:], self.config.patch_shape, strict=True)
            grid = tuple(side // patch for side, patch in sides)
            reconstruction = self.decoder(encoded.last_hidden_state[:, 1:], grid).to(device)
            if target_pixel_values is not None:
                counts_corrupted = self.config.reconstruction_region == "corrupted"
                losses["reconstruction"] = reconstruction_loss(
                    reconstruction,
                    target_pixel_values,
                    corruption_mask if counts_corrupted else None,
                    self.config.reconstruction_norm,
                    num_corrupted_pixels if counts_corrupted else None,
                )
        if self.config.contrastive_weight > 0:
            if contrastive_pixel_values is None:
                projection = self.projection_head(encoded.last_hidden_state[:, 0]).to(device)
            else:
                projection = self.project(contrastive_pixel_values).to(device)
            if not self.config.use_teacher:
                # Outside training an odd number of images is no mistake: who reconstructs them has no second views.
                if self.training or len(projection) % 2 == 0:
                    gathered = () if gather_projections is None else gather_projections(projection)
                    losses["contrastive"] = nt_xent_loss(projection, self.config.temperature, *gathered)
            elif teacher_projections is not None:
                losses["contrastive"] = contrastive_loss(
                    projection, teacher_projections, self.config.temperature, teacher_projections_offset
                )
        if self.rotation_head is not None and rotation_labels is not None:
            logits = self.rotation_head(encoded.last_hidden_state[:, 1:].mean(dim=1)).to(device)
            losses["rotation"] = rotation_loss(logits, rotation_labels)
        weights = {
            "reconstruction": self.config.reconstruction_weight,
            "contrastive": self.config.contrastive_weight,
            "rotation": self.config.rotation_weight,
        }
        return SiTForPreTrainingOutput(
            loss=sum(weights[name] * loss for name, loss in losses.items()) if losses else None,
            reconstruction_loss=losses.get("reconstruction"),
            contrastive_loss=losses.get("contrastive"),
            reconstruction=reconstruction,
            projection=projection,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            rotation_loss=losses.get("rotation"),
        )


def check_unused(arguments: dict) -> None:
    """Raise `TypeError` for a misspelt argument. `labels` of a labeled dataset, which transformers' Trainer hands on,
    and what peft's wrappers hand on as `None` have no use in pretraining, and do no harm."""
    unknown = [name for name, value in arguments.items() if name != "labels" and value is not None]
    if unknown:
        raise TypeError(f"SiTForPreTraining.forward() has no argument {', '.join(unknown)}")


class SiTForImageClassification(SiTPreTrainedModel):
    """
    The backbone with one linear layer on what `config.pooling` reads. With `"token"` it is `ViTForImageClassification`
    to the last key.

    Args:
        config ([`SiTConfig`]): Describes the model; `num_labels`, `id2label`, `label2id` and `problem_type` the labels.
    """

    _keys_to_ignore_on_load_unexpected = other_heads("classifier")
    # The loss is the mean of a batch, which transformers' Trainer is to divide by the batches of a step.
    accepts_loss_kwargs = False

    def __init__(self, config: SiTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = SiTModel(config)
        width = config.hidden_size * (2 if config.pooling == "token_mean" else 1)
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalized images.
            labels (`torch.Tensor`, *optional*):
                By `config.problem_type`: class indices `(batch,)` for `"single_label_classification"` (cross-entropy),
                0 or 1 `(batch, num_labels)` for `"multi_label_classification"` (binary cross-entropy), numbers `(batch,)`
                or `(batch, num_labels)` for `"regression"` (mean squared error). Where it is `None`, one label means
                regression, whole numbers single label, other numbers multi-label.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): As for [`SiTModel`].
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict` of [`SiTModel`].
        """
        encoded = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.classifier(encoded.pooler_output)
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config, **kwargs),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


__all__ = [
    "SiTForImageClassification",
    "SiTForPreTraining",
    "SiTForPreTrainingOutput",
    "SiTModel",
    "SiTPreTrainedModel",
]
