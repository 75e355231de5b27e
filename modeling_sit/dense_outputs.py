"""From the outputs of detectors and segmentation models to boxes, masks and label maps of the original images."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers.image_processing_utils import BatchFeature

from .dense_processing import padded_size, resized_size
from .run_length_encoding import encode_mask

NOTHING = -1  # the label of a place in a detector's output that holds no object, and no segment's number
LOGITS_STRIDE = 4  # pixels of the input to one of the logits of SiTForSemanticSegmentation
# The segments of an image, a mask of each, made when it is asked for, and the image's height and width.
Segments = tuple[list[dict], Iterator[np.ndarray], tuple[int, int]]


class SiTDenseOutputsMixin:
    """Post-processing for image processors of either backend. Sizes are `(height, width)` in pixels, of the original
    images; what the processor did to these, it undoes."""

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes: "torch.Tensor | Sequence | None" = None
    ) -> list[dict[str, torch.Tensor]]:
        """The objects that a detector found.

        Args:
            outputs: Of [`SiTForObjectDetection`] or [`SiTForInstanceSegmentation`].
            threshold (`float`, *optional*, defaults to 0.5): Objects with a higher score are kept.
            target_sizes (tensor `(batch, 2)` or list of pairs, *optional*):
                Size of each image. Default: boxes are fractions of the image.

        Returns:
            `list[dict]`: For each image `scores` and `labels` `(objects,)`, and `boxes` `(objects, 4)`: left, top, right,
            bottom.

        Raises:
            `ValueError`: If the outputs are no detector's, or there are other sizes than images.
        """
        return [
            {name: found[name] for name in ("scores", "labels", "boxes")}
            for found in _find_objects(outputs, threshold, target_sizes)
        ]

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: "torch.Tensor | Sequence | None" = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict]:
        """The segments of images, in transformers' form.

        Where objects overlap, a pixel belongs to the one with the highest score. Outputs of
        [`SiTForSemanticSegmentation`] give one segment of each class in the image, whatever the thresholds, with the mean
        probability of its pixels as the score: transformers' pipeline calls this method for models of both kinds.

        Args:
            outputs: Of [`SiTForInstanceSegmentation`] or [`SiTForSemanticSegmentation`].
            threshold (`float`, *optional*, defaults to 0.5): Objects with a higher score are kept.
            mask_threshold (`float`, *optional*, defaults to 0.5): Pixels of at least this probability are of an object.
            overlap_mask_area_threshold (`float`, *optional*, defaults to 0.8):
                An object is left out of the map if no larger fraction of its mask than this is visible.
            target_sizes (tensor `(batch, 2)` or list of pairs, *optional*): Size of each image. Objects need it.
            return_coco_annotation (`bool`, *optional*, defaults to `False`): Whether to return whole masks as COCO's RLE.
            return_binary_maps (`bool`, *optional*, defaults to `False`): Whether to return whole masks.

        Returns:
            `list[dict]`: For each image `segments_info`, a list of `{"id", "label_id", "score", "was_fused"}`, of objects
            the highest score first, and `segmentation`: the `id` at each pixel, int32 `(height, width)`, -1 where there
            is none; or, in the order of the segments, a list of `{"size": [height, width], "counts": str}`, or bool
            `(segments, height, width)`.

        Raises:
            `ValueError`: If the outputs have no masks, or `target_sizes` are missing.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps cannot both be True")
        if _field(outputs, "pred_masks") is None and _field(outputs, "logits") is not None:
            images = (_class_segments(scores) for scores in self._class_scores(outputs, target_sizes))
        else:
            images = _object_segments(outputs, threshold, mask_threshold, target_sizes)
        results = []
        for segments, masks, (height, width) in images:
            if return_coco_annotation:
                segmentation = [encode_mask(mask) for mask in masks]
            elif return_binary_maps:
                maps = list(masks)
                segmentation = torch.from_numpy(np.stack(maps) if maps else np.zeros((0, height, width), dtype=bool))
            else:
                segments, segmentation = _paint(segments, masks, (height, width), overlap_mask_area_threshold)
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: "torch.Tensor | Sequence | None" = None,
        return_segmentation_scores: bool = False,
    ) -> list:
        """The class of each pixel.

        Args:
            outputs: Of [`SiTForSemanticSegmentation`].
            target_sizes (tensor `(batch, 2)` or list of pairs, *optional*):
                Size of each image. Default: maps have the size of the logits, with the padding.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`): Whether to return the logits too.

        Returns:
            `list[torch.Tensor]`: A map `(height, width)` of class indices for each image; with the scores a `BatchFeature`
            of `segmentation` and `segmentation_scores` `(labels, height, width)`.

        Raises:
            `ValueError`: If the outputs have no logits, or there are other sizes than images.
        """
        results = []
        for scores in self._class_scores(outputs, target_sizes):
            segmentation = scores.argmax(dim=0)
            results.append(
                BatchFeature({"segmentation": segmentation, "segmentation_scores": scores})
                if return_segmentation_scores
                else segmentation
            )
        return results

    def _class_scores(self, outputs, target_sizes) -> Iterator[torch.Tensor]:
        """Logits `(labels, height, width)` of each image, in its size."""
        logits = _field(outputs, "logits")
        if logits is None or logits.ndim != 4:
            raise ValueError("these outputs have no logits of pixels: semantic segmentation needs such a model")
        sizes = _pairs(target_sizes, len(logits))
        if sizes is None:
            yield from logits
            return
        # Other models than this package's, such as UperNet, give logits of each pixel of their input.
        stride = 1 if self.do_pad and tuple(logits.shape[-2:]) == self._input_size(sizes) else LOGITS_STRIDE
        for scores, size in zip(logits, sizes, strict=True):
            scores = scores[None].float()
            if self.do_pad:
                padded = tuple(stride * side for side in scores.shape[-2:])
                rows, columns = resized_size(size, self.size if self.do_resize else None)
                if rows > padded[0] or columns > padded[1]:
                    raise ValueError(
                        f"an image of {size[1]} x {size[0]} pixels becomes {columns} x {rows} by the processor's settings, "
                        f"but the logits are of {padded[1]} x {padded[0]}: target_sizes must be the original sizes"
                    )
                scores = _interpolate(scores, padded)[..., :rows, :columns]
            yield _interpolate(scores, size)[0]

    def _input_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of a batch of images of these sizes, as the processor pads it."""
        if self.pad_size is not None:
            return self.pad_size.height, self.pad_size.width
        resized = [resized_size(size, self.size if self.do_resize else None) for size in sizes]
        return padded_size(resized, self.pad_multiple)


def detections_of(
    outputs, target_sizes: "torch.Tensor | Sequence", threshold: float = 0.0, mask_threshold: float = 0.5
) -> list[dict]:
    """What COCO's measures need of a detector's outputs, one mask at a time.

    Args:
        outputs: Of [`SiTForObjectDetection`] or [`SiTForInstanceSegmentation`].
        target_sizes (tensor `(batch, 2)` or list of pairs): Original height and width of each image.
        threshold (`float`, *optional*, defaults to 0.0): Objects with a higher score are kept.
        mask_threshold (`float`, *optional*, defaults to 0.5): Pixels of at least this probability are of an object.

    Returns:
        `list[dict]`: For each image `scores` `(objects,)`, `labels` `(objects,)` and `boxes` `(objects, 4)` (left, top,
        right, bottom in pixels) as NumPy arrays, and `masks`, a list of compressed RLE, or `None` if the model has none.
    """
    detections = []
    for found, (height, width) in zip(
        _find_objects(outputs, threshold, target_sizes), _pairs(target_sizes), strict=True
    ):
        detection = {name: found[name].cpu().numpy() for name in ("scores", "labels", "boxes")}
        masks = found.get("masks")
        detection["masks"] = (
            None
            if masks is None
            else [
                encode_mask(paste_mask(mask, box, height, width, mask_threshold))
                for mask, box in zip(masks.cpu().numpy(), detection["boxes"], strict=True)
            ]
        )
        detections.append(detection)
    return detections


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """Draw an object's mask, which divides its box into equal parts, into an image.

    Args:
        mask (`np.ndarray` of shape `(rows, columns)`): Probabilities; between the parts' centers they are interpolated.
        box (`np.ndarray` of shape `(4,)`): Left, top, right, bottom in pixels.
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.
        threshold (`float`, *optional*, defaults to 0.5): Pixels of at least this probability are of the object.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`. Pixels whose center is outside of the box are not of the object.
    """
    left, top, right, bottom = (float(side) for side in box)
    rows, row_weights = _weights(top, bottom, mask.shape[0], height)
    columns, column_weights = _weights(left, right, mask.shape[1], width)
    pasted = np.zeros((height, width), dtype=bool)
    pasted[rows, columns] = row_weights @ mask @ column_weights.T >= threshold
    return pasted


def _weights(start: float, end: float, parts: int, side: int) -> tuple[slice, np.ndarray]:
    """The pixels of an image's side whose centers are between two places, and the weights `(pixels, parts)` of the parts
    of this way at each."""
    first = min(max(int(np.ceil(start - 0.5)), 0), side)
    last = min(max(int(np.ceil(end - 0.5)), first), side)
    place = (np.arange(first, last) + 0.5 - start) * (parts / max(end - start, 1e-6)) - 0.5
    place = place.clip(0, parts - 1)
    lower = np.minimum(place.astype(np.int64), max(parts - 2, 0))
    pixel, weight = np.arange(last - first), place - lower
    weights = np.zeros((last - first, parts), dtype=np.float32)
    weights[pixel, lower] = 1 - weight
    if parts > 1:
        weights[pixel, lower + 1] = weight
    return slice(first, last), weights


def _find_objects(outputs, threshold: float, target_sizes) -> list[dict[str, torch.Tensor]]:
    """Objects of each image above a score: `scores`, `labels`, `boxes` (corners), `masks` if the outputs have such."""
    scores, labels, boxes = (
        _field(outputs, *names) for names in (("scores",), ("pred_labels", "labels"), ("pred_boxes",))
    )
    if scores is None or labels is None or boxes is None:
        raise ValueError("these outputs have no scores, labels and pred_boxes: boxes and masks need a detector")
    masks = _field(outputs, "pred_masks")
    sizes = _pairs(target_sizes, len(scores)) or [(1, 1)] * len(scores)
    images = []
    for number, (height, width) in enumerate(sizes):
        keep = (labels[number] >= 0) & (scores[number] > threshold)
        center, extent = boxes[number][keep].float().split(2, dim=-1)
        corners = torch.cat([center - extent / 2, center + extent / 2], dim=-1).clamp(0, 1)
        found = {
            "scores": scores[number][keep].float(),
            "labels": labels[number][keep],
            "boxes": corners * corners.new_tensor([width, height, width, height]),
        }
        if masks is not None:
            found["masks"] = masks[number][keep].float()
        images.append(found)
    return images


def _object_segments(outputs, threshold: float, mask_threshold: float, target_sizes) -> Iterator[Segments]:
    """The objects of each image, the highest score first."""
    if _field(outputs, "pred_masks") is None:
        raise ValueError("these outputs have no pred_masks: instance segmentation needs such a model")
    if target_sizes is None:
        raise ValueError("target_sizes are needed to draw masks: height and width of each image")
    for found, size in zip(_find_objects(outputs, threshold, target_sizes), _pairs(target_sizes), strict=True):
        order = found["scores"].argsort(descending=True, stable=True)
        scores, labels = found["scores"][order].tolist(), found["labels"][order].tolist()
        segments = [
            {"id": number, "label_id": label, "score": round(score, 6), "was_fused": False}
            for number, (label, score) in enumerate(zip(labels, scores, strict=True), start=1)
        ]
        masks, boxes = found["masks"][order].cpu().numpy(), found["boxes"][order].cpu().numpy()
        pasted = (paste_mask(mask, box, *size, mask_threshold) for mask, box in zip(masks, boxes, strict=True))
        yield segments, pasted, size


def _class_segments(scores: torch.Tensor) -> Segments:
    """One segment of each class in an image, by logits `(labels, height, width)`."""
    probability, classes = (each.cpu().numpy() for each in scores.softmax(dim=0).max(dim=0))
    labels = np.unique(classes).tolist()
    segments = [
        {
            "id": number,
            "label_id": label,
            "score": round(float(probability[classes == label].mean(dtype=np.float64)), 6),
            "was_fused": True,
        }
        for number, label in enumerate(labels, start=1)
    ]
    return segments, (classes == label for label in labels), classes.shape


def _paint(
    segments: list[dict], masks: Iterator[np.ndarray], size: tuple[int, int], min_visible: float
) -> tuple[list[dict], torch.Tensor]:
    """The segments that are visible enough, numbered from 1, and a map of them; the earlier ones lie above."""
    painted, shown = np.full(size, NOTHING, dtype=np.int32), []
    for segment, mask in zip(segments, masks, strict=True):
        visible = mask & (painted == NOTHING)
        area = np.count_nonzero(visible)
        if area and area > min_visible * np.count_nonzero(mask):
            shown.append({**segment, "id": len(shown) + 1})
            painted[visible] = len(shown)
    return shown, torch.from_numpy(painted)


def _interpolate(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def _field(outputs, *names: str):
    """The first of these fields that a model's output has, whether it is a mapping or an object."""
    for name in names:
        value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if value is not None:
            return value
    return None


def _pairs(target_sizes, count: int | None = None) -> list[tuple[int, int]] | None:
    if target_sizes is None:
        return None
    sizes = [(int(height), int(width)) for height, width in target_sizes]
    if count is not None and len(sizes) != count:
        raise ValueError(f"there are {count} images, and {len(sizes)} target_sizes")
    return sizes
