"""Images that are kept on the accelerator, and crops that are cut there in batch."""

from collections.abc import Iterator

import torch

from modeling_sit.data.crops import CropsDataset, RandomCrops, all_unreadable
from modeling_sit.data.decoded_cache import DecodedImageCache, ImageIndex
from modeling_sit.data.loaders import BatchLoader

# Crops that are resampled at once: enough to fill a GPU. Fewer if they are large, because they lie in one float32 tensor.
CROPS_AT_A_TIME = 64
CANVAS_BYTES = 256 * 2**20


class DeviceImages:
    """
    The images of a cache, uint8 on a device.

    Args:
        cache (`DecodedImageCache`): The images. It can be closed afterwards.
        device (`torch.device`): Where they go.
    """

    def __init__(self, cache: DecodedImageCache, device: torch.device):
        self.index = cache.index
        self.pixels = torch.empty(cache.index.num_bytes, dtype=torch.uint8, device=device)
        start = 0
        for part in cache.parts:
            # A copy, because the file is mapped read-only.
            self.pixels[start : start + len(part)] = torch.from_numpy(part.copy())
            start += len(part)

    def crop(self, indices: list[int], boxes: torch.Tensor, image_shape: tuple[int, int]) -> torch.Tensor:
        """Cut boxes out of images and resample them to one size, bicubic and antialiased.

        The result differs from the CPU's by at most 2 of 255.

        Args:
            indices (`list` of `int`): The images.
            boxes (`torch.Tensor` of shape `(images, number, 4)`): Top, left, height and width of each box, in pixels.
            image_shape (pair of `int`): Height and width of the crops.

        Returns:
            `torch.Tensor`: uint8 `(number, images, channels, height, width)`.
        """
        requested = [
            (index, box) for view in boxes.unbind(1) for index, box in zip(indices, view.tolist(), strict=True)
        ]
        crops = [self._crop(chunk, image_shape) for chunk in self._chunks(requested)]
        return torch.cat(crops).unflatten(0, (boxes.shape[1], len(indices)))

    def _chunks(self, requested: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
        """The crops in their order, as many at a time as fit the canvas, and at least one."""
        chunk, max_height, max_width = [], 0, 0
        for index, box in requested:
            max_height, max_width = max(max_height, box[2]), max(max_width, box[3])
            num_bytes = 4 * self.index.num_channels * (len(chunk) + 1) * max_height * max_width
            if chunk and (len(chunk) == CROPS_AT_A_TIME or num_bytes > CANVAS_BYTES):
                yield chunk
                chunk, max_height, max_width = [], box[2], box[3]
            chunk.append((index, box))
        yield chunk

    def _crop(self, requested: list[tuple[int, list[int]]], image_shape: tuple[int, int]) -> torch.Tensor:
        device = self.pixels.device
        sizes = torch.tensor([[box[2] for _, box in requested], [box[3] for _, box in requested]])
        # Crops of all sizes lie in one tensor. The padding has the weight 0, so any finite value will do.
        max_height, max_width = sizes.amax(dim=1).tolist()
        if device.type == "cuda":  # a copy from memory that is not pinned would wait for all earlier work of the GPU
            sizes = sizes.pin_memory()
        heights, widths = sizes.to(device, non_blocking=True)
        canvas = torch.zeros(len(requested), self.index.num_channels, max_height, max_width, device=device)
        for padded, (index, (top, left, height, width)) in zip(canvas, requested, strict=True):
            crop = self._image(index)[top : top + height, left : left + width]
            padded[:, :height, :width] = crop.permute(2, 0, 1)
        across = resampling_weights(widths, max_width, image_shape[1])
        down = resampling_weights(heights, max_height, image_shape[0])
        # As on the CPU: across, rounded and clipped, then down.
        narrow = (canvas.flatten(1, 2) @ across.mT).unflatten(1, canvas.shape[1:3]).add_(0.5).floor_().clamp_(0, 255)
        return (down[:, None] @ narrow).add_(0.5).floor_().clamp_(0, 255).byte()

    def _image(self, index: int) -> torch.Tensor:
        start, height, width = self.index.place(index)
        channels = self.index.num_channels
        return self.pixels[start : start + height * width * channels].view(height, width, channels)


def resampling_weights(lengths: torch.Tensor, max_length: int, size: int) -> torch.Tensor:
    """The weight of each pixel of a line in each pixel of the line resampled to another length.

    Keys' cubic kernel with a = -1/2, stretched if the line shrinks and cut off at its ends, as in Pillow.

    Args:
        lengths (`torch.Tensor` of shape `(lines,)`): Pixels of each line.
        max_length (`int`): Pixels of the longest one.
        size (`int`): Pixels of the resampled lines.

    Returns:
        `torch.Tensor`: float32 `(lines, size, max_length)`, 0 beyond a line's end, of sum 1 over the last dimension.
    """
    lengths = lengths[:, None, None].float()
    scale = lengths / size
    stretch = scale.clamp(min=1)
    centers = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale
    pixels = torch.arange(max_length, device=lengths.device)
    # Pillow uses only whole pixels between these ends.
    first, end = (centers - 2 * stretch + 0.5).floor(), (centers + 2 * stretch + 0.5).floor()
    inside = (pixels >= first) & (pixels < torch.minimum(end, lengths))
    distance = ((pixels + 0.5 - centers) / stretch).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, far) * (inside & (distance < 2))
    return weights / weights.sum(-1, keepdim=True)


class CropsOnDevice(CropsDataset):
    """
    As [`CropsDataset`], but instead of crops an item holds the `index` of an image and for each group the `boxes`
    `(number, 4)` to cut. Workers draw the boxes, and [`CropLoader`] cuts the crops on the device.

    Args:
        device_images (`DeviceImages`): The images.
        random_crops (`RandomCrops`): Draws the boxes.
    """

    def __init__(self, device_images: DeviceImages, random_crops: RandomCrops):
        # Workers get only the index: memory of an accelerator stays with its process.
        super().__init__(_Shapes(device_images.index), random_crops)
        self.device_images = device_images

    def __getstate__(self) -> dict:
        return {**self.__dict__, "device_images": None}

    def crop(self, index: int, seed: int) -> dict:
        _, height, width = self.images.index.place(index)
        boxes = self.random_crops.draw_boxes(height, width, seed)
        return {"index": index, "boxes": tuple(torch.tensor(group) for group in boxes)}


class _Shapes:
    def __init__(self, index: ImageIndex):
        self.index = index

    def __len__(self) -> int:
        return len(self.index)


class CropLoader:
    """
    Batches like those of [`~modeling_sit.data.crops.collate_crops`], with crops that are cut on the device.

    Args:
        crops (`CropsOnDevice`): The images.
        loader_settings: Arguments of [`~modeling_sit.data.loaders.BatchLoader`].
    """

    def __init__(self, crops: CropsOnDevice, **loader_settings):
        self.images = crops.device_images
        self.image_shapes = [group.image_shape for group in crops.random_crops.groups]
        self.loader = BatchLoader(crops, collate_fn=collate_boxes, **loader_settings)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            crops = tuple(
                self.images.crop(batch["indices"], boxes, image_shape)
                for boxes, image_shape in zip(batch["boxes"], self.image_shapes, strict=True)
            )
            yield {"crops": crops, "unreadable": batch["unreadable"]}


def collate_boxes(items: list[dict]) -> dict:
    """Stack items of [`CropsOnDevice`]: `indices`, for each group `boxes` `(batch, number, 4)`, and `unreadable`."""
    return {
        "indices": [item["index"] for item in items],
        "boxes": tuple(torch.stack(group) for group in zip(*(item["boxes"] for item in items), strict=True)),
        "unreadable": all_unreadable(items),
    }
