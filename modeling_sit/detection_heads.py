"""torchvision's Faster R-CNN and Mask R-CNN on a SiT's feature pyramid: their parts, and what goes into them."""

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import is_torchvision_available

from .configuration_sit import SiTConfig
from .feature_pyramid import PYRAMID_STRIDES

# The Hub's loader asks for every package that a file imports, unless the import is within such a condition.
if is_torchvision_available():
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
    from torchvision.ops import roi_align
    from torchvision.ops.poolers import LevelMapper

# Boxes are proposed on one level more than regions are read from.
ANCHOR_STRIDES = (*PYRAMID_STRIDES, 2 * PYRAMID_STRIDES[-1])
# The side of an anchor without `config.anchor_sizes`, in strides. Everyday images of 800 pixels and more have 8.
DEFAULT_ANCHOR_SCALE = 4
# Height by width.
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
REGION_SIZE, MASK_REGION_SIZE = 7, 14
# Side of a predicted mask, which the box of its object is divided into.
MASK_SIZE = 2 * MASK_REGION_SIZE


class SiTAnchorGenerator(nn.Module):
    """
    The boxes that proposals start from: at the center of each cell of each level three boxes of one area, whose heights are
    1/2, 1 and 2 times their widths.

    torchvision's class divides the image by the level to get the stride, which is too small where the coarsest level ends
    beyond the image, and keeps tensors that no `state_dict` has.

    Args:
        sizes (`list[float]`): Side of a square anchor in pixels, for each level.
    """

    def __init__(self, sizes: list[float]):
        super().__init__()
        self.sizes = tuple(sizes)

    def num_anchors_per_location(self) -> list[int]:
        return [len(ANCHOR_RATIOS)] * len(self.sizes)

    def forward(self, images: "ImageSizes", levels: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        Args:
            images ([`ImageSizes`]): Sizes of the images.
            levels (`list[torch.Tensor]`): `(batch, channels, rows, columns)` of each level, finest first.

        Returns:
            `list[torch.Tensor]`: For each image `(anchors, 4)`, left, top, right, bottom in pixels.
        """
        device = levels[0].device
        height = torch.tensor(ANCHOR_RATIOS, device=device).sqrt()
        corners = torch.stack([-1 / height, -height, 1 / height, height], dim=1) / 2
        anchors = []
        for size, stride, level in zip(self.sizes, ANCHOR_STRIDES, levels, strict=True):
            rows, columns = (stride * (torch.arange(side, device=device) + 0.5) for side in level.shape[-2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centers = torch.stack([x, y, x, y], dim=-1)
            anchors.append((centers[:, :, None] + size * corners).reshape(-1, 4))
        return [torch.cat(anchors)] * len(images.image_sizes)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


class SiTRegionPooling(nn.Module):
    """
    Features of boxes, each from the level that fits its size: boxes of 224 pixels from the one of stride 16.

    torchvision's class guesses the strides from the first batch's sizes without padding, and reads half a cell to the right
    and below of the box.

    Args:
        size (`int`): Rows and columns that a box is divided into.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.level_of = LevelMapper(*(int(math.log2(PYRAMID_STRIDES[end])) for end in (0, -1)))

    def forward(
        self, levels: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """
        Args:
            levels (`dict[str, torch.Tensor]`): See [`named_levels`].
            boxes (`list[torch.Tensor]`): For each image `(boxes, 4)`, left, top, right, bottom in pixels.
            image_sizes: Not used; torchvision hands it on.

        Returns:
            `torch.Tensor` of shape `(boxes of all images, channels, size, size)`.
        """
        finest = levels[str(PYRAMID_STRIDES[0])]
        level_of_box = self.level_of(boxes)
        everywhere = torch.cat(
            [torch.cat([of_image.new_full((len(of_image), 1), n), of_image], 1) for n, of_image in enumerate(boxes)]
        )
        pooled = finest.new_zeros(len(everywhere), finest.shape[1], self.size, self.size)
        for number, stride in enumerate(PYRAMID_STRIDES):
            chosen = (level_of_box == number).nonzero()[:, 0]
            pooled[chosen] = roi_align(
                levels[str(stride)], everywhere[chosen], self.size, 1 / stride, sampling_ratio=2, aligned=True
            )
        return pooled

    def extra_repr(self) -> str:
        return f"size={self.size}"


class ImageSizes:
    """What torchvision's networks read of images: height and width of each in pixels, without padding."""

    def __init__(self, image_sizes: list[tuple[int, int]]):
        self.image_sizes = image_sizes


def region_proposal_network(config: SiTConfig) -> "RegionProposalNetwork":
    """Proposes boxes that may hold an object, whatever its class."""
    sizes = config.anchor_sizes or [DEFAULT_ANCHOR_SCALE * stride for stride in ANCHOR_STRIDES]
    anchors = SiTAnchorGenerator(sizes)
    return RegionProposalNetwork(
        anchors,
        RPNHead(config.pyramid_size, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 1000, "testing": 1000},
        nms_thresh=0.7,
    )


def region_heads(config: SiTConfig, has_masks: bool) -> "RoIHeads":
    """Tells the class and the box of an object in each proposed box, and on request its mask."""
    channels, num_classes = config.pyramid_size, config.num_labels + 1  # the first is the background
    masks = {}
    if has_masks:
        masks = {
            "mask_roi_pool": SiTRegionPooling(MASK_REGION_SIZE),
            "mask_head": MaskRCNNHeads(channels, [channels] * config.mask_head_num_layers, dilation=1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes),
        }
    return RoIHeads(
        SiTRegionPooling(REGION_SIZE),
        TwoMLPHead(channels * REGION_SIZE**2, config.box_head_size),
        FastRCNNPredictor(config.box_head_size, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.rois_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=config.detection_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections_per_image,
        **masks,
    )


def named_levels(levels: list[torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Levels of the feature pyramid by their strides, and the one that only boxes are proposed on."""
    levels = [*levels, nn.functional.max_pool2d(levels[-1], kernel_size=1, stride=2)]
    return OrderedDict(zip(map(str, ANCHOR_STRIDES), levels, strict=True))


def init_as_torchvision(layer: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Fill a new weight as torchvision does, which transformers' initialization undoes. Transformers asks for one layer at a
    time: the part of torchvision's networks that it belongs to, if there is one, says how.

    Args:
        layer (`nn.Module`): The layer.
        parts (iterable of `nn.Module`): torchvision's networks and all their modules.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return
    for part in parts:
        if not any(layer is inner for inner in part.modules()):
            continue
        if isinstance(part, RPNHead):
            init.normal_(layer.weight, std=0.01)
        elif isinstance(part, (MaskRCNNHeads, MaskRCNNPredictor)):
            init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (TwoMLPHead, FastRCNNPredictor)):
            init.kaiming_uniform_(layer.weight, a=math.sqrt(5))  # as PyTorch fills every linear layer


def detection_targets(
    labels: list[dict[str, torch.Tensor]], size: tuple[int, int], num_labels: int, has_masks: bool
) -> list[dict[str, torch.Tensor]]:
    """
    Labels in DETR's form as torchvision's targets: absolute corners, classes from 1. Left out are objects without area,
    whose loss would be infinite, and crowds.

    Args:
        labels (`list[dict]`): See [`~modeling_sit_detection.SiTForObjectDetection.forward`].
        size (`tuple[int, int]`): Height and width of the images with their padding, which boxes are relative to.
        num_labels (`int`): Number of classes.
        has_masks (`bool`): Whether masks are needed.

    Raises:
        `ValueError`: If a label has no masks, or its shapes, classes or boxes do not fit.
    """
    height, width = size
    targets = []
    for number, label in enumerate(labels):
        classes, boxes = label["class_labels"], label["boxes"].reshape(-1, 4).float()
        if len(classes) != len(boxes):
            raise ValueError(f"labels[{number}] has {len(classes)} class_labels, but {len(boxes)} boxes")
        if ((classes < 0) | (classes >= num_labels)).any():
            raise ValueError(
                f"labels[{number}]: class_labels must be from 0 to {num_labels - 1}, got {classes.tolist()}"
            )
        if not boxes.isfinite().all():
            raise ValueError(f"labels[{number}]: boxes must be finite numbers")
        center, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = torch.cat([center - half, center + half], dim=1) * boxes.new_tensor([width, height, width, height])
        kept = (corners[:, 2:] > corners[:, :2]).all(dim=1)
        if label.get("iscrowd") is not None:
            kept &= label["iscrowd"] == 0
        target = {"boxes": corners[kept], "labels": classes[kept].long() + 1}
        if has_masks:
            masks = _masks(label.get("masks"), number, (len(boxes), *size))
            target["masks"] = _half_a_pixel_on(masks[kept])
        targets.append(target)
    return targets


def _masks(masks: torch.Tensor | None, number: int, shape: tuple[int, int, int]) -> torch.Tensor:
    if masks is None:
        raise ValueError(f"labels[{number}] has no masks, which instance segmentation needs")
    if tuple(masks.shape) != shape:
        raise ValueError(f"labels[{number}]: masks have the shape {tuple(masks.shape)}, but {shape} is needed")
    return masks


def _half_a_pixel_on(masks: torch.Tensor) -> torch.Tensor:
    """Masks `(objects, height, width)` at the upper left corners of their pixels. torchvision reads them half a pixel to the
    right and below of where it should, which matters to objects of a dozen pixels."""
    if len(masks) == 0:
        return masks.float()
    padded = nn.functional.pad(masks[None].float(), (1, 0, 1, 0), mode="replicate")
    return nn.functional.avg_pool2d(padded, kernel_size=2, stride=1)[0]


def stack_detections(
    found: list[dict[str, torch.Tensor]], image_sizes: list[tuple[int, int]], count: int
) -> dict[str, torch.Tensor]:
    """
    torchvision's detections of a batch as tensors of `count` objects an image, the best first, filled up with label -1.

    Returns:
        `dict[str, torch.Tensor]`: `scores` and `pred_labels` `(batch, count)`, `pred_boxes` `(batch, count, 4)`, center and
        size relative to the image, and where there are masks `pred_masks` `(batch, count, 28, 28)`.
    """
    boxes = []
    for detections, (height, width) in zip(found, image_sizes, strict=True):
        corners = detections["boxes"] / detections["boxes"].new_tensor([width, height, width, height])
        first, last = corners[:, :2], corners[:, 2:]
        boxes.append(torch.cat([(first + last) / 2, last - first], dim=1))
    stacked = {
        "scores": _filled_up([detections["scores"] for detections in found], count),
        "pred_labels": _filled_up([detections["labels"] - 1 for detections in found], count, -1),
        "pred_boxes": _filled_up(boxes, count),
    }
    if "masks" in found[0]:
        stacked["pred_masks"] = _filled_up([detections["masks"][:, 0] for detections in found], count)
    return stacked


def _filled_up(values: list[torch.Tensor], count: int, filling: int = 0) -> torch.Tensor:
    filled = values[0].new_full((len(values), count, *values[0].shape[1:]), filling)
    for number, value in enumerate(values):
        filled[number, : len(value)] = value
    return filled
