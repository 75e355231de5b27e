"""scripts/tile_pictures.py: what is where in a tiled picture, its labels, and that splits stay apart."""

import io
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest

from modeling_sit.data.decoding import read_picture
from modeling_sit.data.sources import load_pictures

CLASSES = ["blue", "green", "red"]
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def isolated_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(pixels) -> dict:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def picture(row: int, split: str) -> dict:
    """A plain one in the colour of its class, a shade darker for each three rows, and darker in the test split."""
    shade = 255 - 12 * (row // 3) - (100 if split == "test" else 0)
    return encoded(np.tile([channel // 255 * shade for channel in COLOURS[CLASSES[row % 3]]], (6, 9, 1)))


@pytest.fixture
def colours(tmp_path):
    """13 pictures to train on, 8 to test on, of three classes in turn."""
    folder = tmp_path / "colours"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    for split, count in {"train": 13, "test": 8}.items():
        rows = {"image": [picture(row, split) for row in range(count)], "label": [row % 3 for row in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def tiled(run_program, tmp_path, capsys):
    def run(dataset, *flags, name="tiled", share=0):
        flags = ("--validation_share", share, *flags)
        assert run_program("tile_pictures", "--dataset", dataset, "--output_dir", tmp_path / name, *flags) == 0
        return load_pictures(str(tmp_path / name), labels="required")

    return run


def places_of(row: dict, grid: tuple[int, int] = (2, 2)) -> list[tuple[str, int]]:
    """Class and original row of what is seen in each place, by its middle's colour."""
    pixels = np.asarray(read_picture(row["image"])).astype(int)
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
    return int(np.asarray(read_picture(row["image"])).max())


def test_labels_are_the_classes_that_are_seen(tiled, colours, capsys):
    pictures = tiled(colours, "--image_size", 32)
    assert pictures.multi_label and pictures.label_names == CLASSES and pictures.splits == ["test", "train"]
    assert len(pictures.train) == 12 and len(pictures.validation) == 8
    for split in (pictures.train, pictures.validation):
        for row in split:
            assert read_picture(row["image"]).size == (32, 32)
            assert row["label"] == sorted({CLASSES.index(name) for name, _ in places_of(row)})
    assert "train: 12 pictures of 13" in capsys.readouterr().out


def test_every_picture_is_used_equally_often_and_never_with_itself(tiled, colours):
    pictures = tiled(colours, "--image_size", 32, "--passes", 5)
    used = Counter()
    for row in pictures.validation:
        rows = [number for _, number in places_of(row)]
        assert len(set(rows)) == 4
        used.update(rows)
    assert used == dict.fromkeys(range(8), 5)
    # 13 pictures fill three tiled ones in each pass, and one is left over: another one in another pass.
    used = Counter(number for row in pictures.train for _, number in places_of(row))
    assert len(pictures.train) == 15 and sum(used.values()) == 60 and set(used) == set(range(13))
    assert max(used.values()) == 5


def test_splits_are_not_mixed(tiled, colours):
    pictures = tiled(colours, "--image_size", 32)
    assert all(brightest(row) > 190 for row in pictures.train)
    assert all(brightest(row) < 180 for row in pictures.validation)


def test_what_is_set_aside_for_validation_is_not_trained_on(tiled, colours, tmp_path):
    """Pictures of every class, before the tiling: no picture of one split is in another."""
    pictures = tiled(colours, "--image_size", 32, share=0.4)
    assert set(pictures.splits) == {"test", "train", "validation"}
    held_back = {number for row in pictures.validation for _, number in places_of(row)}
    trained_on = {number for row in pictures.train for _, number in places_of(row)}
    assert not held_back & trained_on and held_back | trained_on <= set(range(13))
    assert {number % 3 for number in held_back} == {0, 1, 2}
    assert all(brightest(row) > 190 for row in pictures.validation)  # of the training pictures
    readme = (tmp_path / "tiled" / "README.md").read_text()
    assert "set aside before the tiling" in readme and "--validation_split test" in readme
    again = tiled(colours, "--image_size", 32, share=0.4, name="again")
    assert again.validation[:] == pictures.validation[:]


def test_a_set_with_a_validation_split_keeps_it(tiled, colours, tmp_path):
    (colours / "test.parquet").rename(colours / "validation.parquet")
    pictures = tiled(colours, "--image_size", 32, share=0.4)
    assert set(pictures.splits) == {"train", "validation"} and len(pictures.train) == 12
    assert all(brightest(row) < 180 for row in pictures.validation)
    assert "set aside" not in (tmp_path / "tiled" / "README.md").read_text()


def test_grid(tiled, colours):
    pictures = tiled(colours, "--grid", 1, 3, "--image_size", 24, "--passes", 1)
    assert len(pictures.train) == 4 and len(pictures.validation) == 2
    for row in pictures.train:
        assert read_picture(row["image"]).size == (24, 24)
        assert row["label"] == sorted({CLASSES.index(name) for name, _ in places_of(row, (1, 3))})


def test_pictures_are_cut_around_their_centre(load_program):
    """And stand row by row; a picture that is larger than its place is made smaller."""
    columns = np.zeros((4, 12, 3), dtype=np.uint8)
    columns[:, 4:8] = [255, 255, 0]  # what is outside the middle square, black, is cut away
    places = [PIL.Image.fromarray(columns), None, PIL.Image.new("RGB", (99, 99), "red"), PIL.Image.new("RGB", (3, 3))]
    tiled = load_program("tile_pictures").tile(places, [2, 2], 8)
    expected = {(0, 0): (255, 255, 0), (0, 4): (128, 128, 128), (4, 0): (255, 0, 0), (4, 4): (0, 0, 0)}
    for (top, left), colour in expected.items():
        place = np.asarray(tiled)[top : top + 4, left : left + 4]
        assert (place == colour).all()


def test_is_a_function_of_the_seed(tiled, colours, tmp_path):
    content = {}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        tiled(colours, "--image_size", 16, "--seed", seed, name=name)
        content[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.parquet"))]
    assert content["a"] == content["b"] != content["c"]


def test_several_files(tiled, colours, load_program, monkeypatch, tmp_path):
    whole = tiled(colours, "--image_size", 16, name="whole")
    monkeypatch.setattr(load_program("tile_pictures"), "PICTURES_IN_A_FILE", 5)
    monkeypatch.setattr(load_program("tile_pictures"), "PICTURES_IN_A_ROW_GROUP", 2)
    parts = tiled(colours, "--image_size", 16, name="parts")
    assert len(list((tmp_path / "parts").glob("train-0000?-of-00003.parquet"))) == 3
    assert parts.train[:] == whole.train[:] and parts.validation[:] == whole.validation[:]
    streamed = load_pictures(str(tmp_path / "parts"), streaming=True)
    assert streamed.multi_label and streamed.num_train == 12
    assert list(streamed.train) == list(whole.train)


def test_other_libraries_read_it(tiled, colours, tmp_path):
    pictures = tiled(colours, "--image_size", 16)
    plain = datasets.load_dataset("parquet", data_files=str(tmp_path / "tiled" / "train-*"), split="train")
    assert plain.features == {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=CLASSES))}
    assert plain["label"][:] == pictures.train["label"][:] and plain[0]["image"].size == (16, 16)


def test_tiles_of_tiles(tiled, colours, tmp_path):
    """A picture with several labels gives all of them."""
    once = tiled(colours, "--image_size", 16)
    twice = tiled(tmp_path / "tiled", "--image_size", 16, "--grid", 1, 2, name="twice")
    assert twice.multi_label and len(twice.train) == 12
    assert all(len(set(labels)) == len(labels) for labels in twice.train["label"])
    for label in range(3):  # every picture is in two, and so are its labels, at most
        count = sum(label in labels for labels in once.train["label"])
        assert count <= sum(label in labels for labels in twice.train["label"]) <= 2 * count


def test_unreadable_pictures_and_those_without_a_label(run_program, tmp_path, colours, capsys, caplog):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    tiles = [picture(row, "train") for row in range(4)]
    tiles[2] = {"bytes": b"broken", "path": None}  # the only red one
    rows = {"image": [*tiles, picture(4, "train")], "label": [0, 1, 2, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "damaged" / "train.parquet")
    flags = ["--dataset", tmp_path / "damaged", "--output_dir", tmp_path / "tiled", "--image_size", 32]
    flags += ["--validation_share", 0]
    assert run_program("tile_pictures", *flags) == 0
    pictures = load_pictures(str(tmp_path / "tiled"))
    assert pictures.train["label"][:] == [[0, 1]] * 4 and pictures.splits == ["train"]
    for row in pictures.train:
        greys = [
            tile for tile in np.asarray(read_picture(row["image"]))[8::16, 8::16].reshape(-1, 3) if np.ptp(tile) < 9
        ]
        assert len(greys) == 1
    assert capsys.readouterr().err.count("skipped an unreadable picture: row 2 of train") == 1
    assert "1 of 5 pictures have no label" in caplog.text


class TestMistakes:
    @pytest.mark.parametrize(
        "flags",
        [
            ["--grid", 2],
            ["--grid", 1, 1],
            ["--grid", 0, 4],
            ["--passes", 0],
            ["--seed", -1],
            ["--image_size", 33],
            ["--validation_share", 1],
        ],
    )
    def test_flags(self, one_line_error, tmp_path, flags):
        message = one_line_error(
            "tile_pictures", "--dataset", "digits", "--output_dir", tmp_path / "o", *flags, code=2
        )
        assert flags[0] in message and not (tmp_path / "o").exists()

    @pytest.mark.parametrize(("grid", "size", "nearest"), [((3, 3), 224, 225), ((2, 3), 100, 102), ((5, 1), 1, 5)])
    def test_size_that_cannot_be_divided(self, one_line_error, tmp_path, grid, size, nearest):
        flags = ["--dataset", "digits", "--output_dir", tmp_path / "o", "--grid", *grid, "--image_size", size]
        assert f"the nearest that can is {nearest}" in one_line_error("tile_pictures", *flags, code=2)

    def test_too_few_pictures_set_aside(self, one_line_error, tmp_path, colours):
        flags = ["--dataset", colours, "--output_dir", tmp_path / "o", "--image_size", 32]
        assert "give 0 for no validation split" in one_line_error("tile_pictures", *flags)

    def test_a_folder_with_something_in_it(self, one_line_error, tmp_path):
        (tmp_path / "notes.txt").touch()
        assert f"--output_dir {tmp_path}" in one_line_error(
            "tile_pictures", "--dataset", "digits", "--output_dir", tmp_path
        )

    def test_pictures_without_labels(self, one_line_error, tmp_path, save_pictures):
        flags = ["--dataset", save_pictures(tmp_path / "pile", 4), "--output_dir", tmp_path / "o"]
        assert "--label_column" in one_line_error("tile_pictures", *flags)

    def test_too_few_pictures(self, one_line_error, tmp_path, colours):
        flags = ["--dataset", colours, "--output_dir", tmp_path / "o", "--grid", 3, 3, "--image_size", 9]
        flags += ["--validation_share", 0]
        assert "split test: 8 pictures" in one_line_error("tile_pictures", *flags)
        assert not list((tmp_path / "o").iterdir())
