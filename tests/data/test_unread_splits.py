"""Streams: the same images as they come."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import (
    labels_in,
    load,
    load_error,
    png,
    saved_splits,
    stream,
    values_of,
    write_images,
    write_parquet,
    write_tar,
)

from modeling_sit.data.sources import load_images

pytestmark = pytest.mark.usefixtures("isolated_cache")


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


@pytest.mark.parametrize("dataset", ["no_such_folder", "someone/no-such-dataset"])
def test_hub_streams_out_of_reach(dataset):
    message = load_error(dataset, streaming=True)
    assert "no such file or folder" in message and "Hub" in message


def test_compressed_tars_are_streamed(tmp_path):
    write_tar(tmp_path / "train.tar.gz", {"0.png": png(5), "1.png": png(6)}, mode="w:gz")
    assert values_of(stream(tmp_path).train) == [5, 6]
