"""Augmentation of training images: what it does, and that it is random by its seed only."""

import random

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import BitImageProcessor, ConvNextImageProcessor

from modeling_sit import SiTImageProcessor
from modeling_sit.data.labeled import IGNORED_LABEL, LabeledImageDataset
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.augmentation import (
    AugmentedImages,
    ChannelJitter,
    Collator,
    create_augmentation,
    create_erasing,
    three_augment,
)
from modeling_sit.finetuning.classification import is_readable
from modeling_sit.finetuning.sampling import seeded
from modeling_sit.runtime.errors import SiTError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
IMAGE = PIL.Image.fromarray(PIXELS)


def arguments(**settings) -> FinetuningArguments:
    """With values for what the presets would choose by the images."""
    chosen = {"augmentation": "plain", "crop_scale": [0.2, 1.0], "horizontal_flip_probability": 0.5}
    return FinetuningArguments(dataset="some", model_name_or_path="some", **{**chosen, **settings})


def augmented(seed: int, image=IMAGE, shape=(8, 16), **settings) -> np.ndarray:
    with seeded(seed):
        return np.asarray(create_augmentation(shape, arguments(**settings))(image))


KINDS = ("plain", "3-augment", "randaugment")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_mode_and_randomness(kind, mode):
    image = IMAGE.convert(mode)
    results = [augmented(seed, image, augmentation=kind) for seed in (0, 0, 1, 2, 3, 4)]
    assert all(result.shape == (8, 16, 3)[: 3 if mode == "RGB" else 2] for result in results)
    np.testing.assert_array_equal(results[0], results[1])
    assert any((results[0] != result).any() for result in results[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_the_global_generators_alone(kind):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        random.seed(global_seed)
        np.random.seed(global_seed)
        results.append(augmented(0, augmentation=kind))
    np.testing.assert_array_equal(*results)
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    augmented(5, augmentation=kind)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_plain_is_crop_and_mirroring():
    square = IMAGE.resize((16, 16))
    settings = {"image": square, "shape": (16, 16), "crop_scale": [1.0, 1.0]}
    kept = augmented(0, **settings, horizontal_flip_probability=0)
    np.testing.assert_array_equal(kept, np.asarray(square))
    np.testing.assert_array_equal(augmented(0, **settings, horizontal_flip_probability=1), kept[:, ::-1])
    turned = augmented(0, **settings, horizontal_flip_probability=0, vertical_flip_probability=1)
    np.testing.assert_array_equal(turned, kept[::-1])


def test_crop_scale_is_a_share_of_the_area():
    column = PIL.Image.fromarray(np.tile(np.arange(240, dtype=np.uint8), (240, 1)))
    for scale in (0.25, 1.0):
        crops = [augmented(seed, column, (16, 16), crop_scale=[scale, scale]).astype(float) for seed in range(40)]
        widths = [abs(crop[:, 12] - crop[:, 3]).mean() / 9 * 16 for crop in crops]
        assert 0.85 * 240 * scale**0.5 < np.median(widths) < 1.15 * 240 * scale**0.5


def test_three_augment_is_one_of_three():
    steps = three_augment(0.0)
    kinds = set()
    for seed in range(30):
        with seeded(seed):
            pixels = np.asarray(steps[0](IMAGE)).astype(int)
        if (pixels[..., 0] == pixels[..., 1]).all():
            kinds.add("grey")
        elif (np.where(PIXELS >= 128, 255 - PIXELS.astype(int), PIXELS) == pixels).all():
            kinds.add("solarized")
        else:
            assert pixels.std() <= PIXELS.std()
            kinds.add("blurred")
    assert kinds == {"grey", "solarized", "blurred"}


def test_color_jitter_changes_by_its_share():
    bright = PIL.Image.new("RGB", (4, 4), (100, 100, 100))
    jitter = three_augment(0.3)[1]
    levels = []
    for seed in range(40):
        with seeded(seed):
            levels.append(np.asarray(jitter(bright)).mean())
    assert 68 <= min(levels) < 85 and 115 < max(levels) <= 132


def test_randaugment_at_magnitude_0_and_30():
    settings = {"augmentation": "randaugment", "crop_scale": [1, 1], "horizontal_flip_probability": 0}
    square = IMAGE.resize((16, 16))
    far = [augmented(seed, square, (16, 16), randaugment_magnitude=30, **settings) for seed in range(8)]
    none = [augmented(seed, square, (16, 16), randaugment_num_ops=0, **settings) for seed in range(8)]
    assert all((result == np.asarray(square)).all() for result in none)
    assert sum((result != np.asarray(square)).mean() > 0.5 for result in far) >= 4


class TestErasing:
    def test_none(self):
        assert create_erasing(0) is None

    def test_share_and_chance(self):
        erasing = create_erasing(0.25)
        pixels = torch.full((3, 32, 32), 7.0)
        shares = []
        for seed in range(200):
            with seeded(seed):
                shares.append((erasing(pixels) != 7).float().mean().item())
        erased = [share for share in shares if share > 0]
        assert 30 < len(erased) < 70
        assert min(erased) > 0.015 and max(erased) < 0.34
        assert (pixels == 7).all()


def test_wide_inputs_are_of_wide_crops():
    """They show things as they are. Red is the column of a pixel, green its row."""
    row, column = np.mgrid[:100, :200]
    image = PIL.Image.fromarray(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))
    settings = {"crop_scale": [0.3, 0.3], "horizontal_flip_probability": 0}
    stretches = []
    for seed in range(20):
        with seeded(seed):
            crop = np.asarray(create_augmentation((16, 32), arguments(**settings))(image)).astype(float)
        width, height = (crop[:, 24, 0] - crop[:, 8, 0]).mean() * 2, (crop[12, :, 1] - crop[4, :, 1]).mean() * 2
        stretches.append((width / height) / 2)
    assert 0.7 < min(stretches) < 0.95 and 1.05 < max(stretches) < 1.4


class TestBatches:
    @pytest.fixture
    def images(self, save_images, tmp_path) -> LabeledImageDataset:
        paths = sorted(save_images(tmp_path / "images", 4).iterdir())
        paths[3].write_bytes(b"broken")
        features = datasets.Features(
            {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        rows = {"image": [{"path": str(path), "bytes": None} for path in paths], "label": [0, 1, 0, 1]}
        return LabeledImageDataset(datasets.Dataset.from_dict(rows, features=features), 3)

    @pytest.fixture
    def collate(self) -> Collator:
        return Collator(SiTImageProcessor(size={"height": 16, "width": 16}), create_erasing(1.0))

    def batches(self, images, collate, num_workers: int) -> list[dict]:
        augmented = AugmentedImages(images, v2.RandomResizedCrop(16))
        order = [(0, 5), (1, 6), (0, 7), (0, 5)]
        return list(
            torch.utils.data.DataLoader(augmented, 2, sampler=order, collate_fn=collate, num_workers=num_workers)
        )

    def test_random_by_its_seed_only(self, images, collate):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        item = AugmentedImages(images, v2.RandomResizedCrop(16))[1, 6]
        collate([item])
        assert torch.equal(torch.get_rng_state(), before)
        assert item["label"] == 1
        first, second = self.batches(images, collate, 0)
        assert first["pixel_values"][0].equal(second["pixel_values"][1])
        assert not first["pixel_values"][0].equal(second["pixel_values"][0])
        assert first["labels"].tolist() == [0, 1]

    def test_edges_are_not_cut_off(self):
        """A processor that scales to 24 pixels and cuts out 16 of them, as those of DINOv2 do: a crop is 16 wide already."""
        processor = BitImageProcessor(size={"shortest_edge": 24}, crop_size=16, do_normalize=False)
        image = PIL.Image.new("RGB", (16, 16), (255, 255, 255))
        item = {"image": image, "label": 0, "unreadable": None}
        (augmented,) = Collator(processor)([{**item, "seed": 0}])["pixel_values"]
        assert augmented.shape == (3, 16, 16)
        framed = PIL.ImageOps.expand(PIL.Image.new("RGB", (14, 14), (255, 255, 255)), 1)
        (seen,) = Collator(processor)([{**item, "image": framed, "seed": 0}])["pixel_values"]
        (to_measure,) = Collator(processor)([{**item, "image": framed}])["pixel_values"]
        assert seen[:, 0].max() == 0 and to_measure[:, 0].min() > 0.9
        enlarging = ConvNextImageProcessor(size={"shortest_edge": 16}, do_normalize=False)  # and cuts out the middle
        (seen,) = Collator(enlarging)([{**item, "image": framed, "seed": 0}])["pixel_values"]
        assert seen.shape == (3, 16, 16) and seen[:, 0].max() == 0

    def test_percentiles_are_those_of_the_image_alone(self):
        """A dark crop of an image that was read by its own range stays dark."""
        size = {"height": 16, "width": 16}
        pixels = np.random.default_rng(0).integers(0, 40, (16, 16, 3), dtype=np.uint8)
        item = {"image": PIL.Image.fromarray(pixels), "label": 0, "unreadable": None, "seed": 0}
        by_range, plain = SiTImageProcessor(size=size, intensity_range=["1%", "99%"]), SiTImageProcessor(size=size)
        assert torch.equal(*(Collator(each)([item])["pixel_values"] for each in (by_range, plain)))

    def test_the_same_from_workers(self, images, collate):
        for alone, by_worker in zip(self.batches(images, collate, 0), self.batches(images, collate, 1), strict=True):
            assert alone["pixel_values"].equal(by_worker["pixel_values"])

    def test_erasing_is_of_training_images_only(self, images, collate):
        plain = Collator(collate.processor)
        items = [images[0], images[1]]
        assert collate(items)["pixel_values"].equal(plain(items)["pixel_values"])
        augmented = AugmentedImages(images, v2.Identity())
        trained = [augmented[0, 3], augmented[1, 4]]
        erased = (collate(trained)["pixel_values"] != plain(trained)["pixel_values"]).any(dim=1)
        assert all(0.01 < share < 0.4 for share in erased.float().mean(dim=(1, 2)))
        assert not torch.equal(*erased)

    def test_what_cannot_be_read_is_named(self, images, collate, capsys):
        batch = collate([images[0], images[3]])
        assert "03.png" in capsys.readouterr().err
        assert batch["labels"].tolist() == [0, IGNORED_LABEL]
        assert is_readable(batch["labels"]).tolist() == [True, False]


class TestChannelsWithoutColor:
    VALUES = np.random.default_rng(0).integers(0, 256, (20, 24, 12), dtype=np.uint8)

    def image(self) -> tv_tensors.Image:
        return tv_tensors.Image(torch.from_numpy(self.VALUES).permute(2, 0, 1))

    @pytest.mark.parametrize("kind", ["plain", "3-augment"])
    def test_size_and_randomness(self, kind):
        augment = create_augmentation((8, 16), arguments(augmentation=kind, color_jitter=0.3), num_channels=12)
        results = []
        for seed in (0, 0, 1):
            with seeded(seed):
                results.append(augment(self.image()))
        assert results[0].shape == (12, 8, 16) and results[0].dtype == torch.uint8
        assert (results[0] == results[1]).all() and (results[0] != results[2]).any()

    def test_randaugment_is_refused(self):
        with pytest.raises(SiTError) as error:
            create_augmentation((8, 16), arguments(augmentation="randaugment"), num_channels=12)
        assert error.value.argument == "augmentation"

    def test_jitter_in_its_closed_form(self):
        params = {"brightness": 0.8, "contrast": 1.3}
        found = ChannelJitter(0.3).transform(self.image(), params)
        values = np.moveaxis(self.VALUES, -1, 0) * 0.8
        means = values.mean((1, 2), keepdims=True)
        expected = np.rint((means + 1.3 * (values - means)).clip(0, 255))
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1  # float32
        with seeded(0):
            drawn = [ChannelJitter(0.3).make_params([]) for _ in range(200)]
        factors = np.array([[*each.values()] for each in drawn])
        assert (abs(factors - 1) <= 0.3).all() and factors.min() < 0.75 and factors.max() > 1.25

    def test_images_of_pillow_with_transparency(self):
        image = IMAGE.convert("RGBA")
        assert ChannelJitter(0.3).transform(image, {"brightness": 1.0, "contrast": 1.0}).mode == "RGBA"

    def test_batches(self, tmp_path):
        np.save(tmp_path / "a.npy", self.VALUES)
        features = datasets.Features(
            {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a"])}
        )
        rows = {"image": [str(tmp_path / "a.npy"), str(tmp_path / "none.npy")], "label": [0, 0]}
        split = datasets.Dataset.from_dict(rows, features=features)
        processor = SiTImageProcessor(size={"height": 8, "width": 16}, image_mean=[0.5] * 12, image_std=[0.5] * 12)
        labeled = LabeledImageDataset(split, 12)
        augmented_images = AugmentedImages(labeled, create_augmentation((8, 16), arguments(), num_channels=12))
        for items in ([labeled[0], labeled[1]], [augmented_images[0, 1], augmented_images[1, 2]]):
            batch = Collator(processor)(items)
            assert batch["pixel_values"].shape == (2, 12, 8, 16)
            assert batch["labels"].tolist() == [0, IGNORED_LABEL]


def test_crops_are_bicubic():
    image = IMAGE.resize((20, 20))
    with seeded(0):
        crop = v2.RandomResizedCrop.make_params(create_augmentation((8, 8), arguments()).transforms[0], [image])
    found = augmented(0, image, (8, 8), horizontal_flip_probability=0.0)
    box = (crop["left"], crop["top"], crop["left"] + crop["width"], crop["top"] + crop["height"])
    np.testing.assert_array_equal(found, image.crop(box).resize((8, 8), PIL.Image.Resampling.BICUBIC))
