"""What results look like in a notebook: text and figures below the cell."""

import base64
import io
from pathlib import Path
from typing import Any

DOTS_PER_INCH = 110


def show(*parts: Any) -> None:
    """Show each part below the cell that runs, one below the other. A console shows the text.

    Args:
        parts (`str`, `Path`, `matplotlib.figure.Figure` or `PIL.Image.Image`): Markdown; a PNG file, which is left out if there
            is none; a figure.
    """
    from IPython.display import display  # it calls us, so it is there

    for part in parts:
        if isinstance(part, str):
            display({"text/markdown": part, "text/plain": part}, raw=True)
        elif not isinstance(part, Path):
            display_image(png_of(part), "a figure")
        elif part.is_file():
            display_image(part.read_bytes(), str(part))


def display_image(png: bytes, name: str) -> None:
    """Show a PNG; a console shows its name."""
    from IPython.display import display

    display({"image/png": base64.b64encode(png).decode(), "text/plain": name}, raw=True)


def png_of(figure: Any, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """A figure of matplotlib, or an image of Pillow, as PNG."""
    png = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(png, dpi=dots_per_inch, format="png")
    else:
        figure.save(png, format="PNG")
    return png.getvalue()
