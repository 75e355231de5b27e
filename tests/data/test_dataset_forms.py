"""Datasets of every form: digits, folders, shards, saved ones, the Hub's, and those in memory."""

import json
import logging
import os
import pickle
import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import (
    AWKWARD,
    IMAGE,
    SHARED,
    assert_form,
    labels_in,
    labels_of,
    load,
    load_error,
    pil_images,
    png,
    saved_splits,
    values_of,
    write,
    write_images,
    write_parquet,
    write_tar,
)

from modeling_sit.data import dataset_forms
from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.image_datasets import dataset_name, image_name
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

pytestmark = pytest.mark.usefixtures("isolated_cache")


# The built-in digits.


def test_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = load("digits")
    assert (len(images.train), len(images.validation)) == (1437, 360)
    assert images.label_names == list("0123456789") and images.splits == ["train", "test"]

    originals = {(digits.images[i].astype(int).tobytes(), int(digits.target[i])) for i in range(1797)}
    found = []
    for dataset in (images.train, images.validation):
        for row in dataset:
            image = decode_image(row["image"], 1)
            assert image.size == (8, 8)
            sixteenths = np.rint(np.asarray(image, dtype=float) * 16 / 255).astype(int)
            assert np.abs(np.asarray(image) - sixteenths * 255 / 16).max() <= 0.5
            found.append((sixteenths.tobytes(), row["label"]))
    assert len(found) == 1797 and set(found) == originals

    fractions = np.bincount(images.validation["label"]) / np.bincount(digits.target)
    assert np.abs(fractions - 360 / 1797).max() < 0.01


def test_digits_are_always_split_alike(monkeypatch):
    monkeypatch.setattr(dataset_forms, "_load_digits", dataset_forms._load_digits.__wrapped__)
    first, second = load("digits"), load("digits")
    assert first.validation.to_dict() == second.validation.to_dict()
    # A split that moved would spoil comparisons with figures taken before.
    assert first.validation["label"][:12] == DIGITS_TEST_LABELS and first.train["label"][:12] == DIGITS_TRAIN_LABELS


DIGITS_TEST_LABELS = [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2]
DIGITS_TRAIN_LABELS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


# Folders.


def test_flat_pile(tmp_path):
    folder = write_images(tmp_path / AWKWARD, {"b.png": 2, "a.PNG": 1, "c.Tiff": 3, "notes.txt": 9, ".hidden.png": 8})
    images = load(folder)
    assert values_of(images.train) == [1, 2, 3]
    assert images.label_names is None and images.validation is None and images.splits == ["train"]
    assert image_name(images.train, 1) == os.path.join(folder, "b.png")


def test_class_sub_folders(tmp_path):
    files = {"zebra/1.png": 1, "ape/2.png": 2, "ape/deep/er/3.png": 3, "ape/.hidden/9.png": 9, "no images/a.txt": 0}
    images = load(write_images(tmp_path / AWKWARD, files))
    assert images.label_names == ["ape", "zebra"]
    assert values_of(images.train) == [2, 3, 1]
    assert images.train["label"][:] == [0, 0, 1]
    assert images.validation is None


def test_one_class_sub_folder(tmp_path):
    images = load(write_images(tmp_path, {"jpg/1.png": 1, "jpg/2.png": 2}))
    assert images.label_names == ["jpg"] and images.train["label"][:] == [0, 0]


def test_pile_with_sub_folders_has_no_labels(tmp_path, caplog):
    images = load(write_images(tmp_path, {"0.png": 1, "a/0.png": 2, "b/c/0.png": 3}))
    assert values_of(images.train) == [1, 2, 3] and images.label_names is None
    assert "not classes" in caplog.text


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "test", "Val"])
def test_split_sub_folders(tmp_path, validation):
    files = {"train/b/1.png": 1, "train/a/2.png": 2, f"{validation}/a/3.png": 3, f"{validation}/c/4.png": 4}
    images = load(write_images(tmp_path, files))
    assert images.label_names == ["a", "b", "c"]
    assert values_of(images.train) == [2, 1] and labels_of(images, images.train) == ["a", "b"]
    assert values_of(images.validation) == [3, 4] and labels_of(images, images.validation) == ["a", "c"]
    assert sorted(images.splits) == sorted(["train", validation])
    assert (str(images.train.split), str(images.validation.split)) == ("train", validation)


def test_split_sub_folders_of_piles(tmp_path):
    images = load(write_images(tmp_path, {"train/1.png": 1, "test/2.png": 2}))
    assert values_of(images.train) == [1] and values_of(images.validation) == [2] and images.label_names is None


def test_a_test_folder_without_classes(tmp_path):
    images = load(write_images(tmp_path, {"train/a/1.png": 1, "train/b/2.png": 2, "test/3.png": 3}))
    assert images.train["label"][:] == [0, 1] and images.validation["label"][:] == [-1]


def test_what_lies_beside_splits_is_left_out_and_told(tmp_path, caplog):
    files = {f"{split}/{name}/{n}.png": n for split in ("train", "val", "test") for name in "ab" for n in (1, 2)}
    folder = write_images(tmp_path, {**files, "unlabelled/7.png": 7, "unlabelled/8.png": 8, "chart.png": 9})
    for images in (load(folder), load(folder)):  # it is told once
        assert values_of(images.train) == [1, 2, 1, 2] and images.label_names == ["a", "b"]
        assert images.splits == ["test", "train", "val"] and str(images.validation.split) == "val"
    (told,) = caplog.messages
    assert "the folder itself (1 image), unlabelled (2 images)" in told and "test, train, val" in told
    images = load(folder, train_split="unlabelled")
    assert values_of(images.train) == [7, 8] and images.train["label"][:] == [-1, -1]


def test_the_words_of_the_hub_name_splits(tmp_path):
    images = load(write_images(tmp_path, {"seg_training/a/1.png": 1, "seg_eval/a/2.png": 2}))
    assert (str(images.train.split), str(images.validation.split)) == ("training", "eval")
    assert values_of(images.train) == [1] and values_of(images.validation) == [2] and images.label_names == ["a"]


def test_numbered_parts_of_a_split(tmp_path):
    files = {"train_0/b/1.png": 1, "train_1/a/2.png": 2, "train_1/b/3.png": 3, "val/a/4.png": 4}
    images = load(write_images(tmp_path, files))
    assert images.splits == ["train", "val"] and images.label_names == ["a", "b"]
    assert values_of(images.train) == [2, 1, 3] and labels_of(images, images.train) == ["a", "b", "b"]


def test_a_class_may_be_called_like_a_split(tmp_path):
    images = load(write_images(tmp_path, {"train/1.png": 1, "car/2.png": 2}))
    assert images.label_names == ["car", "train"] and images.splits == ["train"] and len(images.train) == 2


def test_key_words_in_file_names_move_no_image(tmp_path):
    """`imagefolder` would make splits of these, and drop the others."""
    files = {"a/test_1.png": 1, "a/train-2.png": 2, "b/validation.png": 3, "b/evaluation 4.png": 4}
    images = load(write_images(tmp_path, files))
    assert sorted(values_of(images.train)) == [1, 2, 3, 4] and images.validation is None


def test_links_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", {"1.png": 1, "2.png": 2})
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "one.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (folder / "b" / "back").symlink_to(folder)  # a link to the folder above must not be walked for ever
    images = load(folder)
    assert values_of(images.train) == [1, 2, 2] and labels_of(images, images.train) == ["a", "a", "b"]


def test_damaged_images_are_listed_and_not_opened(tmp_path):
    write_images(tmp_path, {"a/good.png": 1})
    write(tmp_path / "a" / "empty.png", b"")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    images = load(tmp_path)
    names = [os.path.basename(image_name(images.train, index)) for index in range(3)]
    assert names == ["empty.png", "gone.png", "good.png"]
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match=names[index]):
            decode_image(images.train[index]["image"])


def test_files_that_are_not_images_are_left_out_and_counted(tmp_path, caplog):
    write_images(tmp_path, {"1.png": 1, "clip.mpg": 2, "features.h5": 3, "scan": 4})
    with caplog.at_level(logging.WARNING):
        assert values_of(load(tmp_path).train) == [1]
    assert "3 files are not images" in caplog.text and "clip.mpg" in caplog.text


def test_heic_files_are_named(tmp_path, caplog):
    write_images(tmp_path, {"1.HEIC": 1, "notes.txt": 2})
    error = load_error(tmp_path)
    assert "no image" in error and "convert HEIC files to JPEG" in error
    write_images(tmp_path, {"1.png": 1})
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "2 files are not images and left out, 1 of them HEIC" in caplog.text and "to JPEG" in caplog.text


def test_one_file_is_left_out(tmp_path, caplog):
    write_images(tmp_path, {"1.png": 1, "notes.txt": 2})
    load(tmp_path)
    assert "1 file is not an image and left out" in caplog.text


def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("asked the Hub"))
    error = load_error("imgs/nosuch")
    assert "no such file or folder" in error and "check the spelling" in error


def test_a_relative_path_survives_a_change_of_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "pile", {"1.png": 1})
    monkeypatch.chdir(tmp_path)
    images = load("pile")
    monkeypatch.chdir("/")
    assert values_of(images.train) == [1]


def test_a_path_object(tmp_path):
    write_images(tmp_path, {"1.png": 1})
    images = load_images(tmp_path)
    assert images.name == str(tmp_path) and values_of(images.train) == [1] and not images.in_memory


def test_home_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "pile", {"1.png": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values_of(load("~/pile").train) == [1]


def test_no_file_of_a_folder_is_opened(tmp_path):
    for number in range(20):
        folder = tmp_path / f"class {number:02}"
        folder.mkdir()
        for image in range(500):
            (folder / f"{image:04}.png").touch()
    opened = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(args[0]) if watching and event == "open" else None)
    images = load(tmp_path)
    watching = False
    assert len(images.train) == 10_000 and len(images.label_names) == 20
    assert not [path for path in opened if str(path).endswith(".png")]


# Parquet.


def test_one_parquet_file_is_train(tmp_path):
    path = write_parquet(tmp_path / AWKWARD / "test.parquet", [5, 6], label=[0, 1])
    images = load(path)
    assert values_of(images.train) == [5, 6] and images.splits == ["train"] and images.validation is None


def test_folder_of_parquet_files(tmp_path):
    folder = tmp_path / AWKWARD
    write_parquet(folder / "train.parquet", [1, 2], label=["b", "a"])
    write_parquet(folder / "test.parquet", [3], label=["c"])
    images = load(folder)
    assert images.label_names == ["a", "b", "c"]
    assert values_of(images.train) == [1, 2] and labels_of(images, images.train) == ["b", "a"]
    assert values_of(images.validation) == [3] and labels_of(images, images.validation) == ["c"]
    assert image_name(images.validation, 0) == "row 0 of test"


@pytest.mark.parametrize(
    "names",
    [
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
        ],
        ["train/0000.parquet", "train/0001.parquet", "val/0000.parquet"],
        ["train0.parquet", "train1.parquet", "valid_0.parquet"],
        ["Train-0.PARQUET", "Train-1.PARQUET", "Test.parquet"],
    ],
)
def test_shards(tmp_path, names):
    for value, name in enumerate(names):
        write_parquet(tmp_path / name, [10 * value, 10 * value + 1])
    images = load(tmp_path)
    assert values_of(images.train) == [0, 1, 10, 11] and values_of(images.validation) == [20, 21]


def test_shards_without_split_names_are_all_train(tmp_path):
    for value, name in enumerate(["part-0.parquet", "part-1.parquet", "values.parquet", "testimony.parquet"]):
        write_parquet(tmp_path / name, [value])
    images = load(tmp_path)
    assert values_of(images.train) == [0, 1, 3, 2] and images.splits == ["train"]


@pytest.mark.parametrize("extra", ["extra.parquet", "extra-00000-of-00001.parquet", "extra/0.parquet"])
def test_a_shard_without_split_name_among_others_is_left_out(tmp_path, caplog, extra):
    write_parquet(tmp_path / "train.parquet", [1])
    write_parquet(tmp_path / extra, [2])
    assert values_of(load(tmp_path).train) == [1]
    (told,) = caplog.messages
    assert "extra (1 file)" in told and "`train_split`" in told
    assert values_of(load(tmp_path, train_split="extra").train) == [2]


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary", "large_struct"])
def test_images_without_the_image_type(tmp_path, kind):
    """As pandas or polars write them."""
    encoded = [png(7), png(8)]
    types = {
        "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "binary": pa.binary(),
        "large_binary": pa.large_binary(),
        "large_struct": pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
    }
    rows = [{"bytes": content, "path": "x.png"} for content in encoded] if "struct" in kind else encoded
    pq.write_table(pa.table({"photo": pa.array(rows, types[kind]), "n": [1, 2]}), tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert values_of(images.train) == [7, 8] and images.label_names is None
    assert image_name(images.train, 1) == ("row 1 of train (x.png)" if "struct" in kind else "row 1 of train")


def test_parquet_of_pandas(tmp_path):
    frame = pd.DataFrame(
        {
            "image": [{"bytes": png(value), "path": None} for value in (1, 2, 3)],
            "label": pd.Categorical(["pine", "oak", None]),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert values_of(images.train) == [1, 2, 3] and labels_of(images, images.train) == ["pine", "oak", None]


def test_an_image_column_goes_before_binary_ones(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1], embedding=[b"abc"])
    assert values_of(load(tmp_path / "a.parquet").train) == [1]


def test_a_parquet_file_that_changed_is_read_anew(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [1])
    assert values_of(load(path).train) == [1]
    write_parquet(path, [2])
    os.utime(path, (2_000_000_000, 2_000_000_000))
    assert values_of(load(path).train) == [2]


@pytest.mark.parametrize("type", [pa.binary(), pa.large_binary()], ids=str)
def test_the_bytes_stay_on_disk(tmp_path, type):
    rng = np.random.default_rng(0)
    table = pa.table({"image": pa.array([rng.bytes(100_000) for _ in range(20)], type), "label": list(range(20))})
    pq.write_table(table, tmp_path / "a.parquet")
    del table
    before = pa.total_allocated_bytes()
    images = load(tmp_path / "a.parquet")
    assert pa.total_allocated_bytes() - before < 100_000
    assert len(pickle.dumps(images.train)) < 20_000  # what a worker process is sent


def test_a_row_without_a_image(tmp_path):
    table = pa.table({"image": pa.array([{"bytes": png(1), "path": None}, None])})
    pq.write_table(table, tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert image_name(images.train, 1) == "row 1 of train"
    with pytest.raises(UnreadableImage, match="row 1 of train"):
        decode_image(images.train[1]["image"], name=image_name(images.train, 1))


@pytest.mark.parametrize("name, num_train, num_classes", [("flowers12", 720, 12), ("cifar10", 50_000, 10)])
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_data(name, num_train, num_classes):
    images = load(SHARED / name)
    assert len(images.train) == num_train and len(images.label_names) == num_classes
    assert images.splits == ["test", "train"]
    raw = pq.ParquetFile(SHARED / name / "test.parquet")
    metadata = json.loads(raw.schema_arrow.metadata[b"huggingface"])
    assert images.label_names == metadata["info"]["features"]["label"]["names"]
    first = next(raw.iter_batches(100)).to_pylist()
    for row, original in zip(images.validation, first, strict=False):
        assert row["label"] == original["label"] and row["image"]["bytes"] == original["image"]["bytes"]
        decode_image(row["image"])


# Webdataset.


@pytest.mark.parametrize("name, mode", [("train-0000.tar", "w"), ("images.tar.gz", "w:gz")])
def test_one_tar_file(tmp_path, name, mode):
    members = {}
    for value in range(12):
        members |= {f"{value:03}.png": png(value), f"{value:03}.cls": str(10 - value % 3).encode()}
    images = load(write_tar(tmp_path / AWKWARD / name, members, mode))
    assert values_of(images.train) == list(range(12)) and images.splits == ["train"]
    assert images.label_names == ["8", "9", "10"]
    assert labels_of(images, images.train) == ["10", "9", "8"] * 4
    assert image_name(images.train, 3) == "row 3 of train (003.png)"


def test_folder_of_tar_files(tmp_path):
    write_tar(tmp_path / "train-0000.tar", {"a/0.png": png(1), "a/1.png": png(2)})
    write_tar(tmp_path / "train-0001.tar", {"a/0.png": png(3)})
    write_tar(tmp_path / "test-0000.tar", {"a/0.png": png(4)})
    images = load(tmp_path)
    assert values_of(images.train) == [1, 2, 3] and values_of(images.validation) == [4]
    assert images.label_names is None


def test_several_images_in_a_sample(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": png(1), "0.seg.png": png(2)})
    assert "png, seg.png" in load_error(path, "image_column")
    assert values_of(load(path, image_column="seg.png").train) == [2]


# Saved datasets.


def test_saved_dataset(tmp_path):
    saved_splits().save_to_disk(tmp_path / AWKWARD)
    images = load(tmp_path / AWKWARD)
    assert values_of(images.train) == list(range(6))
    assert images.label_names == ["b", "a"] and images.train["label"][:] == [0, 1, 1, 0, -1, -1]
    assert images.validation is None


def test_saved_dataset_dict(tmp_path):
    splits = saved_splits().train_test_split(test_size=2, shuffle=False)
    datasets.DatasetDict({"train": splits["train"], "my test": splits["test"]}).save_to_disk(tmp_path)
    images = load(tmp_path, validation_split="my test")
    assert values_of(images.train) == [0, 1, 2, 3] and values_of(images.validation) == [4, 5]
    assert images.validation["label"][:] == [-1, -1] and images.splits == ["train", "my test"]
    assert image_name(images.validation, 1) == "row 1 of my_test"


def test_a_saved_selection_keeps_its_rows(tmp_path):
    saved_splits().select([4, 2, 0]).with_format("numpy").save_to_disk(tmp_path)
    images = load(tmp_path)
    assert values_of(images.train) == [4, 2, 0] and images.train["label"][:] == [-1, 1, 0]


# The Hub, with its answers made here.


def test_hub_dataset(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.DatasetDict({"train": saved_splits(), "test": saved_splits().select([1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: None)  # of some other form
    images = load("someone/some-images", dataset_config_name="small")
    assert calls == [(("someone/some-images", "small"), {})]
    assert len(images.train) == 6 and values_of(images.validation) == [1]
    assert images.validation["label"][:] == [1]


@pytest.mark.parametrize("dataset", ["no_such_folder", "someone/no-such-dataset"])
def test_hub_out_of_reach(dataset):
    message = load_error(dataset)
    assert "no such file or folder" in message and "Hub" in message


@pytest.mark.parametrize(
    "dataset",
    ["/no/such/folder", "./missing", "a/b/missing.parquet", "missing folder", "", "csv", "imagefolder", "~/x/y"],
)
def test_what_cannot_be_on_the_hub_is_not_asked_for(dataset, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    assert "no such file or folder" in load_error(dataset)


@pytest.mark.parametrize("form", ["digits", "folder"])
def test_a_configuration_is_the_hubs(tmp_path, form):
    dataset = "digits" if form == "digits" else write_images(tmp_path, {"1.png": 1})
    load_error(dataset, "dataset_config_name", dataset_config_name="small")


@pytest.mark.parametrize(
    "names",
    [
        ["fine/train-0.parquet", "coarse/train-0.parquet", "fine/test-0.parquet"],
        ["fine-train.parquet", "coarse-train.parquet", "fine-test.parquet"],
        ["data/fine/train/0.parquet", "data/coarse/train/0.parquet", "data/fine/test/0.parquet"],
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_two_configurations_in_a_folder(tmp_path, names, streaming):
    """Often the same images with other labels: together, each would be there twice."""
    for value, name in enumerate(names):
        write_parquet(tmp_path / name, [value])
    message = load_error(tmp_path, "dataset_config_name", streaming=streaming)
    assert "coarse" in message and "fine" in message
    images = load_images(str(tmp_path), dataset_config_name="fine", streaming=streaming)
    assert values_of(images.train) == [0] and values_of(images.validation) == [2]
    load_error(tmp_path, "dataset_config_name", dataset_config_name="none", streaming=streaming)


def test_two_folders_of_splits(tmp_path):
    values = {"fine/train/a/1.png": 1, "fine/test/a/2.png": 2, "coarse/train/a/1.png": 3, "coarse/test/a/2.png": 4}
    write_images(tmp_path, values)
    message = load_error(tmp_path, "dataset_config_name")
    assert "coarse (test, train), fine (test, train)" in message
    images = load(tmp_path, dataset_config_name="fine")
    assert values_of(images.train) == [1] and values_of(images.validation) == [2]
    load_error(tmp_path, "dataset_config_name", dataset_config_name="..")


# Objects of the `datasets` library.


def load_object(dataset, **arguments):
    images = load_images(dataset, **arguments)
    assert images.name == dataset_name(dataset) and images.in_memory
    return images


@pytest.mark.parametrize("form", ["encoded", "pil"])
def test_a_dataset_in_memory(form, no_decoding):
    dataset = saved_splits()
    if form == "pil":
        dataset = datasets.Dataset.from_dict({"photo": pil_images(range(6)), "species": [0, 1, 1, 0, -1, None]})
    images = load_object(dataset)
    assert_form(images)
    assert values_of(images.train) == list(range(6)) and images.num_train == 6
    assert images.validation is None and images.splits == ["train"]
    if form == "encoded":
        assert images.label_names == ["b", "a"] and images.train["label"][:] == [0, 1, 1, 0, -1, -1]
    images = load_object(dataset, image_column="photo", label_column="species")
    assert labels_of(images, images.train)[:3] == (["b", "a", "a"] if form == "encoded" else ["0", "1", "1"])
    assert image_name(images.train, 1) == "row 1 of train"


def test_a_selection_in_memory_keeps_its_rows():
    """Without a copy of the images, with and without labels, in a format of its own."""
    dataset = saved_splits()
    for rows in ([4, 2, 0], [3, 3, 1]):
        images = load_object(dataset.select(rows).with_format("numpy"))
        assert_form(images)
        assert values_of(images.train) == rows
        assert images.train["label"][:] == [[0, 1, 1, 0, -1, -1][row] for row in rows]
        assert len(images.train.data) == 6
        unlabeled = load_object(dataset.remove_columns("species").select(rows))
        assert values_of(unlabeled.train) == rows and unlabeled.label_names is None
        streamed = load_object(dataset.select(rows), streaming=True)
        assert values_of(streamed.train) == rows
        assert labels_in(streamed.train) == images.train["label"][:]


def test_a_selection_of_files_with_labels_in_memory(tmp_path):
    """As a fifth of a saved dataset that is held back to measure: its images are in a file, its labels are not."""
    saved_splits().save_to_disk(tmp_path)
    images = load(tmp_path)
    assert labels_in(load_object(images.train.select([4, 2, 0])).train) == [
        images.train["label"][row] for row in (4, 2, 0)
    ]


def test_selections_in_memory_of_lists():
    one_class = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"image": IMAGE, "labels": datasets.List(one_class)})
    rows = {"image": pil_images(range(4)), "labels": [[0], [1, 0], None, []]}
    images = load_object(datasets.Dataset.from_dict(rows, features=features).select([3, 1, 2, 0]))
    assert images.multi_label and images.train["label"][:] == [[], [0, 1], None, [0]]


def test_splits_in_memory():
    splits = saved_splits().train_test_split(test_size=2, seed=0)
    images = load_object(splits)
    assert_form(images)
    assert (str(images.train.split), str(images.validation.split)) == ("train", "test")
    assert sorted(values_of(images.train) + values_of(images.validation)) == list(range(6))
    for split, rows in ((images.train, splits["train"]), (images.validation, splits["test"])):
        assert split["label"][:] == [-1 if label is None else label for label in rows["species"]]
    images = load_object(splits, train_split="test", validation_split="train")
    assert len(images.train) == 2 and len(images.validation) == 4
    assert "train, test" in load_error(splits, "train_split", train_split="no")
    assert "species" in load_error(splits, "image_column", image_column="no")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["table", "dict", "generator", "pil generator"])
def test_streams_in_memory(form, streaming, request):
    if form in ("table", "dict"):
        request.getfixturevalue("no_decoding")
        stream = saved_splits().to_iterable_dataset(num_shards=3)
    else:
        photos = pil_images(range(6)) if form == "pil generator" else [png(value) for value in range(6)]
        stream = datasets.IterableDataset.from_generator(
            lambda: ({"photo": photo, "species": number % 2} for number, photo in enumerate(photos))
        )
    if form == "dict":
        stream = datasets.IterableDatasetDict({"train": stream, "test": stream.take(2)})
    images = load_object(stream, label_column="species", streaming=streaming)
    assert isinstance(images.train, datasets.IterableDataset) and images.num_train is None
    assert values_of(images.train) == values_of(images.train) == list(range(6))
    assert len(images.train_shards) == images.train.num_shards == (3 if form in ("table", "dict") else 1)
    if form in ("table", "dict"):
        assert labels_in(images.train) == saved_splits()["species"][:] and images.label_names == ["b", "a"]
    else:
        assert labels_in(images.train) == [0, 1] * 3 and images.label_names is None
    assert (values_of(images.validation) == [0, 1]) if form == "dict" else (images.validation is None)


def test_mistakes_with_objects():
    for dataset in ([1, 2], {"train": [1]}, None, np.zeros(3)):
        with pytest.raises(SiTError) as error:
            load_images(dataset)
        assert error.value.argument == "dataset" and type(dataset).__name__ in error.value.problem
    load_error(saved_splits(), "dataset_config_name", dataset_config_name="small")
    assert "no split" in load_error(datasets.DatasetDict())
    assert "is empty" in load_error(saved_splits().select([]), "train_split")
    assert "is empty" in load_error(datasets.IterableDataset.from_generator(lambda: iter(())))

    def damaged():
        raise OSError("disk on fire")
        yield

    assert "disk on fire" in load_error(datasets.IterableDataset.from_generator(damaged))


class TestArrays:
    """`.npy` files are images where there are no others; beside images they are mostly masks of them."""

    @staticmethod
    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((4, 5, 7), np.uint16))

    def test_a_folder_of_classes(self, tmp_path):
        for split, classes in (("train", "ab"), ("test", "ab")):
            for name in classes:
                self.save(tmp_path / split / name / "0.npy")
        images = load_images(str(tmp_path))
        assert len(images.train) == 2 and len(images.validation) == 2 and images.label_names == ["a", "b"]

    def test_beside_images_they_are_left_out(self, tmp_path, caplog):
        write_images(tmp_path, {"a.png": 1, "b.png": 2})
        self.save(tmp_path / "0.npy")
        assert len(load_images(str(tmp_path)).train) == 2
        assert "0.npy" in caplog.text

    def test_one_is_no_dataset(self, tmp_path):
        self.save(tmp_path / "0.npy")
        assert "one image" in load_error(tmp_path / "0.npy")
