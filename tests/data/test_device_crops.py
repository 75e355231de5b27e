"""Crops that are cut in batch on the device: Pillow's, to rounding, with the boxes that are drawn on the CPU."""

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.data.crops import CropGroup, RandomCrops
from modeling_sit.data.decoded_cache import ImageIndex
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice, DeviceImages, resampling_weights
from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler


class Kept:
    """A cache without a file."""

    def __init__(self, images: list[np.ndarray | str]):
        places, unreadable, end = [], {}, 0
        for number, image in enumerate(images):
            if isinstance(image, str):
                unreadable[number] = image
                places.append((0, 0, 0))
            else:
                places.append((end, *image.shape[:2]))
                end += image.size
        readable = [image for image in images if not isinstance(image, str)]
        self.index = ImageIndex(np.array(places), readable[0].shape[2], unreadable)
        self.parts = [image.ravel() for image in readable]


def random_images(*sizes: tuple[int, int], channels: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes]


def cropper(shape: tuple[int, int]) -> RandomCrops:
    return RandomCrops([CropGroup(2, shape, (0.2, 1.0))], (3 / 4, 4 / 3))


def pillow_crop(image: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    top, left, height, width = box
    whole = PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    crop = whole.crop((left, top, left + width, top + height))
    # Across, then down: which of the two Pillow does first hangs on its version, and clipping on which is first.
    for size in ((shape[1], height), shape[::-1]):
        crop = crop.resize(size, PIL.Image.Resampling.BICUBIC)
    return np.asarray(crop).reshape(*shape, -1).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (100, 90)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_pillows(shape, channels):
    """Smaller and larger than the boxes, of images of all sizes in one batch; Pillow works with rounded weights."""
    images = random_images((50, 60), (9, 80), (33, 7), (1, 1), channels=channels)
    device_images = DeviceImages(Kept(images), torch.device("cpu"))
    cut = cropper(shape)
    indices = [0, 1, 2, 3, 0]
    boxes = [cut.draw_boxes(*images[index].shape[:2], seed)[0] for seed, index in enumerate(indices)]
    crops = device_images.crop(indices, torch.tensor(boxes), shape)
    assert crops.shape == (2, 5, channels, *shape) and crops.dtype == torch.uint8
    for view in range(2):
        for number, index in enumerate(indices):
            expected = pillow_crop(images[index], boxes[number][view], shape)
            assert np.abs(crops[view, number].numpy() - expected).max() <= 1


def test_crops_do_not_hang_on_what_is_in_the_batch_beside(monkeypatch):
    images = random_images((50, 60), (9, 80), (33, 7))
    device_images = DeviceImages(Kept(images), torch.device("cpu"))
    boxes = torch.tensor([[(1, 2, 40, 50), (0, 0, 9, 7)]] * 3)
    boxes[1:, :, 2:] = 5
    together = device_images.crop([0, 1, 2], boxes, (16, 16))
    monkeypatch.setattr("modeling_sit.data.device_crops.CROPS_AT_A_TIME", 1)
    alone = device_images.crop([0, 1, 2], boxes, (16, 16))
    assert (together.int() - alone.int()).abs().max() <= 1  # a sum in another order


def test_large_crops_share_no_canvas(monkeypatch):
    """Memory beside the images is bounded: a wide crop and a high one in one canvas would take that of both sides."""
    images = random_images((50, 60), (9, 300), (300, 9))
    device_images = DeviceImages(Kept(images), torch.device("cpu"))
    boxes = torch.tensor([[(0, 0, *image.shape[:2])] * 2 for image in images])
    expected = device_images.crop([0, 1, 2], boxes, (16, 16))
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **settings: made.append(shape) or zeros(*shape, **settings))
    monkeypatch.setattr("modeling_sit.data.device_crops.CANVAS_BYTES", 4 * 3 * 50 * 70)
    crops = device_images.crop([0, 1, 2], boxes, (16, 16))
    assert [shape[0] * shape[2] * shape[3] for shape in made] == [3000, 2700, 2700, 3000, 2700, 2700]
    assert (crops.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("length", "size"), [(10, 4), (10, 10), (7, 30), (1, 5), (300, 16)])
def test_weights_are_keys_kernel(length, size):
    """Pixel by pixel; a longer line beside changes nothing."""
    weights = resampling_weights(torch.tensor([length, 400]), 400, size)[0]
    assert (weights[:, length:] == 0).all()
    for place in range(size):
        center, stretch = (place + 0.5) * length / size, max(length / size, 1)
        expected = []
        for pixel in range(length):
            x = abs(pixel + 0.5 - center) / stretch
            near = 1.5 * x**3 - 2.5 * x**2 + 1
            expected.append(near if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0)
        torch.testing.assert_close(
            weights[place, :length], torch.tensor(expected) / sum(expected), atol=2e-4 * max(expected), rtol=0
        )


def test_whole_pixels_of_a_image_are_left_as_they_are():
    (image,) = random_images((20, 30))
    crops = DeviceImages(Kept([image]), torch.device("cpu")).crop([0], torch.tensor([[[3, 4, 8, 9]] * 2]), (8, 9))
    assert np.array_equal(crops[0, 0].permute(1, 2, 0), image[3:11, 4:13])


class TestCropLoader:
    SHAPE = (12, 16)

    def batches(self, images, workers: int = 0) -> list[dict]:
        cut = cropper(self.SHAPE)
        crops = CropsOnDevice(DeviceImages(Kept(images), torch.device("cpu")), cut)
        loader = CropLoader(
            crops, batch_sampler=ResumableBatchSampler(len(images), LoadingSettings(3, 5), 0, 4), num_workers=workers
        )
        assert len(loader) == 4
        return list(loader)

    def test_has_the_crops_of_the_other_ways_but_for_rounding(self):
        images = random_images(*[(20 + number, 30) for number in range(7)])
        cut = cropper(self.SHAPE)
        for batch, wanted in zip(
            self.batches(images), ResumableBatchSampler(7, LoadingSettings(3, 5), 0, 4), strict=True
        ):
            expected = torch.stack([cut(images[index], seed)[0] for index, seed in wanted], dim=1)
            assert (batch["crops"][0].int() - expected.int()).abs().max() <= 2
            assert batch["unreadable"] == []

    def test_does_not_depend_on_the_number_of_workers(self):
        images = random_images(*[(20, 30)] * 7)
        for batch, other in zip(self.batches(images), self.batches(images, workers=2), strict=True):
            assert torch.equal(batch["crops"][0], other["crops"][0])

    def test_unreadable_images_are_named_and_replaced_by_the_next(self):
        good = random_images((20, 30))[0]
        batches = self.batches([good, "1.png: empty", good])
        assert all(batch["unreadable"] == ["1.png: empty"] and batch["crops"][0].shape[1] == 3 for batch in batches)


@pytest.mark.parametrize("channels", [2, 12])
def test_channels_are_cut_as_gray_images_are(channels):
    images = random_images((30, 40), (25, 33), channels=channels)
    boxes = torch.tensor([[[2, 3, 20, 25]], [[0, 0, 25, 33]]])
    device = torch.device("cpu")
    found = DeviceImages(Kept(images), device).crop([0, 1], boxes, (8, 12))
    for channel in range(channels):
        gray = [np.ascontiguousarray(image[..., channel : channel + 1]) for image in images]
        assert (
            found[:, :, channel : channel + 1] == DeviceImages(Kept(gray), device).crop([0, 1], boxes, (8, 12))
        ).all()
