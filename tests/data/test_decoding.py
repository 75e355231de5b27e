import io
import os
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.JpegImagePlugin
import pyarrow.parquet
import pytest
import torch
from PIL import PngImagePlugin
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import RandomResizedCrop

from modeling_sit.data.decoding import DraftScale, UnreadableImage, decode_image, decoded_size, remedy
from modeling_sit.data.opening import max_image_pixels
from modeling_sit.image_modes import PixelFormat, WrongChannels, convert_image
from modeling_sit.runtime.errors import SiTError

HEIGHT, WIDTH = 5, 7


def random_values(*channels, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, high, (HEIGHT, WIDTH, *channels)).astype(dtype)


def encode(image, format="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


def over_white(values, alpha):
    """Each pixel by itself: value * alpha + 255 * (1 - alpha)."""
    alpha = alpha[..., None].astype(float) / 255
    return values * alpha + 255 * (1 - alpha)


def luma(values):
    """ITU-R 601-2, as everybody's gray."""
    return values.astype(float) @ np.array([0.299, 0.587, 0.114])


def assert_close(image, expected, tolerance=1.0):
    actual = np.asarray(image).astype(float)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance


def exif_with_orientation(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


# What an image may be handed in as.


@pytest.mark.parametrize(
    "form", ["str", "path", "bytes", "bytearray", "dict_bytes", "dict_path", "dict_both", "pil", "pil_lazy"]
)
def test_forms_of_one_image(tmp_path, form):
    values = random_values(3)
    path = tmp_path / "an image [1].png"
    encoded = encode(PIL.Image.fromarray(values))
    path.write_bytes(encoded)
    image = {
        "str": str(path),
        "path": path,
        "bytes": encoded,
        "bytearray": bytearray(encoded),
        "dict_bytes": {"bytes": encoded, "path": None},
        "dict_path": {"bytes": None, "path": str(path)},
        "dict_both": {"bytes": encoded, "path": "name/in/an/archive.png"},
        "pil": PIL.Image.fromarray(values),
        "pil_lazy": PIL.Image.open(path),
    }[form]
    decoded = decode_image(image)
    assert decoded.mode == "RGB" and decoded.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(decoded), values)


def test_rgb_is_not_copied():
    image = PIL.Image.fromarray(random_values(3))
    assert decode_image(image) is image
    assert convert_image(image) is image


def test_pil_images_are_left_as_they_are():
    image = PIL.Image.fromarray(random_values(4))
    image.getexif()[0x0112] = 6
    before = image.copy()
    assert decode_image(image).size == (HEIGHT, WIDTH)
    assert image.mode == "RGBA" and image.size == (WIDTH, HEIGHT) and image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(np.asarray(image), np.asarray(before))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("format", ["png", "gif", "tiff"])
def test_files_are_closed(tmp_path, format):
    path = tmp_path / f"a.{format}"
    frame = PIL.Image.fromarray(random_values())
    frame.save(path, save_all=True, append_images=[frame.transpose(PIL.Image.Transpose.ROTATE_180)])
    before = len(os.listdir("/proc/self/fd"))
    images = [decode_image(path, 1) for _ in range(5)]  # not converted, so what was opened lives on
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(images) == 5


@pytest.mark.parametrize("num_channels", [0, 17, "RGB"])
def test_wrong_number_of_channels(num_channels):
    with pytest.raises(ValueError, match="num_channels"):
        decode_image(PIL.Image.new("L", (1, 1)), num_channels)
    with pytest.raises(ValueError, match="num_channels"):
        convert_image(PIL.Image.new("L", (1, 1)), num_channels)


def test_something_else_is_a_programming_error():
    with pytest.raises(TypeError, match="int"):
        decode_image(3)


# Modes.


def test_rgb_to_each_number_of_channels():
    values = random_values(3)
    encoded = encode(PIL.Image.fromarray(values))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 3)), values)
    assert_close(decode_image(encoded, 1), luma(values))
    rgba = decode_image(encoded, 4)
    assert rgba.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(rgba), np.dstack([values, np.full((HEIGHT, WIDTH), 255)]))


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_gray_keeps_its_values(num_channels):
    values = random_values()
    image = decode_image(encode(PIL.Image.fromarray(values)), num_channels)
    assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[num_channels]
    for band in image.split()[: min(num_channels, 3)]:
        np.testing.assert_array_equal(np.asarray(band), values)
    if num_channels == 4:
        assert image.getextrema()[3] == (255, 255)


def test_transparent_rgb_lies_on_white():
    values = random_values(4)
    values[0, 0] = (10, 20, 30, 0)
    encoded = encode(PIL.Image.fromarray(values))
    expected = over_white(values[..., :3], values[..., 3])
    image = decode_image(encoded, 3)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert_close(image, expected)
    assert_close(decode_image(encoded, 1), luma(expected), tolerance=1.5)
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 4)), values)


def test_transparent_gray_lies_on_white():
    values = random_values(2)
    encoded = encode(PIL.Image.fromarray(values, "LA"))
    expected = over_white(values[..., :1], values[..., 1])
    assert_close(decode_image(encoded, 1), expected[..., 0])
    assert_close(decode_image(encoded, 3), expected.repeat(3, axis=2))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 4)), values[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha(mode):
    straight = PIL.Image.new("RGBA" if mode == "RGBa" else "LA", (2, 2), (200,) * (len(mode) - 1) + (128,))
    expected = 200 * 128 / 255 + 255 * 127 / 255
    for num_channels in (1, 3):
        assert_close(
            convert_image(straight.convert(mode), num_channels).convert("L"), np.full((2, 2), expected), tolerance=2
        )


def test_one_transparent_color_of_an_rgb_or_gray_png():
    values = np.zeros((2, 2, 3), np.uint8)
    values[0, 0] = (10, 20, 30)
    image = decode_image(encode(PIL.Image.fromarray(values), transparency=(10, 20, 30)))
    assert [image.getpixel((x, y)) for y in range(2) for x in range(2)] == [(255,) * 3, (0,) * 3, (0,) * 3, (0,) * 3]
    image = decode_image(encode(PIL.Image.fromarray(values[..., 0]), transparency=10), 1)
    np.testing.assert_array_equal(np.asarray(image), [[255, 0], [0, 0]])


PALETTE = np.array([(250, 0, 10), (0, 240, 20), (30, 40, 230)], np.uint8)
PALETTE_INDICES = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)


def palette_image():
    image = PIL.Image.fromarray(PALETTE_INDICES, "P")
    image.putpalette(PALETTE.tobytes())
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(format):
    image = decode_image(encode(palette_image(), format))
    np.testing.assert_array_equal(np.asarray(image), PALETTE[PALETTE_INDICES])
    assert_close(decode_image(encode(palette_image(), format), 1), luma(PALETTE[PALETTE_INDICES]))


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(format):
    encoded = encode(palette_image(), format, transparency=1)
    expected = PALETTE[PALETTE_INDICES]
    expected[PALETTE_INDICES == 1] = 255
    np.testing.assert_array_equal(np.asarray(decode_image(encoded)), expected)
    alpha = np.asarray(decode_image(encoded, 4))[..., 3]
    np.testing.assert_array_equal(alpha, np.where(PALETTE_INDICES == 1, 0, 255))


def test_palette_with_an_alpha_for_each_entry(recwarn):
    alphas = np.array([0, 100, 255], np.uint8)
    encoded = encode(palette_image(), transparency=alphas.tobytes())
    assert_close(decode_image(encoded), over_white(PALETTE[PALETTE_INDICES], alphas[PALETTE_INDICES]))
    assert not recwarn  # Pillow warns where the alphas would be lost


def test_one_bit():
    bits = random_values() > 127
    encoded = encode(PIL.Image.fromarray(bits))
    assert PIL.Image.open(io.BytesIO(encoded)).mode == "1"
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 1)), bits * 255)
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 3)), np.dstack([bits * 255] * 3))


def test_cmyk_tiff():
    inks = random_values(4)
    cyan, magenta, yellow, black = np.moveaxis(inks.astype(float), 2, 0)
    expected = np.dstack([(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)])
    assert_close(decode_image(encode(PIL.Image.fromarray(inks, "CMYK"), "TIFF")), expected, tolerance=2)


def test_cmyk_jpeg():
    """Adobe's CMYK JPEGs store their inks inverted: taken literally, red would come out as a dark cyan."""
    encoded = encode(PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert PIL.Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert_close(decode_image(encoded), np.full((16, 16, 3), (255.0, 0.0, 0.0)), tolerance=6)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_other_color_spaces(mode, num_channels):
    white = {"YCbCr": (255, 128, 128), "LAB": (255, 128, 128), "HSV": (0, 0, 255)}[mode]
    image = convert_image(PIL.Image.new(mode, (2, 2), white), num_channels)
    assert_close(image.convert("L"), np.full((2, 2), 255.0), tolerance=2)


# More than 8 bits.


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff_big_endian", "tiff_int32"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_16_bit_gray_is_scaled_not_clipped(kind, num_channels):
    values = random_values(dtype=np.uint16)
    values[0, :3] = (0, 65535, 257)
    image = PIL.Image.fromarray(values.astype({"tiff_int32": np.int32, "tiff_big_endian": ">u2"}.get(kind, np.uint16)))
    encoded = encode(image, "PNG" if kind == "png" else "TIFF")
    assert PIL.Image.open(io.BytesIO(encoded)).mode.startswith("I")
    result = decode_image(encoded, num_channels)
    expected = np.array([[round(value / 257) for value in row] for row in values.tolist()])
    for band in result.split()[: min(num_channels, 3)]:
        np.testing.assert_array_equal(np.asarray(band), expected)


def test_a_dark_16_bit_image_stays_dark():
    image = convert_image(PIL.Image.fromarray(np.full((2, 2), 500, np.uint16)), 1)
    assert image.getextrema() == (2, 2)


@pytest.mark.parametrize("levels", [(0, 1000, 0, 2000, 0, 4000, 0, 500), ("0%", "100%") * 4])
def test_gray_of_16_bits_has_no_alpha_by_the_range_of_alpha(levels):
    values = random_values(dtype=np.uint16) % 1000
    rgba = np.asarray(convert_image(PIL.Image.fromarray(values), PixelFormat(4, levels)))
    assert (rgba[..., 3] == 255).all()
    rgb = np.asarray(convert_image(PIL.Image.fromarray(values), PixelFormat(3, levels[:6])))
    np.testing.assert_array_equal(rgba[..., :3], rgb)


@pytest.mark.parametrize("num_channels", [2, 5, 12])
def test_gray_of_16_bits_is_not_many_channels(num_channels):
    levels = (0, 1000) * num_channels
    with pytest.raises(WrongChannels):
        convert_image(PIL.Image.fromarray(random_values(dtype=np.uint16)), PixelFormat(num_channels, levels))


@pytest.mark.parametrize("low, high", [(-1000, 1000), (0, 10**6), (-5, -5)])
def test_integers_beyond_16_bits_are_stretched(low, high):
    values = np.linspace(low, high, HEIGHT * WIDTH).round().astype(np.int32).reshape(HEIGHT, WIDTH)
    image = decode_image(encode(PIL.Image.fromarray(values), "TIFF"), 1)
    assert_close(image, (values - low) / max(high - low, 1) * 255, tolerance=0.51)


@pytest.mark.parametrize(
    "low, high, black, white",
    [(0, 1, 0, 1), (0.2, 0.4, 0, 1), (0, 200, 0, 255), (0, 60000, 0, 65535), (-1, 1, -1, 1), (0, 1e6, 0, 1e6)],
)
def test_floats_are_scaled_by_the_range_that_holds_them(low, high, black, white):
    values = np.linspace(low, high, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    encoded = encode(PIL.Image.fromarray(values), "TIFF")
    assert PIL.Image.open(io.BytesIO(encoded)).mode == "F"
    assert_close(decode_image(encoded, 1), (values.astype(float) - black) / (white - black) * 255, tolerance=0.51)


def test_values_that_are_not_finite_count_as_zero(recwarn):
    values = np.array([[0.5, np.nan], [np.inf, 1]], np.float32)
    image = decode_image(PIL.Image.fromarray(values), 1)
    assert np.asarray(image).tolist() == [[128, 0], [0, 255]]
    assert not recwarn


# Orientation, sizes, frames.

# What EXIF's orientations ask for, in numpy: the first row of the file is the top, the top mirrored, the bottom, ...
UPRIGHT = {
    1: lambda values: values,
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: values[::-1].swapaxes(0, 1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: values[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(format, orientation):
    values = random_values(3)
    lossless = {"lossless": True} if format == "WEBP" else {}
    encoded = encode(PIL.Image.fromarray(values), format, exif=exif_with_orientation(orientation), **lossless)
    np.testing.assert_array_equal(np.asarray(decode_image(encoded)), UPRIGHT[orientation](values))


def test_exif_orientation_of_a_jpeg():
    values = np.zeros((16, 32), np.uint8)
    values[:, 16:] = 255  # white on the right; turned 90 degrees clockwise it is at the bottom
    image = decode_image(encode(PIL.Image.fromarray(values), "JPEG", exif=exif_with_orientation(6)), 1)
    assert image.size == (16, 32)
    assert_close(image, UPRIGHT[6](values).astype(float), tolerance=3)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_of_a_jpeg_does_not_cost_the_image(exif):
    image = decode_image(encode(PIL.Image.new("L", (8, 8), 77), "JPEG", exif=exif), 1)
    assert_close(image, np.full((8, 8), 77.0), tolerance=1)


def test_damaged_exif_of_a_png_does_not_cost_the_image():
    values = random_values()
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  8\nno hexadecimal digits")
    encoded = encode(PIL.Image.fromarray(values), pnginfo=text)
    with pytest.raises(ValueError):  # what Pillow makes of it
        PIL.Image.open(io.BytesIO(encoded)).getexif()
    np.testing.assert_array_equal(np.asarray(decode_image(encoded, 1)), values)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_one_pixel(mode, num_channels):
    image = decode_image(encode(PIL.Image.new(mode, (1, 1)), "TIFF" if mode == "CMYK" else "PNG"), num_channels)
    assert image.size == (1, 1) and len(image.getbands()) == num_channels


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_frames(format):
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    lossless = {"lossless": True} if format == "WEBP" else {}
    encoded = encode(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
    assert PIL.Image.open(io.BytesIO(encoded)).n_frames == 3
    assert decode_image(encoded).getcolors() == [(16, (255, 0, 0))]


# Trouble.


def cut(format, **kwargs):
    encoded = encode(
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), format, **kwargs
    )
    return encoded[: len(encoded) // 2]


UNREADABLE = {
    "zero bytes": b"",
    "cut JPEG": cut("JPEG"),
    "cut PNG": cut("PNG"),
    "cut TIFF": cut("TIFF"),
    "cut LZW TIFF": cut("TIFF", compression="tiff_lzw"),
    "cut WebP": cut("WEBP"),
    "cut GIF": cut("GIF"),
    "cut BMP": cut("BMP"),
    "HTML": b"<!DOCTYPE html>\n<html><body>404: not found</body></html>",
    "zeros": bytes(1000),
    "only a JPEG's beginning": b"\xff\xd8\xff\xe0",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "bytes"])
def test_damaged_files(tmp_path, content, in_memory):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        decode_image({"bytes": content, "path": str(path)} if in_memory else path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) > len(f"{path}: ") + 5
    assert "\n" not in message and "BytesIO" not in message


def test_a_corrupt_chunk_in_a_png():
    encoded = bytearray(encode(PIL.Image.fromarray(random_values(3))))
    encoded[encoded.index(b"IDAT") + 8] ^= 0xFF
    with pytest.raises(UnreadableImage):
        decode_image(bytes(encoded))


@pytest.mark.parametrize(
    "image, reason",
    [
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ("/nowhere/at/all.png", "No such file"),
        ({"bytes": None, "path": "/nowhere/at/all.png"}, "No such file"),
        (os.path.dirname(__file__), "directory"),
        (b"", "empty"),
    ],
)
def test_no_image(image, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(image)


def test_a_given_name_is_used():
    with pytest.raises(UnreadableImage, match=r"^row 17 of train: it is empty"):
        decode_image(b"", name="row 17 of train")
    with pytest.raises(UnreadableImage, match=r"^007\.png: it is empty"):
        decode_image({"bytes": b"", "path": "007.png"})


def test_a_cut_image_opened_lazily(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(cut("PNG"))
    with PIL.Image.open(path) as image, pytest.raises(UnreadableImage, match=r"cut\.png: .*truncated"):
        decode_image(image)


@pytest.mark.parametrize("side", [11, 15])  # Pillow only warns of 121 pixels (the limit is 100), and stops at 225
def test_decompression_bombs(monkeypatch, recwarn, side):
    encoded = encode(PIL.Image.new("L", (side, side)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match=f"{side} x {side} pixels") as caught:
        decode_image(encoded)
    assert "SIT_MAX_IMAGE_PIXELS" in remedy(str(caught.value)) and "damaged" not in remedy(str(caught.value))
    assert not recwarn
    assert decode_image(encoded, max_pixels=side * side).size == (side, side)
    monkeypatch.setenv("SIT_MAX_IMAGE_PIXELS", "1_000")
    assert decode_image(encoded).size == (side, side)
    monkeypatch.delenv("SIT_MAX_IMAGE_PIXELS")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(encoded).size == (side, side)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("limit", [1.5, 3])  # where Pillow, which checks a TIFF once more, warns or stops
def test_the_limit_is_raised_for_tiff(monkeypatch, recwarn, compression, mode, orientation, limit):
    image = smooth_image(30, 40).convert(mode)
    encoded = encode(image, "TIFF", compression=compression, exif=exif_with_orientation(orientation))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", int(1200 / limit))
    with pytest.raises(UnreadableImage, match=r"too large: (40 x 30|30 x 40) pixels"):
        decode_image(encoded)
    decoded = decode_image(encoded, 3, max_pixels=1200)
    expected = UPRIGHT[orientation](np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(np.asarray(decoded), expected)
    assert not recwarn


@pytest.mark.parametrize("limit", ["many", "-1", "0", "1e9"])
def test_a_wrong_limit_of_pixels(monkeypatch, limit):
    monkeypatch.setenv("SIT_MAX_IMAGE_PIXELS", limit)
    with pytest.raises(SiTError, match="SIT_MAX_IMAGE_PIXELS"):
        max_image_pixels()


@pytest.mark.parametrize("draft_scale", [None, DraftScale(((8, 0.2),), (3 / 4, 4 / 3))])
@pytest.mark.parametrize(
    "limit, factor", [(180 * 202, 1), (180 * 202 - 1, 2), (45 * 51, 4), (23 * 26, 8), (597, None)]
)
def test_jpegs_beyond_the_limit_are_decoded_at_a_fraction_of_their_size(
    monkeypatch, recwarn, draft_scale, limit, factor
):
    """Twice the limit, where Pillow stops, is no hindrance. With a draft scale it may shrink further."""
    encoded = encode(smooth_image(180, 202), "JPEG", exif=exif_with_orientation(6))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    if factor is None:
        with pytest.raises(UnreadableImage, match="202 x 180 pixels"):
            decode_image(encoded, draft_scale=draft_scale)
        return
    image = decode_image(encoded, draft_scale=draft_scale)
    factor = max(factor, 4 if draft_scale is not None else 1)
    assert image.size == (-(-180 // factor), -(-202 // factor)) and not recwarn
    size = decoded_size({"bytes": encoded, "path": None}, draft_scale or DraftScale(((10**6, 1.0),), (1, 1)))
    assert size == image.size[::-1]


def test_a_real_decompression_bomb_costs_no_memory():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UnreadableImage, match="100000 x 100000 pixels"):
        decode_image(bomb)


# What lies beside the pixels.


def big_text(kind, size):
    info = PngInfo()
    if kind == "iTXt":
        info.add_itxt("workflow", "x" * size, zip=True)
    else:
        info.add_text("workflow", "x" * size, zip=kind == "zTXt")
    return {"pnginfo": info}


def many_texts(number):
    info = PngInfo()
    for place in range(number):
        info.add_text(f"text {place}", "x" * 2**20, zip=True)
    return {"pnginfo": info}


def private_chunk(kind, content):
    info = PngInfo()
    info.add(kind, content)
    return {"pnginfo": info}


BESIDE = {
    "zTXt": ("PNG", lambda: big_text("zTXt", 2_000_000)),
    "iTXt": ("PNG", lambda: big_text("iTXt", 2_000_000)),
    "tEXt": ("PNG", lambda: big_text("tEXt", 5_000_000)),
    "many texts": ("PNG", lambda: many_texts(6)),
    "a color profile": ("PNG", lambda: {"icc_profile": bytes(3_000_000)}),
    "text of an unknown compression": ("PNG", lambda: private_chunk(b"zTXt", b"key\0\7text")),
    "a color profile of an unknown compression": ("PNG", lambda: private_chunk(b"iCCP", b"key\0\7profile")),
    "a gamma that is cut short": ("PNG", lambda: private_chunk(b"gAMA", b"\0")),
    "large EXIF": ("PNG", lambda: {"exif": b"Exif\0\0" + bytes(3_000_000)}),
    "a large comment of a JPEG": ("JPEG", lambda: {"comment": bytes(65_000), "quality": 100}),
    "a large color profile of a JPEG": ("JPEG", lambda: {"icc_profile": bytes(5_000_000), "quality": 100}),
    "EXIF of a JPEG": ("JPEG", lambda: {"exif": b"Exif\0\0" + bytes(65_000), "quality": 100}),
    "EXIF of a WebP": ("WEBP", lambda: {"exif": b"Exif\0\0" + bytes(3_000_000), "lossless": True}),
    "a description of a TIFF": ("TIFF", lambda: {"description": "x" * 3_000_000}),
    "a comment of a GIF": ("GIF", lambda: {"comment": b"x" * 3_000_000}),
}


@pytest.mark.filterwarnings("ignore")  # of damaged EXIF
@pytest.mark.parametrize("format, settings", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "bytes"])
def test_what_lies_beside_the_pixels_may_be_large_or_damaged(tmp_path, monkeypatch, format, settings, in_memory):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 2**22)  # it is 64 MB, which take seconds
    values = np.full((HEIGHT, WIDTH), 77, np.uint8)
    encoded = encode(PIL.Image.fromarray(values), format, **settings())
    (tmp_path / "image").write_bytes(encoded)
    image = {"bytes": encoded if in_memory else None, "path": str(tmp_path / "image")}
    assert_close(decode_image(image, 1), values.astype(float))
    assert decoded_size(image, DraftScale(((10**6, 1.0),), (1, 1))) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("where", ["exif", "text", "xmp"])
def test_an_image_with_a_large_text_is_upright(where):
    values = random_values(3)
    settings = big_text("zTXt", 2_000_000)
    if where == "exif":
        settings["exif"] = exif_with_orientation(6)
    elif where == "text":
        exif = exif_with_orientation(6).tobytes()
        settings["pnginfo"].add_text("Raw profile type exif", f"\nexif\n  {len(exif)}\n{exif.hex()}")
    else:
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    encoded = encode(PIL.Image.fromarray(values), **settings)
    np.testing.assert_array_equal(np.asarray(decode_image(encoded)), UPRIGHT[6](values))


def test_a_bomb_of_text_costs_no_memory():
    """Hundreds of megabytes, as a compressed text with the key that may tell the orientation: it is never decompressed whole."""
    compress = zlib.compressobj(9)
    bomb = b"".join([*(compress.compress(bytes(2**24)) for _ in range(8)), compress.flush()])
    settings = private_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
    encoded = encode(PIL.Image.fromarray(random_values()), **settings)
    assert len(encoded) < 2**20
    tracemalloc.start()
    decode_image(encoded)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_nothing_is_skipped_where_pixels_are_damaged():
    """A cut image with a large text is as damaged as without it, and Pillow's settings stay as they are."""
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encoded = encode(PIL.Image.fromarray(values), **big_text("zTXt", 2_000_000))
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(UnreadableImage) as caught:
        decode_image(encoded[: len(encoded) // 2])
    assert "damaged" in remedy(str(caught.value))
    after = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    assert before == after


def tiff_of_bands(number, dtype=np.uint8):
    """Bands of a TIFF as TIFF 6.0 has them, one strip, interleaved."""
    pixels = np.zeros((2, 2, number), dtype).tobytes()
    bits = 8 * np.dtype(dtype).itemsize
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, number, None), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, number), (278, 3, 1, 2), (279, 4, 1, len(pixels))]
    depths = 8 + len(pixels)
    directory = depths + 2 * number
    encoded = struct.pack("<2sHI", b"II", 42, directory) + pixels + struct.pack(f"<{number}H", *[bits] * number)
    encoded += struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        encoded += struct.pack("<HHII", tag, kind, count, depths if value is None else value)
    return encoded + bytes(4)


PNG_OF_AN_UNKNOWN_DEPTH = bytearray(encode(PIL.Image.new("L", (1, 1))))
PNG_OF_AN_UNKNOWN_DEPTH[24] = 7
PNG_OF_AN_UNKNOWN_DEPTH[29:33] = struct.pack(">I", zlib.crc32(PNG_OF_AN_UNKNOWN_DEPTH[12:29]))


@pytest.mark.parametrize(
    "content, expected",
    [
        (cut("PNG"), "damaged"),
        (cut("JPEG"), "damaged"),
        (cut("TIFF", compression="tiff_lzw"), "damaged"),
        (tiff_of_bands(12, np.uint16), "choose the channels"),
        (tiff_of_bands(5), "choose the channels"),
        (bytes(PNG_OF_AN_UNKNOWN_DEPTH), "convert"),
        (encode(PIL.Image.new("L", (1, 1)), "BMP").replace(b"\x01\x00\x08\x00", b"\x01\x00\x07\x00"), "convert"),
    ],
)
def test_remedies_tell_damage_from_what_pillow_does_not_support(content, expected):
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content)
    assert expected in remedy(str(caught.value))
    assert ("damaged" in remedy(str(caught.value))) == (expected == "damaged")


@pytest.mark.parametrize("image", [None, "/nowhere/at/all.png", b"", bytes(100)])
def test_no_remedy_is_made_up(image):
    with pytest.raises(UnreadableImage) as caught:
        decode_image(image)
    assert remedy(str(caught.value)) is None


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png: cut")))
    assert isinstance(error, UnreadableImage) and str(error) == "a.png: cut"


# Large images, decoded smaller.

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers12" / "train.parquet"
SQUARE = (3 / 4, 4 / 3)


def smooth_image(height, width):
    row, column = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(row / period) * np.cos(column / period) for period in (19, 23, 31)]
    return PIL.Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


class TestDraftScale:
    @pytest.mark.parametrize(
        ("width", "height", "view_side", "factor"),
        [(500, 375, 224, 1), (4000, 3000, 224, 2), (6000, 4000, 224, 4), (4000, 3000, 96, 4), (6000, 4000, 64, 8)],
    )
    def test_of_usual_sizes(self, width, height, view_side, factor):
        """The smallest crop's short side, sqrt(0.2 * 3 / 4 * area), is divided as long as twice the view's is left."""
        assert DraftScale(((view_side, 0.2),), SQUARE).factor(width, height) == factor

    @pytest.mark.parametrize("size", [(640, 480), (2000, 100), (300, 4000), (900, 900), (5000, 5000)])
    @pytest.mark.parametrize(
        ("scale", "ratio"), [((0.2, 1.0), SQUARE), ((0.5, 0.6), (2.0, 3.0)), ((0.9, 1.0), (1, 1))]
    )
    def test_no_crop_that_is_drawn_is_left_with_less_than_twice_the_view(self, size, scale, ratio):
        torch.manual_seed(0)
        image = PIL.Image.new("1", size)
        boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(200)]
        shortest = min(min(box[2:]) for box in boxes)
        for view_side in (8, 20, 50, 130):
            factor = DraftScale(((view_side, scale[0]),), ratio).factor(*size)
            assert factor == 1 or shortest + 1 >= factor * 2 * view_side

    def test_does_not_hang_on_which_way_up_a_image_lies(self):
        draft_scale = DraftScale(((50, 0.2),), SQUARE)
        assert all(draft_scale.factor(a, b) == draft_scale.factor(b, a) for a in (300, 900, 2000) for b in (200, 1500))


class TestReducedImages:
    VIEWS_OF_8 = DraftScale(((8, 0.2),), SQUARE)  # 90 pixels: half; 180: a quarter

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("size", [(90, 91), (181, 203), (97, 180)])
    @pytest.mark.parametrize("num_channels", [1, 3, 4])
    def test_are_the_means_of_the_full_ones(self, format, size, num_channels):
        """A factor of 2 or 4, rounded up, of any format; and as large as its header says."""
        settings = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
        encoded = encode(smooth_image(*size), format, **settings)
        image = decode_image(encoded, num_channels, draft_scale=self.VIEWS_OF_8)
        factor = self.VIEWS_OF_8.factor(*size)
        assert factor > 1
        assert image.size == (-(-size[1] // factor), -(-size[0] // factor))
        assert image.size == decoded_size({"bytes": encoded, "path": None}, self.VIEWS_OF_8)
        expected = decode_image(encoded, num_channels).reduce(factor)
        inside = (slice(0, size[0] // factor), slice(0, size[1] // factor))
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected))[inside]
        assert difference.max() <= 4 and difference.mean() < 1

    def test_jpegs_are_not_decoded_in_full(self, monkeypatch):
        asked = []
        draft = PIL.JpegImagePlugin.JpegImageFile.draft
        monkeypatch.setattr(
            PIL.JpegImagePlugin.JpegImageFile, "draft", lambda image, *size: asked.append(size) or draft(image, *size)
        )
        decode_image(encode(smooth_image(180, 180), "JPEG"), draft_scale=self.VIEWS_OF_8)
        assert asked == [(None, (45, 45))]

    def test_are_upright(self):
        exif = exif_with_orientation(6)
        image = decode_image(encode(smooth_image(90, 120), "JPEG", exif=exif), draft_scale=self.VIEWS_OF_8)
        assert image.size == (45, 60)

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    def test_small_ones_are_left_alone(self, format):
        encoded = encode(smooth_image(40, 50), format)
        reduced = decode_image(encoded, draft_scale=self.VIEWS_OF_8)
        np.testing.assert_array_equal(np.asarray(reduced), np.asarray(decode_image(encoded)))

    def test_pil_images_are_left_as_they_are(self):
        image = smooth_image(90, 90)
        assert decode_image(image, draft_scale=self.VIEWS_OF_8).size == (45, 45)
        assert image.size == (90, 90)

    @pytest.mark.parametrize("bad", [b"", b"broken", None])
    def test_those_that_cannot_be_read_are_named_as_before(self, bad):
        with pytest.raises(UnreadableImage) as full:
            decode_image({"bytes": bad, "path": "a.png"}, name="a.png")
        with pytest.raises(UnreadableImage) as reduced:
            decode_image({"bytes": bad, "path": "a.png"}, name="a.png", draft_scale=self.VIEWS_OF_8)
        assert str(full.value) == str(reduced.value)

    @pytest.mark.skipif(not FLOWERS.exists(), reason="needs the flowers of ../shared/data")
    def test_views_of_flowers_hardly_differ(self):
        """At the smallest crop and the least that is left of it, twice the view's pixels, by less than 1.5 of 255 on average."""
        rows = pyarrow.parquet.read_table(FLOWERS)["image"].to_pylist()[:20]
        draft_scale = DraftScale(((21, 0.2),), SQUARE)
        differences = []
        for row in rows:
            full, half = decode_image(row), decode_image(row, draft_scale=draft_scale)
            assert (full.size, half.size) == ((224, 224), (112, 112))
            views = [
                np.asarray(image.resize((21, 21), PIL.Image.Resampling.BICUBIC, box), dtype=float)
                for image, box in ((full, (40, 60, 124, 144)), (half, (20, 30, 62, 72)))
            ]
            differences.append(np.abs(views[0] - views[1]).mean())
        assert max(differences) < 1.5 and np.mean(differences) < 1


def test_a_pipe_or_a_device_is_no_image(tmp_path):
    """To open a pipe is to wait for its writer."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (str(tmp_path / "pipe.png"), os.devnull):
        with pytest.raises(UnreadableImage, match="pipe or a device"):
            decode_image(path)
        with pytest.raises(UnreadableImage):
            decoded_size({"bytes": None, "path": path}, DraftScale(((1, 1.0),), (1.0, 1.0)))
