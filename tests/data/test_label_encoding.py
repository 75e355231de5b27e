"""One encoding for labels of many kinds: integers, floats, -1."""

import datasets
import numpy as np
import pandas as pd
import pytest
from labeled_rows import encoded

from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.label_encoding import natural_order
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

NAN = float("nan")


def load(train: list, test: list | None = None, dtype: str | None = None, **columns: list) -> ImageDatasets:
    """A dataset in memory with the column `label`, and perhaps others of the training split."""

    def split(labels: list, **others: list) -> datasets.Dataset:
        column = labels if dtype is None else np.array(labels, dtype)
        rows = datasets.Dataset.from_pandas(pd.DataFrame({"label": list(column), **others}), preserve_index=False)
        return rows.add_column("image", [{"bytes": encoded(number), "path": None} for number in range(len(labels))])

    splits = {"train": split(train, **columns)} | ({"test": split(test)} if test is not None else {})
    return load_images(datasets.DatasetDict(splits), labels="required")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("1 10 2", "1 2 10"),
        ("a10 a2 b1", "a2 a10 b1"),
        ("10 1a 2 a x3 x²", "1a 2 10 a x3 x²"),
        ("v1.10 v1.9 v10.1 v2.1", "v1.9 v1.10 v2.1 v10.1"),
        ("low medium high", "low medium high"),
        ("10 1 2", "10 1 2"),
        ("", ""),
    ],
)
def test_natural_order(names, expected):
    """Names that are not sorted by characters stay as they are."""
    assert natural_order(names.split()) == expected.split()


def names_of(images: ImageDatasets, split: str = "train") -> list[str | None]:
    labels = getattr(images, split)["label"][:]
    return [images.label_names[label] if label >= 0 else None for label in labels]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([-1, 1, 1, -1], None),
        ([1, -1, 1], [-1, 1]),
        ([-1, 0], None),  # one against all others, as some write it
        ([5, -1, 5], [5]),
        ([-1.0, 1.0, NAN], None),
    ],
)
def test_minus_one_beside_one_other_value_is_a_class(train, test):
    images = load(train, test)
    values = sorted({int(value) for value in (*train, *(test or [])) if value == value})
    assert images.label_names == [str(value) for value in values] and values[0] == -1 and len(values) == 2
    assert names_of(images) == [None if value != value else str(int(value)) for value in train]
    if test is not None:
        assert names_of(images, "validation") == [str(value) for value in test]
    assert images.notes == []


@pytest.mark.parametrize(
    ("train", "test", "number"),
    [
        ([-1, 0, 1, -1], None, "2 of 4 labels"),
        ([0, 3, 0], [-1, -1], "2 of 5 labels"),  # as the Hub's test sets
        ([-1.0, 2.0, 0.0, NAN], None, "1 of 4 labels"),
    ],
)
def test_minus_one_beside_several_values_is_no_label_and_told(train, test, number):
    images = load(train, test)
    assert "-1" not in images.label_names
    assert names_of(images) == [None if value in (-1,) or value != value else str(int(value)) for value in train]
    (note,) = images.notes
    assert number in note


@pytest.mark.parametrize("classes", [["dog"], ["dog", "cat"]])
def test_minus_one_of_named_classes_is_no_label(classes):
    label = datasets.ClassLabel(names=classes)
    features = datasets.Features({"image": datasets.Image(decode=False), "label": label})
    rows = {"image": [{"bytes": encoded(number), "path": None} for number in range(3)], "label": [-1, 0, 0]}
    images = load_images(datasets.Dataset.from_dict(rows, features=features))
    assert names_of(images) == [None, "dog", "dog"] and images.label_names == classes


def test_minus_one_in_lists_is_padding():
    images = load([[1, -1], [1, 0], [-1, -1]])
    assert images.multi_label and images.label_names == ["0", "1"]
    assert images.train["label"][:] == [[1], [0, 1], []]


def test_integers_with_gaps():
    images = load([40, 2, 7, 2], [7, 40])
    assert images.label_names == ["2", "7", "40"]
    assert names_of(images) == ["40", "2", "7", "2"] and names_of(images, "validation") == ["7", "40"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_whole_floats_are_integers(dtype):
    images = load([0.0, 10.0, NAN, 2.0], dtype=dtype)
    assert images.label_names == ["0", "2", "10"]
    assert names_of(images) == ["0", "10", None, "2"]


def test_whole_floats_in_one_split_alone():
    """As pandas gives them, where only one file has gaps."""
    images = load([0, 2, 1], [1.0, NAN, 2.0])
    assert images.label_names == ["0", "1", "2"]
    assert names_of(images, "validation") == ["1", None, "2"]


@pytest.mark.parametrize("labels", [[[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [[1.0], [0.0, 1.0], []]])
def test_whole_floats_in_lists(labels):
    """Multi-hot vectors and lists of classes, as integers make them."""
    found, expected = load(labels), load([[int(value) for value in row] for row in labels])
    assert found.multi_label and found.label_names == expected.label_names == ["0", "1"]
    assert found.train["label"][:] == expected.train["label"][:]


@pytest.mark.parametrize("labels", [[0.5, 1.0], [0.0, float("inf")], [1e17, 0.0], [[0.25, 0.75], [1.0, 0.0]]])
def test_other_floats_are_refused(labels):
    with pytest.raises(SiTError) as error:
        load(labels)
    assert error.value.argument == "label_column" and error.value.remedy


def test_floats_without_a_value_are_no_labels():
    with pytest.raises(SiTError) as error:
        load([NAN, NAN])
    assert error.value.argument == "label_column" and "holds none" in error.value.problem


def test_floats_give_way_to_other_columns():
    images = load(["b", "a"], target=[0.5, 1.0])
    assert names_of(images) == ["b", "a"]


@pytest.mark.parametrize(
    ("labels", "expected", "told"),
    [
        (["b", "", "a", "  ", "nan", "a"], ["b", None, "a", None, None, "a"], "3 of 6 labels are empty, nan"),
        (["b", "None", "a", "N/A", "null"], ["b", None, "a", None, None], "3 of 5 labels are N/A, None, null"),
        (["None", "scratch", "None"], ["None", "scratch", "None"], None),
        (["none", "NA", "a"], ["none", "NA", "a"], None),
        (["nan", "3", "<NA>"], [None, "3", None], "2 of 3 labels"),
    ],
)
def test_texts_for_missing_values_are_no_labels_and_told(labels, expected, told):
    images = load(labels)
    assert names_of(images) == expected
    assert (told in images.notes[0]) if told else not images.notes


def test_missing_texts_in_lists_and_in_one_split():
    images = load([["b", ""], ["nan"], ["a", "b"]])
    assert images.label_names == ["a", "b"] and images.train["label"][:] == [[1], [], [0, 1]]
    images = load(["b", "a"], ["", "a"])
    assert names_of(images, "validation") == [None, "a"] and "1 of 4 labels" in images.notes[0]


@pytest.mark.parametrize("labels", [[[0, 1], [-1], [2]], [[0, 1, 1], [-1, 0, 0]], [[1], [], [-1, -1]]])
def test_minus_one_in_lists_that_is_no_padding_is_refused(labels):
    with pytest.raises(SiTError) as error:
        load(labels)
    assert error.value.argument == "label_column" and error.value.remedy


def test_bytes_called_label_are_no_images():
    columns = {"image": [encoded(1), encoded(2)], "label": [b"a", b"b"]}
    assert set(load_images(datasets.Dataset.from_dict(columns)).train.features) == {"image"}
    with pytest.raises(SiTError) as error:
        load_images(datasets.Dataset.from_dict(columns), labels="required")
    assert error.value.argument == "label_column" and error.value.remedy
