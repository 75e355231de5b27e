"""What a dataset's reader understood, in lines."""

import io
import os
import re
import unicodedata

import datasets
import numpy as np
import PIL.Image
import pytest
from labeled_rows import encoded

from modeling_sit.data import image_sample, opening
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.description import describe, tell, told
from modeling_sit.data.image_facts import read_image_facts
from modeling_sit.data.sources import load_images
from modeling_sit.image_modes import PixelFormat


def save(image: np.ndarray | PIL.Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(path)


def noise(height: int = 6, width: int = 8, channels: int | None = 3, largest: int = 255, seed: int = 0, type="uint8"):
    shape = (height, width) if channels is None else (height, width, channels)
    values = np.random.default_rng(seed).integers(0, largest + 1, shape).astype(type)
    values.flat[0] = largest
    return values


def folder_of(tmp_path, counts: dict[str, int]) -> str:
    seed = 0
    for folder, count in counts.items():
        for number in range(count):
            save(noise(seed=(seed := seed + 1)), tmp_path / folder / f"{number}.png")
    return str(tmp_path)


def lines_of(dataset, **arguments) -> list[str]:
    images = load_images(dataset if isinstance(dataset, dict | datasets.Dataset) else str(dataset), **arguments)
    return [line.strip() for line in describe(images).lines()]


def line_with(text: str, lines: list[str]) -> str:
    (line,) = [line for line in lines[1:] if text in line]
    return line


class TestSplitsAndClasses:
    def test_a_pile(self, tmp_path):
        folder = folder_of(tmp_path, {"": 3})
        assert lines_of(folder) == [
            f"{folder}: 3 images in train",
            "a sample of 3: 6 x 8 pixels; RGB of 8 bits",
        ]

    def test_splits_with_classes(self, tmp_path):
        folder = folder_of(
            tmp_path, {"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 2, "test/c": 1}
        )
        lines = lines_of(folder)
        assert lines[:3] == [
            f"{folder}: 5 images of 2 classes in train, 2 in val; splits that are not used: test",
            "splits: train from train/, val from val/",
            "classes in train: a 3, b 2",
        ]
        assert line_with("no image in train", lines).endswith(" of c")

    def test_numbers_are_in_order_and_labels_as_they_were(self, tmp_path, caplog):
        """Also folders that are pooled."""
        folder = folder_of(tmp_path, {f"train_{part}/{name}": 1 for part in (1, 2, 10) for name in (1, 2, 10)})
        images = load_images(folder)
        assert images.label_names == ["1", "10", "2"]
        assert "classes in train: 1 3, 2 3, 10 3" in lines_of(folder)
        assert "train_1, train_2, train_10" in caplog.text

    def test_classes_that_differ(self, tmp_path):
        folder = folder_of(tmp_path, {"train/a": 1, "train/b": 1, "test/b": 1, "test/c": 2})
        lines = [line for line in lines_of(folder) if line.startswith("classes differ")]
        assert lines == ["classes differ: no image in test of a", "classes differ: only in test there are c"]

    @pytest.mark.parametrize(
        ("train", "test", "expected"),
        [
            ("Cat dog", "cat dog", "'Cat' and 'cat'"),
            ("caf\u00e9 dog", "cafe\u0301 dog", "'caf\u00e9' and 'cafe\u0301'"),
            ("black_cat dog", "Black~cat dog", "'Black cat' and 'black_cat'"),
            ("A a", "A a", None),
            ("A- B", "A B", None),
        ],
    )
    def test_classes_that_only_seem_to_differ(self, tmp_path, train, test, expected):
        folders = [
            f"{split}/{name}" for split, names in (("train", train), ("test", test)) for name in names.split(" ")
        ]
        lines = lines_of(folder_of(tmp_path, {folder.replace("~", " "): 1 for folder in folders}))
        told = [line for line in lines if "count as different classes" in line]
        assert len(told) == (expected is not None)
        assert all(unicodedata.normalize("NFC", expected) in unicodedata.normalize("NFC", line) for line in told)

    def test_many_classes_are_counted_in_a_line(self, tmp_path):
        names = [f"class {number:02}" for number in range(12)]
        line = line_with("classes in train", lines_of(folder_of(tmp_path, dict.fromkeys(names, 1) | {names[7]: 3})))
        assert line == "classes in train: 12, of 1 (class 00) to 3 images (class 07)"
        assert "12 classes" in lines_of(tmp_path)[0]

    def test_images_without_a_label(self):
        rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(6)], "label": [0, 5, 7, -1, -1, None]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        lines = lines_of(datasets.Dataset.from_dict(rows, features=features))
        assert line_with("classes in train", lines).endswith("0 1, 5 1, 7 1; 3 images without a label")
        assert "2 of 6 labels are -1" in line_with("means no label", lines)

    def test_several_labels_per_image(self):
        rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(3)], "label": [["a"], ["a", "b"], None]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.List(datasets.Value("string"))})
        lines = lines_of(datasets.Dataset.from_dict(rows, features=features))
        assert "classes in train: a 2, b 1; 1 image without a label" in lines

    def test_one_class_that_may_be_none(self, tmp_path):
        folder = folder_of(tmp_path, {"PetImages/Cat": 2, "PetImages/Dog": 2})
        lines = lines_of(folder)
        assert "splits: train from PetImages/" in lines
        assert "Cat, Dog" in line_with("one class;", lines)

    def test_files_of_tables(self, tmp_path):
        for name, count in (("train-0.parquet", 2), ("train-1.parquet", 3), ("test.parquet", 1)):
            rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(count)]}
            datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(
                tmp_path / name
            )
        lines = lines_of(tmp_path)
        assert lines[0].endswith("5 images in train, 1 in test")
        assert lines[1] == "splits: train from 2 files, such as train-0.parquet, test from test.parquet"
        streamed = lines_of(tmp_path, streaming=True)
        assert streamed[0].endswith("5 images in train, an unknown number in test, streamed")
        assert "the first 5: 10 x 12 pixels; RGB of 8 bits" in streamed

    def test_other_splits_of_the_same_dataset(self, tmp_path):
        folder = folder_of(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "test/a": 2})
        images, others = load_images(folder), load_images(folder, validation_split="test")
        assert "2 in test" in describe(images, others.validation).headline()
        assert "not used" not in describe(images, others.validation).headline()

    def test_the_same_image_in_two_splits(self, tmp_path):
        folder = folder_of(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1})
        (tmp_path / "val/a/copy.png").write_bytes((tmp_path / "train/b/0.png").read_bytes())
        assert "val/a/copy.png and train/b/0.png" in line_with("byte for byte", lines_of(folder))

    def test_notes_of_the_reader(self, tmp_path):
        images = load_images(folder_of(tmp_path, {"": 1}))
        images.notes.append("something was left out")
        assert describe(images).lines()[-1].strip() == "something was left out"


class TestSample:
    def test_sizes(self, tmp_path):
        for number, size in enumerate([(6, 8), (10, 10), (4, 4), (8, 8), (100, 3)]):
            save(noise(*size), tmp_path / f"{number}.png")
        line = line_with("a sample of 5", lines_of(tmp_path))
        assert "8 x 8 pixels in the middle, from 4 x 4 to 100 x 3" in line

    def test_the_middle_is_the_size_that_pretraining_goes_by(self, tmp_path):
        for number, size in enumerate([(10, 44), (20, 20), (40, 12)]):
            save(noise(*size), tmp_path / f"{number}.png")
        facts = read_image_facts(load_images(tmp_path))
        assert f"{facts.height} x {facts.width} pixels in the middle" in line_with("a sample of", lines_of(tmp_path))
        assert (facts.height, facts.width) == (20, 20)

    def test_images_on_their_side(self, tmp_path):
        image = PIL.Image.fromarray(noise(20, 40))
        exif = image.getexif()
        exif[0x0112] = 6
        for ending in ("jpg", "png"):
            image.save(tmp_path / f"a.{ending}", exif=exif)
        assert "40 x 20 pixels" in line_with("a sample of 2", lines_of(tmp_path))

    def test_modes(self, tmp_path):
        for number in range(3):
            save(noise(), tmp_path / f"{number}.png")
        save(noise(channels=4), tmp_path / "a.png")
        save(noise(channels=None), tmp_path / "b.png")
        save(PIL.Image.fromarray(noise(channels=None)).convert("1"), tmp_path / "c.png")
        line = line_with("a sample of 6", lines_of(tmp_path))
        for kind in (
            "RGB of 8 bits (3)",
            "RGB with transparency of 8 bits (1)",
            "gray of 8",
            "black and white of 1 bit",
        ):
            assert kind in line

    @pytest.mark.parametrize("ending", ["png", "tif"])
    @pytest.mark.parametrize(("largest", "bits"), [(4095, 12), (1023, 10), (16383, 14), (32767, None), (65535, None)])
    def test_few_bits_of_16(self, tmp_path, ending, largest, bits):
        save(noise(channels=None, largest=largest, type="uint16"), tmp_path / f"a.{ending}")
        lines = lines_of(tmp_path)
        assert "gray of 16 bits" in line_with("a sample of 1", lines)
        warnings = [line for line in lines if "warning" in line]
        if bits is None:
            assert not warnings
        else:
            (warning,) = warnings
            left = len(np.unique(np.rint(np.arange(largest + 1) * (255 / 65535))))
            assert f"{largest:,} of 65,535" in warning and f"{bits} bits in 16" in warning
            assert f"{left} of 256" in warning and f"intensity_range 0 {largest}" in warning

    @pytest.mark.parametrize("type", ["int16", "float32"])
    def test_values_below_zero(self, tmp_path, type):
        """Elevations, or a tomograph's units: the largest value says nothing of their depth."""
        for number, low in enumerate((-1000, 0)):
            np.save(tmp_path / f"{number}.npy", np.linspace(low, 999, 400).reshape(20, 20).astype(type))
        (warning,) = [line for line in lines_of(tmp_path) if "warning" in line]
        assert "1 of 2 images" in warning and warning.endswith("intensity_range -1000 999")

    def test_a_range_that_is_given(self, tmp_path):
        save(noise(channels=None, largest=4095, type="uint16"), tmp_path / "a.tif")
        images = load_images(str(tmp_path))
        warnings = {
            high: [line for line in describe(images, intensity_range=[0, high]).lines() if "warning" in line]
            for high in (4095, 1000)
        }
        assert warnings[4095] == [] and "4,095" in warnings[1000][0] and "clipped" in warnings[1000][0]

    @pytest.mark.parametrize(
        ("intensity_range", "said"),
        [
            ([-1000, 999], None),
            ([-500, 999], ["down to -1,000"]),
            ([-1000, 500], ["up to 999"]),
            ([-500, 500], ["down to -1,000", "up to 999"]),
            ([-1000, 0, -900, 999], None),  # of two channels: the values of each alone are not known
        ],
    )
    def test_values_on_both_sides_of_a_range(self, tmp_path, intensity_range, said):
        np.save(tmp_path / "a.npy", np.linspace(-1000, 999, 800).reshape(20, 20, 2).astype(np.int16))
        images = load_images(str(tmp_path))
        warnings = [line for line in describe(images, intensity_range=intensity_range).lines() if "warning" in line]
        if said is None:
            assert not warnings
        else:
            assert len(warnings) == 1 and "clipped" in warnings[0] and all(text in warnings[0] for text in said)
            assert ("down to" in warnings[0], "up to" in warnings[0]) == ("down" in said[0], "up" in said[-1])

    @pytest.mark.parametrize("ending", ["npy", "tif"])
    @pytest.mark.parametrize("intensity_range", [None, [0, 1]])
    def test_values_that_are_not_finite(self, tmp_path, ending, intensity_range):
        values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
        for number, others in enumerate(([], [np.nan, np.inf, -np.inf], [np.nan])):
            values.flat[50:53] = [*others, 0, 0, 0][:3]
            if ending == "npy":
                np.save(tmp_path / f"{number}.npy", values)
            else:
                save(values, tmp_path / f"{number}.tif")
        images = load_images(str(tmp_path))
        (warning,) = [line for line in describe(images, intensity_range=intensity_range).lines() if "warning" in line]
        assert "2 of 3 images" in warning and "NaN" in warning and "4 in all" in warning
        assert ("counts as 0" in warning) == (intensity_range is None)
        pixels = np.asarray(decode_image(str(tmp_path / f"1.{ending}"), PixelFormat(1, intensity_range)))
        assert pixels.flat[50:53].tolist() == [0, 0 if intensity_range is None else 255, 0]

    @pytest.mark.parametrize(("name", "channels"), [("a.tif", 12), ("a.npy", 12), ("a.npy", 1), ("a.npy", 3)])
    def test_arrays(self, tmp_path, name, channels):
        values = noise(20, 30, channels, largest=4095, type="uint16")
        if name.endswith("npy"):
            np.save(tmp_path / name, values)
        else:
            pytest.importorskip("tifffile").imwrite(tmp_path / name, values, planarconfig="contig")
        lines = lines_of(tmp_path)
        mode = {1: "gray", 3: "RGB"}.get(channels, "12 channels")
        assert line_with("a sample of 1", lines) == f"a sample of 1: 20 x 30 pixels; {mode} of 16 bits"
        assert "12 bits in 16" in line_with("warning", lines)

    def test_one_bright_image_is_enough(self, tmp_path):
        for number in range(30):
            largest = 60000 if number == 17 else 4095
            save(noise(channels=None, largest=largest, type="uint16", seed=number), tmp_path / f"{number:02}.tif")
        assert not [line for line in lines_of(tmp_path) if "warning" in line]

    def test_few_bits_of_16_in_color(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "a.tif", noise(largest=4095, type="uint16"), photometric="rgb")
        lines = lines_of(tmp_path)
        assert "RGB of 16 bits" in line_with("a sample of 1", lines) and "12 bits in 16" in line_with("warning", lines)

    @pytest.mark.parametrize(("largest", "is_told"), [(1, True), (15, True), (16, False)])
    def test_images_that_look_black(self, tmp_path, largest, is_told):
        save(noise(40, 40, largest=largest), tmp_path / "a.png")
        assert bool([line for line in lines_of(tmp_path) if f"is {largest} of 255" in line]) == is_told

    @pytest.mark.parametrize(("ranges", "is_told"), [((1, 1), False), ((1, 200), True), ((200, 255), False)])
    def test_floats_of_several_ranges(self, tmp_path, ranges, is_told):
        for number, largest in enumerate(ranges):
            save(noise(channels=None, largest=largest, type="float32"), tmp_path / f"{number}.tif")
        lines = lines_of(tmp_path)
        assert "gray, floats of 32 bits" in line_with("a sample of 2", lines)
        assert bool([line for line in lines if "by its own values" in line]) == is_told

    def test_several_pages(self, tmp_path):
        first, second = (PIL.Image.fromarray(noise(seed=seed)) for seed in (1, 2))
        first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
        save(noise(), tmp_path / "b.tif")
        assert line_with("pages", lines_of(tmp_path)).startswith("1 of a sample of 2")

    def test_images_that_cannot_be_read(self, tmp_path):
        folder_of(tmp_path, {"": 20})
        for name in ("0.png", "99.png"):  # one of those that are decoded, and one of which the header is read
            (tmp_path / name).write_bytes(b"broken")
        assert line_with("cannot be read", lines_of(tmp_path)).startswith("warning: 2 of a sample of 21")

    def test_more_channels_than_a_model_can_have(self, tmp_path):
        values = noise(20, 30, 20)
        pytest.importorskip("tifffile").imwrite(
            tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig"
        )
        save(noise(), tmp_path / "b.png")
        assert "20 channels" in line_with("1 of a sample of 2 cannot be read", lines_of(tmp_path))

    def test_pipes_among_the_images_are_not_waited_for(self, tmp_path):
        """Beyond those that are decoded, too."""
        for number in range(40):
            if number % 2:
                os.mkfifo(tmp_path / f"{number:02}.png")
            else:
                save(noise(), tmp_path / f"{number:02}.png")
        assert "20 of a sample of 40 cannot be read" in line_with("pipe", lines_of(tmp_path))

    def test_images_beyond_the_limit(self, tmp_path, monkeypatch):
        """JPEGs shrink, and others are told."""
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 30 * 30)
        save(noise(80, 60), tmp_path / "a.jpg")
        np.save(tmp_path / "b.npy", noise(80, 60))
        save(noise(80, 60), tmp_path / "c.png")
        lines = lines_of(tmp_path)
        assert "1 of a sample of 2 cannot be read" in line_with("too large", lines)
        assert "80 x 60 pixels; RGB of 8 bits" in line_with("a sample of 2:", lines)

    def test_nothing_can_be_read(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"broken")
        (line,) = lines_of(tmp_path)[1:]
        assert "1 of a sample of 1 cannot be read" in line

    def test_few_of_many_are_opened(self, tmp_path, monkeypatch):
        buffer = io.BytesIO()
        PIL.Image.fromarray(noise()).save(buffer, "PNG")
        features = datasets.Features({"image": datasets.Image()})
        rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 10_000}
        images = load_images(datasets.Dataset.from_dict(rows, features=features))
        opened = []

        def counted(real):
            return lambda *given: opened.append(1) or real(*given)

        monkeypatch.setattr(PIL.Image, "open", counted(PIL.Image.open))
        monkeypatch.setattr(opening, "open_image", counted(opening.open_image))
        line = line_with("a sample", [line.strip() for line in describe(images).lines()])
        assert line.startswith("a sample of 96:")
        assert len(opened) == 96 + 16

    def test_the_first_of_a_stream_are_read_once(self):
        read = []

        def rows():
            for number in range(40):
                read.append(number)
                yield {"image": {"bytes": encoded(number), "path": None}}

        features = datasets.Features({"image": datasets.Image()})
        images = load_images(datasets.IterableDataset.from_generator(rows, features=features))
        read.clear()
        assert "the first 16: 10 x 12 pixels; RGB of 8 bits" in [line.strip() for line in describe(images).lines()]
        facts = read_image_facts(images)
        assert (facts.height, facts.width) == (10, 12)
        assert len(read) < 40 and read == list(range(len(read)))

    def test_slow_files_are_few(self, tmp_path, monkeypatch):
        folder_of(tmp_path, {"": 40})
        monkeypatch.setattr(image_sample, "MAX_SECONDS", -1)
        assert line_with("a sample", lines_of(tmp_path)).startswith("a sample of 16:")


class TestTell:
    def test_once_for_programs_that_start_others(self, tmp_path, capsys):
        images = load_images(folder_of(tmp_path, {"": 2}))
        with told():
            tell(images)
            assert capsys.readouterr().out == ""
        tell(images)
        assert re.fullmatch(r".*: 2 images in train\n  .*\n", capsys.readouterr().out)

    def test_only_the_main_process_prints(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        tell(load_images(folder_of(tmp_path, {"": 2})))
        assert capsys.readouterr().out == ""
