"""Labeled images: splits, shares of the labels, and images that cannot be read."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.data.labeled import (
    IGNORED_LABEL,
    LabeledImageDataset,
    class_counts,
    labeled_splits,
    labels_of,
    num_labels_of,
    select_label_fraction,
    select_per_class,
    train_validation_split,
)
from modeling_sit.data.sources import ImageDatasets, load_images
from modeling_sit.runtime.errors import SiTError


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (12, 10), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def labeled(labels: list[int], split: str = "train", images: list[bytes | None] | None = None) -> datasets.Dataset:
    images = [encoded(number) for number in range(len(labels))] if images is None else images
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    rows_of_images = [None if image is None else {"bytes": image, "path": None} for image in images]
    rows = {"image": rows_of_images, "label": labels}
    return datasets.Dataset.from_dict(rows, features=features, split=split)


def multi_labeled(
    labels: list[list[int] | None], split: str = "train", names: str = "abc", images: list[bytes] | None = None
) -> datasets.Dataset:
    """By their row one knows the images again."""
    images = [f"row {row}".encode() for row in range(len(labels))] if images is None else images
    one_class = datasets.ClassLabel(names=list(names))
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.List(one_class)})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features, split=split)


def rows_of(split: datasets.Dataset) -> list[int]:
    """Which rows of the set they are taken from."""
    return [int(image["bytes"].decode().removeprefix("row ")) for image in split["image"]]


def random_multi_labels(num_images: int, chances: list[float], seed: int = 0) -> list[list[int]]:
    draws = np.random.default_rng(seed).random((num_images, len(chances)))
    return [[label for label, chance in enumerate(chances) if draw[label] < chance] for draw in draws]


def counts_of(labels: list[list[int]], num_labels: int) -> list[int]:
    return [sum(label in row for row in labels) for label in range(num_labels)]


def as_images(train, validation, label_names=("a", "b", "c")) -> ImageDatasets:
    return ImageDatasets("some", train, validation, label_names and list(label_names), ["train", "test"])


class TestLabeledSplits:
    def test_both_splits_whole(self):
        images = load_images("digits")
        train, validation = labeled_splits(images)
        assert (len(train), len(validation)) == (1437, 360)
        assert (str(train.split), str(validation.split)) == ("train", "test")

    def test_images_without_a_label_are_left_out_and_counted(self, caplog):
        train, validation = labeled_splits(as_images(labeled([0, -1, 2, -1, 1]), labeled([-1, 1], "test")))
        assert [record.getMessage() for record in caplog.records] == [
            "split train: 2 of 5 images have no label and are left out",
            "split test: 1 of 2 images have no label and are left out",
        ]
        assert train["label"][:] == [0, 2, 1]
        assert [image["bytes"] for image in train["image"]] == [encoded(0), encoded(2), encoded(4)]
        assert validation["label"][:] == [1]
        assert str(validation.split) == "test"

    @pytest.mark.parametrize(
        ("train", "validation", "label_names", "flag"),
        [
            (None, labeled([0], "test"), ("a",), "--train_split"),
            (labeled([0]), None, ("a",), "--validation_split"),
            (labeled([0]), labeled([0], "test"), None, "--label_column"),
            (labeled([0]), labeled([0]), ("a",), "--validation_split train"),
            (labeled([-1, -1]), labeled([0], "test"), ("a",), "--train_split train"),
            (labeled([0]), labeled([-1], "test"), ("a",), "--validation_split test"),
            (
                multi_labeled([None, None]),
                multi_labeled([[0]], "test"),
                ("a",),
                "--train_split train: none .* a label",
            ),
            (
                multi_labeled([[], None]),
                multi_labeled([[0]], "test"),
                ("a",),
                "--train_split train: none .* classes",
            ),
        ],
    )
    def test_errors_name_the_flag(self, train, validation, label_names, flag):
        with pytest.raises(SiTError, match=flag):
            labeled_splits(as_images(train, validation, label_names))

    def test_multi_label_rows_of_which_nothing_is_known_are_left_out(self, caplog):
        train = multi_labeled([[0, 2], None, [], [1], None])
        train, validation = labeled_splits(as_images(train, multi_labeled([[2], [0, 1]], "test")))
        assert (rows_of(train), rows_of(validation)) == ([0, 2, 3], [0, 1])
        assert train["label"][:] == [[0, 2], [], [1]]
        assert "2 of 5 images have no label" in caplog.text

    def test_only_one_of_several_processes_counts(self, caplog, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        labeled_splits(as_images(labeled([0, -1, 1]), labeled([1], "test")))
        assert not caplog.text

    @pytest.mark.parametrize("kind", [labeled, multi_labeled])
    def test_classes_that_only_the_validation_split_has(self, kind):
        if kind is labeled:
            train, validation = labeled([0, -1, 0]), labeled([2, 0, 1, 2, -1], "test")
        else:
            train, validation = multi_labeled([[0], None, []]), multi_labeled([[2], [0], [1], [0, 1, 2], []], "test")
        with pytest.raises(SiTError) as caught:
            labeled_splits(as_images(train, validation))
        assert str(caught.value).startswith(
            "--validation_split test: 3 of its images are of classes that no image of train has: b, c;"
        )
        # A class without images in the validation split is no mistake.
        labeled_splits(as_images(validation, train.select([0, 2])))

    def test_a_validation_split_that_need_not_be_there(self):
        train, validation = labeled_splits(as_images(labeled([0, -1, 1]), None), validation="if there")
        assert train["label"][:] == [0, 1] and validation is None
        images = as_images(labeled([0, 1]), labeled([1], "test"))
        assert labeled_splits(images, validation="if there")[1]["label"][:] == [1]


class TestLabelsOf:
    def test_one_label_each(self):
        labels = labels_of(labeled([2, -1, 0]).select([0, 2, 1]))
        assert labels.dtype == torch.int64 and labels.tolist() == [2, 0, -1]
        assert class_counts(labeled([2, -1, 0, 2])).tolist() == [1, 0, 2]

    def test_several_labels_each(self):
        split = multi_labeled([[0, 2], None, [], [1], [0, 1, 2]])
        labels = labels_of(split)
        assert labels.dtype == torch.float32
        assert labels.tolist() == [[1, 0, 1], [-1, -1, -1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
        assert labels_of(split.select([3, 1, 0])).tolist() == [[0, 1, 0], [-1, -1, -1], [1, 0, 1]]
        assert class_counts(split).tolist() == [2, 2, 2]
        assert num_labels_of(split) == 3


class TestHoldBack:
    @pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
    def test_share_of_every_class(self, share):
        counts = [40, 21, 2, 3]
        given = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], counts))
        rest, held_back = train_validation_split(labeled(given.tolist()), share, seed=0)
        for label, count in enumerate(counts[:3]):
            expected = min(max(1, round(share * count)), count - 1)
            assert held_back["label"][:].count(label) == expected and rest["label"][:].count(label) == count - expected
        assert -1 not in held_back["label"] and -1 not in rest["label"]

    @pytest.mark.parametrize("kind", ["single", "multi"])
    def test_every_image_is_in_one_part_in_its_order(self, kind):
        if kind == "single":
            split = labeled([0, 1, 2] * 9, images=[f"row {row}".encode() for row in range(27)])
            known = list(range(27))
        else:
            given = [*random_multi_labels(30, [0.5, 0.4, 0.6]), None, [], None]
            split, known = multi_labeled(given), [*range(30), 31]
        parts = train_validation_split(split, 0.3, seed=1)
        rows = [rows_of(part) for part in parts]
        assert rows[0] == sorted(rows[0]) and rows[1] == sorted(rows[1])
        assert sorted(rows[0] + rows[1]) == known
        for part, numbers in zip(parts, rows, strict=True):
            assert part["label"][:] == [split["label"][number] for number in numbers]
        assert [rows_of(part) for part in train_validation_split(split, 0.3, seed=1)] == rows
        assert [rows_of(part) for part in train_validation_split(split, 0.3, seed=2)] != rows

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
    @pytest.mark.parametrize("seed", range(5))
    def test_multi_label_shares(self, share, seed):
        """Near to each class's share where a random choice, of rare classes above all, is not."""
        chances = [0.5, 0.3, 0.2, 0.1, 0.04]
        given = random_multi_labels(400, chances, seed)
        rest, held_back = train_validation_split(multi_labeled(given, names="abcde"), share, seed)
        total = counts_of(given, 5)
        for label, count in enumerate(counts_of(held_back["label"][:], 5)):
            assert abs(count - share * total[label]) <= 1.5
        assert min(counts_of(rest["label"][:], 5)) >= 1 and min(counts_of(held_back["label"][:], 5)) >= 1
        assert abs(len(held_back) - share * 400) <= 1
        # Images of no class are shared out as well.
        assert any(not labels for labels in held_back["label"]) and any(not labels for labels in rest["label"])

    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_multi_label_shares_where_all_classes_are_common(self, share):
        """As in tiled images: what is chosen for one class must not spoil the shares of the others."""
        tiles = np.random.default_rng(0).integers(0, 12, (300, 4))
        given = [sorted(set(row)) for row in tiles.tolist()]
        _, held_back = train_validation_split(multi_labeled(given, names="abcdefghijkl"), share, seed=0)
        for count, total in zip(counts_of(held_back["label"][:], 12), counts_of(given, 12), strict=True):
            assert abs(count - share * total) <= 1.5
        assert abs(len(held_back) - share * 300) <= 2

    @pytest.mark.parametrize("seed", range(20))
    def test_every_class_is_left_a_image(self, seed):
        """Also where classes come together so that they cannot all be in both parts."""
        given = [[0, 1], [0, 2], [1, 2]]
        rest, held_back = train_validation_split(multi_labeled(given), 0.5, seed)
        assert min(counts_of(rest["label"][:], 3)) >= 1 and len(held_back) <= 1

    def test_a_class_with_one_image(self):
        for split in (labeled([0, 0, 1, 2, 2]), multi_labeled([[0, 1], [0, 2], [2], []])):
            with pytest.raises(SiTError, match=r"split train: only one image of b, .*--validation_split"):
                train_validation_split(split, 0.2, seed=0)

    @pytest.mark.parametrize("share", [0, 1, -0.1])
    def test_shares_that_are_none(self, share):
        with pytest.raises(ValueError, match="share"):
            train_validation_split(labeled([0, 0]), share, seed=0)


class TestPerClass:
    def test_as_many_of_every_class(self):
        split = labeled(np.random.default_rng(0).permutation([0] * 9 + [1] * 5 + [-1] * 4).tolist())
        for count in (1, 3, 5):
            assert np.bincount(select_per_class(split, count, seed=0)["label"][:]).tolist() == [count, count]

    def test_multi_label(self):
        given = random_multi_labels(60, [0.6, 0.3, 0.15])
        split = multi_labeled([*given, None])
        for seed in range(5):
            chosen = select_per_class(split, 4, seed)
            rows = rows_of(chosen)
            assert rows == sorted(set(rows)) and chosen["label"][:] == [given[row] for row in rows]
            assert min(counts_of(chosen["label"][:], 3)) >= 4 and len(rows) <= 3 * 4

    def test_images_that_were_chosen_for_a_rarer_class_count(self):
        """Four images have all three classes: nothing more is needed."""
        split = multi_labeled([[0, 1, 2]] * 4 + [[0, 1]] * 5 + [[0]] * 9)
        assert rows_of(select_per_class(split, 4, seed=0)) == [0, 1, 2, 3]

    def test_is_a_function_of_the_seed(self):
        split = multi_labeled(random_multi_labels(60, [0.6, 0.3, 0.15]))
        rows = [rows_of(select_per_class(split, 3, seed)) for seed in (0, 0, 1)]
        assert rows[0] == rows[1] != rows[2]

    def test_too_few_images(self):
        for split in (labeled([0, 0, 0, 2, 2, -1]), multi_labeled([[0], [0, 2], [0], [2], None])):
            with pytest.raises(SiTError, match=r"split train: fewer than 3 images of c; .* at most 2"):
                select_per_class(split, 3, seed=0)
            assert len(select_per_class(split, 2, seed=0)) <= 4  # of class b there is no image


class TestLabelFraction:
    labels = [0] * 20 + [1] * 10 + [2] * 3
    split = labeled(list(np.random.default_rng(0).permutation(labels)))

    @pytest.mark.parametrize(("fraction", "counts"), [(0.1, [2, 1, 1]), (0.5, [10, 5, 2]), (1.0, [20, 10, 3])])
    def test_share_of_every_class(self, fraction, counts):
        chosen = select_label_fraction(self.split, fraction, seed=0)
        assert np.bincount(chosen["label"][:]).tolist() == counts

    def test_images_keep_their_labels_and_order(self):
        chosen = select_label_fraction(self.split, 0.5, seed=0)
        place = {image["bytes"]: number for number, image in enumerate(self.split["image"])}
        places = [place[image["bytes"]] for image in chosen["image"]]
        assert places == sorted(set(places))
        assert chosen["label"][:] == [self.split["label"][place] for place in places]

    def test_is_a_function_of_the_seed(self):
        chosen = [[p["bytes"] for p in select_label_fraction(self.split, 0.5, seed)["image"]] for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_a_class_without_images_is_no_trouble(self):
        assert select_label_fraction(labeled([0, 2, 2]), 0.5, 0)["label"][:] == [0, 2]

    @pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
    def test_multi_label(self, fraction):
        chances = [0.5, 0.2, 0.03]
        given = random_multi_labels(300, chances)
        chosen = select_label_fraction(multi_labeled([*given, None, None]), fraction, seed=0)
        assert chosen["label"][:] == [given[row] for row in rows_of(chosen)]
        for count, total in zip(counts_of(chosen["label"][:], 3), counts_of(given, 3), strict=True):
            assert count >= 1 and abs(count - fraction * total) <= 2
        assert abs(len(chosen) - fraction * 300) <= 4

    def test_all_of_a_multi_label_set(self):
        given = [[0], [], None, [1, 2], [2], [0, 1]]
        assert rows_of(select_label_fraction(multi_labeled(given), 1.0, seed=0)) == [0, 1, 3, 4, 5]


class TestLabeledImages:
    def test_item(self):
        item = LabeledImageDataset(labeled([2, 1]), 3)[1]
        assert (item["label"], item["unreadable"]) == (1, None)
        assert item["image"].mode == "RGB" and item["image"].size == (12, 10)
        assert item["image"].getpixel((0, 0)) == (1, 0, 254)
        assert len(LabeledImageDataset(labeled([2, 1]), 3)) == 2

    def test_multi_label_item(self):
        split = multi_labeled([[0, 2], [], [1]], images=[encoded(0), encoded(1), b"broken"])
        dataset = LabeledImageDataset(split, 3)
        labels = [dataset[index]["label"] for index in range(3)]
        assert all(label.dtype == torch.float32 and label.shape == (3,) for label in labels)
        assert [label.tolist() for label in labels] == [[1, 0, 1], [0, 0, 0], [IGNORED_LABEL] * 3]
        assert dataset[2]["unreadable"].startswith("row 2 of train: ")

    @pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
    def test_unreadable_image_is_grey_and_has_no_label(self, num_channels, mode):
        split = labeled([2, 1, 0], images=[encoded(0), b"broken", None])
        dataset = LabeledImageDataset(split, num_channels)
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

    def test_transform_gets_every_image(self):
        split = labeled([2, 1], images=[encoded(0), b"broken"])
        dataset = LabeledImageDataset(split, 3, lambda image: image.resize((3, 5)))
        assert dataset[0]["image"].size == dataset[1]["image"].size == (3, 5)
