"""Tiling: what is where in a tiled image, its labels, and that splits stay apart."""

import io
import shutil
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from modeling_sit.data import tile as tile_module
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.data.tile import compose, tile
from modeling_sit.runtime.errors import SiTError

CLASSES = ["blue", "green", "red"]
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def isolated_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(pixels) -> dict:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def image(row: int, split: str) -> dict:
    """A plain one in the color of its class, a shade darker for each three rows, and darker in the test split."""
    shade = 255 - 12 * (row // 3) - (100 if split == "test" else 0)
    return encoded(np.tile([channel // 255 * shade for channel in COLOURS[CLASSES[row % 3]]], (6, 9, 1)))


@pytest.fixture
def colors(tmp_path):
    """13 images to train on, 8 to test on, of three classes in turn."""
    folder = tmp_path / "colors"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    for split, count in {"train": 13, "test": 8}.items():
        rows = {"image": [image(row, split) for row in range(count)], "label": [row % 3 for row in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def tiled(tmp_path):
    def run(dataset, name="tiled", **arguments):
        arguments = {"validation_fraction": 0, **arguments}
        return load_images(str(tile(str(dataset), tmp_path / name, **arguments)), labels="required")

    return run


def places_of(row: dict, grid: tuple[int, int] = (2, 2)) -> list[tuple[str, int]]:
    """Class and original row of what is seen in each place, by its middle's color."""
    pixels = np.asarray(decode_image(row["image"])).astype(int)
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    places = []
    for top in range(0, pixels.shape[0], height):
        for left in range(0, pixels.shape[1], width):
            middle = pixels[top + height // 2, left + width // 2]
            channel = int(middle.argmax())
            number = round((255 - middle[channel]) % 100 / 12)
            places.append(
                (("red", "green", "blue")[channel], 3 * number + CLASSES.index(("red", "green", "blue")[channel]))
            )
    return places


def brightest(row: dict) -> int:
    return int(np.asarray(decode_image(row["image"])).max())


def test_labels_are_the_classes_that_are_seen(tiled, colors, capsys):
    images = tiled(colors, image_size=32)
    assert images.multi_label and images.label_names == CLASSES and images.splits == ["test", "train"]
    assert len(images.train) == 12 and len(images.validation) == 8
    for split in (images.train, images.validation):
        for row in split:
            assert decode_image(row["image"]).size == (32, 32)
            assert row["label"] == sorted({CLASSES.index(name) for name, _ in places_of(row)})
    assert "train: 12 images of 13" in capsys.readouterr().out


def test_every_image_is_used_equally_often_and_never_with_itself(tiled, colors):
    images = tiled(colors, image_size=32, passes=5)
    used = Counter()
    for row in images.validation:
        rows = [number for _, number in places_of(row)]
        assert len(set(rows)) == 4
        used.update(rows)
    assert used == dict.fromkeys(range(8), 5)
    # 13 images fill three tiled ones in each pass, and one is left over: another one in another pass.
    used = Counter(number for row in images.train for _, number in places_of(row))
    assert len(images.train) == 15 and sum(used.values()) == 60 and set(used) == set(range(13))
    assert max(used.values()) == 5


def test_splits_are_not_mixed(tiled, colors):
    images = tiled(colors, image_size=32)
    assert all(brightest(row) > 190 for row in images.train)
    assert all(brightest(row) < 180 for row in images.validation)


def test_what_is_set_aside_for_validation_is_not_trained_on(tiled, colors, tmp_path):
    """Images of every class, before the tiling: no image of one split is in another."""
    images = tiled(colors, image_size=32, validation_fraction=0.4)
    assert set(images.splits) == {"test", "train", "validation"}
    held_back = {number for row in images.validation for _, number in places_of(row)}
    trained_on = {number for row in images.train for _, number in places_of(row)}
    assert not held_back & trained_on and held_back | trained_on <= set(range(13))
    assert {number % 3 for number in held_back} == {0, 1, 2}
    assert all(brightest(row) > 190 for row in images.validation)  # of the training images
    readme = (tmp_path / "tiled" / "README.md").read_text()
    assert "set aside before the tiling" in readme and "`validation_split` set to `test`" in readme
    again = tiled(colors, image_size=32, validation_fraction=0.4, name="again")
    assert again.validation[:] == images.validation[:]


def test_a_set_with_a_validation_split_keeps_it(tiled, colors, tmp_path):
    (colors / "test.parquet").rename(colors / "validation.parquet")
    images = tiled(colors, image_size=32, validation_fraction=0.4)
    assert set(images.splits) == {"train", "validation"} and len(images.train) == 12
    assert all(brightest(row) < 180 for row in images.validation)
    assert "set aside" not in (tmp_path / "tiled" / "README.md").read_text()


def test_a_test_split_beside_a_validation_split(tiled, colors, tmp_path):
    (colors / "test.parquet").rename(colors / "validation.parquet")
    shutil.copyfile(colors / "validation.parquet", colors / "test.parquet")
    found = tiled(colors)
    assert sorted(found.splits) == ["test", "train", "validation"]
    assert len(load_images(str(tmp_path / "tiled"), validation_split="test").validation) > 0


@pytest.mark.parametrize("labels", [[-1] * 8, [0, 1, 2]])
def test_a_test_split_without_labels_or_too_small_is_left_out(tiled, colors, capsys, labels):
    (colors / "test.parquet").rename(colors / "validation.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [image(row, "test") for row in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(colors / "test.parquet")
    assert sorted(tiled(colors).splits) == ["train", "validation"]
    assert "split test is left out" in capsys.readouterr().out


def test_grid(tiled, colors):
    images = tiled(colors, grid=[1, 3], image_size=24, passes=1)
    assert len(images.train) == 4 and len(images.validation) == 2
    for row in images.train:
        assert decode_image(row["image"]).size == (24, 24)
        assert row["label"] == sorted({CLASSES.index(name) for name, _ in places_of(row, (1, 3))})


def test_images_are_cut_around_their_center():
    """And stand row by row; an image that is larger than its place is made smaller."""
    columns = np.zeros((4, 12, 3), dtype=np.uint8)
    columns[:, 4:8] = [255, 255, 0]  # what is outside the middle square, black, is cut away
    places = [PIL.Image.fromarray(columns), None, PIL.Image.new("RGB", (99, 99), "red"), PIL.Image.new("RGB", (3, 3))]
    tiled = compose(places, [2, 2], 8)
    expected = {(0, 0): (255, 255, 0), (0, 4): (128, 128, 128), (4, 0): (255, 0, 0), (4, 4): (0, 0, 0)}
    for (top, left), color in expected.items():
        place = np.asarray(tiled)[top : top + 4, left : left + 4]
        assert (place == color).all()


def test_is_a_function_of_the_seed(tiled, colors, tmp_path):
    content = {}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        tiled(colors, image_size=16, seed=seed, name=name)
        content[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.parquet"))]
    assert content["a"] == content["b"] != content["c"]


def test_several_files(tiled, colors, monkeypatch, tmp_path):
    whole = tiled(colors, image_size=16, name="whole")
    monkeypatch.setattr(tile_module, "IMAGES_IN_A_FILE", 5)
    monkeypatch.setattr(tile_module, "IMAGES_IN_A_ROW_GROUP", 2)
    parts = tiled(colors, image_size=16, name="parts")
    assert len(list((tmp_path / "parts").glob("train-0000?-of-00003.parquet"))) == 3
    assert parts.train[:] == whole.train[:] and parts.validation[:] == whole.validation[:]
    streamed = load_images(str(tmp_path / "parts"), streaming=True)
    assert streamed.multi_label and streamed.num_train == 12
    assert list(streamed.train) == list(whole.train)


def test_other_libraries_read_it(tiled, colors, tmp_path):
    images = tiled(colors, image_size=16)
    plain = datasets.load_dataset("parquet", data_files=str(tmp_path / "tiled" / "train-*"), split="train")
    assert plain.features == {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=CLASSES))}
    assert plain["label"][:] == images.train["label"][:] and plain[0]["image"].size == (16, 16)


def test_tiles_of_tiles(tiled, colors, tmp_path):
    """An image with several labels gives all of them."""
    once = tiled(colors, image_size=16)
    twice = tiled(tmp_path / "tiled", image_size=16, grid=[1, 2], name="twice")
    assert twice.multi_label and len(twice.train) == 12
    assert all(len(set(labels)) == len(labels) for labels in twice.train["label"])
    for label in range(3):  # every image is in two, and so are its labels, at most
        count = sum(label in labels for labels in once.train["label"])
        assert count <= sum(label in labels for labels in twice.train["label"]) <= 2 * count


def test_unreadable_images_and_those_without_a_label(tiled, tmp_path, colors, capsys, caplog):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    tiles = [image(row, "train") for row in range(4)]
    tiles[2] = {"bytes": b"broken", "path": None}  # the only red one
    rows = {"image": [*tiles, image(4, "train")], "label": [0, 1, 2, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "damaged" / "train.parquet")
    images = tiled(tmp_path / "damaged", image_size=32)
    assert images.train["label"][:] == [[0, 1]] * 4 and images.splits == ["train"]
    for row in images.train:
        grays = [
            tile for tile in np.asarray(decode_image(row["image"]))[8::16, 8::16].reshape(-1, 3) if np.ptp(tile) < 9
        ]
        assert len(grays) == 1
    assert capsys.readouterr().err.count("skipped an unreadable image: row 2 of train") == 1
    assert "1 of 5 images have no label" in caplog.text


def test_very_large_images_are_tiled(tiled, colors, capsys, monkeypatch):
    """Beyond the limit for images that are trained on: here they are decoded one at a time, and leave small."""
    expected = list(tiled(colors, "usual", image_size=32).train)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert list(tiled(colors, "large", image_size=32).train) == expected
    assert "unreadable" not in capsys.readouterr().err


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("grid", [2]),
            ("grid", [1, 1]),
            ("grid", [0, 4]),
            ("passes", 0),
            ("seed", -1),
            ("image_size", 33),
            ("validation_fraction", 1),
        ],
    )
    def test_values(self, tmp_path, name, value):
        with pytest.raises(SiTError) as error:
            tile("digits", tmp_path / "o", **{name: value})
        assert error.value.argument == name and not (tmp_path / "o").exists()

    @pytest.mark.parametrize(("grid", "size", "nearest"), [([3, 3], 224, 225), ([2, 3], 100, 102), ([5, 1], 1, 5)])
    def test_size_that_cannot_be_divided(self, tmp_path, grid, size, nearest):
        with pytest.raises(SiTError, match=f" {nearest}$") as error:
            tile("digits", tmp_path / "o", grid=grid, image_size=size)
        assert error.value.argument == "image_size"

    def test_too_few_images_set_aside(self, tmp_path, colors):
        with pytest.raises(SiTError) as error:
            tile(str(colors), tmp_path / "o", image_size=32)
        assert error.value.argument == "validation_fraction"

    def test_a_folder_with_something_in_it(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(SiTError, match=str(tmp_path)) as error:
            tile("digits", tmp_path)
        assert error.value.argument == "output_dir"

    def test_images_without_labels(self, tmp_path, save_images):
        with pytest.raises(SiTError, match="label_column"):
            tile(str(save_images(tmp_path / "pile", 4)), tmp_path / "o")

    def test_too_few_images(self, tmp_path, colors):
        with pytest.raises(SiTError, match="split test: 8 images"):
            tile(str(colors), tmp_path / "o", grid=[3, 3], image_size=9, validation_fraction=0)
        assert not list((tmp_path / "o").iterdir())

    def test_unknown_arguments(self, tmp_path):
        with pytest.raises(TypeError, match="did you mean grid"):
            tile("digits", tmp_path / "o", gird=[1, 2])


@pytest.mark.parametrize("name", ["tile_images", "tile_pictures"])
def test_the_command_names_itself_in_the_readme(run_program, colors, tmp_path, name):
    flags = ["--dataset", colors, "--output_dir", tmp_path / "o", "--image_size", 16, "--validation_fraction", 0]
    assert run_program(name, *flags) == 0
    assert f"{name}.py --dataset" in (tmp_path / "o" / "README.md").read_text()


def test_channels_without_color(tmp_path, tiled):
    """Of many channels, each is tiled as a gray image is; the range is that of the files."""
    generator = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "bands" / name).mkdir(parents=True)
        for number in range(4):
            np.save(
                tmp_path / "bands" / name / f"{number}.npy", generator.integers(0, 4096, (9, 12, 5), dtype=np.uint16)
            )
    images = tiled(tmp_path / "bands", image_size=16, intensity_range=[0, 4095])
    sources = {
        place.tobytes()
        for path in sorted((tmp_path / "bands").glob("*/*.npy"))
        for place in [
            np.stack(
                [
                    np.asarray(PIL.ImageOps.fit(PIL.Image.fromarray(channel), (8, 8), PIL.Image.Resampling.BICUBIC))
                    for channel in np.moveaxis(np.rint(np.load(path) * (255 / 4095)).astype(np.uint8), -1, 0)
                ],
                -1,
            )
        ]
    }
    for row in images.train:
        pixels = decode_image(row["image"], 5)
        assert pixels.shape == (16, 16, 5)
        for top, left in ((0, 0), (0, 8), (8, 0), (8, 8)):
            assert np.ascontiguousarray(pixels[top : top + 8, left : left + 8]).tobytes() in sources
