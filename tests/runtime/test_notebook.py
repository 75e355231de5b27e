"""What results show below a cell: through IPython's own display."""

import base64
import io

import numpy as np
import PIL.Image
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

from modeling_sit.runtime.notebook import png_of, show


def test_text_files_and_figures_are_shown_one_below_the_other(tmp_path, ipython):
    PIL.Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    with capture_output() as captured:
        show("**bold**", tmp_path / "red.png", tmp_path / "missing.png", PIL.Image.new("L", (4, 5)), Figure())
    text, *images = [each.data for each in captured.outputs]
    assert text == {"text/markdown": "**bold**", "text/plain": "**bold**"}
    sizes = [PIL.Image.open(io.BytesIO(base64.b64decode(each["image/png"]))).size for each in images]
    assert sizes[:2] == [(3, 2), (4, 5)] and len(sizes) == 3
    assert images[0]["text/plain"] == str(tmp_path / "red.png")


def test_png_has_the_pixels():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(png_of(PIL.Image.fromarray(pixels))))), pixels)
