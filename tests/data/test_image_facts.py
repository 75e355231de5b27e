"""What a few images tell of a dataset."""

import sys

import datasets
import numpy as np
import PIL.Image
import pytest
import tifffile

from modeling_sit.data.image_facts import ImageFacts, read_image_facts
from modeling_sit.data.sources import load_images


@pytest.fixture
def facts_of_files(tmp_path):
    def facts(images: list[PIL.Image.Image], format: str = "png", streaming: bool = False) -> ImageFacts | None:
        for number, image in enumerate(images):
            image.save(tmp_path / f"{number:03d}.{format}")
        return read_image_facts(load_images(str(tmp_path)))

    return facts


def image_of(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def test_medians(facts_of_files):
    images = [image_of(*size) for size in ((60, 40), (80, 40), (500, 20), (60, 50), (60, 40))]
    assert facts_of_files(images) == ImageFacts(5, 40, 60, 3)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray(facts_of_files, mode):
    assert facts_of_files([image_of(20, 30, mode)] * 3) == ImageFacts(3, 30, 20, 1)


def test_gray_in_three_channels(facts_of_files):
    gray = [image_of(700, 500, "L").convert("RGB")]
    assert facts_of_files(gray * 2, "jpg").is_gray
    assert not facts_of_files([*gray, image_of(700, 500)], "jpg").is_gray


def test_images_on_their_side(facts_of_files, tmp_path):
    image = image_of(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    facts = read_image_facts(load_images(str(tmp_path)))
    assert (facts.height, facts.width) == (40, 20)


def test_unreadable_images_are_left_out(facts_of_files, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert facts_of_files([image_of(20, 30)]) == ImageFacts(2, 30, 20, 3)


def test_none_is_readable(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert read_image_facts(load_images(str(tmp_path))) is None


def test_a_stream(facts_of_files, tmp_path):
    images = [image_of(20, 30, "L")] * 3
    expected = facts_of_files(images)
    stream = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train").to_iterable_dataset()
    facts = read_image_facts(load_images(stream))
    assert (facts.height, facts.width, facts.is_gray) == (expected.height, expected.width, True)


def test_reads_few_of_many():
    images = load_images("digits")
    assert read_image_facts(images) == ImageFacts(images.num_train, 8, 8, 1)


class TestChannels:
    @staticmethod
    def facts(folder, values: list[np.ndarray], **settings) -> ImageFacts:
        for number, each in enumerate(values):
            np.save(folder / f"{number:03}.npy", each)
        return read_image_facts(load_images(str(folder)), **settings)

    def test_mean_and_standard_deviation_of_each(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 4096, (5, 20, 30, 12), dtype=np.uint16)
        facts = self.facts(tmp_path, list(values), intensity_range=[0, 4095])
        assert (facts.num_images, facts.height, facts.width, facts.num_channels) == (5, 20, 30, 12)
        np.testing.assert_allclose(facts.mean, (values / 4095).mean((0, 1, 2)), atol=1e-3)
        np.testing.assert_allclose(facts.std, (values / 4095).std((0, 1, 2)), atol=1e-3)

    @pytest.mark.parametrize(("channels", "expected"), [((1, 1), 1), ((3, 3), 3), ((1, 3), 3), ((5, 5, 3), 5)])
    def test_how_many(self, tmp_path, channels, expected):
        generator = np.random.default_rng(0)
        values = [generator.integers(0, 256, (9, 8, count), dtype=np.uint8) for count in channels]
        assert self.facts(tmp_path, values).num_channels == expected

    def test_channels_that_are_constant(self, tmp_path):
        facts = self.facts(tmp_path, [np.full((9, 8, 2), 51, np.uint8)])
        assert facts.mean == (0.2, 0.2) and min(facts.std) > 0

    def test_without_the_reader(self, tmp_path, monkeypatch):
        tifffile.imwrite(
            tmp_path / "a.tif", np.zeros((9, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig"
        )
        monkeypatch.setitem(sys.modules, "tifffile", None)
        assert read_image_facts(load_images(str(tmp_path))) == ImageFacts(1, 9, 8, 5)
