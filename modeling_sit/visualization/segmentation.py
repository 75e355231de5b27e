"""Label maps beside their images: what is true, and what a model finds for each pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from modeling_sit.data.dense.rows import IGNORED_PIXEL
from modeling_sit.visualization.palette import AREAS, NEUTRAL_COLOR
from modeling_sit.visualization.truth_sheet import LegendEntry, Panel, SheetRow, truth_sheet

NOT_LABELED, HATCH, HATCH_COLOR = "no label (not measured)", "////", "white"
# Of the color of a class; the rest is the image, whose shapes show through.
OPACITY = 0.85


@dataclass
class ImageWithPixels:
    """
    An image, and the class of each of its pixels.

    Args:
        image (`PIL.Image.Image`): In RGB.
        caption (`str`): Its name.
        found (`np.ndarray` of shape `(height, width)`): Indices of classes that a model found.
        truth (`np.ndarray` of shape `(height, width)`, *optional*): True indices, 255 where none counts.
    """

    image: PIL.Image.Image
    caption: str
    found: np.ndarray
    truth: np.ndarray | None = None


def segmentation_figure(images: Sequence[ImageWithPixels], label_names: Sequence[str]) -> Figure:
    """A row for each image: the image, the true classes if they are known, and those that a model found.

    Args:
        images (sequence of [`ImageWithPixels`]): The images; the truth is known of all of them or of none.
        label_names (sequence of `str`): Names of the classes, in the order of their indices.
    """
    has_truth = images[0].truth is not None
    maps = [each for image in images for each in (image.truth, image.found) if each is not None]
    occurring = np.unique(np.concatenate([np.unique(each) for each in maps]))
    is_class = (occurring >= 0) & (occurring < len(label_names))
    # By the place among all classes; where these are more than there are colors, among those that are shown.
    labels = occurring[is_class].tolist() if len(label_names) > len(AREAS) else range(len(label_names))
    colors = {label: AREAS[place % len(AREAS)] for place, label in enumerate(labels)}
    rows = []
    for each in images:
        panels = [Panel(partial(draw_pixels, labels=each.found, colors=colors), _fraction_right(each))]
        if has_truth:
            panels.insert(0, Panel(partial(draw_pixels, labels=each.truth, colors=colors)))
        rows.append(SheetRow(each.image, each.caption, panels))
    legend = [LegendEntry(label_names[label], colors[label]) for label in occurring[is_class].tolist()]
    if not is_class.all():
        legend.append(LegendEntry(NOT_LABELED, NEUTRAL_COLOR, HATCH_COLOR, hatch=HATCH))
    titles = ["image", "truth", "prediction"] if has_truth else ["image", "prediction"]
    return truth_sheet(rows, titles, legend)


def draw_pixels(axes: Axes, labels: np.ndarray, colors: Mapping[int, str]) -> None:
    """Draw a label map over an image. What is of no class is hatched.

    Args:
        axes (`Axes`): Its units are the image's pixels.
        labels (`np.ndarray` of shape `(height, width)`): Indices of classes.
        colors (mapping): The color of each class.
    """
    height, width = labels.shape
    painted = np.empty((height, width, 4))
    painted[...] = (*to_rgb(NEUTRAL_COLOR), 1)
    is_none = np.ones(labels.shape, bool)
    for label in np.unique(labels).tolist():
        if label in colors:
            painted[labels == label] = (*to_rgb(colors[label]), OPACITY)
            is_none &= labels != label
    axes.imshow(painted, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    if is_none.any():
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        regions = axes.contourf(x, y, is_none.astype(float), levels=[0.5, 1.5], colors="none", hatches=[HATCH])
        regions.set(edgecolor=HATCH_COLOR, linewidth=0)


def _fraction_right(image: ImageWithPixels) -> str:
    """What fraction of the labeled pixels is right."""
    if image.truth is None:
        return ""
    counts = image.truth != IGNORED_PIXEL
    return f"{(image.found == image.truth)[counts].mean():.1%} of the pixels are right" if counts.any() else ""
