"""What the tests of the demo read in its HTML."""

import base64
import io
import re

import numpy as np
import PIL.Image

IMAGE = re.compile(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]*)"><figcaption>([^<]*)</figcaption>')


def images_of(html: str) -> dict[str, np.ndarray]:
    """The images of a page by their captions, of which the first word counts: `(height, width, 3)`, uint8."""
    found = {}
    for encoded, alt, caption in IMAGE.findall(html):
        assert alt
        with PIL.Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            found[re.split(r"[ :,]", caption)[0]] = np.asarray(image.convert("RGB"))
    assert html.count("<img") == len(IMAGE.findall(html))
    return found


def captions_of(html: str) -> list[str]:
    """The captions of a page's images."""
    return [caption for _, _, caption in IMAGE.findall(html)]
