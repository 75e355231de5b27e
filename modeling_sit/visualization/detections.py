"""Boxes and masks of objects on their images: what is true, and what a model finds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from modeling_sit.run_length_encoding import decode_mask
from modeling_sit.visualization.page import text_width
from modeling_sit.visualization.palette import ON_IMAGES
from modeling_sit.visualization.truth_sheet import (
    CAPTION_SIZE,
    PANEL_INCHES,
    LegendEntry,
    Panel,
    SheetRow,
    truth_sheet,
)

# After the last color, the colors start again with another line.
LINE_STYLES = ("solid", (0, (3, 1.2)), (0, (1, 1)))
CROWD, CROWD_COLOR, CROWD_LINE = "crowd (not measured)", "#FFFFFF", (0, (1, 1.5))
FILL = 0.35
# A dark rim on both sides of the lines of boxes, in points: light colors are lost on light images without it.
RIM, RIM_COLOR = 0.5, (0, 0, 0, 0.45)
# Of more objects in an image, lines are thin, and scores are not written.
FEW_OBJECTS = 12
SCORE_SIZE = 5.5


@dataclass
class ShownObjects:
    """
    Objects of an image.

    Args:
        names (`list[str]`): The class of each.
        boxes (`np.ndarray` of shape `(num_objects, 4)`, *optional*): Left, top, right, bottom in pixels.
        masks (`list[dict]`, *optional*): RLE of the image's size; in place of the boxes.
        scores (`list[float]`, *optional*): Of what a model found.
        is_crowd (`list[bool]`, *optional*): Which of them are crowds.
    """

    names: list[str]
    boxes: np.ndarray | None = None
    masks: list[dict] | None = None
    scores: list[float] | None = None
    is_crowd: list[bool] = field(default_factory=list)

    def __post_init__(self):
        self.is_crowd = self.is_crowd or [False] * len(self.names)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, without those of crowds alone."""
        return [name for name, crowd in zip(self.names, self.is_crowd, strict=True) if not crowd]


@dataclass
class ImageWithObjects:
    """
    An image, and its objects.

    Args:
        image (`PIL.Image.Image`): In RGB.
        caption (`str`): Its name.
        found ([`ShownObjects`]): What a model found.
        truth ([`ShownObjects`], *optional*): What is true.
    """

    image: PIL.Image.Image
    caption: str
    found: ShownObjects
    truth: ShownObjects | None = None


def detections_figure(
    images: Sequence[ImageWithObjects], label_names: Sequence[str], threshold: float = 0.5
) -> Figure:
    """A row for each image: the image, the true objects if they are known, and those that a model found.

    Args:
        images (sequence of [`ImageWithObjects`]): The images; the truth is known of all of them or of none.
        label_names (sequence of `str`): Names of all classes, whose order gives them their colors.
        threshold (`float`, *optional*, defaults to 0.5): Objects with a lower score are not drawn.
    """
    has_truth = images[0].truth is not None
    images = [ImageWithObjects(each.image, each.caption, _above(each.found, threshold), each.truth) for each in images]
    shown = [objects for each in images for objects in (each.truth, each.found) if objects is not None]
    styles = styles_of(shown, label_names)
    rows = []
    for each in images:
        drawn = [each.truth, each.found] if has_truth else [each.found]
        are_few = max(len(objects.names) for objects in drawn) <= FEW_OBJECTS
        draw = partial(draw_objects, styles=styles, are_few=are_few)
        panels = [Panel(partial(draw, objects=objects), _count(objects, len(label_names))) for objects in drawn]
        rows.append(SheetRow(each.image, each.caption, panels))
    found = f"prediction (score ≥ {threshold:g})"
    titles = ["image", "truth", found] if has_truth else ["image", found]
    legend = [
        LegendEntry(name, (*to_rgb(color), FILL), color, line_style) for name, (color, line_style) in styles.items()
    ]
    if any(any(objects.is_crowd) for objects in shown):
        legend.append(LegendEntry(CROWD, "0.5", CROWD_COLOR, CROWD_LINE))
    return truth_sheet(rows, titles, legend)


def styles_of(shown: Sequence[ShownObjects], label_names: Sequence[str]) -> dict[str, tuple]:
    """The color and the line of each class that is shown, by its place among all classes; where these are more than there are
    styles, by its place among those that are shown."""
    num_styles = len(ON_IMAGES) * len(LINE_STYLES)
    occurring = {name for objects in shown for name in objects.classes}
    names = list(dict.fromkeys([*label_names, *sorted(occurring)]))
    if len(names) > num_styles:
        names = [name for name in names if name in occurring]
    return {
        name: (ON_IMAGES[place % len(ON_IMAGES)], LINE_STYLES[place // len(ON_IMAGES) % len(LINE_STYLES)])
        for place, name in enumerate(names)
        if name in occurring
    }


def draw_objects(axes: Axes, objects: ShownObjects, styles: Mapping[str, tuple], are_few: bool = True) -> None:
    """Draw objects on an image: masks with their outlines, or else boxes. Few have their scores beside them, and their names
    where there are more classes than colors.

    Args:
        axes (`Axes`): Its units are the image's pixels.
        objects ([`ShownObjects`]): The objects.
        styles (mapping): Color and line of each class.
        are_few (`bool`, *optional*, defaults to `True`): Whether there is space for texts and thick lines.
    """
    width = 1.3 if are_few else 0.8
    are_named = len(styles) > len(ON_IMAGES)
    for number, (name, crowd) in enumerate(zip(objects.names, objects.is_crowd, strict=True)):
        color, line_style = (CROWD_COLOR, CROWD_LINE) if crowd else styles[name]
        style = {"linewidths": width, "linestyles": [line_style], "colors": [color]}
        if objects.masks is not None:
            corner = _draw_mask(axes, decode_mask(objects.masks[number]), style)
        else:
            left, top, right, bottom = objects.boxes[number]
            box = Rectangle((left, top), right - left, bottom - top, linewidth=width, linestyle=line_style, fill=False)
            rim = withStroke(linewidth=width + 2 * RIM, foreground=RIM_COLOR)
            box.set(edgecolor=color, path_effects=[rim])
            axes.add_patch(box)
            corner = (left, top)
        texts = [name] if are_named and not crowd else []
        texts += [] if objects.scores is None else [f"{objects.scores[number]:.2f}"]
        if texts and are_few and corner is not None:
            _write(axes, corner, " ".join(texts), color)


def _write(axes: Axes, corner: tuple[float, float], text: str, color: str) -> None:
    """Write above the upper left corner of an object, or inside where the image has no space above."""
    left, top = max(corner[0], 0), max(corner[1], 0)
    has_space = top > 0.08 * abs(axes.dataLim.height)
    label = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none", "alpha": 0.8}
    place = {"va": "bottom" if has_space else "top", "clip_on": True, "parse_math": False}
    axes.text(left, top, text, fontsize=SCORE_SIZE, bbox=label, color=text_color(color), **place)


def text_color(background: str) -> str:
    """Black or white: the one with more contrast to a color, by its relative luminance (WCAG 2)."""
    red, green, blue = (value**2.2 for value in to_rgb(background))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 else "black"


def _draw_mask(axes: Axes, mask: np.ndarray, style: dict) -> tuple[float, float] | None:
    """Draw a mask; gives the upper left corner of its box, or `None` if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = np.pad(mask[top:bottom, left:right], 1)
    overlay = np.zeros((*part.shape, 4))
    overlay[part] = (*to_rgb(style["colors"][0]), FILL)
    extent = (left - 1, right + 1, bottom + 1, top - 1)
    axes.imshow(overlay, extent=extent, interpolation="nearest", aspect="auto")
    x, y = np.arange(left - 1, right + 1) + 0.5, np.arange(top - 1, bottom + 1) + 0.5
    axes.contour(x, y, part.astype(float), levels=[0.5], **style)
    return float(left), float(top)


def _above(objects: ShownObjects, threshold: float) -> ShownObjects:
    """The objects with a score of at least the threshold, those with the highest scores drawn last."""
    order = [number for number in np.argsort(objects.scores, kind="stable") if objects.scores[number] >= threshold]
    return ShownObjects(
        [objects.names[number] for number in order],
        None if objects.boxes is None else objects.boxes[order],
        None if objects.masks is None else [objects.masks[number] for number in order],
        [objects.scores[number] for number in order],
    )


def _count(objects: ShownObjects, num_labels: int) -> str:
    """How many objects there are, and of each class where there are several, the most frequent first."""
    counts = Counter(objects.classes).most_common()
    number = sum(count for _, count in counts)
    text = f"{number} object{'' if number == 1 else 's'}"
    if not counts or num_labels == 1:
        return text
    for shown in range(len(counts), 0, -1):
        more = f", {len(counts) - shown} more classes" if shown < len(counts) else ""
        whole = f"{text}: {', '.join(f'{count} {name}' for name, count in counts[:shown])}{more}"
        if text_width(whole, CAPTION_SIZE) <= PANEL_INCHES:
            return whole
    return f"{text} of {len(counts)} classes"
