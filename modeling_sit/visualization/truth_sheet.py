"""Sheets of images: beside each image what is true of it, where that is known, and what a model finds; and a legend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from modeling_sit.visualization.page import fitted, frame_lightly, line_height, place_axes, place_text, text_width

PANEL_INCHES, MAX_PANEL_INCHES = 2.4, 3.2
GAP, ROW_GAP, MARGIN = 0.1, 0.16, 0.1
TITLE_SIZE, CAPTION_SIZE, LEGEND_SIZE = 9, 7, 8
MARK_INCHES, MAX_NAME_INCHES, LEGEND_GAP = 0.16, 2.0, 0.25
MAX_LEGEND_ENTRIES = 30


@dataclass
class Panel:
    """
    A panel of a sheet.

    Args:
        draw (callable): Draws on axes whose units are the image's pixels, from its upper left corner.
        caption (`str`, *optional*): A line below it.
    """

    draw: Callable[[Axes], None]
    caption: str = ""


@dataclass
class SheetRow:
    """
    An image of a sheet, with what is said of it.

    Args:
        image (`PIL.Image.Image`): In RGB.
        caption (`str`): A line below it.
        panels (`list[Panel]`): What stands beside it.
    """

    image: PIL.Image.Image
    caption: str
    panels: list[Panel]


@dataclass(frozen=True)
class LegendEntry:
    """
    A class of a legend.

    Args:
        name (`str`): What it is called.
        face, edge (color, *optional*): Of matplotlib; `None` for none.
        line_style (`str` or `tuple`, *optional*): Of the edge.
        hatch (`str`, *optional*): Of matplotlib.
    """

    name: str
    face: object = None
    edge: object = None
    line_style: object = "solid"
    hatch: str | None = None


def truth_sheet(rows: Sequence[SheetRow], titles: Sequence[str], legend: Sequence[LegendEntry]) -> Figure:
    """A figure with a row for each image.

    Args:
        rows (sequence of [`SheetRow`]): The images.
        titles (sequence of `str`): Of the columns: the image's, and one for each panel.
        legend (sequence of [`LegendEntry`]): The classes, below the images.
    """
    heights = [min(PANEL_INCHES * row.image.height / row.image.width, MAX_PANEL_INCHES) for row in rows]
    has_captions = any(row.caption or any(panel.caption for panel in row.panels) for row in rows)
    caption_height = line_height(CAPTION_SIZE) + 0.04 if has_captions else 0
    page_width = 2 * MARGIN + len(titles) * (PANEL_INCHES + GAP) - GAP
    lines = _legend_lines(legend, page_width - 2 * MARGIN)
    top = MARGIN + line_height(TITLE_SIZE) + 0.04
    bottom = top + sum(height + caption_height + ROW_GAP for height in heights)
    figure = Figure(figsize=(page_width, bottom + len(lines) * 1.35 * line_height(LEGEND_SIZE) + MARGIN / 2))
    lefts = [MARGIN + column * (PANEL_INCHES + GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        title = fitted(title, TITLE_SIZE, PANEL_INCHES)
        place_text(figure, left, MARGIN + line_height(TITLE_SIZE), title, TITLE_SIZE, va="baseline")
    for row, height in zip(rows, heights, strict=True):
        width = min(PANEL_INCHES, height * row.image.width / row.image.height)
        panels = [Panel(lambda axes: None, row.caption), *row.panels]
        for left, panel in zip(lefts, panels, strict=True):
            axes = place_axes(figure, left, top, width, height)
            axes.imshow(row.image, interpolation="antialiased", aspect="auto", extent=_extent(row.image))
            panel.draw(axes)
            axes.set(xticks=[], yticks=[], xlim=(0, row.image.width), ylim=(row.image.height, 0))
            frame_lightly(axes)
            caption = fitted(panel.caption, CAPTION_SIZE, PANEL_INCHES)
            place_text(figure, left, top + height + 0.04, caption, CAPTION_SIZE, va="top", color="0.25")
        top += height + caption_height + ROW_GAP
    for line in lines:
        for left, entry, name in line:
            _draw_entry(figure, MARGIN + left, top, entry, name)
        top += 1.35 * line_height(LEGEND_SIZE)
    return figure


def _extent(image: PIL.Image.Image) -> tuple[float, float, float, float]:
    return (0, image.width, image.height, 0)


def _legend_lines(entries: Sequence[LegendEntry], width: float) -> list[list[tuple[float, LegendEntry, str]]]:
    """The entries on lines of a page's width, each with its place from the left, and its name as it fits."""
    if len(entries) > MAX_LEGEND_ENTRIES:
        left_out = len(entries) - MAX_LEGEND_ENTRIES + 1
        entries = [*entries[: MAX_LEGEND_ENTRIES - 1], LegendEntry(f"and {left_out} more classes")]
    lines: list[list[tuple[float, LegendEntry, str]]] = []
    left = width + 1
    for entry in entries:
        name = fitted(entry.name, LEGEND_SIZE, MAX_NAME_INCHES)
        needed = MARK_INCHES + 0.06 + text_width(name, LEGEND_SIZE)
        if left + needed > width:
            lines.append([])
            left = 0.0
        lines[-1].append((left, entry, name))
        left += needed + LEGEND_GAP
    return lines


def _draw_entry(figure: Figure, left: float, top: float, entry: LegendEntry, name: str) -> None:
    height = 0.75 * line_height(LEGEND_SIZE)
    if entry.face is not None or entry.edge is not None:
        mark = place_axes(figure, left, top, MARK_INCHES, height)
        mark.set_axis_off()
        box = Rectangle((0, 0), 1, 1, transform=mark.transAxes, clip_on=False, hatch=entry.hatch)
        box.set(facecolor="none" if entry.face is None else entry.face, linestyle=entry.line_style, linewidth=1.3)
        box.set_edgecolor("none" if entry.edge is None else entry.edge)
        mark.add_patch(box)
    place_text(figure, left + MARK_INCHES + 0.06, top + height, name, LEGEND_SIZE, va="baseline")
