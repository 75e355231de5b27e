"""What file names tell: masks, which are left out, and splits, which they do not make."""

import numpy as np
import PIL.Image
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


@pytest.fixture
def split(caplog):
    """The images that are read of a folder with these files, and what is told of it."""
    tell_once.cache_clear()

    def split(names, folder="/d"):
        paths = sorted(f"{folder}/{name}" for name in names.split(" "))
        parts = split_folders(str(folder), paths)
        return [path.removeprefix(f"{folder}/") for found in parts.values() for _, inside in found for path in inside]

    return lambda *given: (split(*given), caplog.messages)


@pytest.mark.parametrize(
    ("names", "kept", "told"),
    [
        (
            "a.jpg a_mask.png b.jpg b_mask.png",
            "a.jpg b.jpg",
            "are not read: 2, such as a_mask.png",
        ),
        ("x(1).png x(1)_mask.png x(1)_mask_1.png y.png", "x(1).png y.png", "are not read: 2, such"),
        ("1.tif 1-GT.tif", "1.tif", "are not read: 1, such as 1-GT.tif beside 1.tif;"),
        ("a.jpg a_seg.png", "a.jpg", "are not read: 1, such"),
        (
            "train/a.rf.1.jpg train/a.rf.1_mask.png valid/b.jpg valid/b_label.png",
            "train/a.rf.1.jpg valid/b.jpg",
            "are not read: 2, such as train/a.rf.1_mask.png beside a.rf.1.jpg;",
        ),
        ("cat/1.png cat/1_mask.png dog/2.png dog/2_mask.png", "cat/1.png dog/2.png", "are not read: 2, such"),
    ],
)
def test_masks_beside_their_images_are_left_out(split, names, kept, told):
    found, messages = split(names)
    assert found == kept.split(" ") and len(messages) == 1 and told in messages[0]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("a.jpg a_mask.png b_mask.png", True),
        ("a.jpg a_mask.jpg b.jpg b_mask.jpg", True),
        ("train/a.jpg train/a_mask.png test/b_mask.png", True),
        ("with_mask_1.png without_mask_1.png", False),
        ("mask1.png mask2.png", False),
        ("a/1.png b/1_mask.png", False),
        ("unmask.png un.png", False),
        ("a_mask.png a_mask_mask.png", False),
    ],
)
def test_what_may_be_images_stays(split, names, told):
    found, messages = split(names)
    assert sorted(found) == sorted(names.split(" ")) and len(messages) == told
    assert not told or "all are read as images" in messages[0]


@pytest.mark.parametrize("kind", ["mask", "another size", "photograph"])
def test_a_mask_has_the_size_of_its_image_and_few_colors(split, tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 3 if kind == "mask" else 256, (20, 20), dtype=np.uint8)
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "bottle.png")
    PIL.Image.fromarray(pixels[:10] // 64 if kind == "another size" else pixels).save(tmp_path / "bottle_label.png")
    both = ["bottle.png", "bottle_label.png"]
    assert split(" ".join(both), tmp_path)[0] == (both[:1] if kind == "mask" else both)


def test_of_many_files_some_are_looked_at(told):
    assert len(told(" ".join(f"{split}_{number:05}" for split in ("train", "test") for number in range(10_000)))) == 1
