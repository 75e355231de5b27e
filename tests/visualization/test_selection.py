"""Which images a figure shows."""

import base64
import io
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest

from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.selection import (
    choose_rows,
    choose_split,
    data_uri,
    image_files,
    label_sets,
    label_text,
    order_of_choice,
    read_first,
    read_given_files,
    short_name,
    thumbnail,
    warn_shortage,
)


@pytest.fixture
def pile(save_images, tmp_path) -> datasets.Dataset:
    """Six images, of which the third cannot be read."""
    save_images(tmp_path / "pile", 6)
    (tmp_path / "pile" / "02.png").write_bytes(b"no image")
    return load_images(str(tmp_path / "pile")).train


def test_split_that_is_shown():
    def images(train=True, validation=True):
        rows = {
            name: datasets.Dataset.from_dict({"image": [None]}, split=name)
            for name, there in (("train", train), ("test", validation))
            if there
        }
        return ImageDatasets("set", rows.get("train"), rows.get("test"), None, ["train", "test"])

    def chosen(images, **flags):
        return str(choose_split(images, **{"train_split": None, "validation_split": None, **flags}).split)

    assert chosen(images()) == "test"
    assert chosen(images(validation=False)) == "train"
    assert chosen(images(train=False)) == "test"
    assert chosen(images(), train_split="train") == "train"
    assert chosen(images(), validation_split="test") == "test"
    with pytest.raises(SiTError) as error:
        chosen(images(), train_split="train", validation_split="test")
    assert error.value.argument == "train_split"
    with pytest.raises(SiTError) as error:
        chosen(images(train=False, validation=False))
    assert error.value.argument == "validation_split"
    streamed = images()
    streamed.train = streamed.train.to_iterable_dataset()
    with pytest.raises(SiTError) as error:
        chosen(streamed)
    assert error.value.argument == "dataset"


def test_labels_of_both_kinds():
    names = ["a", "b", "c"]
    single = datasets.Dataset.from_dict(
        {"label": [2, -1, 0, None]}, features=datasets.Features({"label": datasets.ClassLabel(names=names)})
    )
    assert label_sets(single, names) == [("c",), None, ("a",), None]
    several = datasets.Dataset.from_dict(
        {"label": [[2, 0], [], None]},
        features=datasets.Features({"label": datasets.List(datasets.ClassLabel(names=names))}),
    )
    assert label_sets(several, names) == [("a", "c"), (), None]
    assert label_sets(several, None) == [None] * 3
    assert [label_text(labels) for labels in (("a", "c"), (), None)] == ["a + c", "none of the classes", None]


def test_first_images_show_all_classes():
    labels = [("a",)] * 50 + [("b",)] * 3 + [("c",)] * 2
    order = order_of_choice(labels, seed=0)
    assert sorted(order) == list(range(55))
    for rounds in (1, 2):
        assert Counter(labels[row] for row in order[: 3 * rounds]) == {("a",): rounds, ("b",): rounds, ("c",): rounds}
    assert Counter(labels[row] for row in order[6:8])[("b",)] == 1
    assert order == order_of_choice(labels, seed=0) != order_of_choice(labels, seed=1)


def test_rows_of_a_sample_are_in_order():
    assert choose_rows(5, 5, seed=0) == choose_rows(5, 9, seed=0) == [0, 1, 2, 3, 4]
    rows = choose_rows(1000, 10, seed=0)
    assert rows == sorted(set(rows)) and len(rows) == 10 and rows != choose_rows(1000, 10, seed=1)


def test_unreadable_images_make_room_for_others(pile, caplog):
    rows, images = read_first(pile, [2, 5, 0, 1], 2, 1)
    assert rows == [5, 0] and [image.mode for image in images] == ["L", "L"]
    assert "02.png" in caplog.text
    with pytest.raises(SiTError, match=r"none of the images can be read"):
        read_first(pile, [2], 1, 3)


def test_given_files(pile, tmp_path):
    paths = [tmp_path / "pile" / f"{number:02}.png" for number in (4, 0)]
    read = read_given_files(image_files(paths), 3)
    for path, image in zip(paths, read, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(PIL.Image.open(path)))
    with pytest.raises(SiTError, match=r"images: .*none\.png: no such file"):
        image_files([tmp_path / "none.png"])
    with pytest.raises(SiTError, match=r"images: .*02\.png"):
        read_given_files(image_files([tmp_path / "pile" / "02.png"]), 3)


@pytest.mark.parametrize(("size", "kind"), [((20, 30), "PNG"), ((200, 100), "JPEG")])
def test_small_images_are_kept_exactly(size, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    address = data_uri(PIL.Image.fromarray(pixels))
    header, _, encoded = address.partition(",")
    image = PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.format == kind and header == f"data:image/{kind.lower()};base64" and image.size == size
    assert kind == "JPEG" or (np.asarray(image) == pixels).all()


def test_thumbnails_keep_their_shape(pile):
    assert thumbnail(pile, 0, 12).size == (12, 10)
    assert thumbnail(pile, 0, 100, 1).mode == "RGB"


def test_names_on_a_page_say_nothing_of_where_the_set_lies(save_images, tmp_path):
    folder = save_images(tmp_path / "set" / "rose", 2).parent
    split = load_images(str(folder)).train
    assert [short_name(split, row, folder) for row in range(2)] == ["rose/00.png", "rose/01.png"]
    assert short_name(split, 0, tmp_path / "elsewhere") == "00.png"
    encoded = (folder / "rose" / "00.png").read_bytes()
    rows = {"image": [{"bytes": encoded, "path": "/home/me/x.png"}, {"bytes": encoded, "path": None}]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    embedded = datasets.Dataset.from_dict(rows, split="test", features=features)
    assert [short_name(embedded, row, folder) for row in range(2)] == ["row 0 of test (x.png)", "row 1 of test"]


def test_shortage_is_logged_where_it_was_asked_for(caplog):
    warn_shortage("num_images", 100, 8, 12)
    warn_shortage("num_images", 8, 8, 5)
    warn_shortage("num_images", 12, 8, 12)
    assert caplog.messages == ["num_images 100: there are only 12"]
