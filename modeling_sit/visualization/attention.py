"""Where the contrastive token looks: one map for each head."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from modeling_sit.cli.errors import UserError
from modeling_sit.visualization.palette import shortened

PICTURE_INCHES = 1.15


def _attention_colors() -> ListedColormap:
    """Laid over a grey picture: what gets less than even attention lies in the dark, what gets more glows, from orange to
    yellow. Lightness rises all the way, so that colour-blind readers, and grey prints, tell it too."""
    dark = np.stack([*np.zeros((3, 128)), np.linspace(0.85, 0, 128)], axis=1)
    glow = colormaps["inferno"](np.linspace(0.65, 1, 128))
    glow[:, 3] = np.linspace(0, 0.8, 128) ** 0.7
    return ListedColormap(np.concatenate([dark, glow]))


@torch.no_grad()
def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor, layer: int | None = None) -> torch.Tensor:
    """How much the first token attends to each patch, by head, in units of what even attention would give.

    Args:
        model (`PreTrainedModel`): An encoder with one token (and register tokens, if its config counts them) in front of
            the patches. Its mode is left as it was.
        pixel_values (`torch.Tensor` of shape `(pictures, channels, height, width)`): Normalised pictures.
        layer (`int`, *optional*): Which layer, from 1. Default: the last.

    Returns:
        `torch.Tensor` of shape `(pictures, heads, grid_height, grid_width)`: Float32, on the CPU. 1 is the weight that
        each token would have if attention were spread evenly over all of them.

    Raises:
        [`UserError`]: If there is no such layer, or the model gives no attention from one token to patches.
    """
    no_attention = f"--model_name_or_path: a {model.config.model_type} gives no attention of one token to patches"
    num_layers, patch = (getattr(model.config, name, None) for name in ("num_hidden_layers", "patch_size"))
    if num_layers is None or patch is None:
        raise UserError(no_attention)
    if layer is not None and not 1 <= layer <= num_layers:
        raise UserError(f"--layer {layer}: the model has layers 1 to {num_layers}")
    training_flags = [(module, module.training) for module in model.modules()]
    implementation = model.config._attn_implementation
    model.eval()
    try:
        # The fused implementations keep their weights to themselves.
        model.set_attn_implementation("eager")
        attentions = model(pixel_values=pixel_values.to(model.device, model.dtype), output_attentions=True).attentions
    finally:
        model.set_attn_implementation(implementation)
        for module, training in training_flags:
            module.training = training
    num_front = 1 + getattr(model.config, "num_register_tokens", 0)
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    grid = (pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width)
    weights = attentions[-1 if layer is None else layer - 1] if attentions else None
    if weights is None or weights.ndim != 4 or weights.shape[-1] != num_front + grid[0] * grid[1]:
        raise UserError(
            f"--model_name_or_path: a {model.config.model_type} gives no attention of one token to patches"
        )
    return (weights[:, :, 0, num_front:] * weights.shape[-1]).unflatten(2, grid).float().cpu()


def attention_figure(pictures: torch.Tensor, maps: torch.Tensor, captions: Sequence[str], layer: int) -> Figure:
    """One row a picture: as the model sees it, the mean over the heads, then each head, over the picture in grey.

    Args:
        pictures (`torch.Tensor` of shape `(pictures, channels, height, width)`): Uint8.
        maps (`torch.Tensor` of shape `(pictures, heads, grid_height, grid_width)`): Of [`attention_maps`].
        captions (sequence of `str`): What each picture is; may be empty.
        layer (`int`): Which layer, from 1, for the title.
    """
    num_pictures, num_heads = maps.shape[:2]
    height, width = pictures.shape[2:]
    titles = ("picture", "mean of heads", *(f"head {number + 1}" for number in range(num_heads)))
    row_height = PICTURE_INCHES * height / width
    figure = Figure(
        figsize=(len(titles) * (PICTURE_INCHES + 0.06) + 1.1, num_pictures * (row_height + 0.06) + 0.3),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(num_pictures, len(titles), squeeze=False)
    # One scale for all of them; a few patches that outshine the rest do not dim it.
    scale = TwoSlopeNorm(1, 0, max(2.0, float(np.quantile(maps.numpy(), 0.98))))
    extent = (0, width, height, 0)
    colors = None
    for row, (picture, heads, caption) in enumerate(zip(pictures, maps, captions, strict=True)):
        channels = picture[:3].float()
        grey = channels.mean(dim=0).numpy()
        colored = (channels.expand(3, -1, -1) if len(channels) == 1 else channels).permute(1, 2, 0).numpy() / 255
        grid[row, 0].imshow(colored, extent=extent, interpolation="bicubic")
        grid[row, 0].set_ylabel(shortened(caption, 20), fontsize=8, parse_math=False)
        for axes, weights in zip(grid[row, 1:], (heads.mean(dim=0), *heads), strict=True):
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bicubic")
            colors = axes.imshow(
                weights.numpy(), cmap=_attention_colors(), norm=scale, extent=extent, interpolation="bilinear"
            )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
        axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    bar = figure.colorbar(colors, ax=grid, extend="max", shrink=min(1.0, 2.2 / (num_pictures * row_height)), aspect=18)
    bar.set_label(f"attention in layer {layer} (1 = even)", fontsize=8)
    bar.ax.set_facecolor("0.5")
    bar.ax.patch.set_visible(True)
    bar.ax.tick_params(labelsize=8)
    return figure
