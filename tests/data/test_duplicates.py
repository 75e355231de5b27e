"""Images that are in two splits."""

import hashlib
import random

import datasets
import pytest
from labeled_rows import encoded

from modeling_sit.data import duplicates
from modeling_sit.data.duplicates import find_duplicates

IMAGE = datasets.Features({"image": datasets.Image(decode=False)})


def split_of(contents: list[bytes | None], name: str, folder=None) -> datasets.Dataset:
    """A split of images in memory, or with a folder, of files."""
    rows = []
    for number, content in enumerate(contents):
        row = {"bytes": content, "path": None}
        if folder is not None and content is not None:
            path = folder / name / f"{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            row = {"bytes": None, "path": str(path)}
        rows.append(row if content is not None else None)
    return datasets.Dataset.from_dict({"image": rows}, features=IMAGE, split=name)


@pytest.mark.parametrize("are_files", [False, True])
def test_as_many_as_a_comparison_of_all_pairs_finds(tmp_path, are_files):
    generator = random.Random(0)
    pool = [bytes([value]) * (2 + value % 3) for value in range(12)]  # several of each size
    contents = {name: generator.choices(pool, k=8) for name in ("train", "val", "test")}
    splits = [split_of(each, name, tmp_path if are_files else None) for name, each in contents.items()]
    expected = {}
    for name, other in (("val", "train"), ("test", "train"), ("test", "val")):
        number = sum(any(one == two for two in contents[other]) for one in contents[name])
        if number:
            expected[name, other] = number
    assert len(expected) > 1
    found = find_duplicates(splits)
    assert {(each.split, each.other): each.number for each in found} == expected


def test_names(tmp_path):
    train = split_of([encoded(1), encoded(2)], "train", tmp_path)
    (found,) = find_duplicates([train, split_of([None, encoded(2)], "test")])
    assert found.names == ("row 1 of test", str(tmp_path / "train" / "01.png"))
    assert found.number == 1


def test_images_that_are_missing_are_no_duplicates(tmp_path):
    rows = {"image": [None, {"bytes": None, "path": str(tmp_path / "none.png")}]}
    splits = [datasets.Dataset.from_dict(rows, features=IMAGE, split=name) for name in ("train", "test")]
    assert find_duplicates(splits) == []


def test_only_files_of_one_size_are_read(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(hashlib, "blake2b", lambda content, **_: hashed.append(content) or hashlib.sha256(content))
    splits = [split_of([b"a" * size for size in sizes], str(sizes[0]), tmp_path) for sizes in ((1, 2, 3), (5, 3, 4))]
    assert len(find_duplicates(splits)) == 1
    assert hashed == [b"aaa", b"aaa"]


def test_large_and_slow_datasets_are_not_searched(monkeypatch):
    splits = [split_of([b"a", b"b"], name) for name in ("train", "test")]
    assert len(find_duplicates(splits)) == 1
    monkeypatch.setattr(duplicates, "MAX_IMAGES", 3)
    assert find_duplicates(splits) is None
    monkeypatch.setattr(duplicates, "MAX_IMAGES", 4)
    monkeypatch.setattr(duplicates, "MAX_SECONDS", -1)
    assert find_duplicates(splits) is None


@pytest.mark.parametrize("are_files", [False, True])
def test_images_that_a_split_has_more_than_once(tmp_path, are_files):
    folder = tmp_path if are_files else None
    splits = [
        split_of([b"aa", b"bb", b"aa", b"aa", b"ccc", b"bb", None], "train", folder),
        split_of([b"aa", b"dddd"], "test", folder),
    ]
    found = {(each.split, each.other): each for each in find_duplicates(splits, is_thorough=True)}
    assert {name: each.number for name, each in found.items()} == {("train", "train"): 3, ("test", "train"): 1}
    second, first = found["train", "train"].names
    assert ("02" in second and "00" in first) if are_files else (second, first) == ("row 2 of train", "row 0 of train")
    assert len(find_duplicates(splits)) == 1
