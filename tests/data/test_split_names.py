"""Names that tell a split, against the library that the Hub's rule is of."""

import pytest
from datasets.data_files import get_data_patterns

from modeling_sit.data.split_names import lies_beside_images, split_of_name

NAMES = [
    *("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"),
    *(
        "food_train",
        "food-test",
        "NAME.val.0",
        "cells12k-train-0000",
        "cells12k-validation-00",
        "train-00000-of-00002",
    ),
    *("train2017", "test1", "my dev images", "2019_evaluation_b", "0train0", "seg_test", "training_set", "x-valid-0"),
    *(
        "trainer",
        "contest",
        "testimony",
        "invalid",
        "latest-0",
        "devil",
        "medieval",
        "retraining",
        "pretrain",
        "values",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_kinds_are_those_of_the_hub(tmp_path, name):
    (tmp_path / f"{name}.parquet").touch()
    (theirs,) = get_data_patterns(str(tmp_path))
    split = split_of_name(name)
    assert theirs == (split.kind if split is not None else "train")


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_folders_are_those_of_the_hub(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.png").touch()
    (theirs,) = get_data_patterns(str(tmp_path))
    split = split_of_name(name)
    assert theirs == (split.kind if split is not None else "train")


@pytest.mark.parametrize(
    ("name", "word", "scheme"),
    [
        ("Val", "Val", ("*",)),
        ("train_07", "train", ("*",)),
        ("Seg_TEST", "TEST", ("seg", "*")),
        ("TrainingSet", "Training", ("*", "set")),
        ("trainA", "train", ("*", "a")),
        ("MRITrain", "Train", ("mri", "*")),
        ("test_tubes-train-0", "train", ("test", "tubes", "*")),
        ("test_tube", "test", ("*", "tube")),
        ("trainset", "train", ("*", "set")),
        ("MyTestImages2", "Test", ("my", "*", "images")),
        ("x_valdata", "val", ("x", "*", "data")),
        ("Validate", "Validate", ("*",)),
        ("holdout", "holdout", ("*",)),
        ("Hold-Out 2020", "Hold-Out", ("*",)),
        ("HeldOutSet", "HeldOut", ("*", "set")),
    ],
)
def test_words_and_schemes(name, word, scheme):
    split = split_of_name(name)
    assert (split.word, split.scheme, split.is_bare) == (word, scheme, scheme == ("*",))


@pytest.mark.parametrize(
    "name", ["train_val", "test-dev2017", "train test", "trainval", "threshold_out", "hold_outer", "", "012"]
)
def test_no_split(name):
    assert split_of_name(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("masks", True), ("ground_truth", True), ("train_labels", True), ("Unlabeled2017", True)),
        *(("images", False), ("masked_owl", False), ("train", False)),
    ],
)
def test_what_lies_beside_images(name, expected):
    assert lies_beside_images(name) == expected
