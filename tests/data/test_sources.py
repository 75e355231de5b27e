import io
import json
import logging
import os
import pickle
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.image_datasets import dataset_name, image_name
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

SHARED = Path(__file__).parents[3] / "shared" / "data"
OBJECTS = (datasets.Dataset, datasets.IterableDataset, dict)
AWKWARD = "da[t]a s*t {1}"  # characters that mean something in a glob


@pytest.fixture(autouse=True)
def isolated_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(value):
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 3), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_images(folder, values):
    """One gray image for each `{path: value}`, by which it is recognised later."""
    for path, value in values.items():
        write(folder / path, png(value))
    return str(folder)


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path, values, **columns):
    """As `datasets` writes it: an `Image` column named so in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(value), "path": None} for value in values]
    datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image()).to_parquet(path)
    return path


def values_of(dataset):
    """The pixels of every row, each image being of one value."""
    values = []
    for row in dataset:
        array = np.asarray(decode_image(row["image"], 1))
        assert array.shape == (3, 2) and array.min() == array.max()
        values.append(int(array[0, 0]))
    return values


def labels_of(images, dataset):
    """Names of the classes; `None` for no label."""
    names = images.label_names
    if images.multi_label:
        return [None if labels is None else [names[label] for label in labels] for labels in dataset["label"]]
    return [names[label] if label >= 0 else None for label in dataset["label"]]


def assert_form(images):
    """What every form promises."""
    for dataset in (images.train, images.validation):
        if dataset is None:
            continue
        expected = {"image": datasets.Image(decode=False)}
        if images.label_names is not None:
            expected["label"] = datasets.ClassLabel(names=images.label_names)
            if images.multi_label:
                expected["label"] = datasets.List(expected["label"])
        assert dict(dataset.features) == expected


def load(dataset, **arguments):
    images = load_images(str(dataset), **arguments)
    assert images.name == str(dataset)
    assert_form(images)
    return images


def load_error(dataset, argument="dataset", **arguments):
    """What is wrong and what to do, in a line; the error is of `argument`, and names the dataset."""
    with pytest.raises(SiTError) as caught:
        load_images(dataset if isinstance(dataset, OBJECTS) else str(dataset), **arguments)
    assert caught.value.argument == argument
    message = str(caught.value)
    start = f"{argument}: {dataset_name(dataset)}: "
    assert "\n" not in message and message.startswith(start)
    return message.removeprefix(start)


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


def test_digits_are_always_split_alike():
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


def saved_splits():
    features = datasets.Features({"photo": datasets.Image(), "species": datasets.ClassLabel(names=["b", "a"])})
    rows = {"photo": [{"bytes": png(value), "path": None} for value in range(6)], "species": [0, 1, 1, 0, -1, None]}
    return datasets.Dataset.from_dict(rows, features=features)


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


def pil_images(values):
    return [PIL.Image.new("L", (2, 3), value) for value in values]


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


# Streams: the same images as they come.


def stream(dataset, **arguments):
    """Load a stream, and check it against the set as it is without streaming."""
    images, plain = load_images(str(dataset), streaming=True, **arguments), load(dataset, **arguments)
    for split in ("train", "validation"):
        rows, table = getattr(images, split), getattr(plain, split)
        assert (rows is None) == (table is None)
        if rows is not None:
            assert isinstance(rows, datasets.IterableDataset) and rows.features["image"] == datasets.Image(
                decode=False
            )
            assert [row["image"] for row in rows] == table["image"][:]
            assert values_of(rows) == values_of(table)
    assert (images.name, images.splits) == (plain.name, plain.splits)
    if plain.train is not None:
        assert images.num_train in (None, plain.num_train) and plain.num_train == len(plain.train)
        assert len(images.train_shards) == images.train.num_shards and plain.train_shards is None
    return images


@pytest.fixture
def no_decoding(monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded an image"))


def labels_in(rows):
    return [row["label"] for row in rows]


@pytest.mark.parametrize("form", ["folder", "digits", "saved"])
def test_tables_are_streamed(tmp_path, form, monkeypatch, no_decoding):
    if form == "folder":
        write_images(tmp_path, {f"{'ab'[value % 2]}/{value}.png": value for value in range(7)})
    elif form == "saved":
        saved_splits().save_to_disk(tmp_path)
    monkeypatch.setattr("modeling_sit.data.sources.MAX_SHARDS_OF_A_TABLE", 4)
    dataset = "digits" if form == "digits" else tmp_path
    images, plain = load_images(str(dataset), streaming=True), load(dataset)
    assert images.train.features == plain.train.features and images.label_names == plain.label_names
    assert list(images.train.take(9)) == [plain.train[row] for row in range(min(9, len(plain.train)))]
    assert images.num_train == len(plain.train) and images.train.num_shards == 4
    for number, shard in enumerate(images.train_shards):
        first = next(iter(images.train.shard(num_shards=4, index=number)))
        assert shard.name == "train" and plain.train[shard.first_row] == first


def test_parquet_is_streamed(tmp_path, no_decoding):
    label = datasets.ClassLabel(names=["x", "y"])
    for name, values in {"train-0": [1, 2, 3], "train-1": [], "train-2": [4, 5], "test": [6]}.items():
        rows = {"photo": [{"bytes": png(value), "path": None} for value in values], "cls": [1] * len(values)}
        features = datasets.Features({"photo": datasets.Image(), "cls": label, "note": datasets.Value("string")})
        rows["note"] = ["n"] * len(values)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    images = stream(tmp_path)
    assert images.num_train == 5 and images.label_names == ["x", "y"]
    assert dict(images.train.features) == {"image": datasets.Image(decode=False), "label": label}
    assert labels_in(images.train) == [1] * 5 and labels_in(images.validation) == [1]
    assert [shard.name for shard in images.train_shards] == [f"{tmp_path}/train-{number}.parquet" for number in (0, 2)]
    assert stream(tmp_path / "train-0.parquet").num_train == 3


def test_a_stream_is_not_copied_to_the_disk(tmp_path):
    write_parquet(tmp_path / "data" / "train.parquet", range(9))
    list(load_images(str(tmp_path / "data"), streaming=True).train)
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


def test_tars_are_streamed(tmp_path, no_decoding):
    write_tar(tmp_path / "train-0.tar", {"0.png": png(0), "0.cls": b"4", "1.png": png(1), "1.cls": b"2"})
    write_tar(tmp_path / "train-1.tar", {"2.png": png(2), "2.cls": b"3"})
    images = stream(tmp_path)
    assert images.num_train is None and images.validation is None
    # Only the whole stream would give the classes.
    assert labels_in(images.train) == [4, 2, 3] and images.label_names is None
    assert [shard.name for shard in images.train_shards] == [f"{tmp_path}/train-{number}.tar" for number in (0, 1)]


def test_encoded_columns_are_streamed(tmp_path, no_decoding):
    binary = pa.table({"content": [png(1), png(2)], "label": ["a", "b"]})
    pq.write_table(binary, tmp_path / "train.parquet")
    images = stream(tmp_path)
    assert list(images.train.features) == ["image"] and images.label_names is None
    message = load_error(tmp_path, "label_column", streaming=True, label_column="label")
    assert "column label" in message and "class labels, lists of them, or integers" in message


def test_streams_of_other_labels(tmp_path):
    for split, names in {"train": ["a", "b"], "test": ["b", "a"]}.items():
        write_parquet(tmp_path / f"{split}.parquet", [0, 1], label=[0, 1])
        rows = datasets.Dataset.from_parquet(str(tmp_path / f"{split}.parquet"))
        rows.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(tmp_path / f"{split}.parquet")
    assert list(stream(tmp_path).train.features) == ["image"]
    assert "the same in all its splits" in load_error(tmp_path, "label_column", streaming=True, label_column="label")
    assert list(stream(tmp_path, validation_split="train").train.features) == ["image", "label"]


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_mistakes_with_streams(tmp_path, form):
    if form == "parquet":
        write_parquet(tmp_path / "train.parquet", range(2), other=[0, 1])
        write_parquet(tmp_path / "test.parquet", [])
        assert "split test is empty" in load_error(tmp_path, "validation_split", streaming=True)
    else:
        write_tar(tmp_path / "train.tar", {"0.png": png(0), "0.other": b"1"})
        write_tar(tmp_path / "test.tar", {"0.seg.jpg": png(0), "0.cls": b"1"})
        assert "split test has no column png" in load_error(
            tmp_path, "image_column", streaming=True, image_column="png"
        )
    assert "no column no, only" in load_error(tmp_path, "image_column", streaming=True, image_column="no")
    assert "no split no, only" in load_error(tmp_path, "train_split", streaming=True, train_split="no")
    (tmp_path / f"train.{form}").write_bytes(b"damaged")
    assert f"train.{form}" in load_error(tmp_path, streaming=True)


def test_hub_streams(monkeypatch, no_decoding):
    """With all that a stream from the Hub can have: decoding on the way, counts of rows or none, no known features."""
    calls = []
    train = saved_splits().to_iterable_dataset(num_shards=3).decode(num_threads=2)
    train.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=6)})
    untyped = datasets.IterableDataset.from_generator(lambda: iter([{"image": png(7), "label": 1}]))
    assert untyped.features is None

    class Builder:
        def as_streaming_dataset(self, split):
            assert split is None
            return datasets.IterableDatasetDict({"train": train, "raw": untyped})

    def load_dataset_builder(*args, **kwargs):
        calls.append((args, kwargs))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    images = load_images("someone/some-images", streaming=True, dataset_config_name="small")
    assert calls == [(("someone/some-images",), {"name": "small"})]
    assert images.num_train == 6 and values_of(images.train) == list(range(6))
    assert labels_in(images.train) == saved_splits()["species"][:]
    assert [shard.name for shard in images.train_shards] == [f"shard {number} of train" for number in range(3)]
    raw = load_images("someone/some-images", streaming=True, train_split="raw")
    assert values_of(raw.train) == [7] and raw.num_train is None


# Columns.


def save(tmp_path, features=None, **columns):
    folder = tmp_path / "saved"
    features = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return folder


IMAGES = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}, {"bytes": png(3), "path": None}]
MORE_IMAGES = [{"bytes": png(4), "path": None}, {"bytes": png(5), "path": None}, {"bytes": png(6), "path": None}]
IMAGE = datasets.Image()
ABC = datasets.ClassLabel(names=["a", "b", "c"])


def test_several_image_columns(tmp_path):
    folder = save(tmp_path, {"photo": IMAGE, "mask": IMAGE}, photo=IMAGES, mask=MORE_IMAGES)
    assert "photo, mask" in load_error(folder, "image_column")
    assert values_of(load(folder, image_column="mask").train) == [4, 5, 6]


def test_no_image_column(tmp_path):
    assert "text, label" in load_error(save(tmp_path, text=["x"], label=[1]), "image_column")


@pytest.mark.parametrize("argument", ["image_column", "label_column"])
def test_wrong_column_names(tmp_path, argument):
    folder = save(tmp_path, {"photo": IMAGE, "kind": ABC}, photo=IMAGES, kind=[0, 1, 2])
    message = load_error(folder, argument, **{argument: "nonsense"})
    assert "nonsense" in message and "photo, kind" in message


def test_wrong_column_types(tmp_path):
    features = {
        "photo": IMAGE,
        "text": datasets.Value("string"),
        "boxes": datasets.List(datasets.List(datasets.Value("int64"))),
        "scores": datasets.List(datasets.Value("float32")),
        "score": datasets.Value("float32"),
    }
    columns = {"text": ["a"] * 3, "boxes": [[[0]]] * 3, "scores": [[0.5]] * 3, "score": [0.5] * 3}
    folder = save(tmp_path, features, photo=IMAGES, **columns)
    assert "column text" in load_error(folder, "image_column", image_column="text")
    for column in ("photo", "boxes"):
        message = load_error(folder, "label_column", label_column=column)
        assert message.startswith(f"column {column} holds not one class for each image") and len(message) < 250
    for column in ("scores", "score"):
        message = load_error(folder, "label_column", label_column=column)
        assert f"column {column}" in message and "0.5" in message


@pytest.mark.parametrize(
    "feature, value",
    [
        (datasets.Value("float64"), 0.5),
        (datasets.List(datasets.Value("float32")), [0.5]),
        (datasets.List(datasets.List(datasets.Value("int64"))), [[1]]),
        ({"left": datasets.Value("int64")}, {"left": 1}),
        (IMAGE, {"bytes": png(1), "path": None}),
    ],
    ids=["float", "floats", "nested lists", "struct", "image"],
)
def test_a_usual_name_for_what_is_no_label(tmp_path, caplog, feature, value):
    folder = save(tmp_path, {"image": IMAGE, "label": feature}, image=IMAGES, label=[value] * 3)
    message = load_error(folder, "label_column", labels="required", image_column="image")
    whole = "column label of split train holds numbers that are not whole"
    assert message.startswith(("column label holds not one class for each image", whole))
    images = load(folder, image_column="image")
    assert images.label_names is None and values_of(images.train) == [1, 2, 3]
    assert "labels are not read: column label" in caplog.text


@pytest.mark.parametrize("coarse", [ABC, datasets.List(ABC)], ids=["classes", "lists"])
def test_several_label_columns(tmp_path, caplog, coarse):
    features = {"img": IMAGE, "fine_label": ABC, "coarse_label": coarse}
    labels = [2, 2, 0] if coarse is ABC else [[2], [2], [0]]
    folder = save(tmp_path, features, img=IMAGES, fine_label=[0, 1, 2], coarse_label=labels)
    assert "fine_label, coarse_label" in load_error(folder, "label_column", labels="required")
    for needed in ("required", "if clear"):
        images = load(folder, label_column="coarse_label", labels=needed)
        assert images.train["label"][:] == labels and images.multi_label == (coarse is not ABC)
    assert not caplog.text
    for streaming in (False, True):  # pretraining needs none
        images = load_images(str(folder), streaming=streaming)
        assert images.label_names is None and values_of(images.train) == [1, 2, 3]
        assert images.train.column_names == ["image"]
    assert caplog.text.count("several columns of labels: fine_label, coarse_label") == 2


def test_a_class_label_column_goes_before_a_usual_name(tmp_path):
    features = {"image": IMAGE, "label": datasets.Value("int64"), "species": ABC}
    images = load(save(tmp_path, features, image=IMAGES, label=[5, 6, 7], species=[2, 1, 0]))
    assert labels_of(images, images.train) == ["c", "b", "a"]


@pytest.mark.parametrize(
    "type, given, names, expected",
    [
        ("string", ["pine", "oak", "pine"], ["oak", "pine"], ["pine", "oak", "pine"]),
        ("large_string", ["b", None, "a"], ["a", "b"], ["b", None, "a"]),
        ("int64", [0, 1, 2], ["0", "1", "2"], ["0", "1", "2"]),
        ("int32", [10, 9, -1], ["9", "10"], ["10", "9", None]),
        ("uint8", [7, None, 7], ["7"], ["7", None, "7"]),
        ("bool", [True, False, None], ["false", "true"], ["true", "false", None]),
    ],
)
@pytest.mark.parametrize("column", ["label", "Class", "target"])
def test_labels_without_names(tmp_path, column, type, given, names, expected):
    features = {"image": IMAGE, column: datasets.Value(type), "width": datasets.Value("int64")}
    images = load(save(tmp_path, features, image=IMAGES, width=[1, 2, 3], **{column: given}))
    assert images.label_names == names and labels_of(images, images.train) == expected


def test_no_labels(tmp_path):
    features = {"image": IMAGE, "width": datasets.Value("int64"), "caption": datasets.Value("string")}
    folder = save(tmp_path, features, image=IMAGES, width=[1, 2, 3], caption=["x", "y", "z"])
    assert load(folder).label_names is None
    images = load(folder, label_column="caption")
    assert images.label_names == ["x", "y", "z"] and images.train["label"][:] == [0, 1, 2]


def test_a_label_column_that_holds_none(tmp_path):
    features = {"image": IMAGE, "label": datasets.Value("int64")}
    assert load(save(tmp_path, features, image=IMAGES, label=[-1, None, -1])).label_names is None


def test_a_test_split_without_the_label_column(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], label=["x", "y"])
    write_parquet(tmp_path / "test.parquet", [3])
    images = load(tmp_path)
    assert images.label_names == ["x", "y"] and images.train["label"][:] == [0, 1]
    assert values_of(images.validation) == [3] and images.validation["label"][:] == [-1]


def test_splits_that_name_their_classes_differently(tmp_path):
    splits = {}
    for split, names in {"train": ["x", "y"], "test": ["z", "y"]}.items():
        features = datasets.Features({"image": IMAGE, "label": datasets.ClassLabel(names=names)})
        splits[split] = datasets.Dataset.from_dict({"image": IMAGES, "label": [0, 1, -1]}, features=features)
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    images = load(tmp_path)
    assert images.label_names == ["x", "y", "z"]
    assert labels_of(images, images.train) == ["x", "y", None]
    assert labels_of(images, images.validation) == ["z", "y", None]


def test_numbers_in_one_split_and_strings_in_another(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], label=[3, 4])
    write_parquet(tmp_path / "test.parquet", [3], label=["4"])
    images = load(tmp_path)
    assert labels_of(images, images.train) == ["3", "4"] and labels_of(images, images.validation) == ["4"]


def test_a_split_that_is_not_used_takes_part_in_the_encoding(tmp_path):
    """Otherwise the index of a class would depend on the choice of the validation split."""
    for value, (split, label) in enumerate({"train": "m", "val": "z", "test": "a"}.items()):
        write_parquet(tmp_path / f"{split}.parquet", [value], label=[label])
    assert load(tmp_path).label_names == load(tmp_path, validation_split="test").label_names == ["a", "m", "z"]


def test_splits_that_are_not_used_may_have_other_columns(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1], label=["a"])
    write_parquet(tmp_path / "val.parquet", [2], label=["a"])
    image = {"bytes": png(3), "path": None}
    features = datasets.Features({"photo": IMAGE, "mask": IMAGE, "species": ABC})
    other = datasets.Dataset.from_dict({"photo": [image], "mask": [image], "species": [0]}, features=features)
    other.to_parquet(tmp_path / "test.parquet")
    images = load(tmp_path)
    assert images.splits == ["test", "train", "val"] and images.label_names == ["a"]
    assert values_of(images.train) == [1] and values_of(images.validation) == [2]


def test_columns_that_only_the_validation_split_has(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1])
    write_parquet(tmp_path / "test.parquet", [2], label=["a"])
    images = load(tmp_path)
    assert images.train["label"][:] == [-1] and images.validation["label"][:] == [0]


def test_splits_whose_labels_are_of_different_types(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1], label=[3])
    write_parquet(tmp_path / "test.parquet", [2], label=[3.5])
    assert "column label of split test" in load_error(tmp_path, "label_column", labels="required")
    assert load(tmp_path).label_names is None


def test_a_test_split_with_an_empty_label_column(tmp_path):
    for name, labels in {"train": [1, 0], "test": [None, None]}.items():
        table = pa.table({"image": [png(1), png(2)], "label": pa.array(labels)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    images = load(tmp_path)
    assert images.train["label"][:] == [1, 0] and images.validation["label"][:] == [-1, -1]


@pytest.mark.parametrize("columns", [{}, {"label": [None] * 3}, {"label": [-1] * 3}, {"label": [[], None, []]}])
def test_labels_that_are_needed(tmp_path, columns):
    table = pa.table({"image": [png(value) for value in (1, 2, 3)], **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_error(tmp_path / "a.parquet", "label_column", labels="required").startswith("no labels: ")
    assert load(tmp_path / "a.parquet").label_names is None


def test_a_class_without_a_name(tmp_path):
    for labels, column in (([0, 7, 1], ABC), ([[0], [], [1, 7]], datasets.List(ABC))):
        table = pa.table({"image": [png(value) for value in (1, 2, 3)], "label": labels})
        table = table.replace_schema_metadata(
            datasets.Features({"image": IMAGE, "label": column}).arrow_schema.metadata
        )
        pq.write_table(table, tmp_path / "a.parquet")
        message = load_error(tmp_path / "a.parquet", "label_column", label_column="label")
        assert "column label of split train: a label 7, but names for 3 classes" in message


# Several labels an image.


LISTS = [["oak", "fir"], [], ["fir", "ash"], None, ["fir", "fir", "fir"]]
NAMES = ["ash", "fir", "oak"]
SORTED_LISTS = [["fir", "oak"], [], ["ash", "fir"], None, ["fir"]]
INDICES = [None if names is None else [NAMES.index(name) for name in names] for names in LISTS]
MULTI_HOT = [[0, 1, 1], [0, 0, 0], [1, 1, 0], None, [0, 1, 0]]
BOOLEANS = [None if row is None else [value == 1 for value in row] for row in MULTI_HOT]


def padded(lists, size, padding):
    return [None if values is None else [*values, *[padding] * (size - len(values))] for values in lists]


LISTS_OF_CLASSES = {
    "names": (pa.list_(pa.string()), LISTS),
    "large names": (pa.large_list(pa.large_string()), LISTS),
    "names of fixed size": (pa.list_(pa.string(), 3), padded(LISTS, 3, None)),
    "indices": (pa.list_(pa.int64()), INDICES),
    "unsigned indices": (pa.large_list(pa.uint8()), INDICES),
    "indices of fixed size": (pa.list_(pa.int32(), 4), padded(INDICES, 4, -1)),
    "booleans": (pa.list_(pa.bool_()), BOOLEANS),
    "booleans of fixed size": (pa.list_(pa.bool_(), 3), BOOLEANS),
    "zeros and ones": (pa.list_(pa.int64()), MULTI_HOT),
    "zeros and ones of fixed size": (pa.list_(pa.uint8(), 3), MULTI_HOT),
}


def write_lists(path, form, rows=None, names=None):
    """The labels in that form in a parquet file, as others write it or, with names, as `datasets` does."""
    type_, labels = LISTS_OF_CLASSES[form]
    rows = list(range(len(labels)) if rows is None else rows)
    table = pa.table({"image": [png(row) for row in rows], "labels": pa.array([labels[row] for row in rows], type_)})
    if names is not None:
        wrap = datasets.LargeList if "large" in form or "unsigned" in form else datasets.List
        fixed = {"length": type_.list_size} if "fixed" in form else {}
        features = datasets.Features(
            {"image": datasets.Value("binary"), "labels": wrap(datasets.ClassLabel(names=names), **fixed)}
        )
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("form", LISTS_OF_CLASSES)
def test_lists_of_classes(tmp_path, form):
    images = load(write_lists(tmp_path / "a.parquet", form), labels="required")
    has_names = "names" in form
    assert images.multi_label and images.label_names == (NAMES if has_names else ["0", "1", "2"])
    expected = [None if names is None else [NAMES.index(name) for name in names] for names in SORTED_LISTS]
    assert images.train["label"][:] == expected
    assert values_of(images.train) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("form", ["indices", "unsigned indices", "indices of fixed size"])
def test_lists_of_class_labels(tmp_path, form):
    """Names in the order that the dataset gives them, with a class that no image has."""
    images = load(write_lists(tmp_path / "a.parquet", form, names=[*"xaz", "none"]))
    assert images.label_names == ["x", "a", "z", "none"]
    assert labels_of(images, images.train) == [["a", "z"], [], ["x", "a"], None, ["a"]]


@pytest.mark.parametrize("rows", [[0, 4], [0, 2], [1, 3], [3]])
def test_a_selection_of_lists(tmp_path, rows):
    """Which has another start in its Arrow buffers."""
    path = write_lists(tmp_path / "all.parquet", "names of fixed size")
    datasets.Dataset.from_parquet(str(path)).select(rows).save_to_disk(tmp_path / "saved")
    images = load(tmp_path / "saved")
    if images.label_names is None:
        assert rows in ([1, 3], [3])
    else:
        assert labels_of(images, images.train) == [SORTED_LISTS[row] for row in rows]


def test_lists_have_one_encoding_in_all_splits(tmp_path):
    write_lists(tmp_path / "train.parquet", "names", [0, 1])
    write_lists(tmp_path / "val.parquet", "large names", [4, 3])
    write_lists(tmp_path / "test.parquet", "names", [2])
    images = load(tmp_path)
    assert images.label_names == NAMES
    assert labels_of(images, images.train) == [["fir", "oak"], []]
    assert labels_of(images, images.validation) == [["fir"], None]
    assert load(tmp_path, validation_split="test").train["label"][:] == images.train["label"][:]


def test_class_labels_of_other_names_in_lists(tmp_path):
    for split, names in {"train": ["a", "b", "c"], "test": ["b", "c", "d"]}.items():
        write_lists(tmp_path / f"{split}.parquet", "indices", names=names)
    images = load(tmp_path)
    assert images.label_names == ["a", "b", "c", "d"]
    assert labels_of(images, images.train) == [["b", "c"], [], ["a", "b"], None, ["b"]]
    assert labels_of(images, images.validation) == [["c", "d"], [], ["b", "c"], None, ["c"]]


@pytest.mark.parametrize("names", [None, ["x", "a", "z", "none"]])
@pytest.mark.parametrize("test", ["absent", "null", "empty lists"])
def test_a_test_split_without_lists(tmp_path, test, names):
    write_lists(tmp_path / "train.parquet", "indices" if names else "names", names=names)
    columns = {"absent": {}, "null": {"labels": [None]}, "empty lists": {"labels": [[]]}}[test]
    pq.write_table(pa.table({"image": [png(9)], **columns}), tmp_path / "test.parquet")
    images = load(tmp_path)
    assert images.multi_label and images.label_names == (names or NAMES)
    expected = [["a", "z"], [], ["x", "a"], None, ["a"]] if names else SORTED_LISTS
    assert labels_of(images, images.train) == expected
    assert images.validation["label"][:] == ([[]] if test == "empty lists" else [None])


def test_lists_in_one_split_only(tmp_path):
    write_lists(tmp_path / "train.parquet", "names")
    pq.write_table(pa.table({"image": [png(9)], "labels": ["oak"]}), tmp_path / "test.parquet")
    message = load_error(tmp_path, "label_column", labels="required")
    assert "column labels: lists of classes in some splits, and one class an image in" in message


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([[0, 1], [1, 0]], [["1"], ["0"]]),  # two classes, and each image has one: all would have both otherwise
        ([[0, 1], [1, 0], [0]], [["0", "1"], ["0", "1"], ["0"]]),
        ([[0, 1], [1, 2]], [["0", "1"], ["1", "2"]]),
        ([[0], [1]], [["0"], ["1"]]),
        ([[0, 1, 0], None, [1, 1, 1]], [["1"], None, ["0", "1", "2"]]),
    ],
)
def test_which_integers_are_multi_hot(tmp_path, rows, expected):
    pq.write_table(pa.table({"image": [png(0)] * len(rows), "labels": rows}), tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert labels_of(images, images.train) == expected


def test_multi_hot_in_all_splits_or_none(tmp_path):
    for split, rows in {"train": [[0, 1, 1], [1, 0, 0]], "test": [[0, 1, 2]]}.items():
        pq.write_table(pa.table({"image": [png(0)] * len(rows), "labels": rows}), tmp_path / f"{split}.parquet")
    images = load(tmp_path)
    assert labels_of(images, images.train) == [["0", "1"], ["0", "1"]]


def test_booleans_of_unequal_length(tmp_path):
    rows = {"image": [png(0)] * 2, "labels": [[True, False], [True]]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert "vectors of booleans" in load_error(tmp_path, "label_column", labels="required")


@pytest.mark.parametrize("form", ["labels.json", "json"])
def test_lists_in_a_webdataset(tmp_path, form):
    members = {}
    for row, names in enumerate([["oak", "fir"], [], ["fir", "ash"]]):
        content = names if form == "labels.json" else {"labels": names, "width": 7}
        members |= {f"{row}.png": png(row), f"{row}.{form}": json.dumps(content).encode()}
    write_tar(tmp_path / "a.tar", members)
    for arguments in ({}, {"label_column": {"json": "json.labels"}.get(form, form)}):
        images = load(tmp_path / "a.tar", labels="required", **arguments)
        assert labels_of(images, images.train) == [["fir", "oak"], [], ["ash", "fir"]]
    assert values_of(stream(tmp_path / "a.tar").train) == [0, 1, 2]


def test_fields_of_a_struct_are_for_those_who_ask(tmp_path):
    """Classes of boxes stand so in a dataset for detection."""
    features = {
        "image": IMAGE,
        "objects": {"category": datasets.List(ABC), "area": datasets.List(datasets.Value("int64"))},
    }
    objects = [{"category": [0, 2, 0], "area": [5, 6, 7]}, {"category": [], "area": []}, None]
    folder = save(tmp_path, features, image=IMAGES, objects=objects)
    assert load(folder).label_names is None
    images = load(folder, label_column="objects.category")
    assert labels_of(images, images.train)[:2] == [["a", "c"], []]
    assert "no column objects.no" in load_error(folder, "label_column", label_column="objects.no")
    assert "column objects holds" in load_error(folder, "label_column", label_column="objects")


@pytest.mark.parametrize("label_column", [None, "labels"])
def test_lists_of_class_labels_are_streamed(tmp_path, no_decoding, label_column):
    for split in ("train", "test"):
        write_lists(tmp_path / f"{split}.parquet", "indices", names=["x", "y", "z"])
    images = stream(tmp_path, label_column=label_column)
    label = datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))
    assert images.multi_label and images.label_names == ["x", "y", "z"]
    assert images.train.features["label"] == label and labels_in(images.train) == INDICES


@pytest.mark.parametrize("form", LISTS_OF_CLASSES)
def test_lists_of_any_kind_do_not_stop_a_stream(tmp_path, form):
    write_lists(tmp_path / "a.parquet", form)
    images = load_images(str(tmp_path / "a.parquet"), streaming=True)
    assert images.label_names is None and not images.multi_label
    assert values_of(images.train) == [0, 1, 2, 3, 4] and images.train.column_names == ["image"]
    load_error(tmp_path / "a.parquet", "label_column", streaming=True, label_column="labels")


def test_a_table_with_lists_is_streamed(tmp_path):
    datasets.Dataset.from_parquet(str(write_lists(tmp_path / "a.parquet", "names"))).save_to_disk(tmp_path / "saved")
    images = load_images(str(tmp_path / "saved"), streaming=True)
    assert images.multi_label and images.label_names == NAMES
    assert [row["label"] for row in images.train] == load(tmp_path / "saved").train["label"][:]


# Splits.


@pytest.fixture
def four_splits(tmp_path):
    folder = tmp_path / "four"
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"image": [{"bytes": png(value), "path": None}]}).cast_column(
                "image", IMAGE
            )
            for value, split in enumerate(["train", "val", "test", "unlabeled"])
        }
    ).save_to_disk(folder)
    return folder


def test_choice_of_splits(four_splits):
    images = load(four_splits)
    assert values_of(images.train) == [0] and values_of(images.validation) == [1]
    assert images.splits == ["train", "val", "test", "unlabeled"]
    images = load(four_splits, train_split="unlabeled", validation_split="test")
    assert values_of(images.train) == [3] and values_of(images.validation) == [2]
    images = load(four_splits, train_split="val")  # is not measured on as well
    assert values_of(images.train) == [1] and values_of(images.validation) == [2]
    images = load(four_splits, train_split="test", validation_split="test")  # unless asked to
    assert values_of(images.train) == values_of(images.validation) == [2]


@pytest.mark.parametrize("argument", ["train_split", "validation_split"])
def test_wrong_split_names(four_splits, argument):
    message = load_error(four_splits, argument, **{argument: "nonsense"})
    assert "nonsense" in message and "train, val, test, unlabeled" in message


def test_the_only_split_is_train(tmp_path):
    images = load(write_images(tmp_path, {"test/a/1.png": 1}))
    assert values_of(images.train) == [1] and images.validation is None


def test_several_splits_and_none_is_train(tmp_path):
    images = load(write_images(tmp_path, {"val/1.png": 1, "test/2.png": 2}))
    assert images.train is None and values_of(images.validation) == [1]


def test_several_splits_and_none_with_a_usual_name(tmp_path):
    splits = {"north": saved_splits(), "south": saved_splits()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert "north, south" in load_error(tmp_path, "train_split")
    images = load(tmp_path, train_split="south")
    assert len(images.train) == 6 and images.validation is None


# Trouble with files.


def test_empty_folder(tmp_path):
    assert "empty" in load_error(tmp_path)


def test_folder_without_images(tmp_path):
    write(tmp_path / "a" / "notes.txt", b"x")
    assert "no image" in load_error(tmp_path)


def test_folder_of_several_kinds(tmp_path):
    write_images(tmp_path, {"a/1.png": 1, "a/2.png": 2})
    write_parquet(tmp_path / "features.parquet", [1])
    message = load_error(tmp_path)
    assert "images (2)" in message and "parquet files (1)" in message


def test_one_image(tmp_path):
    write_images(tmp_path, {"1.png": 1})
    assert "folder" in load_error(tmp_path / "1.png")


@pytest.mark.parametrize("name", ["train.zip", "a/b.tar.bz2", "a.tar.xz", "x.7z", "images.gz"])
def test_packed_files(tmp_path, name):
    path = write(tmp_path / "set" / name, b"content")
    write(tmp_path / "set" / "notes.txt", b"content")
    for dataset in (path, tmp_path / "set"):
        message = load_error(dataset)
        assert path.name in message and "unpack" in message


@pytest.mark.parametrize("name", ["labels.csv", "images"])
def test_file_of_an_unknown_kind(tmp_path, name):
    assert "unknown kind" in load_error(write(tmp_path / name, b"content"))


def test_link_to_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "nowhere" in load_error(tmp_path / "link")


@pytest.mark.parametrize("damage", ["empty", "junk", "cut"])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_damaged_shards(tmp_path, kind, damage):
    if kind == "parquet":
        content = write_parquet(tmp_path / "train-0.parquet", [1]).read_bytes()
    else:
        content = write_tar(tmp_path / "train-0.tar", {f"{value}.png": png(value) for value in range(20)}).read_bytes()
    middle = content.index(b"PNG") + 10
    damaged = {"empty": b"", "junk": b"neither a table nor an archive " * 100, "cut": content[:middle]}[damage]
    write(tmp_path / f"test-0.{kind}", damaged)
    assert f"test-0.{kind}" in load_error(tmp_path)


def test_damage_in_the_middle_of_a_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", range(50))
    content = bytearray(path.read_bytes())
    content[8:2000] = bytes(1992)
    path.write_bytes(content)
    message = load_error(path)
    assert (
        "cannot be read as parquet" in message and "An error occurred" not in message
    )  # which is all that `datasets` says


def test_damaged_saved_folder(tmp_path):
    saved_splits().save_to_disk(tmp_path)
    write(tmp_path / "state.json", b"{")
    assert "save_to_disk" in load_error(tmp_path)


def test_empty_split(tmp_path):
    write_parquet(tmp_path / "train.parquet", [])
    write_parquet(tmp_path / "test.parquet", [1])
    assert "split train is empty" in load_error(tmp_path, "train_split")
    assert values_of(load(tmp_path, train_split="test").train) == [1]


def test_empty_shard(tmp_path):
    for number, values in enumerate([[], [1], [], [2]]):
        write_parquet(tmp_path / f"train-{number}.parquet", values)
    assert values_of(load(tmp_path).train) == [1, 2]


def test_a_split_without_the_image_column(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "test.parquet")
    message = load_error(tmp_path, "image_column")
    assert "split test" in message and "other" in message


def test_folder_without_permission(tmp_path, monkeypatch):
    write_images(tmp_path, {"a/1.png": 1, "secret/2.png": 2})
    scandir = os.scandir  # root, as whom tests may run, may read everything

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = load_error(tmp_path)
    assert str(tmp_path / "secret") in message and "Permission denied" in message


def test_file_name_that_is_not_utf_8(tmp_path):
    try:
        write(tmp_path / os.fsdecode(b"caf\xe9.png"), png(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert "caf\\udce9.png" in load_error(tmp_path)


@pytest.mark.parametrize("dataset", ["no_such_folder", "someone/no-such-dataset"])
def test_hub_streams_out_of_reach(dataset):
    message = load_error(dataset, streaming=True)
    assert "no such file or folder" in message and "Hub" in message


def test_compressed_tars_are_streamed(tmp_path):
    write_tar(tmp_path / "train.tar.gz", {"0.png": png(5), "1.png": png(6)}, mode="w:gz")
    assert values_of(stream(tmp_path).train) == [5, 6]


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
