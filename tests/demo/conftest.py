"""What the tests of the demo share: a tiny checkpoint with its decoder, a dataset of two classes, and the page of both."""

from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.demo.demonstration import Demonstration


@pytest.fixture
def flat_images(tmp_path) -> Path:
    """A folder of red and of blue images, 24 x 20 pixels, each of another shade."""
    for channel, name in ((0, "red"), (2, "blue")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.zeros((20, 24, 3), np.uint8)
            pixels[..., channel] = 150 + 25 * number
            PIL.Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def demonstrate(save_tiny_sit, flat_images, tmp_path):
    """The demonstration of a tiny SiT on the flat images, with other arguments on request."""

    @cache
    def demonstrate(**arguments) -> Demonstration:
        given = {"model_name_or_path": str(tmp_path / "model"), "dataset": str(flat_images), **arguments}
        if given["model_name_or_path"] == str(tmp_path / "model") and not (tmp_path / "model").exists():
            save_tiny_sit(tmp_path / "model")
        return Demonstration.load(DemoArguments(**given))

    return demonstrate


@pytest.fixture
def own_file(tmp_path):
    """Write an image as a user's file; gives its path."""

    def own_file(image: PIL.Image.Image, name: str = "own.png", **settings) -> str:
        (tmp_path / "uploads").mkdir(exist_ok=True)
        image.save(tmp_path / "uploads" / name, **settings)
        return str(tmp_path / "uploads" / name)

    return own_file
