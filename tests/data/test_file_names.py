"""What file names tell, and are not read by."""

import pytest

from modeling_sit.data.folder_splits import split_folders
from modeling_sit.data.split_names import tell_once


@pytest.fixture
def told(caplog):
    """What is told of a folder with these files."""
    tell_once.cache_clear()

    def tell(names):
        paths = sorted(f"/d/{name}.png" for name in names.split(" "))
        assert split_folders("/d", paths) == {"train": [("/d", paths)]}
        return caplog.messages

    return tell


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train_0 train_1 test_0", True),
        ("train_0 train_1 test_0 x", True),
        ("cat/train_0 cat/test_0 dog/train_1 dog/test_1", True),
        ("pile/IMG-train-1 pile/IMG-val-2", True),
        ("trainset1 holdout1", True),
        ("train_0 train_1", False),
        ("test_0 test_1", False),
        ("a b c d e train_1 test_1", False),
        ("cat/1 dog/1", False),
    ],
)
def test_splits_in_file_names_are_told(told, names, expected):
    messages = told(names)
    assert len(messages) == expected and all("file names tell splits" in message for message in messages)


@pytest.mark.parametrize(
    ("names", "mask", "image"),
    [
        ("a a_mask b b_mask", "a_mask", "a"),
        ("benign/x(1) benign/x(1)_mask benign/x(1)_mask_1 normal/y", "benign/x(1)_mask", "x(1)"),
        ("img1 img1-GT", "img1-GT", "img1"),
        ("0001 0001_segmentation", "0001_segmentation", "0001"),
        ("with_mask_1 without_mask_1", None, None),
        ("mask1 mask2", None, None),
        ("a/1 b/1_mask", None, None),
        ("unmask un", None, None),
    ],
)
def test_masks_among_the_images_are_told(told, names, mask, image):
    messages = told(names)
    assert len(messages) == (mask is not None)
    assert mask is None or f"such as {mask}.png beside {image};" in messages[0]


def test_of_many_files_some_are_looked_at(told):
    assert len(told(" ".join(f"{split}_{number:05}" for split in ("train", "test") for number in range(10_000)))) == 1
