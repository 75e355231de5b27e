"""Images of many channels and of more than 8 bits, against the stored values."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from modeling_sit.data import array_files
from modeling_sit.data.array_files import read_header
from modeling_sit.data.decoding import DraftScale, UnfitImage, UnreadableImage, decode_image, decoded_size, remedy
from modeling_sit.image_modes import PixelFormat

CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
TWELVE_BITS = (0, 4095)


def random_values(*shape: int, dtype=np.uint16, top: int = 4096) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, top, shape).astype(dtype)


def tiff(values: np.ndarray, **settings) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **settings)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def png_of_16_bits(values: np.ndarray, beside: list[tuple[bytes, bytes]] = ()) -> bytes:
    """Pillow writes none with several channels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + b"".join(chunk(*each) for each in beside)
    chunks += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The slow way to 8 bits."""
    flat = [min(max((float(value) - low) / (high - low), 0), 1) * 255 for value in values.ravel()]
    return np.rint(flat).astype(np.uint8).reshape(values.shape)


def pixels_of(encoded: bytes, num_channels: int, intensity_range=None) -> np.ndarray:
    return np.asarray(decode_image(encoded, PixelFormat(num_channels, intensity_range)))


class TestChannels:
    """Files of channels that are no colors have exactly the stored values."""

    @pytest.mark.parametrize("num_channels", [2, 4, 5, 12, 16])
    @pytest.mark.parametrize(
        "settings",
        [
            CONTIGUOUS,
            {**CONTIGUOUS, "byteorder": ">"},
            {**CONTIGUOUS, "bigtiff": True},
            {**CONTIGUOUS, "bigtiff": True, "byteorder": ">"},
            {**CONTIGUOUS, "compression": "zlib", "predictor": True},
            {**CONTIGUOUS, "compression": "lzw"},
            {**CONTIGUOUS, "tile": (16, 16)},
        ],
        ids=lambda settings: (
            "-".join(str(value) for name, value in settings.items() if name not in CONTIGUOUS) or "plain"
        ),
    )
    def test_tiff(self, num_channels, settings):
        values = random_values(20, 30, num_channels)
        assert (pixels_of(tiff(values, **settings), num_channels, TWELVE_BITS) == scaled(values, 0, 4095)).all()

    @pytest.mark.parametrize(("num_channels", "dtype"), [(2, np.uint8), (4, np.uint8), (12, np.uint8)])
    def test_8_bits_stay(self, num_channels, dtype):
        values = random_values(9, 7, num_channels, dtype=dtype, top=256)
        for intensity_range in (None, TWELVE_BITS):
            assert (pixels_of(tiff(values, **CONTIGUOUS), num_channels, intensity_range) == values).all()

    def test_planes(self):
        values = random_values(12, 20, 30)
        encoded = tiff(values, photometric="minisblack", planarconfig="separate")
        assert (pixels_of(encoded, 12, TWELVE_BITS) == scaled(np.moveaxis(values, 0, -1), 0, 4095)).all()

    # ImageJ has the channels behind the depth.
    @pytest.mark.parametrize(
        ("kind", "axes"),
        [(kind, axes) for kind in ("imagej", "ome") for axes in ("CYX", "ZCYX", "TZCYX")] + [("ome", "CZYX")],
    )
    def test_stacks_of_microscopes(self, kind, axes):
        sizes = {"T": 2, "Z": 3, "C": 4, "Y": 20, "X": 30}
        values = random_values(*[sizes[axis] for axis in axes])
        first = values[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]
        encoded = tiff(values, **{kind: True}, metadata={"axes": axes})
        assert (pixels_of(encoded, 4, TWELVE_BITS) == scaled(np.moveaxis(first, 0, -1), 0, 4095)).all()
        assert (pixels_of(encoded, 1, TWELVE_BITS) == scaled(first[0], 0, 4095)).all()  # the first page

    def test_a_stack_of_three_is_color(self):
        values = random_values(3, 20, 30, dtype=np.uint8, top=256)
        assert (pixels_of(tiff(values, imagej=True, metadata={"axes": "CYX"}), 3) == np.moveaxis(values, 0, -1)).all()

    def test_pages_are_frames(self):
        values = random_values(5, 20, 30, dtype=np.uint8, top=256)
        assert (pixels_of(tiff(values, photometric="minisblack"), 1) == values[0]).all()

    @pytest.mark.parametrize("shape", [(20, 30, 12), (12, 20, 30), (8, 9, 12)])
    def test_npy(self, shape):
        values = random_values(*shape)
        expected = np.moveaxis(values, 0, -1) if shape[0] == 12 else values
        assert (pixels_of(npy(values), 12, TWELVE_BITS) == scaled(expected, 0, 4095)).all()

    @pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30)])
    def test_gray_npy(self, shape):
        values = random_values(*shape)
        assert (pixels_of(npy(values), 1, TWELVE_BITS) == scaled(values.reshape(20, 30), 0, 4095)).all()

    def test_color_npy(self):
        values = random_values(20, 30, 3, dtype=np.uint8, top=256)
        image = decode_image(npy(values), 3)
        assert image.mode == "RGB" and (np.asarray(image) == values).all()
        assert decode_image(npy(values), 1).mode == "L"

    def test_bands_beside_color(self):
        values = random_values(20, 30, 4, dtype=np.uint8, top=256)
        encoded = tiff(values, photometric="rgb", extrasamples=["unspecified"])
        assert (pixels_of(encoded, 4) == values).all()
        assert (pixels_of(encoded, 3) == values[..., :3]).all()

    def test_a_range_for_each_channel(self):
        values = random_values(20, 30, 2)
        ranges = (0, 4095, 1000, 2000)
        expected = np.stack([scaled(values[..., 0], 0, 4095), scaled(values[..., 1], 1000, 2000)], axis=-1)
        assert (pixels_of(npy(values), 2, ranges) == expected).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation):
        values = random_values(20, 30, 5, dtype=np.uint8, top=256)
        encoded = tiff(values, **CONTIGUOUS, extratags=[(274, "H", 1, orientation, True)])
        gray = tiff(values[..., 0], extratags=[(274, "H", 1, orientation, True)])
        assert (pixels_of(encoded, 5)[..., 0] == pixels_of(gray, 1)).all()  # as Pillow turns it

    def test_reduced(self):
        values = random_values(64, 64, 5, dtype=np.uint8, top=256)
        scale = DraftScale(((8, 1.0),), (1.0, 1.0))
        reduced = decode_image(npy(values), 5, draft_scale=scale)
        means = values.reshape(16, 4, 16, 4, 5).mean((1, 3))
        assert reduced.shape == (16, 16, 5) and np.abs(reduced - means).max() <= 0.5
        assert decoded_size({"bytes": npy(values), "path": None}, scale) == (16, 16)


class TestDepth:
    def test_12_bits_keep_their_levels(self):
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        encoded = tiff(values)
        assert len(np.unique(pixels_of(encoded, 1))) == 17
        assert len(np.unique(pixels_of(encoded, 1, TWELVE_BITS))) == 256

    def test_12_bits_that_are_packed(self):
        values = random_values(4, 6)
        encoded = tiff(values, photometric="minisblack", compression=None, bitspersample=12)
        assert (pixels_of(encoded, 1) == scaled(values, 0, 4095)).all()

    @pytest.mark.parametrize(("intensity_range", "low", "high"), [(None, 0, 65535), (TWELVE_BITS, 0, 4095)])
    def test_white_is_zero(self, intensity_range, low, high):
        values = random_values(20, 30)
        encoded = tiff(values, photometric="miniswhite")
        assert (pixels_of(encoded, 1, intensity_range) == 255 - scaled(values, low, high)).all()
        color = pixels_of(encoded, 3, intensity_range)
        assert (color == 255 - scaled(values, low, high)[..., None]).all()

    def test_white_is_zero_turned(self):
        values = random_values(20, 30)
        turned = [(274, "H", 1, 6, True)]
        image = pixels_of(tiff(values, photometric="miniswhite", extratags=turned), 1, TWELVE_BITS)
        assert (image == 255 - scaled(np.rot90(values, -1), 0, 4095)).all()

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
    def test_color_of_floats(self, dtype):
        values = np.random.default_rng(0).random((20, 30, 3)).astype(dtype)
        encoded = tiff(values, photometric="rgb")
        assert (pixels_of(encoded, 3) == np.rint(values.astype(np.float32) * 255)).all()
        assert (pixels_of(encoded, 3, (0.25, 0.5)) == scaled(values, 0.25, 0.5)).all()

    def test_values_that_are_not_finite(self):
        values = np.array([[np.nan, np.inf, -np.inf, 100]], dtype=np.float32)
        assert pixels_of(npy(values), 1, (50, 150)).tolist() == [[0, 255, 0, 128]]

    @pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.int64])
    def test_a_window_of_any_type(self, dtype):
        values = (random_values(20, 30) - (1024 if np.issubdtype(dtype, np.signedinteger) else 0)).astype(dtype)
        for encoded in [npy(values)] + ([tiff(values)] if dtype != np.int64 else []):
            assert (pixels_of(encoded, 1, (100, 500)) == scaled(values, 100, 500)).all()

    @pytest.mark.parametrize("write", [png_of_16_bits, lambda values: tiff(values, photometric="rgb")])
    def test_color_of_16_bits_keeps_them_for_a_range(self, write):
        values = random_values(20, 30, 3)
        assert (pixels_of(write(values), 3, TWELVE_BITS) == scaled(values, 0, 4095)).all()
        assert (pixels_of(write(values), 3) == values >> 8).all()  # as before there were ranges

    @pytest.mark.parametrize(("given", "wanted"), [(2, 3), (2, 4), (3, 4), (4, 3), (4, 4)])
    def test_a_range_for_each_channel(self, given, wanted):
        """Alpha has none: it is that of its type, or full where there is none."""
        values = random_values(6, 5, given)
        has_alpha = given in (2, 4)
        if has_alpha and wanted == 3:
            values[..., -1] = 65535  # else white would shine through
        ranges = [(0, 4095), (100, 3000), (0, 2000), (7, 9)][:wanted]
        found = pixels_of(png_of_16_bits(values), wanted, [level for pair in ranges for level in pair])
        for channel in range(3):
            source = values[..., channel if given > 2 else 0]
            np.testing.assert_array_equal(found[..., channel], scaled(source, *ranges[channel]))
        if wanted == 4:
            alpha = scaled(values[..., -1], 0, 65535) if has_alpha else np.full((6, 5), 255)
            np.testing.assert_array_equal(found[..., 3], alpha)

    @pytest.mark.parametrize("write", [png_of_16_bits, lambda values: tiff(values, photometric="rgb")])
    def test_alpha_has_the_range_of_its_type(self, write):
        values = random_values(20, 30, 4)
        values[..., 3] = 65535
        assert (pixels_of(write(values), 3, TWELVE_BITS) == scaled(values[..., :3], 0, 4095)).all()
        values[..., 3] = 0
        assert (pixels_of(write(values), 3, TWELVE_BITS) == 255).all()

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_color_of_16_bits_is_upright_whatever_lies_beside_it(self, channels, orientation):
        """EXIF behind the pixels, and a text that is too large for Pillow and for libpng."""
        values = random_values(20, 30, channels)
        exif = PIL.Image.Exif()
        exif[274] = orientation
        beside = [(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), (b"iCCP", b"key\0\7profile")]
        beside += [(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**24)))]
        encoded = png_of_16_bits(values, beside)
        turned = {1: values, 3: values[::-1, ::-1], 6: np.rot90(values, -1)}[orientation]
        assert (pixels_of(encoded, 3)[..., :3].shape) == turned[..., :3].shape
        if channels == 3:
            assert (pixels_of(encoded, 3, TWELVE_BITS) == scaled(turned, 0, 4095)).all()
        else:
            found = pixels_of(encoded, 4, TWELVE_BITS)
            assert (found[..., :3] == scaled(turned[..., :3], 0, 4095)).all()
            assert (found[..., 3] == scaled(turned[..., 3], 0, 65535)).all()

    def test_booleans(self):
        assert pixels_of(npy(np.array([[True, False]])), 1).tolist() == [[255, 0]]


class TestErrors:
    @pytest.mark.parametrize(("stored", "asked"), [(12, 3), (12, 1), (2, 1), (3, 12), (4, 3), (5, 4)])
    def test_other_channels(self, stored, asked):
        values = random_values(20, 30, stored)
        for encoded in (npy(values), tiff(values, **CONTIGUOUS)):
            with pytest.raises(UnfitImage, match=f"{stored} channels .`num_channels` {stored}.*not {asked}"):
                decode_image(encoded, asked)

    def test_no_channels_are_made_up(self):
        encoded = io.BytesIO()
        PIL.Image.new("RGB", (4, 4)).save(encoded, "PNG")
        with pytest.raises(UnfitImage, match="3 channels"):
            decode_image(encoded.getvalue(), 12)

    def test_no_reader(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tifffile", None)
        with pytest.raises(UnfitImage, match=r"12 channels of 16 bits.*modeling-sit\[scientific\]"):
            decode_image(tiff(random_values(20, 30, 12), **CONTIGUOUS), 12)
        with pytest.raises(UnfitImage, match=r"3 channels of 32 bits.*modeling-sit\[scientific\]"):
            decode_image(tiff(np.zeros((4, 4, 3), np.float32), photometric="rgb"), 3)
        assert pixels_of(tiff(random_values(20, 30)), 1, TWELVE_BITS).shape == (20, 30)  # Pillow's

    def test_nothing_on_stderr(self, capfd):
        decode_image(tiff(random_values(20, 30, 12), **CONTIGUOUS), 12)
        assert capfd.readouterr().err == ""  # Pillow would say that it cannot read it

    @pytest.mark.parametrize(
        "values",
        [
            np.zeros(4),
            np.zeros((20, 30, 17)),
            np.zeros((2, 3, 4, 5)),
            np.zeros((0, 3)),
            np.zeros((3, 3), complex),
            np.array([["a"]]),
        ],
    )
    def test_arrays_that_are_no_images(self, values):
        with pytest.raises(UnreadableImage, match="array of") as error:
            decode_image(npy(values), 1)
        assert "convert" in remedy(str(error.value)) and "damaged" not in remedy(str(error.value))

    def test_pickles_are_not_read(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        encoded = npy(np.array([[Harm()]], dtype=object))
        with pytest.raises(UnreadableImage):
            decode_image(encoded, 1)
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("end", [10, 100, 700])
    @pytest.mark.parametrize("write", [npy, lambda values: tiff(values, **CONTIGUOUS)])
    def test_files_that_are_cut_short(self, write, end):
        with pytest.raises(UnreadableImage):
            decode_image(write(random_values(20, 30, 12))[:end], 12)

    @pytest.mark.parametrize("write", [npy, lambda values: tiff(values, **CONTIGUOUS)])
    def test_pixels_that_are_cut_short_are_damage(self, write):
        encoded = write(random_values(20, 30, 12))
        with pytest.raises(UnreadableImage) as error:
            decode_image(encoded[: len(encoded) - 1000], 12)
        assert "damaged" in remedy(str(error.value))

    def test_too_many_pixels(self, monkeypatch):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
        for encoded in (npy(random_values(20, 30, 5)), tiff(random_values(20, 30, 5), **CONTIGUOUS)):
            image = {"bytes": encoded, "path": None}
            with pytest.raises(UnreadableImage, match="30 x 20 pixels") as error:
                decode_image(image, 5)
            assert "raise the limit" in remedy(str(error.value))
            with pytest.raises(UnreadableImage, match="30 x 20 pixels"):
                decoded_size(image, DraftScale(((8, 1.0),), (1.0, 1.0)))
            assert decode_image(image, 5, max_pixels=600).shape == (20, 30, 5)
            monkeypatch.setenv("SIT_MAX_IMAGE_PIXELS", "600")
            assert decode_image(image, 5).shape == (20, 30, 5)
            monkeypatch.delenv("SIT_MAX_IMAGE_PIXELS")


class TestFormat:
    @pytest.mark.parametrize("values", [(1,), (0, 1, 2), (5, 5), (9, 1), (0, float("inf")), (0, 1, 0, 1)])
    def test_ranges_that_are_none(self, values):
        with pytest.raises(ValueError, match="intensity_range"):
            PixelFormat(3, values)

    def test_lists_are_one_format(self):
        assert PixelFormat(2, [0, 5]) == PixelFormat(2, (0.0, 5.0))
        assert hash(PixelFormat(2, [0, 5])) == hash(PixelFormat(2, (0.0, 5.0)))


@pytest.mark.parametrize("intensity_range", [None, (0, 4095)])
def test_the_header_of_a_tiff_is_not_parsed_again(intensity_range, monkeypatch):
    """Pillow has done so."""
    parsed = []
    monkeypatch.setattr(array_files, "ImageFileDirectory_v2", parsed.append)
    decode_image(tiff(random_values(8, 8)), PixelFormat(1, intensity_range))
    decode_image(tiff(random_values(8, 8, 3)), PixelFormat(3, intensity_range))
    assert not parsed


def test_headers_of_other_files():
    for format in ("PNG", "JPEG", "GIF"):
        buffer = io.BytesIO()
        PIL.Image.new("L", (4, 4)).save(buffer, format)
        assert read_header(buffer) is None
