"""Names of datasets and of their rows, and rows that are read."""

from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from labeled_rows import encoded

from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.image_datasets import dataset_name, image_name, read_row


def rows(*images: dict | None, split: str | None = None) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": list(images)}, features=features, split=split)


class TestDatasetName:
    @pytest.mark.parametrize("dataset", ["digits", "someone/images", "~/cells", Path("/data/cells")])
    def test_strings_and_paths(self, dataset):
        assert dataset_name(dataset) == str(dataset)

    def test_in_memory(self, tmp_path):
        dataset = datasets.Dataset.from_dict({"image": [1, 2, 3]})
        assert dataset_name(dataset) == "3 rows in memory"
        assert dataset_name(datasets.DatasetDict({"train": dataset, "test": dataset})) == "6 rows in memory"
        stream = dataset.to_iterable_dataset()
        assert dataset_name(stream) == "a stream in memory"
        assert dataset_name(datasets.IterableDatasetDict({"train": stream})) == "a stream in memory"
        dataset_name(datasets.DatasetDict())

    def test_a_name_that_the_dataset_has(self):
        dataset = datasets.Dataset.from_dict({"image": [1, 2, 3]})
        dataset.info.dataset_name = "cells"
        assert dataset_name(dataset) == dataset_name(datasets.DatasetDict({"train": dataset})) == "cells"

    def test_a_readers_name_is_none(self, tmp_path):
        datasets.Dataset.from_dict({"image": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
        dataset = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
        assert dataset_name(dataset) == "3 rows in memory"


def test_image_names():
    content = encoded(1)
    dataset = rows({"bytes": None, "path": "/a/b.png"}, {"bytes": content, "path": "b.png"}, None, split="test")
    assert [image_name(dataset, row) for row in range(3)] == ["/a/b.png", "row 1 of test (b.png)", "row 2 of test"]
    assert image_name(rows({"bytes": content, "path": None}), 0) == "row 0 of the dataset"


def test_rows_are_decoded_or_named():
    dataset = rows({"bytes": encoded(7), "path": None}, {"bytes": b"broken", "path": "b.png"}, split="train")
    image, row = read_row(dataset, 0)
    assert isinstance(image, PIL.Image.Image) and np.asarray(image)[0, 0].tolist() == [7, 0, 248]
    assert row == dataset[0]
    assert read_row(dataset, 0, 1)[0].mode == "L"
    with pytest.raises(UnreadableImage, match=r"^row 1 of train \(b\.png\): it is no image"):
        read_row(dataset, 1)
