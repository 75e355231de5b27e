"""Crops as functions of index and seed."""

import io
import warnings

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop

from modeling_sit.data import crops as crops_module
from modeling_sit.data.crops import CropGroup, CropsDataset, DecodedImages, RandomCrops, collate_crops
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments

SHAPE = (16, 16)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_dataset(encoded: list[bytes | None]) -> datasets.Dataset:
    rows = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(encoded)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": rows}, features=features, split="train")


def random_images(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [encode(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]


def cropper(shape=SHAPE, crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3)) -> RandomCrops:
    return RandomCrops([CropGroup(2, shape, tuple(crop_scale))], tuple(crop_ratio))


def two_crops(encoded: list[bytes | None], num_channels: int = 3, **settings) -> CropsDataset:
    cut = cropper(**settings)
    return CropsDataset(DecodedImages(as_dataset(encoded), num_channels, cut.draft_scale), cut)


class TestTwoCrops:
    def test_shape_and_type(self):
        for num_channels in (1, 3, 4):
            item = two_crops(random_images(1), num_channels, shape=(16, 24))[0, 0]
            assert item["crops"][0].shape == (2, num_channels, 16, 24)
            assert item["crops"][0].dtype == torch.uint8
            assert item["unreadable"] == []

    def test_are_a_function_of_index_and_seed(self):
        dataset = two_crops(random_images(4))
        crops = dataset[2, 7]["crops"][0]
        assert torch.equal(dataset[2, 7]["crops"][0], crops)
        assert not torch.equal(dataset[2, 8]["crops"][0], crops)
        assert not torch.equal(dataset[3, 7]["crops"][0], crops)
        assert not torch.equal(crops[0], crops[1])

    def test_are_the_same_in_any_number_of_workers(self):
        dataset = two_crops(random_images(9))
        batches = [
            list(
                DataLoader(
                    dataset,
                    batch_sampler=ResumableBatchSampler(9, LoadingSettings(3, 5), 0, 5),
                    collate_fn=collate_crops,
                    num_workers=workers,
                )
            )
            for workers in (0, 1, 2)
        ]
        assert len(batches[0]) == 5
        for other in batches[1:]:
            assert all(torch.equal(a["crops"][0], b["crops"][0]) for a, b in zip(batches[0], other, strict=True))

    def test_leave_the_global_generator_alone_and_do_not_depend_on_it(self):
        dataset = two_crops(random_images(1))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        crops = dataset[0, 3]["crops"][0]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(dataset[0, 3]["crops"][0], crops)

    @pytest.mark.parametrize(
        ("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.4), (1.5, 2.0)), ((0.5, 0.5), (1.0, 1.0))]
    )
    def test_area_and_ratio_stay_in_their_ranges_and_use_them(self, scale, ratio):
        # Red is a pixel's column, green its row: the slope in a crop is the crop's size over that of the view.
        row, column = np.mgrid[:200, :240]
        image = encode(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))
        dataset = two_crops([image], crop_scale=list(scale), crop_ratio=list(ratio))
        areas, ratios = [], []
        for seed in range(150):
            for crop in dataset[0, seed]["crops"][0].float():
                width = (crop[0, :, 12] - crop[0, :, 3]).mean().item() / 9 * 16
                height = (crop[1, 12] - crop[1, 3]).mean().item() / 9 * 16
                areas.append(width * height / (200 * 240))
                ratios.append(width / height)
        for values, (low, high) in ((areas, scale), (ratios, ratio)):
            assert min(values) > 0.93 * low
            assert max(values) < 1.07 * high
            width = high - low
            assert min(values) < 1.07 * (low + 0.1 * width)
            assert max(values) > 0.93 * (high - 0.35 * width)  # a big crop that does not fit is drawn anew

    def test_resampling_is_bicubic(self):
        """A bicubic kernel overshoots at an edge, a bilinear one does not."""
        pixels = np.zeros((8, 8, 3), dtype=np.uint8) + 64
        pixels[:, 4:] = 192
        dataset = two_crops([encode(pixels)], shape=(64, 64), crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0])
        crop = dataset[0, 0]["crops"][0][0]
        assert crop.max() > 192
        assert crop.min() < 64

    def test_unreadable_images_are_replaced_by_the_next_readable_and_named(self):
        good = random_images(2)
        dataset = two_crops([good[0], b"broken", b"", good[1], None])
        item = dataset[1, 9]
        assert torch.equal(item["crops"][0], dataset[3, 9]["crops"][0])
        assert [problem.split(":")[0] for problem in item["unreadable"]] == [
            "row 1 of train (1.png)",
            "row 2 of train (2.png)",
        ]
        wrapped = dataset[4, 9]
        assert torch.equal(wrapped["crops"][0], dataset[0, 9]["crops"][0])
        assert len(wrapped["unreadable"]) == 1

    def test_a_image_of_one_pixel(self):
        item = two_crops([encode(np.full((1, 1, 3), 77, dtype=np.uint8))])[0, 0]
        assert (item["crops"][0] == 77).all()

    def test_whole_set_unreadable(self):
        dataset = two_crops([b"", b"broken"])
        with pytest.raises(UnreadableImage, match=r"2 images.*1\.png"):
            dataset[0, 0]

    def test_a_long_row_of_unreadable_images_is_not_walked_through(self, monkeypatch):
        monkeypatch.setattr(crops_module, "MAX_UNREADABLE_IN_A_ROW", 3)
        good = random_images(1)
        assert len(two_crops([b"", b"", *good])[0, 0]["unreadable"]) == 2
        with pytest.raises(UnreadableImage):
            two_crops([b"", b"", b"", *good])[0, 0]

    def test_collation_puts_the_views_first(self):
        dataset = two_crops([*random_images(2), b""])
        items = [dataset[index, seed] for index, seed in ((0, 1), (1, 2), (2, 3))]
        batch = collate_crops(items)
        assert batch["crops"][0].shape == (2, 3, 3, *SHAPE)
        for image, item in enumerate(items):
            for view in range(2):
                assert torch.equal(batch["crops"][0][view, image], item["crops"][0][view])
        assert batch["unreadable"] == items[2]["unreadable"] != []


class TestAgainstTorchvision:
    """torchvision draws and cuts in one go, of the full image."""

    @pytest.mark.parametrize("settings", [{}, {"crop_scale": [0.05, 0.1]}, {"crop_ratio": [3.0, 4.0]}])
    @pytest.mark.parametrize("size", [(40, 30), (300, 20), (20, 300), (1, 1)])
    def test_boxes_are_its_draws(self, size, settings):
        """So their area, ratio and place are distributed as its are; long images get its central crop."""
        arguments = ViewArguments(**{**PAPER_VIEWS, **settings})
        image = PIL.Image.new("L", size)
        for seed in range(20):
            (boxes,) = cropper(**settings).draw_boxes(size[1], size[0], seed)
            torch.manual_seed(seed)
            expected = [
                torchvision.transforms.RandomResizedCrop.get_params(image, arguments.crop_scale, arguments.crop_ratio)
                for _ in range(2)
            ]
            assert boxes == expected

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_crops_are_those_of_its_transform(self, channels):
        pixels = np.random.default_rng(0).integers(0, 256, (60, 50, channels), dtype=np.uint8)
        cut = cropper((16, 24))
        transform = RandomResizedCrop((16, 24), scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
        for seed in range(20):
            (crops,) = cut(pixels, seed)
            torch.manual_seed(seed)
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            assert torch.equal(crops, torch.stack([transform(image), transform(image)]))

    def test_crops_are_pillows_to_two_levels(self):
        pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        cut = cropper()
        for seed in range(20):
            (crops,), (boxes,) = cut(pixels, seed), cut.draw_boxes(60, 50, seed)
            for crop, (top, left, height, width) in zip(crops, boxes, strict=True):
                cropped = PIL.Image.fromarray(pixels).crop((left, top, left + width, top + height))
                # Across, then down: which of the two Pillow does first hangs on its version.
                for size in ((SHAPE[1], height), SHAPE[::-1]):
                    cropped = cropped.resize(size, PIL.Image.Resampling.BICUBIC)
                expected = np.asarray(cropped).astype(int)
                assert np.abs(crop.permute(1, 2, 0).numpy() - expected).max() <= 2

    def test_images_are_not_changed_and_may_be_read_only(self):
        pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        before = pixels.copy()
        pixels.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cropper((30, 30), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))(pixels, 0)
        np.testing.assert_array_equal(pixels, before)


def test_large_images_are_decoded_smaller():
    """Nothing is lost to views of 4 pixels: boxes are drawn in, and crops are cut from, the reduced image."""
    row, column = np.mgrid[:128, :128]
    smooth = encode(np.stack([row, column, row + column], axis=-1).astype(np.uint8))
    dataset = two_crops([smooth], shape=(4, 4))
    assert dataset.images[0].shape == (32, 32, 3)
    whole = two_crops([smooth], shape=(4, 4), crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0])
    expected = PIL.Image.open(io.BytesIO(smooth)).resize((4, 4), PIL.Image.Resampling.BOX)
    assert (whole[0, 0]["crops"][0][0].int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs().max() <= 3


class TestGroups:
    """Crops of several sizes."""

    GROUPS = (CropGroup(2, (16, 16), (0.2, 1.0)), CropGroup(3, (8, 12), (0.05, 0.2)))

    def crops_of(self, encoded: list[bytes | None], groups=GROUPS) -> CropsDataset:
        cut = RandomCrops(groups, (3 / 4, 4 / 3))
        return CropsDataset(DecodedImages(as_dataset(encoded), 3, cut.draft_scale), cut)

    def test_shapes(self):
        large, small = self.crops_of(random_images(1))[0, 0]["crops"]
        assert (large.shape, small.shape) == ((2, 3, 16, 16), (3, 3, 8, 12))

    def test_the_first_group_does_not_depend_on_the_others(self):
        encoded = random_images(2)
        alone, together = self.crops_of(encoded, self.GROUPS[:1]), self.crops_of(encoded)
        for seed in range(5):
            assert torch.equal(alone[1, seed]["crops"][0], together[1, seed]["crops"][0])

    def test_each_crop_is_drawn_from_its_own_range(self):
        cut = RandomCrops(self.GROUPS, (1.0, 1.0))
        for seed in range(50):
            large, small = cut.draw_boxes(100, 100, seed)
            assert all(0.19 <= height * width / 1e4 <= 1 for _, _, height, width in large)
            assert all(0.045 <= height * width / 1e4 <= 0.21 for _, _, height, width in small)
            assert len(set(large)) == 2 and len(set(small)) == 3

    def test_collation_keeps_the_groups_apart(self):
        dataset = self.crops_of(random_images(3))
        items = [dataset[index, index] for index in range(3)]
        for group, crops in enumerate(collate_crops(items)["crops"]):
            for image, item in enumerate(items):
                assert torch.equal(crops[:, image], item["crops"][group])

    def test_images_shrink_only_as_far_as_every_group_allows(self):
        """Small crops of a small area need as many pixels as large crops of a large one."""
        groups = [CropGroup(2, (16, 16), (0.5, 1.0)), CropGroup(2, (16, 16), (0.01, 0.1))]
        alone, together = (RandomCrops(each, (1.0, 1.0)).draft_scale.factor(256, 256) for each in (groups[:1], groups))
        assert (alone, together) == (4, 1)
