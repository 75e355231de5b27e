"""Sizes by the headers of files: those of the decoded images."""

import PIL.Image
import pytest

from modeling_sit.data.decoding import decode_image
from modeling_sit.data.image_sizes import upright_size

ORIENTATION = 274


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_are_those_of_the_decoded_image(tmp_path, file_format, orientation):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image"
    PIL.Image.new("RGB", (30, 20)).save(path, file_format, exif=exif)
    encoded = {"bytes": None, "path": str(path)}
    expected = decode_image(encoded, 3).size
    assert upright_size(encoded) == expected == ((20, 30) if orientation in (6, 8) else (30, 20))


def test_of_a_file_that_is_none(tmp_path):
    (tmp_path / "image").write_bytes(b"none")
    assert upright_size({"bytes": None, "path": str(tmp_path / "image")}) is None and upright_size(None) is None
