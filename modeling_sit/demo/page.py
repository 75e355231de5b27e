"""The images and texts of an answer as HTML, with texts for who does not see them, in as many columns as there is room for."""

import html
from collections.abc import Sequence

from modeling_sit.demo.answers import Shown
from modeling_sit.visualization.selection import data_uri

STYLE = """
.sit-figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 100%), 1fr)); gap: 12px; }
.sit-figures.wide { grid-template-columns: 1fr; max-width: 960px; }
.sit-figures figure { margin: 0; min-width: 0; }
.sit-figures img { width: 100%; height: auto; display: block; image-rendering: pixelated; border: 1px solid #8888; }
.sit-figures.wide img { image-rendering: auto; }
.sit-figures figcaption { font-size: .85rem; overflow-wrap: anywhere; padding-top: 4px; }
@media (max-width: 640px) { .sit-figures:not(.wide) { grid-template-columns: 1fr 1fr; } }
.sit-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 24px; }
.sit-sides .sit-figures:not(.wide) { grid-template-columns: repeat(auto-fill, minmax(min(110px, 100%), 1fr)); }
.sit-sides h3 { margin: 0 0 8px; overflow-wrap: anywhere; }
.sit-sides p { margin: 8px 0; }
.sit-map { width: 100%; height: 760px; border: 1px solid #8888; background: #fff; }
"""


def figures(shown: Sequence[Shown], is_wide: bool = False) -> str:
    """Images with their captions, side by side, and below each other where the page is narrow.

    Args:
        shown (sequence of [`Shown`]): The images.
        is_wide (`bool`, *optional*, defaults to `False`): Whether each takes the whole width of a phone and more.
    """
    items = "".join(
        f'<figure><img src="{data_uri(each.image, is_exact=True)}" alt="{html.escape(each.description)}">'
        f"<figcaption>{html.escape(each.caption)}</figcaption></figure>"
        for each in shown
    )
    return f'<div class="sit-figures{" wide" if is_wide else ""}">{items}</div>'


def side_by_side(parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Columns with a title each, and HTML below it."""
    columns = "".join(f"<section><h3>{html.escape(title)}</h3>{''.join(blocks)}</section>" for title, blocks in parts)
    return f'<div class="sit-sides">{columns}</div>'


def paragraph(text: str) -> str:
    """A line of text."""
    return f"<p>{html.escape(text)}</p>"


def probabilities(classes: dict[str, float], number: int = 5) -> str:
    """The most probable classes in a line."""
    best = list(classes.items())[:number]
    return paragraph(", ".join(f"{name} {probability:.1%}" for name, probability in best))


def framed(page: str, title: str) -> str:
    """A page in a frame of its own, whose scripts reach nothing outside it.

    Args:
        page (`str`): HTML.
        title (`str`): What a screen reader calls it.
    """
    return f'<iframe class="sit-map" sandbox="allow-scripts" title="{html.escape(title)}" srcdoc="{html.escape(page)}"></iframe>'
