"""Labelled pictures: splits, shares of the labels, and pictures that cannot be read."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.cli.errors import UserError
from modeling_sit.data.labelled import (
    IGNORED_LABEL,
    LabelledPictures,
    labelled_splits,
    random_crop_and_flip,
    select_label_fraction,
)
from modeling_sit.data.sources import Pictures, load_pictures


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (12, 10), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def labelled(labels: list[int], split: str = "train", pictures: list[bytes | None] | None = None) -> datasets.Dataset:
    pictures = [encoded(number) for number in range(len(labels))] if pictures is None else pictures
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    images = [None if picture is None else {"bytes": picture, "path": None} for picture in pictures]
    rows = {"image": images, "label": labels}
    return datasets.Dataset.from_dict(rows, features=features, split=split)


def as_pictures(train, validation, label_names=("a", "b", "c")) -> Pictures:
    return Pictures("some", train, validation, label_names and list(label_names), ["train", "test"])


class TestLabelledSplits:
    def test_both_splits_whole(self):
        pictures = load_pictures("digits")
        train, validation = labelled_splits(pictures)
        assert (len(train), len(validation)) == (1437, 360)
        assert (str(train.split), str(validation.split)) == ("train", "test")

    def test_pictures_without_a_label_are_left_out(self):
        train, validation = labelled_splits(as_pictures(labelled([0, -1, 2, -1, 1]), labelled([-1, 1], "test")))
        assert train["label"][:] == [0, 2, 1]
        assert [picture["bytes"] for picture in train["image"]] == [encoded(0), encoded(2), encoded(4)]
        assert validation["label"][:] == [1]
        assert str(validation.split) == "test"

    @pytest.mark.parametrize(
        ("train", "validation", "label_names", "flag"),
        [
            (None, labelled([0], "test"), ("a",), "--train_split"),
            (labelled([0]), None, ("a",), "--validation_split"),
            (labelled([0]), labelled([0], "test"), None, "--label_column"),
            (labelled([0]), labelled([0]), ("a",), "--validation_split train"),
            (labelled([-1, -1]), labelled([0], "test"), ("a",), "--train_split train"),
            (labelled([0]), labelled([-1], "test"), ("a",), "--validation_split test"),
        ],
    )
    def test_errors_name_the_flag(self, train, validation, label_names, flag):
        with pytest.raises(UserError, match=flag):
            labelled_splits(as_pictures(train, validation, label_names))


class TestLabelFraction:
    labels = [0] * 20 + [1] * 10 + [2] * 3
    split = labelled(list(np.random.default_rng(0).permutation(labels)))

    @pytest.mark.parametrize(("fraction", "counts"), [(0.1, [2, 1, 1]), (0.5, [10, 5, 2]), (1.0, [20, 10, 3])])
    def test_share_of_every_class(self, fraction, counts):
        chosen = select_label_fraction(self.split, fraction, seed=0)
        assert np.bincount(chosen["label"][:]).tolist() == counts

    def test_pictures_keep_their_labels_and_order(self):
        chosen = select_label_fraction(self.split, 0.5, seed=0)
        place = {picture["bytes"]: number for number, picture in enumerate(self.split["image"])}
        places = [place[picture["bytes"]] for picture in chosen["image"]]
        assert places == sorted(set(places))
        assert chosen["label"][:] == [self.split["label"][place] for place in places]

    def test_is_a_function_of_the_seed(self):
        chosen = [[p["bytes"] for p in select_label_fraction(self.split, 0.5, seed)["image"]] for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_a_class_without_pictures_is_no_trouble(self):
        assert select_label_fraction(labelled([0, 2, 2]), 0.5, 0)["label"][:] == [0, 2]


class TestLabelledPictures:
    def test_item(self):
        item = LabelledPictures(labelled([2, 1]), 3)[1]
        assert (item["label"], item["unreadable"]) == (1, None)
        assert item["image"].mode == "RGB" and item["image"].size == (12, 10)
        assert item["image"].getpixel((0, 0)) == (1, 0, 254)
        assert len(LabelledPictures(labelled([2, 1]), 3)) == 2

    @pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
    def test_unreadable_picture_is_grey_and_has_no_label(self, num_channels, mode):
        split = labelled([2, 1, 0], pictures=[encoded(0), b"broken", None])
        dataset = LabelledPictures(split, num_channels)
        for index in (1, 2):
            item = dataset[index]
            assert item["label"] == IGNORED_LABEL
            assert item["unreadable"].startswith(f"row {index} of train: ")
            assert item["image"].mode == mode
            assert len(item["image"].getcolors()) == 1
        assert dataset[0]["image"].mode == mode
        assert dataset[0]["unreadable"] is None

    def test_ignored_label_is_what_cross_entropy_leaves_out(self):
        logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, IGNORED_LABEL, 2]))
        expected = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 2]))
        torch.testing.assert_close(loss, expected)

    def test_transform_gets_every_picture(self):
        split = labelled([2, 1], pictures=[encoded(0), b"broken"])
        dataset = LabelledPictures(split, 3, lambda picture: picture.resize((3, 5)))
        assert dataset[0]["image"].size == dataset[1]["image"].size == (3, 5)


class TestRandomCropAndFlip:
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))

    def test_size(self):
        assert random_crop_and_flip((8, 16), (0.5, 1.0), 0.5)(self.picture).size == (16, 8)

    def test_flip(self):
        square = self.picture.resize((16, 16))
        torch.manual_seed(0)
        kept = np.asarray(random_crop_and_flip((16, 16), (1.0, 1.0), 0.0)(square))
        torch.manual_seed(0)
        flipped = np.asarray(random_crop_and_flip((16, 16), (1.0, 1.0), 1.0)(square))
        np.testing.assert_array_equal(flipped, kept[:, ::-1])

    def test_is_a_function_of_torch_manual_seed(self):
        augment = random_crop_and_flip((8, 8), (0.2, 1.0), 0.5)
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(np.asarray(augment(self.picture)))
        np.testing.assert_array_equal(results[0], results[1])
        assert (results[0] != results[2]).any()

    def test_scale_is_a_share_of_the_area(self):
        column = PIL.Image.fromarray(np.tile(np.arange(240, dtype=np.uint8), (240, 1)))
        for scale in (0.25, 1.0):
            augment = random_crop_and_flip((16, 16), (scale, scale), 0.0)
            torch.manual_seed(0)
            crops = [np.asarray(augment(column)).astype(float) for _ in range(40)]
            widths = [(crop[:, 12] - crop[:, 3]).mean() / 9 * 16 for crop in crops]
            expected = 240 * scale**0.5
            assert 0.85 * expected < np.median(widths) < 1.15 * expected
