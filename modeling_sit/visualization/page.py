"""Places on a figure in inches, and texts that are cut to fit before anything is drawn."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from modeling_sit.visualization.palette import shortened

POINTS_PER_INCH = 72
# Lines of text stand so far apart, in units of the font's size.
LINE_SPACING = 1.2
FRAME_COLOR = "0.7"


def place_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
    )


def place_text(figure: Figure, left: float, top: float, text: str, size: float, **settings) -> None:
    """Text at a place in inches from the figure's upper left corner, without the meaning of dollars in matplotlib."""
    page_width, page_height = figure.get_size_inches()
    figure.text(left / page_width, 1 - top / page_height, text, fontsize=size, parse_math=False, **settings)


def text_width(text: str, size: float) -> float:
    """How wide a line of text is in matplotlib's font, in inches, at this size in points."""
    return (
        text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / POINTS_PER_INCH
    )


def line_height(size: float) -> float:
    """From one line to the next, in inches, at this size in points."""
    return LINE_SPACING * size / POINTS_PER_INCH


def fitted(text: str, size: float, width: float) -> str:
    """The text on one line of at most `width` inches, cut by [`~palette.shortened`] where it is longer."""
    for length in range(len(text), 0, -1):
        short = shortened(text, length)
        if text_width(short, size) <= width:
            return short
    return ""


def wrapped(text: str, size: float, width: float, num_lines: int) -> str:
    """The text on at most `num_lines` lines of at most `width` inches; the last one is cut where the rest does not
    fit."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < num_lines - 1:
        taken = 1
        while taken < len(words) and text_width(" ".join(words[: taken + 1]), size) <= width:
            taken += 1
        lines.append(fitted(" ".join(words[:taken]), size, width))
        words = words[taken:]
    return "\n".join([*lines, fitted(" ".join(words), size, width)] if words else lines)


def frame_lightly(axes: Axes) -> None:
    """A thin gray line around an image, to tell a white image from the page."""
    axes.spines[:].set(visible=True, color=FRAME_COLOR, linewidth=0.5)
