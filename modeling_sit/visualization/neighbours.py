"""Images and their nearest neighbors by the features of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Transform

from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.page import FRAME_COLOR, fitted, line_height, place_axes, place_text, text_width
from modeling_sit.visualization.palette import AGREES, DIFFERS

IMAGE_INCHES = 1.15
GAP, ROW_GAP, MARGIN = 0.1, 0.06, 0.08
# Sets the query apart.
QUERY_GAP = 0.25
TITLE_SIZE, CAPTION_SIZE, LEGEND_SIZE = 9, 7, 8
LEGEND_MARK = 0.35
NEIGHBOURS_TITLE = "nearest, with cosine"
SHARES = {True: "shares a class with the query", False: "does not"}


@dataclass
class ShownImage:
    """
    A query or a neighbour.

    Args:
        image (`PIL.Image.Image`): In RGB.
        labels (`tuple` of `str`, *optional*): Names of its classes; `None` if it has no label.
        similarity (`float` in [-1, 1], *optional*): Cosine to the query; `None` for the query itself.
    """

    image: PIL.Image.Image
    labels: tuple[str, ...] | None
    similarity: float | None = None

    def agrees_with(self, query: "ShownImage") -> bool | None:
        """Whether the two share a class, or both have none; `None` where a label is missing."""
        if self.labels is None or query.labels is None:
            return None
        return bool(set(self.labels) & set(query.labels)) or self.labels == query.labels


@dataclass
class EmbeddedImages:
    """
    Images with their features.

    Args:
        features (`torch.Tensor` of shape `(num_images, width)`): Features.
        labels (sequence): For each image a `tuple` of the names of its classes, or `None` if it has no label.
        image (callable): From an image's number to the image in RGB: `images.__getitem__` of a list of images.
    """

    features: torch.Tensor
    labels: Sequence[tuple[str, ...] | None]
    image: Callable[[int], PIL.Image.Image]

    def shown(self, number: int, similarity: float | None = None) -> ShownImage:
        return ShownImage(self.image(number), self.labels[number], similarity)


def draw_neighbours(
    queries: EmbeddedImages, gallery: EmbeddedImages, num_neighbours: int = 6, own_rows: Sequence[int] | None = None
) -> Figure:
    """Find the nearest neighbors of each query in a gallery, and draw the [`neighbours_figure`].

    Args:
        queries ([`EmbeddedImages`]): A row of the figure each.
        gallery ([`EmbeddedImages`]): Where the neighbors are sought.
        num_neighbours (`int`, *optional*, defaults to 6): Neighbors of each query.
        own_rows (sequence of `int`, *optional*): As for [`nearest_images`].

    Raises:
        [`SiTError`]: As [`nearest_images`].
    """
    similarities, nearest = nearest_images(queries.features, gallery.features, num_neighbours, own_rows)
    return neighbours_figure(
        [
            (
                queries.shown(number),
                [gallery.shown(row, value) for value, row in zip(values.tolist(), rows.tolist(), strict=True)],
            )
            for number, (values, rows) in enumerate(zip(similarities, nearest, strict=True))
        ]
    )


def nearest_images(
    queries: torch.Tensor, gallery: torch.Tensor, count: int, own_rows: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a gallery that are nearest to each query, by the cosine of their features.

    Args:
        queries (`torch.Tensor` of shape `(num_queries, width)`): Features.
        gallery (`torch.Tensor` of shape `(num_images, width)`): Features.
        count (`int`): Number of neighbors: at most the gallery's images other than the query.
        own_rows (sequence of `int`, *optional*): Each query's own row in the gallery, which is not one of its
            neighbors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Cosines `(num_queries, count)`, falling, and rows of the gallery, int64.

    Raises:
        [`SiTError`]: If there are fewer images than `count`.
    """
    available = len(gallery) - (own_rows is not None)
    if not 1 <= count <= available:
        raise SiTError(f"must be from 1 to {available}, the number of images, got {count}", argument="num_neighbours")
    normalize = torch.nn.functional.normalize
    similarities = normalize(queries, dim=1) @ normalize(gallery, dim=1).T
    if own_rows is not None:
        similarities[torch.arange(len(queries)), torch.as_tensor(own_rows)] = -torch.inf
    return similarities.topk(count, dim=1)


def neighbours_figure(rows: Sequence[tuple[ShownImage, Sequence[ShownImage]]]) -> Figure:
    """One row a query: the query, then its neighbors, the most similar first.

    Where labels are known, a neighbor that shares a class has a solid green frame, the others a dashed vermilion one.

    Args:
        rows (sequence of pairs of a [`ShownImage`] and a sequence of them): Queries with their neighbors, the
            same number each.
    """
    num_neighbours = len(rows[0][1])
    line = line_height(CAPTION_SIZE)
    first = MARGIN + IMAGE_INCHES + QUERY_GAP  # where the neighbors begin
    # A row has lines for the label and the cosine, where there are any.
    shown = [image for query, neighbours in rows for image in (query, *neighbours)]
    row_height = IMAGE_INCHES + GAP + (1 + any(image.labels is not None for image in shown)) * line
    top = MARGIN + line_height(TITLE_SIZE) + GAP
    bottom = top + len(rows) * (row_height + ROW_GAP)
    kinds = {image.agrees_with(query) for query, neighbours in rows for image in neighbours} - {None}
    legend_width = max((text_width(SHARES[kind], LEGEND_SIZE) for kind in kinds), default=0) + LEGEND_MARK + GAP
    page_width = max(
        first + num_neighbours * (IMAGE_INCHES + GAP) - GAP,
        first + text_width(NEIGHBOURS_TITLE, TITLE_SIZE),
        MARGIN + (legend_width if kinds else 0),
    )
    figure = Figure(figsize=(page_width + MARGIN, bottom + len(kinds) * 1.2 * line_height(LEGEND_SIZE) + MARGIN))

    baseline = MARGIN + line_height(TITLE_SIZE)
    place_text(figure, MARGIN + IMAGE_INCHES / 2, baseline, "query", TITLE_SIZE, ha="center", va="baseline")
    place_text(figure, first, baseline, NEIGHBOURS_TITLE, TITLE_SIZE, va="baseline")
    for row, (query, neighbours) in enumerate(rows):
        row_top = top + row * (row_height + ROW_GAP)
        lefts = (MARGIN, *(first + column * (IMAGE_INCHES + GAP) for column in range(num_neighbours)))
        for left, image in zip(lefts, (query, *neighbours), strict=True):
            axes = place_axes(figure, left, row_top, IMAGE_INCHES, IMAGE_INCHES)
            axes.set_axis_off()
            _draw_in_the_middle(axes, image.image)
            agrees = image.agrees_with(query) if image is not query else None
            axes.add_patch(_outline(image.image, axes) if agrees is None else _frame(agrees, axes.transAxes))
            for number, text in enumerate(_caption(image, query)):
                place_text(
                    figure,
                    left + IMAGE_INCHES / 2,
                    row_top + IMAGE_INCHES + GAP + number * line,
                    text,
                    CAPTION_SIZE,
                    ha="center",
                    va="top",
                )
    for number, kind in enumerate(sorted(kinds, reverse=True)):
        legend_top = bottom + number * 1.2 * line_height(LEGEND_SIZE)
        mark = place_axes(figure, MARGIN, legend_top, LEGEND_MARK - GAP, 0.7 * line_height(LEGEND_SIZE))
        mark.set_axis_off()
        mark.add_patch(_frame(kind, mark.transAxes))
        place_text(figure, MARGIN + LEGEND_MARK, legend_top, SHARES[kind], LEGEND_SIZE, va="top")
    return figure


def _caption(shown: ShownImage, query: ShownImage) -> list[str]:
    """Its classes, first those that the query has too, and the cosine."""
    lines = []
    if shown.labels is not None:
        labels = sorted(shown.labels, key=lambda name: name not in (query.labels or ()))
        lines.append(_fitted_labels(labels) if labels else "none")
    return [*lines, f"{shown.similarity:.3f}"] if shown.similarity is not None else lines


def _fitted_labels(labels: Sequence[str]) -> str:
    """As many of the labels as fit."""
    for number in range(len(labels), 0, -1):
        more = f" + {len(labels) - number} more" if number < len(labels) else ""
        text = " + ".join(labels[:number]) + more
        if text_width(text, CAPTION_SIZE) <= IMAGE_INCHES:
            return text
    return fitted(labels[0], CAPTION_SIZE, IMAGE_INCHES - text_width(more, CAPTION_SIZE)) + more


def _draw_in_the_middle(axes: Axes, image: PIL.Image.Image) -> None:
    """The image in the middle of a square, so that all columns are of one size."""
    side = max(image.size)
    axes.imshow(image, interpolation="antialiased", extent=(0, image.width, image.height, 0), aspect="auto")
    left, above = (side - image.width) / 2, (side - image.height) / 2
    axes.set(xlim=(-left, side - left), ylim=(side - above, -above))


def _outline(image: PIL.Image.Image, axes: Axes) -> Rectangle:
    """A thin line around an image without a frame, to tell a white image from the page."""
    return Rectangle(
        (0, 0),
        *image.size,
        fill=False,
        clip_on=False,
        edgecolor=FRAME_COLOR,
        linewidth=0.5,
        transform=axes.transData,
    )


def _frame(agrees: bool, transform: Transform) -> Rectangle:
    color, style = (AGREES, "solid") if agrees else (DIFFERS, (0, (3, 1.5)))
    frame = Rectangle((0, 0), 1, 1, transform=transform, fill=False, clip_on=False)
    frame.set(edgecolor=color, linestyle=style, linewidth=2.4)
    return frame
