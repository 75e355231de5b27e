import pickle
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_utils import SizeDict

from modeling_sit import SiTImageProcessor
from modeling_sit.dense_processing import resized_size
from modeling_sit.finetuning.dense_augmentation import DenseAugmentation, photometric_distortion
from modeling_sit.finetuning.dense_images import DenseItem
from modeling_sit.finetuning.sampling import seeded
from modeling_sit.run_length_encoding import encode_mask

SIZE = SizeDict(longest_edge=96)
FILL = [3, 200, 90]
HEIGHT, WIDTH, BACKGROUND = 60, 80, 40
# Left, top, width, height: one of them at the border, one small.
BOXES = [(10, 10, 20, 12), (60, 30, 20, 30), (40, 5, 6, 6)]
COLORS = [(255, 0, 0), (0, 0, 255), (255, 255, 0)]


def augment(item, seed, with_masks=True, size=SIZE, **arguments):
    defaults = {
        "scale_jitter": [0.5, 2.0],
        "horizontal_flip_probability": 0.5,
        "vertical_flip_probability": 0.5,
        "photometric_distortion": False,
    }
    augmentation = DenseAugmentation(size, SimpleNamespace(**defaults | arguments), FILL, with_masks)
    with seeded(seed):
        return augmentation(item)


@pytest.fixture
def painted():
    """An image whose objects are rectangles of one color each, of which a corner is not theirs."""
    pixels = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    annotations = []
    for number, ((left, top, width, height), color) in enumerate(zip(BOXES, COLORS, strict=True)):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top : top + height, left : left + width] = True
        mask[top : top + height // 2, left : left + width // 2] = False
        pixels[mask] = color
        annotations.append(
            {
                "id": number + 1,
                "image_id": 7,
                "category_id": number,
                "bbox": [left, top, width, height],
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(mask),
            }
        )
    annotations.append({**annotations[0], "id": 9, "iscrowd": 1})
    return DenseItem(7, PIL.Image.fromarray(pixels), annotations=annotations)


def painted_mask(image, number):
    """Where the image is nearer to an object's color than to the others and the background."""
    colors = np.array([*COLORS, (BACKGROUND,) * 3, FILL])
    distance = np.abs(np.asarray(image, dtype=int)[..., None, :] - colors).sum(axis=-1)
    return distance.argmin(axis=-1) == number


@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_masks_follow_the_image(painted, seed):
    found = augment(painted, seed)
    assert found.image.size == (96, 72)
    kept = [each["category_id"] for each in found.annotations]
    for each in found.annotations:
        left, top, width, height = each["bbox"]
        assert min(left, top) >= 0 and left + width <= 96 and top + height <= 72 and each["iscrowd"] == 0
        mask, seen = each["segmentation"], painted_mask(found.image, each["category_id"])
        assert mask.shape == (72, 96) and each["area"] == mask.sum()
        if mask.sum() < 40:
            continue
        # They may differ only where an edge is in the pixel. A shift by half a pixel would differ in more.
        assert (mask != seen).sum() <= 0.3 * (width + height) + 5
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        np.testing.assert_allclose(
            [left, top, left + width, top + height], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=2
        )
    for number in set(range(3)) - set(kept):
        assert painted_mask(found.image, number).sum() < 20


def test_all_cases_occur(painted):
    """Cropped and padded images, objects that are lost, and images that are not flipped."""
    found = [augment(painted, seed) for seed in range(40)]
    counts = [len(item.annotations) for item in found]
    assert 3 in counts and min(counts) < 3
    is_padded = [np.asarray(item.image)[-1, -1].tolist() == FILL for item in found]
    assert any(is_padded) and not all(is_padded)


def test_boxes_without_masks_are_cut_at_the_border(painted):
    # Twice as large: every crop is half as wide.
    for seed in range(10):
        found = augment(painted, seed, with_masks=False, scale_jitter=[2.0, 2.0])
        for each in found.annotations:
            left, top, width, height = each["bbox"]
            assert left >= 0 and left + width <= 96 and top >= 0 and top + height <= 72
            assert width >= 1 and height >= 1 and each["area"] == pytest.approx(width * height)
            assert "segmentation" not in each


def test_no_jitter_and_no_flip_only_resizes(painted):
    found = augment(
        painted, 0, scale_jitter=[1.0, 1.0], horizontal_flip_probability=0.0, vertical_flip_probability=0.0
    )
    expected = np.array(BOXES) * 1.2
    np.testing.assert_allclose([each["bbox"] for each in found.annotations], expected, atol=1e-4)
    mirrored = augment(
        painted, 0, scale_jitter=[1.0, 1.0], horizontal_flip_probability=1.0, vertical_flip_probability=1.0
    )
    left, top, width, height = expected[0]
    np.testing.assert_allclose(
        mirrored.annotations[0]["bbox"], [96 - left - width, 72 - top - height, width, height], atol=1e-4
    )
    np.testing.assert_array_equal(
        mirrored.annotations[0]["segmentation"][::-1, ::-1], found.annotations[0]["segmentation"]
    )


def test_the_box_of_a_long_object_is_that_of_its_rest():
    """A diagonal: where the right half is cut, the lower part of its box is empty."""
    mask = np.eye(64, dtype=bool)
    annotation = {"bbox": [0, 0, 64, 64], "category_id": 0, "iscrowd": 0, "segmentation": encode_mask(mask)}
    item = DenseItem(0, PIL.Image.new("RGB", (64, 64)), annotations=[annotation])
    arguments = {
        "scale_jitter": [2.0, 2.0],
        "horizontal_flip_probability": 0.0,
        "vertical_flip_probability": 0.0,
        "size": SizeDict(longest_edge=64),
    }
    boxes = [augment(item, seed, **arguments).annotations for seed in range(20)]
    shapes = [each["bbox"][2:] for found in boxes for each in found]
    assert any(max(shape) < 60 for shape in shapes)
    for width, height in shapes:  # of the crop, a diagonal is left: as wide as it is high
        assert abs(width - height) <= 2
    whole = augment(item, 0, with_masks=False, **arguments).annotations
    assert whole[0]["bbox"][2:] == [64, 64]


def test_images_without_objects(painted):
    for annotations in ([], painted.annotations[-1:]):
        item = DenseItem(7, painted.image, annotations=annotations)
        assert augment(item, 3).annotations == [] and augment(item, 3).image.size == (96, 72)


def test_seed_alone_makes_it_random(painted):
    first, again, other = augment(painted, 5), augment(painted, 5), augment(painted, 6)
    np.testing.assert_array_equal(first.image, again.image)
    assert [each["bbox"] for each in first.annotations] == [each["bbox"] for each in again.annotations]
    assert not np.array_equal(first.image, other.image)
    assert len(painted.annotations) == 4 and "segmentation" in painted.annotations[0]


@pytest.mark.parametrize("seed", range(8))
def test_classes_of_pixels_follow_the_image(seed):
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[:30, :40], label_map[30:, 40:], label_map[50:, :10] = 1, 2, 255
    image = PIL.Image.fromarray(label_map[..., None] * np.array([60, 60, 60], np.uint8))
    found = augment(DenseItem(0, image, label_map=label_map), seed)
    pixels = np.asarray(found.image)
    is_padding = (pixels == FILL).all(axis=-1)
    assert found.label_map.shape == (72, 96) and found.label_map.dtype == np.uint8
    assert (found.label_map[is_padding] == 255).all()
    for value in (0, 1, 2):
        of_class = found.label_map == value
        if of_class.sum() > 100:
            assert np.median(np.abs(pixels[of_class].astype(int) - 60 * value)) == 0


def test_photometric_distortion_changes_colors_only(painted):
    plain, distorted = augment(painted, 1), augment(painted, 1, photometric_distortion=True)
    assert [each["bbox"] for each in plain.annotations] == [each["bbox"] for each in distorted.annotations]
    images = [np.asarray(augment(painted, seed, photometric_distortion=True).image) for seed in range(6)]
    plain = [np.asarray(augment(painted, seed).image) for seed in range(6)]
    assert sum(not np.array_equal(one, other) for one, other in zip(images, plain, strict=True)) >= 4


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels[..., 0]) if channels == 1 else pixels
    arguments = SimpleNamespace(
        scale_jitter=[0.5, 2.0],
        horizontal_flip_probability=1.0,
        vertical_flip_probability=0.0,
        photometric_distortion=True,
    )
    augmentation = DenseAugmentation(SIZE, arguments, [7] * channels, with_masks=False)
    for seed in range(4):
        with seeded(seed):
            found = pickle.loads(pickle.dumps(augmentation))(DenseItem(0, image, annotations=[]))
        assert found.size == (72, 96) and np.asarray(found.image).dtype == np.uint8


def test_the_image_processor_leaves_the_size(painted):
    processor = SiTImageProcessor(size={"longest_edge": 96}, do_pad=True, patch_size=8)
    assert resized_size((HEIGHT, WIDTH), processor.size) == (72, 96)
    found = augment(painted, 2, size=processor.size)
    batch = processor(
        [found.image],
        annotations=[{"image_id": 7, "annotations": found.annotations}],
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    assert batch["pixel_values"].shape == (1, 3, 96, 96) and batch["pixel_mask"].sum() == 72 * 96
    label = batch["labels"][0]
    boxes = torch.tensor([each["bbox"] for each in found.annotations]) / 96
    torch.testing.assert_close(label["boxes"][:, 2:], boxes[:, 2:])
    masks = np.stack([each["segmentation"] for each in found.annotations])
    np.testing.assert_array_equal(label["masks"][:, :72], masks)


def test_photometric_distortion_is_that_of_single_shot_detectors():
    jitters = photometric_distortion(3)
    assert [jitter.p for jitter in jitters] == [0.5] * 4
    names = ("brightness", "contrast", "saturation", "hue")
    ranges = [tuple(getattr(each.transforms[0], name)) for each, name in zip(jitters, names, strict=True)]
    assert ranges == [(0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)]
