"""Which files belong to which split, by their names."""

import pytest

from modeling_sit.data.shard_splits import split_shards
from modeling_sit.data.split_names import tell_once
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def nothing_told_yet():
    tell_once.cache_clear()


def split(names, *asked, config_name=None):
    found = split_shards("/d", [f"/d/{name}" for name in sorted(names.split(" "))], asked, config_name)
    return {name: " ".join(path.removeprefix("/d/") for path in paths) for name, paths in sorted(found.items())}


@pytest.mark.parametrize(
    ("train", "other", "name"),
    [
        ("cells12k-train-0000.tar", "cells12k-validation-00.tar", "validation"),
        ("food_train.parquet", "food_test.parquet", "test"),
        ("data/train-00000-of-00002-1f3d.parquet data/train-00001-of-00002-ab4.parquet", "data/dev-0.parquet", "dev"),
        ("x.train.0.tar.gz x.train.1.tar.gz", "x.evaluation.0.tar.gz", "evaluation"),
        ("test_tubes-train-0.tar", "test_tubes-val-0.tar", "val"),
        ("train/a/0.tar train/b/0.tar", "val/0.tar", "val"),
        ("train/train-0.tar train/train-1.tar", "test/test-0.tar", "test"),
        ("seg_train/0.tar", "seg_test/0.tar", "test"),
        ("000/train-0.tar 001/train-1.tar", "000/eval-0.tar", "eval"),
        ("00000-train.parquet 00001-train.parquet", "00000-val.parquet", "val"),
        ("train.parquet train_more.parquet", "test.parquet", "test"),
        ("a/trainset/0.tar", "b/testset/0.tar", "test"),
        ("train/0.tar", "sub/test/0.tar", "test"),
        ("train-0.parquet", "hold_out-0.parquet", "holdout"),
    ],
)
def test_the_word_may_stand_anywhere(train, other, name):
    assert split(f"{train} {other}") == {"train": train, name: other}


@pytest.mark.parametrize("names", ["part-0.tar part-1.tar", "testimony.parquet values.parquet", "a/0.tar b/0.tar"])
def test_without_a_word_all_is_train(names, caplog):
    assert split(names) == {"train": names} and not caplog.messages


@pytest.mark.parametrize(
    ("names", "beside", "told"),
    [
        ("images-0.tar images-1.tar", "masks-0.tar masks-1.tar", "masks (2 files)"),
        ("cells-0.parquet", "cells_masks-0.parquet", "cells_masks (1 file)"),
        ("a/0.tar b/0.tar", "annotations/0.tar", "annotations (1 file)"),
        ("labeled/0.tar", "unlabeled/0.tar", "unlabeled (1 file)"),
    ],
)
def test_masks_without_splits_are_left_out(names, beside, told, caplog):
    assert split(f"{names} {beside}") == {"train": names}
    (message,) = caplog.messages
    assert told in message
    assert split(f"{names} {beside}", told.split(" ")[0])[told.split(" ")[0]] == beside


@pytest.mark.parametrize("names", ["with_mask-0.tar without_mask-0.tar", "masks-0.tar masks-1.tar", "labels.parquet"])
def test_masks_alone_are_images(names, caplog):
    assert split(names) == {"train": names} and not caplog.messages


def test_the_name_of_a_dataset_may_hold_a_word():
    assert split("test_tubes-0.tar test_tubes-1.tar") == {"test": "test_tubes-0.tar test_tubes-1.tar"}


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ("extra-00000-of-00002.parquet extra-00001-of-00002.parquet", "extra (2 files)"),
        ("labels.parquet", "labels (1 file)"),
        ("unlabelled/0.parquet", "unlabelled (1 file)"),
        ("train_masks.parquet", "train_masks (1 file)"),
    ],
)
def test_what_is_beside_is_told_and_can_be_named(beside, told, caplog):
    train, test = "train-0.parquet", "test-0.parquet"
    names = f"{train} {test} {beside}"
    assert split(names) == {"train": train, "test": test}
    (message,) = caplog.messages
    assert told in message and "`train_split`" in message
    asked = told.split(" ")[0]
    assert split(names, asked) == {"train": train, "test": test, asked: beside}


@pytest.mark.parametrize(
    ("names", "argument"),
    [
        ("fine/train-0.parquet coarse/train-0.parquet", "dataset_config_name"),
        ("fine_train.parquet coarse_train.parquet", "dataset_config_name"),
        ("a/train/0.tar a/test/0.tar b/train/0.tar", "dataset_config_name"),
        ("imagenet1k-train-0.tar imagenet22k-train-0.tar", "dataset_config_name"),
        ("fold0_train.tar fold0_test.tar fold1_train.tar fold1_test.tar", "dataset_config_name"),
        ("train-0.tar data/train-0.tar", "dataset_config_name"),
        ("trainval.parquet test.parquet", "train_split"),
        ("test-0.tar rest-0.tar", "train_split"),
    ],
)
def test_what_is_not_clear_is_refused(names, argument):
    with pytest.raises(SiTError) as error:
        split(names)
    assert error.value.argument == argument and error.value.remedy and "class" not in error.value.remedy


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ("train-00000-of-00003.parquet train-00002-of-00003.parquet", "1 of 3 files train are"),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet", None),
        ("data/train-0-of-2-ab.tar data/train-1-of-2-cd.tar data/test-1-of-4.tar", "3 of 4 files data/test are"),
        ("0-of-2.tar", "1 of 2 files are"),
        ("part-1-of-4/train-0-of-1.tar", None),
        ("train-0.tar train-2.tar", None),
    ],
)
def test_shards_that_are_not_there_are_told(names, missing, caplog):
    split(names)
    told = [message for message in caplog.messages if "are missing" in message]
    assert len(told) == (missing is not None) and all(missing in message for message in told)


def test_a_configuration_is_named():
    names = "fold0_train.tar fold0_test.tar fold1_train.tar fold1_test.tar more.tar"
    assert split(names, config_name="fold1") == {"test": "fold1_test.tar", "train": "fold1_train.tar"}
    with pytest.raises(SiTError) as error:
        split(names, config_name="fold2")
    assert error.value.argument == "dataset_config_name" and "fold0, fold1" in error.value.problem
    assert split("trainval.parquet test.parquet", "trainval") == {
        "test": "test.parquet",
        "trainval": "trainval.parquet",
    }
