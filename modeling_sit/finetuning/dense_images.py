"""Images with objects, or with a class for each pixel, as detection and segmentation learn from them and measure them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch

from modeling_sit.data.decoding import Image, UnreadableImage
from modeling_sit.data.dense.mask_values import check_values, read_mask
from modeling_sit.data.dense.rows import OBJECTS, annotations_of
from modeling_sit.data.image_datasets import image_name, read_row
from modeling_sit.data.image_sizes import upright_size
from modeling_sit.dense_processing import resized_size
from modeling_sit.finetuning.augmentation import as_they_are
from modeling_sit.finetuning.sampling import seeded
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError


@dataclass(frozen=True)
class DenseItem:
    """
    An image with its labels.

    Args:
        image_id (`int`): Of the row; the row's number, if it has classes of pixels.
        image: As of [`~modeling_sit.data.decoding.decode_image`]. Gray, if it cannot be read.
        annotations (`list[dict]`, *optional*): Its objects in COCO's form, with crowds.
        label_map (`np.ndarray` of shape `(height, width)`, *optional*): uint8, the class of each pixel, 255 for none.
        unreadable (`str`, *optional*): Why it cannot be read.
    """

    image_id: int
    image: Image
    annotations: list[dict[str, Any]] | None = None
    label_map: np.ndarray | None = None
    unreadable: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[:2] if isinstance(self.image, np.ndarray) else self.image.size[::-1]


class DenseImages(torch.utils.data.Dataset):
    """
    The images of a split as they are: an item is a [`DenseItem`].

    Args:
        split (`datasets.Dataset`): Rows as of `data.dense.rows`.
        pixel_format ([`PixelFormat`]): What images are decoded to.
        label_names (sequence of `str`, *optional*): Names of the classes of pixels. A mask with other values counts as
            unreadable.

    An image that cannot be read, or whose labels are none or of another size, is gray, and `unreadable` says why.
    """

    def __init__(self, split: datasets.Dataset, pixel_format: PixelFormat, label_names: Sequence[str] | None = None):
        self.split = split
        self.pixel_format = pixel_format
        self.label_names = label_names
        self.has_objects = OBJECTS in split.column_names

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> DenseItem:
        try:
            image, row = read_row(self.split, index, self.pixel_format)
            if self.has_objects:
                item, told = DenseItem(row["image_id"], image, annotations_of(row)), (row["height"], row["width"])
            else:
                label_map = self._label_map(row["label"], index)
                item, told = DenseItem(index, image, label_map=label_map), label_map.shape
            if item.size != told:  # of large datasets only some are compared beforehand
                (height, width), (rows, columns) = item.size, told
                problem = f"it has {width} x {height} pixels, and its labels are for {columns} x {rows}"
                raise UnreadableImage(f"{image_name(self.split, index)}: {problem}")
            return item
        except (UnreadableImage, SiTError) as problem:
            image_id = self.split.select_columns(["image_id"])[index]["image_id"] if self.has_objects else index
            return DenseItem(image_id, self.pixel_format.blank(), unreadable=str(problem))

    def _label_map(self, mask: dict | None, index: int) -> np.ndarray:
        name = f"the mask of {image_name(self.split, index)}"
        label_map = read_mask(mask, name)
        if self.label_names is not None:
            check_values(np.unique(label_map), self.label_names, name)
        return label_map

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Height and width of an image in pixels, without decoding it; `None` if it cannot be read."""
        if self.has_objects:
            return self._sizes[index]
        size = upright_size(self._encoded_images[index]["image"])
        return None if size is None else size[::-1]

    # Cached, because selecting columns takes a millisecond, and each image is asked for.
    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        columns = self.split.select_columns(["height", "width"])[:]
        return list(zip(columns["height"], columns["width"], strict=True))

    @cached_property
    def _encoded_images(self) -> datasets.Dataset:
        return self.split.select_columns(["image"])


def check_image_sizes(images: DenseImages, processor: Any) -> None:
    """Raise [`SiTError`] for an image that is smaller than a patch in the model's input.

    Args:
        images ([`DenseImages`]): The images, which are not decoded.
        processor: The model's image processor.
    """
    patch = processor.patch_size
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    for index in range(len(images)):
        size = images.size_of(index)
        if size is None:
            continue
        for (height, width), when in ((size, ""), (resized_size(size, processor.size), " in the model's input")):
            if height < patch[0] or width < patch[1]:
                raise SiTError(
                    f"{image_name(images.split, index)} has {width} x {height} pixels{when}, less than a patch of "
                    f"{patch[1]} x {patch[0]}",
                    argument="dataset",
                    remedy="take it out" + (", or give a larger `image_size`" if when else ""),
                )


class AugmentedDenseImages(torch.utils.data.Dataset):
    """
    Images to train on. The key of an item is a pair (index, seed); the seed alone makes it random.

    Args:
        images ([`DenseImages`]): The images as they are.
        augmentation (callable): From [`DenseItem`] to [`DenseItem`], random by PyTorch's global generator.
    """

    def __init__(self, images: DenseImages, augmentation: Callable[[DenseItem], DenseItem]):
        self.images = images
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> DenseItem:
        index, seed = index_and_seed
        item = self.images[index]
        if item.unreadable is not None:
            return item
        with seeded(seed):
            return self.augmentation(item)


class DenseCollator:
    """
    Makes a batch of items: `pixel_values`, `pixel_mask` and `labels`, as the image processor gives them, and `items`, of
    each image its id, its height and width, and its label map, if it has one. Prints a line for each image that could not be
    read, and leaves it out; where none could be read, the batch has one gray image without labels.

    Args:
        processor: The model's image processor.
        with_masks (`bool`): Whether objects are learned with their masks.
    """

    def __init__(self, processor: Any, with_masks: bool):
        self.processor = processor
        self.with_masks = with_masks

    def __call__(self, items: list[DenseItem]) -> dict[str, Any]:
        for item in items:
            if item.unreadable is not None:
                print(f"skipped an unreadable image: {item.unreadable}", file=sys.stderr, flush=True)
        readable = [item for item in items if item.unreadable is None]
        if not readable:
            return dict(self.processor([items[0].image], return_tensors="pt")) | {"labels": None, "items": []}
        images, settings = [item.image for item in readable], {"return_tensors": "pt", **as_they_are(self.processor)}
        if readable[0].annotations is not None:
            features = self.processor(
                images,
                annotations=[{"image_id": item.image_id, "annotations": item.annotations} for item in readable],
                return_segmentation_masks=self.with_masks,
                **settings,
            )
            features["labels"] = [dict(label) for label in features["labels"]]
        else:
            # Where 0 in the masks is no class, they were read so.
            label_maps = [item.label_map for item in readable]
            features = self.processor(images, segmentation_maps=label_maps, do_reduce_labels=False, **settings)
        return dict(features) | {"items": [(item.image_id, item.size, item.label_map) for item in readable]}
