"""Labeled images: splits, labels as tensors, and images that cannot be read."""

import datasets
import pytest
import torch
from labeled_rows import encoded, labeled, multi_labeled, rows_of

from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.labeled import (
    IGNORED_LABEL,
    LabeledImageDataset,
    class_counts,
    labeled_splits,
    labels_of,
    num_labels_of,
)
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError


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
        ("train", "validation", "label_names", "argument", "fact"),
        [
            (None, labeled([0], "test"), ("a",), "train_split", "train, test"),
            (labeled([0, 1]), None, ("a", "b"), "validation_split", "train, test"),
            (labeled([0]), labeled([0], "test"), None, "label_column", "no labels"),
            (labeled([0]), labeled([0]), ("a",), "validation_split", "train"),
            (labeled([-1, -1]), labeled([0], "test"), ("a",), "train_split", "train"),
            (labeled([0]), labeled([-1], "test"), ("a",), "validation_split", "test"),
            (
                multi_labeled([None, None]),
                multi_labeled([[0]], "test"),
                ("a",),
                "train_split",
                "a label",
            ),
            (
                multi_labeled([[], None]),
                multi_labeled([[0]], "test"),
                ("a",),
                "train_split",
                "classes",
            ),
        ],
    )
    def test_errors_name_the_argument(self, train, validation, label_names, argument, fact):
        with pytest.raises(SiTError, match=fact) as error:
            labeled_splits(as_images(train, validation, label_names))
        assert error.value.argument == argument

    def test_a_stream_has_no_labels_to_count(self):
        with pytest.raises(SiTError) as error:
            labeled_splits(as_images(labeled([0, 1]).to_iterable_dataset(), labeled([0], "test")))
        assert error.value.argument == "dataset"

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
        assert caught.value.argument == "validation_split"
        assert caught.value.problem == "3 images of test are of classes that no image of train has: b, c"
        assert "rename" not in caught.value.remedy
        # A class without images in the validation split is no mistake.
        labeled_splits(as_images(validation, train.select([0, 2])))

    def test_classes_that_differ_only_in_case_are_named(self):
        names = datasets.ClassLabel(names=["a", "b", "A"])
        train, validation = (rows.cast_column("label", names) for rows in (labeled([0, 1]), labeled([2, 1], "test")))
        with pytest.raises(SiTError) as caught:
            labeled_splits(as_images(train, validation, names.names))
        assert caught.value.remedy.endswith("one class: a and A")

    @pytest.mark.parametrize(
        ("paths", "name", "remedy"),
        [
            # Cats and dogs as they are downloaded: one level too deep.
            ([f"PetImages/{name}/{n}.png" for name in ("Cat", "Dog") for n in (0, 1)], "PetImages", "PetImages"),
            # Two levels, and files of one class deeper than those of the other.
            (["a/b/Cat/0.png", "a/b/Cat/1.png", "a/b/Dog/x/0.png"], "a", "a/b"),
            # Within splits.
            (
                [f"{split}/all/{name}/0.png" for split in ("train", "test") for name in ("Cat", "Dog")],
                "all",
                "train/all",
            ),
            # YOLO's folders, with labels that are no folders.
            ([f"{split}/images/{n}.jpg" for split in ("train", "valid") for n in (0, 1)], "images", None),
            # The folder above the only class that is there.
            ([f"cells/{n}.png" for n in range(3)], "cells", None),
        ],
    )
    def test_folders_of_one_class(self, tmp_path, paths, name, remedy):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(encoded(0))
        with pytest.raises(SiTError) as error:
            labeled_splits(load_images(str(tmp_path)))
        assert error.value.argument == "dataset"
        assert f"of one class, {name}," in error.value.problem
        if remedy is None:
            assert "folder of its own" in error.value.remedy
        else:
            assert "(Cat, Dog)" in error.value.remedy and str(tmp_path / remedy) in error.value.remedy

    def test_the_remedy_of_one_folder_is_right(self, tmp_path):
        for path in ("PetImages/Cat/0.png", "PetImages/Dog/0.png"):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_bytes(encoded(0))
        train, _ = labeled_splits(load_images(str(tmp_path / "PetImages")), validation="if there")
        assert class_counts(train).tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("split", "problem"),
        [
            (labeled([1, 1, 1]), "all 3 labeled images of train are of one class, b,"),
            (labeled([1, -1, 1, -1]), "of one class, b, and the other 2 have no label"),  # -1 is 'no label' there
            (multi_labeled([[0, 2], [0, 2], None]), "the same labels: a, c, and the other 1"),
            (multi_labeled([[0]], names="a"), "the same labels: a,"),
        ],
    )
    def test_columns_of_one_class(self, split, problem):
        images = as_images(split, None)
        images.multi_label = isinstance(split.features["label"], datasets.List)
        with pytest.raises(SiTError) as error:
            labeled_splits(images, validation="if there")
        assert error.value.argument == "label_column" and problem in error.value.problem

    def test_one_class_that_images_have_or_not(self):
        train, _ = labeled_splits(as_images(multi_labeled([[0], [], [0]], names="a"), None, "a"), "if there")
        assert class_counts(train).tolist() == [2]

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
    def test_unreadable_image_is_gray_and_has_no_label(self, num_channels, mode):
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
