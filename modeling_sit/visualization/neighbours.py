"""Pictures and those that a model holds to be most like them."""

from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from modeling_sit.visualization.palette import AGREES, DIFFERS, shortened

PICTURE_INCHES = 1.15
CAPTION_LENGTH = 17


@dataclass
class ShownPicture:
    """
    A query or a neighbour.

    Args:
        picture (`PIL.Image.Image`): In RGB.
        labels (`tuple` of `str`, *optional*): Names of its classes; `None` if it has no label.
        similarity (`float` in [-1, 1], *optional*): Cosine to the query; `None` for the query itself.
    """

    picture: PIL.Image.Image
    labels: tuple[str, ...] | None
    similarity: float | None = None

    def agrees_with(self, query: "ShownPicture") -> bool | None:
        """Whether the two share a class, or both have none; `None` where a label is missing."""
        if self.labels is None or query.labels is None:
            return None
        return bool(set(self.labels) & set(query.labels)) or self.labels == query.labels


def nearest_pictures(
    queries: torch.Tensor, gallery: torch.Tensor, count: int, own_rows: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures of a gallery that are most like each query, by the cosine of their features.

    Args:
        queries (`torch.Tensor` of shape `(num_queries, width)`): Features.
        gallery (`torch.Tensor` of shape `(num_pictures, width)`): Features.
        count (`int`): How many neighbours, at most the gallery's pictures less the query.
        own_rows (sequence of `int`, *optional*): Each query's own row in the gallery, which is none of its neighbours.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Cosines `(num_queries, count)`, falling, and rows of the gallery, int64.

    Raises:
        `ValueError`: If there are fewer pictures than `count`.
    """
    available = len(gallery) - (own_rows is not None)
    if not 1 <= count <= available:
        raise ValueError(f"count must be from 1 to {available}, the pictures there are, not {count}")
    normalize = torch.nn.functional.normalize
    similarities = normalize(queries, dim=1) @ normalize(gallery, dim=1).T
    if own_rows is not None:
        similarities[torch.arange(len(queries)), torch.as_tensor(own_rows)] = -torch.inf
    return similarities.topk(count, dim=1)


def neighbours_figure(rows: Sequence[tuple[ShownPicture, Sequence[ShownPicture]]]) -> Figure:
    """One row a query: the query, then its neighbours, the most similar first.

    Where labels are known, a neighbour that shares a class has a solid green frame, another a dashed vermilion one.

    Args:
        rows (sequence of pairs of a [`ShownPicture`] and a sequence of them): Queries with their neighbours, as many each.
    """
    num_columns = 1 + len(rows[0][1])
    figure = Figure(
        figsize=(num_columns * (PICTURE_INCHES + 0.1) + 0.2, len(rows) * (PICTURE_INCHES + 0.34) + 0.5),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.01)
    # A narrow column of nothing sets the query apart.
    grid = figure.subplots(len(rows), num_columns + 1, squeeze=False, width_ratios=[1, 0.08] + [1] * (num_columns - 1))
    legend = {}
    for axes_row, (query, neighbours) in zip(grid, rows, strict=True):
        axes_row[1].set_axis_off()
        for axes, shown in zip((axes_row[0], *axes_row[2:]), (query, *neighbours), strict=True):
            axes.imshow(_square(shown.picture), interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_xlabel(_caption(shown), fontsize=7, labelpad=3, parse_math=False)
            agrees = shown.agrees_with(query) if shown.similarity is not None else None
            if agrees is not None:
                color, style = (AGREES, "solid") if agrees else (DIFFERS, (0, (3, 1.5)))
                frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False)
                frame.set(edgecolor=color, linestyle=style, linewidth=2.4)
                legend["shares a class with the query" if agrees else "does not"] = axes.add_patch(frame)
    grid[0, 0].set_title("query", fontsize=9)
    grid[0, 2].set_title("nearest, with cosine", fontsize=9, loc="left")
    if legend:
        names = sorted(legend, reverse=True)
        handles = [Rectangle((0, 0), 1, 1, fill=False) for _ in names]
        for handle, name in zip(handles, names, strict=True):
            handle.update_from(legend[name])
            handle.set_transform(None)
        figure.legend(handles, names, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    return figure


def _caption(shown: ShownPicture) -> str:
    name = None if shown.labels is None else " + ".join(shown.labels) or "none"
    lines = [shortened(name, CAPTION_LENGTH)] if name is not None else []
    return "\n".join(lines + ([f"{shown.similarity:.3f}"] if shown.similarity is not None else []))


def _square(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in the middle of a white square, so that all columns are of one size."""
    side = max(picture.size)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
