"""Random changes of images together with their objects or their classes of pixels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from transformers.image_utils import SizeDict

from modeling_sit.data.dense.rows import IGNORED_PIXEL
from modeling_sit.data.dense.run_lengths import decode_masks
from modeling_sit.dense_processing import resized_size
from modeling_sit.finetuning.augmentation import WITH_COLOR, ChannelJitter, as_tensor
from modeling_sit.finetuning.dense_images import DenseItem

# Of single-shot detectors (Liu et al. 2016), and of segmentation since: each with a probability of one half.
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
CHANGE_OF_CHANNELS = 0.5


class ScaleJitter(v2.Transform):
    """
    Scales an image by a random factor, in the frame of the size that it has in the model: a larger one is cropped at a
    random place, a smaller one is padded to the right and below. So the model's input is as large as without it. Large-scale
    jittering (Ghiasi et al. 2021), whose frame is square.

    Args:
        size (`SizeDict`): Of the frame, as the image processor has it.
        scale (pair of `float`): Range of the factor.
        fill (sequence of `int`): Value from 0 to 255 of each channel in the padding of images.
        mask_fill (`int`): That of masks.
    """

    def __init__(self, size: SizeDict, scale: Sequence[float], fill: Sequence[int], mask_fill: int):
        super().__init__()
        self.size = size
        self.scale = tuple(scale)
        self.fill = list(fill)
        self.mask_fill = mask_fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(flat_inputs[0])
        frame = resized_size((height, width), self.size)
        low, high = self.scale
        factor = torch.empty(()).uniform_(low, high).item()
        crop = [max(1, min(side, round(side / factor))) for side in (height, width)]
        top, left = (int(torch.randint(side - cut + 1, ())) for side, cut in zip((height, width), crop, strict=True))
        scaled = [max(1, min(side, round(side * factor))) for side in frame]
        return {
            "crop": (top, left, *crop),
            "scaled": scaled,
            "padding": [a - b for a, b in zip(frame, scaled, strict=True)],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            scaled = _scaled_mask(inpt, params["crop"], params["scaled"])
        else:
            scaled = self._call_kernel(
                v2.functional.resized_crop,
                inpt,
                *params["crop"],
                size=params["scaled"],
                interpolation=InterpolationMode.BICUBIC,
                antialias=True,
            )
        below, right = params["padding"]
        if not (below or right):
            return scaled
        fill = self.mask_fill if isinstance(inpt, tv_tensors.Mask) else self.fill
        return self._call_kernel(v2.functional.pad, scaled, padding=[0, 0, right, below], fill=fill)


def _scaled_mask(mask: tv_tensors.Mask, crop: Sequence[int], size: Sequence[int]) -> tv_tensors.Mask:
    # Of masks, torchvision takes the pixel up and to the left, which shifts them by up to half a pixel.
    cropped = v2.functional.crop_mask(mask.as_subclass(torch.Tensor), *crop)
    planes = cropped[None] if cropped.ndim == 2 else cropped
    scaled = v2.functional.resize_image(planes, size, InterpolationMode.NEAREST_EXACT, antialias=False)
    return tv_tensors.Mask(scaled[0] if cropped.ndim == 2 else scaled)


class DenseAugmentation:
    """
    From [`DenseItem`] to [`DenseItem`], random by PyTorch's global generator: see [`~finetuning.sampling.seeded`].

    Objects that are cut by a crop get the box of what is left of them, by their masks where these are used. Those of which
    less than a pixel is left are taken out, and so are crowds.

    Args:
        size (`SizeDict`): Size of the model's input, as the image processor has it.
        arguments: `scale_jitter`, `horizontal_flip_probability`, `vertical_flip_probability` and `photometric_distortion`,
            of [`~finetuning.arguments.FinetuningArguments`].
        fill (sequence of `int`): Value from 0 to 255 of each channel in the padding, such as the mean.
        with_masks (`bool`): Whether objects are learned with their masks.
    """

    def __init__(self, size: SizeDict, arguments: Any, fill: Sequence[int], with_masks: bool):
        self.with_masks = with_masks
        flips = [
            v2.RandomHorizontalFlip(arguments.horizontal_flip_probability),
            v2.RandomVerticalFlip(arguments.vertical_flip_probability),
        ]
        colors = photometric_distortion(len(fill)) if arguments.photometric_distortion else []
        self.of_objects, self.of_pixels = (
            v2.Compose([ScaleJitter(size, arguments.scale_jitter, fill, mask_fill), *flips, *colors])
            for mask_fill in (0, IGNORED_PIXEL)
        )
        self.sanitize = v2.Compose([v2.ClampBoundingBoxes("hard"), v2.SanitizeBoundingBoxes()])

    def __call__(self, item: DenseItem) -> DenseItem:
        image = as_tensor(item.image)
        if item.annotations is None:
            label_map = tv_tensors.Mask(torch.from_numpy(item.label_map))
            image, label_map = self.of_pixels(image, label_map)
            return replace(item, image=_as_stored(image), label_map=label_map.numpy())
        annotations = [each for each in item.annotations if not each["iscrowd"]]
        if not annotations:
            return replace(item, image=_as_stored(self.of_objects(image)), annotations=[])
        sample = {"image": image, **self._tensors(annotations, item.size)}
        sample = self.of_objects(sample)
        is_cut = _reach_beyond(sample["boxes"])
        sample = self.sanitize(sample)
        boxes, numbers = sample["boxes"].as_subclass(torch.Tensor), sample["labels"].tolist()
        masks = sample.get("masks", [None] * len(numbers))
        changed = []
        for number, box, mask in zip(numbers, boxes, masks, strict=True):
            found = _changed(annotations[number], box, mask, bool(is_cut[number]))
            changed += [found] if found is not None else []
        return replace(item, image=_as_stored(sample["image"]), annotations=changed)

    def _tensors(self, annotations: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        boxes = torch.tensor([each["bbox"] for each in annotations], dtype=torch.float32)
        # Not clamped on the way: what is cut is to be seen at the end.
        boxes = tv_tensors.BoundingBoxes(
            torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            format="XYXY",
            canvas_size=size,
            clamping_mode=None,
        )
        tensors = {"boxes": boxes, "labels": torch.arange(len(annotations))}
        if self.with_masks:
            masks = decode_masks([each["segmentation"] for each in annotations], *size)
            tensors["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return tensors


def photometric_distortion(num_channels: int) -> list[v2.Transform]:
    """Brightness, contrast, saturation and hue, each with a probability of one half. Of channels that are no colors:
    brightness and contrast."""
    if num_channels not in WITH_COLOR:
        return [v2.RandomApply([ChannelJitter(CHANGE_OF_CHANNELS)])]
    jitters = [v2.ColorJitter(brightness=BRIGHTNESS), v2.ColorJitter(contrast=CONTRAST)]
    if num_channels == 3:
        jitters += [v2.ColorJitter(saturation=SATURATION), v2.ColorJitter(hue=HUE)]
    return [v2.RandomApply([jitter]) for jitter in jitters]


def _reach_beyond(boxes: tv_tensors.BoundingBoxes) -> torch.Tensor:
    height, width = boxes.canvas_size
    left, top, right, bottom = boxes.as_subclass(torch.Tensor).unbind(1)
    return (left < 0) | (top < 0) | (right > width) | (bottom > height)


def _changed(
    annotation: dict[str, Any], box: torch.Tensor, mask: torch.Tensor | None, is_cut: bool
) -> dict[str, Any] | None:
    """An object with its new box, and mask if it has one; `None` if nothing is left of that."""
    left, top, right, bottom = box.tolist()
    changed = {name: value for name, value in annotation.items() if name != "segmentation"}
    area = (right - left) * (bottom - top)
    if mask is not None:
        pixels = mask.numpy() != 0
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        changed["segmentation"], area = pixels, int(pixels.sum())
        if is_cut:  # the rest of a long object is smaller than the rest of its box
            left, right = max(left, int(columns[0])), min(right, int(columns[-1]) + 1)
            top, bottom = max(top, int(rows[0])), min(bottom, int(rows[-1]) + 1)
    if right <= left or bottom <= top:
        return None
    return changed | {"bbox": [left, top, right - left, bottom - top], "area": float(area)}


def _as_stored(image: PIL.Image.Image | tv_tensors.Image) -> PIL.Image.Image | np.ndarray:
    if isinstance(image, PIL.Image.Image):
        return image
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
