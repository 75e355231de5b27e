"""Where the contrastive token looks: one map for each head."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.page import (
    frame_lightly,
    line_height,
    place_axes,
    place_text,
    text_width,
    wrapped,
)

IMAGE_INCHES = 1.15
GAP = 0.06
MARGIN = 0.08
TITLE_SIZE, CAPTION_SIZE = 9, 8
CAPTION_INCHES = 1.1
BAR_INCHES = 2.6
# From nothing by way of even attention, in the middle, to a multiple of it. Lightness rises all the way, so that
# color-blind readers, and grey prints, tell it too; blue and orange differ for both.
ATTENTION_COLORS = LinearSegmentedColormap.from_list(
    "attention", [(0, "#06173f"), (0.5, "#7c7c7c"), (0.75, "#f08a1d"), (1, "#ffffc8")]
)
# The image below shows through, but little: a color means the same on a dark image as on a bright one.
OPACITY = 0.7
GREY_BAND = 0.6


@torch.no_grad()
def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor, layer: int | None = None) -> torch.Tensor:
    """How much the first token attends to each patch, by head, in units of what even attention would give.

    Args:
        model (`PreTrainedModel`): An encoder with one token (and register tokens, if its config counts them) in front of
            the patches. Its mode is left as it was.
        pixel_values (`torch.Tensor` of shape `(images, channels, height, width)`): Normalized images.
        layer (`int`, *optional*): Which layer, from 1. Default: the last.

    Returns:
        `torch.Tensor` of shape `(images, heads, grid_height, grid_width)`: Float32, on the CPU. 1 is the weight that
        each token would have if attention were spread evenly over all of them.

    Raises:
        [`SiTError`]: If there is no such layer, or the model gives no attention from one token to patches.
    """
    no_attention = f"--model_name_or_path: a {model.config.model_type} gives no attention of one token to patches"
    num_layers, patch = (getattr(model.config, name, None) for name in ("num_hidden_layers", "patch_size"))
    if num_layers is None or patch is None:
        raise SiTError(no_attention)
    if layer is not None and not 1 <= layer <= num_layers:
        raise SiTError(f"--layer {layer}: the model has layers 1 to {num_layers}")
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
        raise SiTError(f"--model_name_or_path: a {model.config.model_type} gives no attention of one token to patches")
    return (weights[:, :, 0, num_front:] * weights.shape[-1]).unflatten(2, grid).float().cpu()


def attention_figure(images: torch.Tensor, maps: torch.Tensor, captions: Sequence[str], layer: int) -> Figure:
    """One row an image: as the model sees it, the mean over the heads, then each head, over the image in faint grey.

    Args:
        images (`torch.Tensor` of shape `(images, channels, height, width)`): Uint8.
        maps (`torch.Tensor` of shape `(images, heads, grid_height, grid_width)`): Of [`attention_maps`].
        captions (sequence of `str`): What each image is; may be empty.
        layer (`int`): Which layer, from 1, for the title.
    """
    num_images, num_heads = maps.shape[:2]
    height, width = images.shape[2:]
    titles = ("image", "mean of heads", *(f"head {number + 1}" for number in range(num_heads)))
    row_height = IMAGE_INCHES * height / width
    num_lines = max(1, min(3, int(row_height / line_height(CAPTION_SIZE))))
    captions = [wrapped(caption, CAPTION_SIZE, CAPTION_INCHES, num_lines) for caption in captions]
    lines = [line for caption in captions for line in caption.splitlines()]
    left = MARGIN + (max(text_width(line, CAPTION_SIZE) for line in lines) + 2 * GAP if lines else 0)
    top = MARGIN + line_height(TITLE_SIZE) + GAP
    right = left + len(titles) * (IMAGE_INCHES + GAP) - GAP
    bottom = top + num_images * (row_height + GAP) - GAP
    bar_height = 0.13
    bar_label = f"attention in layer {layer} (1 = even)"
    figure = Figure(figsize=(right + MARGIN, bottom + 0.14 + bar_height + 3 * line_height(CAPTION_SIZE) + MARGIN))

    # One scale for all of them; a few patches that outshine the rest do not dim it.
    scale = TwoSlopeNorm(1, 0, max(2.0, float(np.quantile(maps.numpy(), 0.98))))
    extent = (0, width, height, 0)
    for column, title in enumerate(titles):
        center = left + column * (IMAGE_INCHES + GAP) + IMAGE_INCHES / 2
        place_text(figure, center, MARGIN + line_height(TITLE_SIZE), title, TITLE_SIZE, ha="center", va="baseline")
    for row, (image, heads, caption) in enumerate(zip(images, maps, captions, strict=True)):
        row_top = top + row * (row_height + GAP)
        place_text(figure, left - 2 * GAP, row_top + row_height / 2, caption, CAPTION_SIZE, ha="right", va="center")
        channels = image[:3].float()
        grey = flattened(channels.mean(dim=0).numpy())
        colored = (channels.expand(3, -1, -1) if len(channels) == 1 else channels).permute(1, 2, 0).numpy() / 255
        for column, weights in enumerate((None, heads.mean(dim=0), *heads)):
            axes = place_axes(figure, left + column * (IMAGE_INCHES + GAP), row_top, IMAGE_INCHES, row_height)
            if weights is None:
                axes.imshow(colored, extent=extent, interpolation="bicubic", aspect="auto")
            else:
                axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bicubic", aspect="auto")
                colors = axes.imshow(
                    weights.numpy(),
                    cmap=ATTENTION_COLORS,
                    norm=scale,
                    alpha=OPACITY,
                    extent=extent,
                    interpolation="bilinear",
                    aspect="auto",
                )
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            frame_lightly(axes)

    bar_width = min(BAR_INCHES, right - left)
    bar_axes = place_axes(figure, (left + right - bar_width) / 2, bottom + 0.14, bar_width, bar_height)
    bar = figure.colorbar(colors, cax=bar_axes, orientation="horizontal", extend="max")
    bar.set_label(bar_label, fontsize=CAPTION_SIZE, labelpad=2)
    # As it is laid over the grey that an image has in the middle.
    bar.ax.set_facecolor("0.5")
    bar.ax.patch.set_visible(True)
    bar.ax.tick_params(labelsize=CAPTION_SIZE, pad=2)
    return figure


def flattened(grey: np.ndarray) -> np.ndarray:
    """A grey image with its lightness brought to the middle and its contrast to a narrow band, the same of all images.

    Args:
        grey (`numpy.ndarray` of shape `(height, width)`): From 0 to 255.

    Returns:
        `numpy.ndarray` of shape `(height, width)`: 0.5 on average but for what is cut off, at most `GREY_BAND / 2` from it.
    """
    values = grey / 255
    # An image of nearly one color stays so: noise is not blown up.
    spread = 4 * max(float(values.std()), 0.05)
    return 0.5 + GREY_BAND * ((values - values.mean()) / spread).clip(-0.5, 0.5)
