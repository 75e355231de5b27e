"""Where the contrastive token looks: one map for each head."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from PIL.Image import Image, fromarray
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.evaluation.features import evaluation_mode
from modeling_sit.image_modes import as_shown, shown_channels
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.page import (
    frame_lightly,
    line_height,
    place_axes,
    place_text,
    text_width,
    wrapped,
)
from modeling_sit.visualization.reconstructions import channels_note, to_uint8

IMAGE_INCHES = 1.15
GAP = 0.06
MARGIN = 0.08
TITLE_SIZE, CAPTION_SIZE = 9, 8
CAPTION_INCHES = 1.1
BAR_INCHES = 2.6
# From no attention to even attention, in the middle, to a multiple of it. Lightness rises all the way, so that
# color-blind readers see it, and gray prints show it; blue and orange differ for both.
ATTENTION_COLORS = LinearSegmentedColormap.from_list(
    "attention", [(0, "#06173f"), (0.5, "#7c7c7c"), (0.75, "#f08a1d"), (1, "#ffffc8")]
)
# The image below shows through, but little: a color means the same on a dark image as on a bright one.
OPACITY = 0.7
GRAY_BAND = 0.6


def draw_attention(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    images: Sequence[Image],
    captions: Sequence[str] | None = None,
    layer: int | None = None,
) -> Figure:
    """Draw where the contrastive token looks in some images: [`attention_figure`] of [`attention_maps`].

    Args:
        model, layer: As for [`attention_maps`].
        processor (`BaseImageProcessor`): The model's, of images as they are: without corruption.
        images (sequence of `PIL.Image.Image`): Of the model's number of channels, of any size.
        captions (sequence of `str`, *optional*): A text for each image.

    Raises:
        [`SiTError`]: As [`attention_maps`].
    """
    pixel_values = processor(images=list(images), return_tensors="pt")["pixel_values"]
    maps = attention_maps(model, pixel_values, layer)
    shown = to_uint8(pixel_values, processor.image_mean, processor.image_std)
    layer = model.config.num_hidden_layers if layer is None else layer
    return attention_figure(shown, maps, captions or [""] * len(images), layer)


@torch.no_grad()
def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor, layer: int | None = None) -> torch.Tensor:
    """How much the first token attends to each patch, by head, in units of what even attention would give.

    Args:
        model (`PreTrainedModel`): An encoder with one token or more in front of the patches, such as register tokens.
            Its mode is left as it was.
        pixel_values (`torch.Tensor` of shape `(images, channels, height, width)`): Normalized images.
        layer (`int`, *optional*): Which layer, from 1. Default: the last.

    Returns:
        `torch.Tensor` of shape `(images, heads, grid_height, grid_width)`: Float32, on the CPU. 1 is the weight that
        each token would have if attention were spread evenly over all of them.

    Raises:
        [`SiTError`]: If there is no such layer, or the model gives no attention from one token to patches.
    """
    no_attention = SiTError(
        f"a {model.config.model_type} gives no attention of one token to patches", argument="model_name_or_path"
    )
    num_layers, patch = (getattr(model.config, name, None) for name in ("num_hidden_layers", "patch_size"))
    if num_layers is None or patch is None:
        raise no_attention
    if layer is not None and not 1 <= layer <= num_layers:
        raise SiTError(f"no layer {layer}: the model has layers 1 to {num_layers}", argument="layer")
    implementation = model.config._attn_implementation
    with evaluation_mode(model):
        try:
            # The fused implementations do not return their weights.
            model.set_attn_implementation("eager")
            pixel_values = pixel_values.to(model.device, model.dtype)
            attentions = getattr(model(pixel_values=pixel_values, output_attentions=True), "attentions", None)
        finally:
            model.set_attn_implementation(implementation)
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    grid = (pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width)
    weights = attentions[-1 if layer is None else layer - 1] if attentions else None
    if weights is None or weights.ndim != 4:
        raise no_attention
    behind = getattr(model.config, "num_detection_tokens", 0)  # of YOLOS
    patches = slice(weights.shape[-1] - behind - grid[0] * grid[1], weights.shape[-1] - behind)
    if patches.start < 1:
        raise no_attention
    return (weights[:, :, 0, patches] * weights.shape[-1]).unflatten(2, grid).float().cpu()


def attention_overlays(image: torch.Tensor, maps: torch.Tensor) -> list[Image]:
    """Each map in color over the image in faint gray, as [`attention_figure`] has them, without a page around them.

    Args:
        image (`torch.Tensor` of shape `(channels, height, width)`): Uint8.
        maps (`torch.Tensor` of shape `(maps, grid_height, grid_width)`): Of [`attention_maps`], of one image. All have one scale.

    Returns:
        `list[PIL.Image.Image]`: In RGB, of the image's size.
    """
    scale, size = _scale_of(maps), tuple(image.shape[1:])
    gray = flattened(image[shown_channels(len(image))].float().mean(dim=0).numpy())[..., None]
    smooth = torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    colored = [ATTENTION_COLORS(scale(weights.numpy()))[..., :3] for weights in smooth]
    return [fromarray(((OPACITY * one + (1 - OPACITY) * gray) * 255).round().astype(np.uint8)) for one in colored]


def _scale_of(maps: torch.Tensor) -> TwoSlopeNorm:
    """One scale for all images; a few extreme patches do not dim the rest."""
    return TwoSlopeNorm(1, 0, max(2.0, float(np.quantile(maps.numpy(), 0.98))))


def attention_figure(images: torch.Tensor, maps: torch.Tensor, captions: Sequence[str], layer: int) -> Figure:
    """One row an image: as the model sees it, the mean over the heads, then each head, over the image in faint gray.

    Args:
        images (`torch.Tensor` of shape `(images, channels, height, width)`): Uint8.
        maps (`torch.Tensor` of shape `(images, heads, grid_height, grid_width)`): Of [`attention_maps`].
        captions (sequence of `str`): What each image is; may be empty.
        layer (`int`): Which layer, from 1, for the title.
    """
    num_images, num_heads = maps.shape[:2]
    height, width = images.shape[2:]
    note = channels_note(images.shape[1])
    titles = (
        "image" if note is None else note,
        "mean of heads",
        *(f"head {number + 1}" for number in range(num_heads)),
    )
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

    scale = _scale_of(maps)
    extent = (0, width, height, 0)
    for column, title in enumerate(titles):
        center = left + column * (IMAGE_INCHES + GAP) + IMAGE_INCHES / 2
        place_text(figure, center, MARGIN + line_height(TITLE_SIZE), title, TITLE_SIZE, ha="center", va="baseline")
    for row, (image, heads, caption) in enumerate(zip(images, maps, captions, strict=True)):
        row_top = top + row * (row_height + GAP)
        place_text(figure, left - 2 * GAP, row_top + row_height / 2, caption, CAPTION_SIZE, ha="right", va="center")
        gray = flattened(image[shown_channels(len(image))].float().mean(dim=0).numpy())
        colored = np.asarray(as_shown(image.permute(1, 2, 0).numpy())) / 255
        for column, weights in enumerate((None, heads.mean(dim=0), *heads)):
            axes = place_axes(figure, left + column * (IMAGE_INCHES + GAP), row_top, IMAGE_INCHES, row_height)
            if weights is None:
                axes.imshow(colored, extent=extent, interpolation="bicubic", aspect="auto")
            else:
                axes.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bicubic", aspect="auto")
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
    # The colors lie on the gray of the middle of an image.
    bar.ax.set_facecolor("0.5")
    bar.ax.patch.set_visible(True)
    bar.ax.tick_params(labelsize=CAPTION_SIZE, pad=2)
    return figure


def flattened(gray: np.ndarray) -> np.ndarray:
    """A gray image with its mean lightness in the middle and its contrast in a narrow band, the same for all images.

    Args:
        gray (`numpy.ndarray` of shape `(height, width)`): From 0 to 255.

    Returns:
        `numpy.ndarray` of shape `(height, width)`: 0.5 on average before clipping, at most `GRAY_BAND / 2` from it.
    """
    values = gray / 255
    # An image of nearly one color stays so: noise is not amplified.
    contrast = 4 * max(float(values.std()), 0.05)
    return 0.5 + GRAY_BAND * ((values - values.mean()) / contrast).clip(-0.5, 0.5)
