"""Depth and range of what a file stores."""

import io
import os

import numpy as np
import PIL.Image
import pytest
import tifffile

from modeling_sit.data.stored_values import StoredValues, read_stored_values


def encoded(values: np.ndarray, format: str = "TIFF", **settings) -> bytes:
    buffer = io.BytesIO()
    if format == "npy":
        np.save(buffer, values)
    elif settings or values.ndim == 3:
        tifffile.imwrite(buffer, values, **settings)
    else:
        PIL.Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["TIFF", "PNG", "npy"])
def test_12_bits_in_a_file_of_16(format, tmp_path):
    values = np.random.default_rng(0).integers(7, 4096, (30, 40), dtype=np.uint16)
    file = encoded(values, format)
    expected = StoredValues(1, 16, False, float(values.min()), float(values.max()))
    (tmp_path / "image").write_bytes(file)
    forms = (file, tmp_path / "image", {"bytes": file, "path": None}, {"bytes": None, "path": str(tmp_path / "image")})
    for image in forms:
        assert read_stored_values(image) == expected


def test_many_channels():
    values = np.random.default_rng(0).integers(0, 1000, (30, 40, 12), dtype=np.uint16)
    for file in (encoded(values, photometric="minisblack", planarconfig="contig"), encoded(values, "npy")):
        assert read_stored_values(file) == StoredValues(12, 16, False, float(values.min()), float(values.max()))


def test_floats_of_which_some_are_not_finite():
    values = np.array([[np.nan, -2.5], [np.inf, 7]], dtype=np.float32)
    assert read_stored_values(encoded(values, "npy")) == StoredValues(1, 32, True, -2.5, 7, 2)
    assert read_stored_values(encoded(values)) == StoredValues(1, 32, True, -2.5, 7, 2)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_8_bits_have_the_range_of_the_type(mode, channels):
    buffer = io.BytesIO()
    PIL.Image.new(mode, (4, 4)).save(buffer, "PNG")
    assert read_stored_values(buffer.getvalue()) == StoredValues(channels, 8, False, 0, 255)


@pytest.mark.parametrize("image", [None, b"", b"nothing", "no/such/file", {"bytes": None, "path": None}])
def test_what_cannot_be_read(image):
    assert read_stored_values(image) is None


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    assert read_stored_values(tmp_path / "pipe.npy") is None


def test_the_limit_of_pixels(monkeypatch):
    values = np.zeros((30, 40), np.uint16)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    for file in (
        encoded(values),
        encoded(values, "PNG"),
        encoded(values, "npy"),
        encoded(values[..., None].repeat(5, 2), "npy"),
    ):
        monkeypatch.delenv("SIT_MAX_IMAGE_PIXELS", raising=False)
        assert read_stored_values(file) is None
        monkeypatch.setenv("SIT_MAX_IMAGE_PIXELS", "1200")
        assert read_stored_values(file).bit_depth == 16
