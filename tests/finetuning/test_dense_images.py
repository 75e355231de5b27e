import io
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit import SiTImageProcessor
from modeling_sit.data.dense.annotations import AnnotatedObject
from modeling_sit.data.dense.rows import object_columns, object_features, pixel_features
from modeling_sit.finetuning.dense_augmentation import DenseAugmentation
from modeling_sit.finetuning.dense_images import AugmentedDenseImages, DenseCollator, DenseImages, check_image_sizes
from modeling_sit.image_modes import PixelFormat
from modeling_sit.run_length_encoding import encode_mask
from modeling_sit.runtime.errors import SiTError

SIZES = [(40, 30), (30, 40), (40, 30)]
ARGUMENTS = SimpleNamespace(
    scale_jitter=[0.5, 2.0],
    horizontal_flip_probability=0.5,
    vertical_flip_probability=0.0,
    photometric_distortion=False,
)


def encoded(values):
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def objects(sizes=SIZES, told=SIZES):
    of_images = []
    for width, height in told:
        mask = np.zeros((height, width), bool)
        mask[5:15, 8:20] = True
        of_images.append([AnnotatedObject(1, (8.0, 5.0, 12.0, 10.0), 0, 120.0, 0, encode_mask(mask))])
    columns = object_columns(list(range(7, 7 + len(told))), told, of_images)
    features = object_features(["cell"])
    others = {name: feature for name, feature in features.items() if name != "image"}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(others))
    images = [encoded(pixels(size)) for size in sizes]
    images = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": features["image"]}))
    return datasets.concatenate_datasets([images, rows], axis=1)


def masks(sizes=SIZES, told=SIZES):
    rows = {
        "image": [encoded(pixels(size)) for size in sizes],
        "label": [encoded(np.full(size[::-1], 1, np.uint8)) for size in told],
    }
    return datasets.Dataset.from_dict(rows, features=pixel_features())


@pytest.fixture
def processor():
    return SiTImageProcessor(size={"longest_edge": 48}, do_pad=True, patch_size=8)


@pytest.mark.parametrize("with_masks", [False, True])
def test_batch_of_objects(processor, with_masks):
    images = DenseImages(objects(), PixelFormat(3))
    augmented = AugmentedDenseImages(images, DenseAugmentation(processor.size, ARGUMENTS, [0] * 3, with_masks))
    collator = DenseCollator(processor, with_masks)
    for batch in (
        collator([images[index] for index in range(3)]),
        collator([augmented[index, index] for index in range(3)]),
    ):
        assert batch["pixel_values"].shape == (3, 3, 64, 64)
        assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [48 * 36] * 3
        for label in batch["labels"]:
            assert ("masks" in label) == with_masks
            assert label["boxes"].shape == (len(label["class_labels"]), 4)
            assert not with_masks or label["masks"].shape == (len(label["boxes"]), 64, 64)


@pytest.mark.parametrize("reduces", [False, True])
def test_batch_of_classes_of_pixels(processor, reduces):
    """Masks are read as the processor says, and not a second time."""
    processor.do_reduce_labels = reduces
    images = DenseImages(masks(), PixelFormat(3))
    augmented = AugmentedDenseImages(images, DenseAugmentation(processor.size, ARGUMENTS, [0] * 3, False))
    batch = DenseCollator(processor, False)([augmented[index, index] for index in range(3)])
    assert batch["labels"].shape == (3, 64, 64) and set(batch["labels"].unique().tolist()) == {1, 255}
    assert (batch["labels"][batch["pixel_mask"] == 0] == 255).all()


@pytest.mark.parametrize("rows", [objects, masks])
def test_percentiles_are_those_of_the_image_alone(rows):
    """A dark crop of an image that was read by its own range stays dark."""
    by_range = SiTImageProcessor(size={"longest_edge": 48}, do_pad=True, patch_size=8, intensity_range=["1%", "99%"])
    plain = SiTImageProcessor(size={"longest_edge": 48}, do_pad=True, patch_size=8)
    images = DenseImages(rows(), PixelFormat(3, ["1%", "99%"]))
    items = [replace(images[index], image=images[index].image.point(lambda value: value // 4)) for index in range(3)]
    found, expected = (DenseCollator(each, False)(items)["pixel_values"] for each in (by_range, plain))
    assert torch.equal(found, expected)


def test_items_depend_on_their_seed_alone(processor):
    augmented = AugmentedDenseImages(
        DenseImages(objects(), PixelFormat(3)), DenseAugmentation(processor.size, ARGUMENTS, [0] * 3, True)
    )
    first = augmented[1, 5]
    torch.manual_seed(99)
    again = augmented[1, 5]
    np.testing.assert_array_equal(first.image, again.image)
    assert [each["bbox"] for each in first.annotations] == [each["bbox"] for each in again.annotations]


@pytest.mark.parametrize("rows", [objects, masks])
def test_image_of_another_size_than_its_labels_is_skipped(rows, processor, capsys):
    images = DenseImages(rows(told=[(40, 30), (30, 40), (20, 30)]), PixelFormat(3))
    assert images[0].unreadable is None
    assert images[2].unreadable.endswith("it has 40 x 30 pixels, and its labels are for 20 x 30")
    batch = DenseCollator(processor, False)([images[index] for index in range(3)])
    assert len(batch["pixel_values"]) == 2 and "skipped an unreadable image" in capsys.readouterr().err


def test_mask_with_values_beyond_the_classes_is_skipped():
    images = DenseImages(masks(), PixelFormat(3), ["a"])
    assert "the mask of row 0 of the dataset has the values 1, and there are 1 classes" in images[0].unreadable
    assert DenseImages(masks(), PixelFormat(3), ["a", "b"])[0].unreadable is None


@pytest.mark.parametrize("rows", [objects, masks])
def test_damaged_files_are_skipped(rows):
    split = rows()
    damaged = [{"bytes": b"none", "path": "a.png"}] * 3
    column = "image" if rows is objects else "label"
    images = datasets.Dataset.from_dict(
        {column: damaged}, features=datasets.Features({column: split.features[column]})
    )
    split = datasets.concatenate_datasets([images, split.remove_columns([column])], axis=1)
    item = DenseImages(split, PixelFormat(3))[1]
    assert item.image_id == (8 if rows is objects else 1)
    assert "row 1 of the dataset" in item.unreadable and "\n" not in item.unreadable


@pytest.mark.parametrize("rows", [objects, masks])
def test_images_smaller_than_a_patch(rows, processor):
    check_image_sizes(DenseImages(rows(), PixelFormat(3)), processor)
    thin = [(40, 30), (200, 20)]
    with pytest.raises(
        SiTError, match=r"row 1 of .* has 48 x 5 pixels in the model's input, less than a patch of 8 x 8"
    ):
        check_image_sizes(DenseImages(rows(thin, thin), PixelFormat(3)), processor)
    small = [(40, 30), (7, 9)]
    with pytest.raises(SiTError, match=r"row 1 of .* has 7 x 9 pixels, less than a patch"):
        check_image_sizes(DenseImages(rows(small, small), PixelFormat(3)), processor)
