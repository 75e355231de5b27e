"""Ranges of percentiles: each image by its own values, those of 8 bits too."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit import SiTImageProcessor
from modeling_sit.data.decoding import decode_image
from modeling_sit.image_modes import Level, PixelFormat, convert_image, to_8_bits
from modeling_sit.image_processing_pil_sit import SiTImageProcessorPil

PERCENTILES = ("5%", "90%")


def dark(*shape: int, dtype=np.uint8, top: int = 60) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(10, top, shape).astype(dtype)


def stretched(values: np.ndarray, low: int = 5, high: int = 90) -> np.ndarray:
    """The slow way: sort the values, take two of them, scale each value."""
    ordered = sorted(values.ravel().tolist())
    bottom = ordered[(len(ordered) - 1) * low // 100]
    top = ordered[-(-(len(ordered) - 1) * high // 100)]
    flat = [round(min(max((value - bottom) / (top - bottom), 0), 1) * 255) for value in values.ravel().tolist()]
    return np.array(flat, np.uint8).reshape(values.shape)


@pytest.mark.parametrize(("text", "level"), [("0.5%", "0.5%"), (" 99.50 % ", "99.5%"), ("-4", -4.0), (7, 7.0)])
def test_levels(text, level):
    assert Level(text) == level and type(Level(text)) is type(level)


@pytest.mark.parametrize("text", ["101%", "-1%", "%", "low", None, "nan%"])
def test_levels_that_are_none(text):
    with pytest.raises((ValueError, TypeError)):
        Level(text)


@pytest.mark.parametrize(
    "values",
    [
        ("60%", "40%"),
        ("5%", "5%"),
        ("5%",),
        ("0%", "200%"),
        ("low", "high"),
        "5%",
        (0, "90%"),
        (1, 2, *PERCENTILES, 1, 2),
    ],
)
def test_ranges_that_are_none(values):
    with pytest.raises(ValueError, match="intensity_range"):
        PixelFormat(3, values)


class TestImages:
    def test_of_8_bits(self):
        values = dark(30, 20, 3)
        found = convert_image(PIL.Image.fromarray(values), PixelFormat(3, PERCENTILES))
        np.testing.assert_array_equal(found, stretched(values))

    def test_of_16_bits(self):
        values = dark(30, 20, dtype=np.uint16, top=4000)
        found = convert_image(PIL.Image.fromarray(values), PixelFormat(1, PERCENTILES))
        np.testing.assert_array_equal(found, stretched(values))

    def test_stay_as_they_are_once_stretched(self):
        pixel_format = PixelFormat(3, PERCENTILES)
        once = convert_image(PIL.Image.fromarray(dark(30, 20, 3)), pixel_format)
        np.testing.assert_array_equal(convert_image(once, pixel_format), once)

    def test_from_a_file(self):
        values, file = dark(30, 20), io.BytesIO()
        PIL.Image.fromarray(values).save(file, "PNG")
        found = np.asarray(decode_image(file.getvalue(), PixelFormat(3, PERCENTILES)))
        np.testing.assert_array_equal(found, np.repeat(stretched(values)[..., None], 3, axis=-1))

    def test_keep_their_transparency(self):
        values = dark(30, 20, 4)
        found = np.asarray(convert_image(PIL.Image.fromarray(values, "RGBA"), PixelFormat(4, PERCENTILES)))
        np.testing.assert_array_equal(found[..., 3], values[..., 3])
        np.testing.assert_array_equal(found[..., :3], stretched(values[..., :3]))

    def test_with_a_pair_for_each_channel(self):
        values = dark(30, 20, 3) * np.array([1, 2, 4], np.uint8)
        found = np.asarray(convert_image(PIL.Image.fromarray(values), PixelFormat(3, PERCENTILES * 3)))
        for channel in range(3):
            np.testing.assert_array_equal(found[..., channel], stretched(values[..., channel]))

    def test_of_gray_with_transparency(self):
        values = dark(30, 20, 2)
        found = convert_image(PIL.Image.fromarray(values, "LA"), PixelFormat(2, PERCENTILES))
        np.testing.assert_array_equal(found[..., 1], values[..., 1])
        np.testing.assert_array_equal(found[..., 0], stretched(values[..., 0]))

    def test_of_one_value(self):
        assert (to_8_bits(np.full((4, 4, 1), 90, np.uint8), PERCENTILES) == 0).all()

    def test_with_places_without_data(self):
        values = dark(30, 20, 1).astype(np.float32)
        values[:10] = np.nan
        found = to_8_bits(values, PERCENTILES)
        np.testing.assert_array_equal(found[10:], stretched(values[10:]))
        assert (found[:10] == 0).all()


@pytest.mark.parametrize("backend", [SiTImageProcessor, SiTImageProcessorPil])
def test_the_image_processor_takes_all_forms(backend, tmp_path):
    settings = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_resize": False}
    backend(intensity_range=list(PERCENTILES), **settings).save_pretrained(tmp_path)
    processor = backend.from_pretrained(tmp_path)
    assert processor.intensity_range == list(PERCENTILES)
    values = dark(30, 20, 3)
    expected = torch.from_numpy(stretched(values)).permute(2, 0, 1)[None] / 255
    for image in (PIL.Image.fromarray(values), values, torch.from_numpy(values).permute(2, 0, 1)):
        found = processor([image], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
