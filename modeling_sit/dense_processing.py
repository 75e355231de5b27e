"""What image processors do for detection and segmentation: sizes that keep the ratio, padding, annotations, label maps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension, SizeDict, get_image_size_for_max_height_width

from .run_length_encoding import decode_segmentation

IGNORED_LABEL = 255


class SiTDenseInputsMixin:
    """Annotations and label maps for image processors of either backend. Comes before the backend."""

    pad_multiple = 32
    do_reduce_labels = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        _check_pad_multiple(self.pad_multiple)

    def preprocess(
        self, images, annotations=None, segmentation_maps=None, return_segmentation_masks: bool = False, **kwargs
    ) -> BatchFeature:
        r"""
        Prepare images for a model, with their labels.

        Args:
            images: An image or a list of images: Pillow's, arrays or tensors.
            annotations (`dict` or list of `dict`, *optional*):
                Objects of each image in COCO's form: `{"image_id": int, "annotations": [...]}`. An object has
                `category_id` (from 0) and `bbox` (left, top, width, height in pixels of the image), and may have `area`,
                `iscrowd` and `segmentation` (see [`~run_length_encoding.decode_segmentation`]). Boxes are cut at the image's
                edge. Crowds, and boxes without area, are left out. An image may have no objects.
            segmentation_maps (*optional*):
                A label map of each image: one channel of whole numbers, the class of each pixel, 255 where there is
                none. Pillow's image, array or tensor of the image's size.
            return_segmentation_masks (`bool`, *optional*, defaults to `False`): Whether `labels` hold the objects' masks.
            kwargs: The settings, for this call.

        Returns:
            `BatchFeature`: `pixel_values` `(batch, channels, height, width)`; with `do_pad` also `pixel_mask`
            `(batch, height, width)`, 1 where the image is and 0 where it was padded, to the right and below; `labels`:

            - of `annotations`, a list of dictionaries: `boxes` `(objects, 4)`, the center's x and y, width and height as
              fractions of the padded image; `class_labels`, `area` (pixels of the resized image), `iscrowd`
              `(objects,)`; `image_id` `(1,)`; `size` (of the padded image) and `orig_size`, height and width; `masks`
              `(objects, height, width)`, bool;
            - of `segmentation_maps`, `(batch, height, width)`, int64. The padding is 255.

        Raises:
            `ValueError`: If annotations or label maps do not fit their images, or an image is smaller than a patch.
        """
        return super().preprocess(images, annotations, segmentation_maps, return_segmentation_masks, **kwargs)

    def resize(self, image, size: SizeDict, *args, **kwargs):
        # Of the longest edge alone, transformers has no way.
        if size.longest_edge and not size.shortest_edge:
            height, width = resized_size(image.shape[-2:], size)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        _check_pad_multiple(kwargs.get("pad_multiple"))

    def _preprocess_image_like_inputs(
        self, images, annotations=None, segmentation_maps=None, return_segmentation_masks=False, **kwargs
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(images, **kwargs)
        has_labels = annotations is not None or segmentation_maps is not None
        if not has_labels and not kwargs.get("do_pad"):
            return self._preprocess(images, **kwargs)
        if annotations is not None and segmentation_maps is not None:
            raise ValueError("give either annotations or segmentation_maps: both become labels")
        if has_labels and kwargs.get("do_center_crop"):
            raise ValueError("annotations and segmentation_maps do not follow a crop: set do_center_crop=False")
        sizes = [tuple(image.shape[-2:]) for image in images]
        size = kwargs["size"] if kwargs.get("do_resize") else None
        check_sizes(sizes, size, kwargs["patch_size"])
        features = self._preprocess(images, **kwargs)
        frames = [
            Frame(original, resized_size(original, size), tuple(pixels.shape[-2:]))
            for original, pixels in zip(sizes, features["pixel_values"], strict=True)
        ]
        tensor_type = kwargs.get("return_tensors")
        if annotations is not None:
            annotations = _one_for_each(annotations, frames, "annotations", isinstance(annotations, Mapping))
            labels = [
                prepare_annotation(annotation, frame, return_segmentation_masks)
                for annotation, frame in zip(annotations, frames, strict=True)
            ]
            features["labels"] = [BatchFeature(label, tensor_type=tensor_type) for label in labels]
            if tensor_type == "pt":
                device = features["pixel_values"].device
                features["labels"] = [label.to(device) for label in features["labels"]]
        elif segmentation_maps is not None:
            is_one = isinstance(segmentation_maps, Image.Image) or getattr(segmentation_maps, "ndim", 0) == 2
            maps = _one_for_each(segmentation_maps, frames, "segmentation_maps", is_one)
            labels = [
                prepare_label_map(label_map, frame, kwargs["do_reduce_labels"])
                for label_map, frame in zip(maps, frames, strict=True)
            ]
            features.update(BatchFeature({"labels": labels}, tensor_type=tensor_type))
            if tensor_type == "pt":
                features["labels"] = features["labels"].to(features["pixel_values"].device)
        return features

    def _preprocess(
        self, images, do_pad=None, pad_size=None, pad_multiple=None, return_tensors=None, **kwargs
    ) -> BatchFeature:
        if not do_pad:
            return super()._preprocess(
                images, do_pad=do_pad, pad_size=pad_size, return_tensors=return_tensors, **kwargs
            )
        features = super()._preprocess(images, do_pad=False, pad_size=None, return_tensors=None, **kwargs)
        images = features["pixel_values"]
        if pad_size is None:
            height, width = padded_size([image.shape[-2:] for image in images], pad_multiple or self.pad_multiple)
            pad_size = SizeDict(height=height, width=width)
        pixel_values, pixel_mask = self.pad(images, pad_size=pad_size, return_mask=True)
        return BatchFeature({"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        settings = super().to_dict()
        # What has no effect is not written, so that a classifier's file stays as it was.
        if not self.do_pad and self.pad_multiple == SiTDenseInputsMixin.pad_multiple:
            settings.pop("pad_multiple", None)
        if not self.do_reduce_labels:
            settings.pop("do_reduce_labels", None)
        return settings


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the model's input.

    Args:
        original (`tuple[int, int]`): Height and width of the image in pixels.
        resized (`tuple[int, int]`): Height and width that it is resized to.
        padded (`tuple[int, int]`): Height and width of the input, with the padding to the right and below.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    def place(self, values: np.ndarray, filling) -> np.ndarray:
        """Maps `(..., height, width)` of the image, resized to the nearest pixel, and padded with a value."""
        (height, width), (rows, columns) = self.original, self.resized
        row = ((np.arange(rows) + 0.5) * (height / rows)).astype(np.int64).clip(0, height - 1)
        column = ((np.arange(columns) + 0.5) * (width / columns)).astype(np.int64).clip(0, width - 1)
        placed = np.full((*values.shape[:-2], *self.padded), filling, dtype=values.dtype)
        placed[..., :rows, :columns] = values[..., row[:, None], column]
        return placed


def resized_size(image_size: Sequence[int], size: SizeDict | None) -> tuple[int, int]:
    """Height and width that an image is resized to.

    Args:
        image_size (pair of `int`): Height and width of the image.
        size (`SizeDict`, *optional*):
            `height` and `width`; `longest_edge`, which keeps the ratio; `shortest_edge`, with `longest_edge` as its limit
            or without; or `max_height` and `max_width`. Default: no resizing.
    """
    height, width = (int(side) for side in image_size)
    if size is None:
        return height, width
    if size.shortest_edge and size.longest_edge:
        return get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    if size.shortest_edge:
        image = np.broadcast_to(np.uint8(0), (1, height, width))
        return get_resize_output_image_size(
            image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    if size.longest_edge:
        scale = size.longest_edge / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    return size.height, size.width


def padded_size(sizes: Sequence[Sequence[int]], multiple: int) -> tuple[int, int]:
    """The smallest height and width that hold images of these sizes, and are multiples of a number."""
    height, width = (-(-max(int(size[axis]) for size in sizes) // multiple) * multiple for axis in (0, 1))
    return height, width


def check_sizes(sizes: Sequence[tuple[int, int]], size: SizeDict | None, patch_size: int | Sequence[int]) -> None:
    """Raise `ValueError` for an image that has no patch, or none after it was resized."""
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    for number, original in enumerate(sizes):
        for (height, width), when in ((original, ""), (resized_size(original, size), " after resizing")):
            if height < patch[0] or width < patch[1]:
                raise ValueError(
                    f"image {number} has {width} x {height} pixels{when}, less than a patch "
                    f"(`patch_size` {patch[1]} x {patch[0]})"
                )


def prepare_annotation(annotation: Mapping, frame: Frame, with_masks: bool = False) -> dict[str, np.ndarray]:
    """The labels of an image's objects, as DETR's: see [`~SiTDenseInputsMixin.preprocess`]."""
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= annotation.keys():
        raise ValueError('annotations must be {"image_id": int, "annotations": [...]} for each image')
    image_id = _whole_number(annotation["image_id"], "image_id")
    (height, width), (rows, columns) = frame.original, frame.resized
    boxes, classes, areas, masks = [], [], [], []
    for number, entry in enumerate(annotation["annotations"]):
        try:
            if entry.get("iscrowd"):
                continue
            class_label = _whole_number(entry["category_id"], "category_id")
            left, top, right, bottom = _box(entry["bbox"]).clip(0, [width, height, width, height])
            if right <= left or bottom <= top:
                continue
            if with_masks:
                masks.append(frame.place(decode_segmentation(entry.get("segmentation"), height, width), False))
            area = entry.get("area")
            area = (right - left) * (bottom - top) if area is None else float(area)
        except KeyError as problem:
            raise ValueError(f"object {number} of image {image_id} has no {problem.args[0]}") from problem
        except (ValueError, TypeError, AttributeError) as problem:
            raise ValueError(f"object {number} of image {image_id}: {problem}") from problem
        boxes.append([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        classes.append(class_label)
        areas.append(area * (rows / height) * (columns / width))
    x, y = columns / width / frame.padded[1], rows / height / frame.padded[0]
    label = {
        "size": np.array(frame.padded, dtype=np.int64),
        "image_id": np.array([image_id], dtype=np.int64),
        "class_labels": np.array(classes, dtype=np.int64),
        "boxes": (np.array(boxes, dtype=np.float64).reshape(-1, 4) * [x, y, x, y]).astype(np.float32),
        "area": np.array(areas, dtype=np.float32),
        "iscrowd": np.zeros(len(boxes), dtype=np.int64),
        "orig_size": np.array(frame.original, dtype=np.int64),
    }
    if with_masks:
        label["masks"] = np.stack(masks) if masks else np.zeros((0, *frame.padded), dtype=bool)
    return label


def prepare_label_map(label_map, frame: Frame, do_reduce_labels: bool = False) -> np.ndarray:
    """Classes of an image's pixels, int64 `(height, width)` of the model's input; 255 is no class.

    Args:
        label_map (`PIL.Image.Image`, `np.ndarray` or tensor): Of one channel, of whole numbers.
        frame ([`Frame`]): Sizes of the image.
        do_reduce_labels (`bool`, *optional*, defaults to `False`): Whether 0 is no class, and 1 the first one.
    """
    values = label_map.cpu().numpy() if isinstance(label_map, torch.Tensor) else np.asarray(label_map)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"a segmentation map must have one channel of class indices, got the shape {values.shape}")
    if values.dtype.kind not in "uib":
        raise ValueError(f"a segmentation map must hold whole numbers, got {values.dtype}")
    if values.shape != tuple(frame.original):
        (rows, columns), (height, width) = values.shape, frame.original
        raise ValueError(f"a segmentation map has {columns} x {rows} pixels, and its image {width} x {height}")
    values = values.astype(np.int64)
    if do_reduce_labels:
        values = np.where((values == 0) | (values == IGNORED_LABEL), IGNORED_LABEL, values - 1)
    return frame.place(values, IGNORED_LABEL)


def _one_for_each(values, frames: list[Frame], name: str, is_one: bool) -> list:
    values = [values] if is_one else list(values)
    if len(values) != len(frames):
        raise ValueError(f"there are {len(frames)} images, and {len(values)} {name}")
    return values


def _whole_number(value, name: str) -> int:
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(value)


def _box(values) -> np.ndarray:
    """Left, top, right, bottom of a box that is given by its left, top, width and height."""
    box = np.asarray(values, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"bbox must be four numbers: left, top, width, height; got {values!r}")
    return np.concatenate([box[:2], box[:2] + box[2:]])


def _check_pad_multiple(value) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"pad_multiple must be a whole number above 0, got {value!r}")
