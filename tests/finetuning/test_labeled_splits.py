"""Which images train, choose and measure."""

import io
import logging

import datasets
import PIL.Image
import pytest

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.labeled_splits import LabeledSplits, load_splits
from modeling_sit.runtime.errors import SiTError

LABEL = datasets.ClassLabel(names=["a", "b"])


@pytest.fixture
def write(tmp_path):
    """Write a folder of parquet files, one for each split, with that many images of each class, all different."""
    made = [0]

    def write(labels=None, **counts) -> str:
        for split, count in counts.items():
            images = []
            for _ in range(2 * count):
                buffer = io.BytesIO()
                made[0] += 1
                PIL.Image.new("L", (8, 8), made[0]).save(buffer, "PNG")
                images.append({"bytes": buffer.getvalue(), "path": None})
            rows = {"image": images, "label": (labels or {}).get(split, [0, 1] * count)}
            features = datasets.Features({"image": datasets.Image(), "label": LABEL})
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        return str(tmp_path)

    return write


def splits(dataset: str, evaluates: bool = True, seed: int = 0, **settings) -> LabeledSplits:
    arguments = FinetuningArguments(dataset=dataset, model_name_or_path="some", **settings)
    return load_splits(arguments, seed, evaluates)


def sizes(found: LabeledSplits) -> tuple[int | None, int | None, int | None]:
    return tuple(None if split is None else len(split) for split in (found.train, found.validation, found.test))


def encoded(split) -> set[bytes]:
    return {image["bytes"] for image in split["image"]}


def test_three_splits(write):
    found = splits(write(train=10, validation=3, test=4))
    assert sizes(found) == (20, 6, 8)
    assert (found.validation_name, found.test_name) == ("validation", "test")
    assert (str(found.validation.split), str(found.test.split)) == ("validation", "test")
    assert found.label_names == ["a", "b"] and not found.multi_label


def test_test_images_never_choose(write):
    folder = write(train=10, test=4)
    found = splits(folder, validation_fraction=0.2)
    assert sizes(found) == (16, 4, 8)
    assert found.validation_name == "20 % of train, held back"
    assert found.validation["label"][:].count(0) == 2
    parts = [encoded(found.train), encoded(found.validation), encoded(found.test)]
    assert sum(map(len, parts)) == 28 and len(set.union(*parts)) == 28


def test_held_back_is_a_function_of_the_seed(write):
    folder = write(train=10, test=4)
    first, same, other = (encoded(splits(folder, seed=seed).validation) for seed in (0, 0, 1))
    assert first == same != other


def test_nothing_is_held_back_where_nothing_is_chosen(write):
    assert sizes(splits(write(train=10, test=4), evaluates=False)) == (20, None, 8)


def test_something_is_measured_though_there_is_train_only(write):
    assert sizes(splits(write(train=10), evaluates=False)) == (18, 2, None)


@pytest.mark.parametrize("hold_back_from", [0, 100])
def test_images_that_are_reported_choose_only_on_request(write, monkeypatch, hold_back_from):
    monkeypatch.setattr("modeling_sit.finetuning.labeled_splits.HOLD_BACK_FROM", hold_back_from)
    train_only = write(train=10)
    assert [splits(train_only, evaluates).may_choose for evaluates in (None, False, True)] == [False, False, True]
    assert splits(write(test=4), None).may_choose


def test_held_back_images_are_of_the_labels_that_are_used(write):
    found = splits(write(train=20, test=4), label_fraction=0.5, validation_fraction=0.2)
    assert sizes(found) == (16, 4, 8)


def test_names_of_ones_own(write):
    folder = write(train=10, dev=3, validation=5)
    assert sizes(splits(folder, validation_split="dev", test_split="validation")) == (20, 6, 10)
    assert sizes(splits(folder, test_split="validation")) == (20, 6, 10)
    assert sizes(splits(folder, train_split="validation", validation_split="dev")) == (10, 6, None)


def test_choosing_by_the_test_split_is_refused(write):
    folder = write(train=10, test=4)
    with pytest.raises(SiTError, match="test is the test split") as error:
        splits(folder, validation_split="test")
    assert error.value.argument == "validation_split"
    assert sizes(splits(folder, False, validation_split="test")) == (20, None, 8)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"test_split": "train"}, "test_split"),
        ({"validation_split": "train"}, "validation_split"),
        ({"test_split": "dev", "validation_split": "dev"}, "validation_split"),
        ({"test_split": "nowhere"}, "test_split"),
        ({"validation_split": "nowhere"}, "validation_split"),
    ],
)
def test_splits_that_cannot_be(write, settings, argument):
    folder = write(train=10, dev=3)
    with pytest.raises(SiTError, match=settings[argument]) as error:
        splits(folder, **settings)
    assert error.value.argument == argument


def test_test_split_without_labels_is_not_measured(write):
    folder = write(train=10, test=2, labels={"test": [-1] * 4})
    assert sizes(splits(folder)) == (18, 2, None)
    with pytest.raises(SiTError, match="test") as error:
        splits(folder, test_split="test")
    assert error.value.argument == "test_split"


@pytest.mark.parametrize("label_fraction", [1.0, 0.5])
@pytest.mark.parametrize(
    ("counts", "measured"),
    [({"test": 3}, "test"), ({"test": 3, "validation": 2}, "test"), ({}, "train"), ({"dev": 3}, "dev")],
)
def test_rows_of_the_measured_images_are_those_of_the_dataset(write, counts, measured, label_fraction):
    labels = {"test": [-1, 0, 1, 0, -1, 1], "dev": [0, 1, -1, -1, 1, 0], "train": [-1, *[0, 1] * 9, -1]}
    folder = write(train=10, labels=labels, **counts)
    found = splits(folder, validation_split="dev" if measured == "dev" else None, label_fraction=label_fraction)
    whole = datasets.load_dataset("parquet", data_files=f"{folder}/{measured}.parquet", split="train")
    whole = whole.cast_column("image", datasets.Image(decode=False))
    images = found.validation if found.test is None else found.test
    assert [whole[int(row)]["image"]["bytes"] for row in found.measured_rows] == [
        image["bytes"] for image in images["image"]
    ]


def test_streams_of_several_splits_are_refused(write):
    streams = datasets.IterableDatasetDict(
        {name: datasets.load_dataset(write(train=2, test=2), streaming=True)[name] for name in ("train", "test")}
    )
    with pytest.raises(SiTError, match="stream"):
        splits(streams)


def test_train_without_labels(write):
    with pytest.raises(SiTError, match="train"):
        splits(write(train=2, labels={"train": [-1] * 4}))


def test_some_without_labels_are_counted(write, caplog):
    with caplog.at_level(logging.WARNING):
        found = splits(write(train=3, test=2, labels={"train": [0, 1, -1, 0, 1, -1]}), False)
    assert sizes(found) == (4, None, 4)
    assert "2 of 6" in caplog.text


def test_a_class_with_one_image(write):
    with pytest.raises(SiTError, match="only one image of b"):
        splits(write(train=3, test=2, labels={"train": [0, 0, 0, 0, 0, 1]}))


def test_classes_that_train_does_not_know(write):
    folder = write(train=3, test=2, labels={"train": [0] * 6})
    with pytest.raises(SiTError, match=r"2 .*: b") as error:
        splits(folder, False)
    assert error.value.argument == "test_split"
