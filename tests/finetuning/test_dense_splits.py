"""Which images of a dense dataset a run trains on, chooses by and measures."""

import json
import shutil

import numpy as np
import pytest
from dense_sets import write_halves, write_squares

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.dense_splits import hold_out, load_dense_splits, select_fraction
from modeling_sit.finetuning.resume_check import digest_of_objects
from modeling_sit.finetuning.splits import held_out_draws
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("dense") / "squares", train=6, val=3, test=4)


def load(folder, kind="boxes", evaluates=None, **arguments):
    task = {"boxes": "detection", "pixels": "semantic_segmentation"}[kind]
    given = FinetuningArguments(model_name_or_path="none", dataset=str(folder), task=task, **arguments)
    return load_dense_splits(given, kind, seed=0, evaluates=evaluates)


def test_splits_by_their_names(squares, capsys):
    splits = load(squares)
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [6, 3, 4]
    assert (splits.validation_name, splits.test_name) == ("val", "test") and splits.may_choose
    assert not splits.is_held_back and splits.label_names == ["blue", "red"]
    splits.tell(None)
    first, train, *_ = capsys.readouterr().out.splitlines()
    objects = [category for row in splits.train["objects"] for category in row["category"]]
    assert first == f"{squares}:" and "train: 6 images, 1 without any, 10 objects (" in train
    assert f"blue {objects.count(0)}" in train and f"red {objects.count(1)}" in train


def test_boxes_and_classes_tell_runs_apart(squares, tmp_path):
    """A run with other annotations of the same files is another run."""
    digest = digest_of_objects(load(squares).train)
    again, others = (shutil.copytree(squares, tmp_path / name) for name in ("again", "others"))
    assert digest_of_objects(load(again).train) == digest
    digests = {digest}
    for change in ({"bbox": [0, 0, 9, 9]}, {"category_id": 1}, {"category_id": 2}):
        content = json.loads((squares / "train.json").read_text())
        content["annotations"][0] |= change
        (others / "train.json").write_text(json.dumps(content))
        digests.add(digest_of_objects(load(others).train))
    assert len(digests) == 3  # one of the two classes is the old one
    assert digest_of_objects(load(write_halves(tmp_path / "halves", train=4), "pixels").train) is None


def test_crowds_are_no_objects_to_learn_from(squares, tmp_path, capsys):
    folder = shutil.copytree(squares, tmp_path / "crowds")
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (folder / "train.json").write_text(json.dumps(content))
    load(folder).tell(None)
    assert "train: 6 images, 1 without any, 9 objects (" in capsys.readouterr().out
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(SiTError) as error:
        load(folder)
    assert error.value.argument == "dataset"


def test_the_user_has_the_last_word(squares):
    splits = load(squares, train_split="val", validation_split="train", test_split="test")
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [3, 6, 4]
    for arguments in ({"validation_split": "train"}, {"train_split": "nowhere"}):
        with pytest.raises(SiTError) as error:
            load(squares, **arguments)
        assert error.value.argument == next(iter(arguments))


@pytest.mark.parametrize(("evaluates", "held_back"), [(None, 0), (True, 1), (False, 0)])
def test_test_images_choose_nothing(tmp_path, evaluates, held_back):
    """Few images are all learned from, unless the run is to evaluate."""
    splits = load(write_squares(tmp_path / "squares", train=5, test=2), evaluates=evaluates)
    assert len(splits.train) == 5 - held_back and len(splits.test) == 2
    assert splits.is_held_back == bool(held_back) == (splits.validation is not None)


def test_without_others_some_are_held_back_to_measure(tmp_path):
    splits = load(write_halves(tmp_path / "halves", train=4), "pixels", validation_fraction=0.5)
    assert (len(splits.train), len(splits.validation), splits.may_choose) == (2, 2, False)
    assert splits.validation_name == "50 % of train, held back"
    with pytest.raises(SiTError) as error:
        load(write_squares(tmp_path / "squares", train=1))
    assert error.value.argument == "validation_split"


def test_images_to_learn_from_have_objects(tmp_path):
    folder = write_squares(tmp_path / "squares", train=4, test=2)
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == 1]
    (folder / "train.json").write_text(json.dumps(content))
    assert len(load(folder).train) == 4
    with pytest.raises(SiTError, match="none of the 1 images of train to learn from has an object") as error:
        load(folder, label_fraction=0.25)
    assert error.value.argument == "label_fraction" and error.value.remedy
    (folder / "train.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(SiTError, match="none of the 4 images") as error:
        load(folder)
    assert error.value.argument == "dataset"


def test_a_larger_fraction_has_all_images_of_a_smaller_one(squares):
    train = load(squares).train
    few, more = (select_fraction(train, fraction, seed=1)["image_id"][:] for fraction in (0.3, 0.7))
    assert (len(few), len(more)) == (2, 4) and set(few) < set(more) and more == sorted(more)
    assert len(select_fraction(train, 0.01, seed=1)) == 1
    rest, held = hold_out(train, 0.01, seed=1)
    assert (len(rest), len(held)) == (5, 1) and {*rest["image_id"], *held["image_id"]} == set(train["image_id"])


def test_draws_for_a_search_are_measured_by_objects_or_classes(squares, tmp_path):
    (draw,), chosen_on = held_out_draws(load(squares), 0.1, 0)
    assert chosen_on == "val, 3 images" and draw.test is None
    assert draw.num_measured() == sum(len(each["category"]) for each in draw.validation["objects"]) > 0
    draws, _ = held_out_draws(load(write_halves(tmp_path / "halves", train=4, test=1), "pixels"), 0.5, 0)
    assert {draw.num_measured() for draw in draws} == {2 * 2}
    assert len({tuple(np.ravel(draw.train["image"][0]["path"])) for draw in draws}) > 1
