"""What goes into torchvision's heads, and what comes out: anchors, strides, targets, detections."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from modeling_sit import SiTConfig
from modeling_sit.detection_heads import (
    ANCHOR_STRIDES,
    MASK_SIZE,
    ImageSizes,
    SiTAnchorGenerator,
    SiTRegionPooling,
    detection_targets,
    named_levels,
    region_proposal_network,
    stack_detections,
)
from modeling_sit.feature_pyramid import PYRAMID_STRIDES

SIZES = [16, 32, 64, 128, 256]


def levels_of(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(2, 1, -(-height // stride), -(-width // stride)) for stride in ANCHOR_STRIDES]


def test_anchors_are_torchvisions_in_the_middle_of_their_cells():
    levels = levels_of(128, 192)
    images = ImageList(torch.zeros(2, 3, 128, 192), [(128, 192)] * 2)
    theirs = AnchorGenerator(tuple((size,) for size in SIZES), ((0.5, 1.0, 2.0),) * 5)(images, levels)[0]
    ours, again = SiTAnchorGenerator(SIZES)(images, levels)
    assert torch.equal(ours, again) and ours.shape == theirs.shape
    middle = torch.cat(
        [torch.full((3 * level[0, 0].numel(), 1), s / 2) for s, level in zip(ANCHOR_STRIDES, levels, strict=True)]
    )
    # They round the corners.
    assert (ours - theirs - middle).abs().max() <= 0.5


def test_the_coarsest_level_may_end_beyond_the_image():
    """torchvision takes 96 // 2 = 48 for its stride."""
    *_, last = SiTAnchorGenerator(SIZES)(ImageSizes([(96, 96)]), levels_of(96, 96))[0].split(1)
    centers = (last[0, :2] + last[0, 2:]) / 2
    assert centers.tolist() == pytest.approx([96, 96])


def test_anchor_sizes():
    assert region_proposal_network(SiTConfig(pyramid_size=8)).anchor_generator.sizes == tuple(SIZES)
    sizes = [6, 12.5, 25, 50, 100]
    anchors = region_proposal_network(SiTConfig(pyramid_size=8, anchor_sizes=sizes)).anchor_generator
    boxes = anchors(ImageSizes([(64, 64)]), levels_of(64, 64))[0]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    assert sorted(set(areas.sqrt().round(decimals=3).tolist())) == sizes


@pytest.mark.parametrize("side", [14.0, 224.0, 448.0])
def test_regions_are_read_where_they_are(side):
    """From whichever level: torchvision's class reads half a cell beside, and guesses the strides by the first batch's sizes
    without padding, here 24 pixels of 512."""
    pool = SiTRegionPooling(7)
    ramps = named_levels([ramp(512 // stride, stride) for stride in PYRAMID_STRIDES])
    boxes = torch.tensor([[40.0, 32, 40 + side, 32 + side]])
    pooled = pool(ramps, [torch.zeros(0, 4), boxes], [(24, 24)] * 2)
    assert torch.allclose(pooled[0, 0, 0], 40 + side * (torch.arange(7) + 0.5) / 7, atol=1e-3)
    assert torch.allclose(pooled[0, 0, :, 0], pooled[0, 0, 0, 0].expand(7))


def ramp(cells: int, stride: int) -> torch.Tensor:
    """Maps of two images whose cells say how far to the right their middle is, in pixels."""
    return (torch.arange(cells) + 0.5).mul(stride).expand(2, 1, cells, -1)


def test_regions_of_all_levels_stay_in_their_order():
    torch.manual_seed(0)
    levels = named_levels([torch.randn(2, 3, 512 // stride, 512 // stride) for stride in PYRAMID_STRIDES])
    corners = 512 * torch.rand(2, 20, 2, 2).sort(dim=2).values
    boxes = list(corners.flatten(2))
    pool = SiTRegionPooling(2)
    together = pool(levels, boxes, [(512, 512)] * 2)
    assert len(set(pool.level_of(boxes).tolist())) > 2
    for number, of_image in enumerate(boxes):
        for place in range(20):
            alone = [of_image[place : place + 1] if number == image else of_image[:0] for image in range(2)]
            assert torch.allclose(pool(levels, alone, [])[0], together[20 * number + place], atol=1e-5)


def test_masks_are_learned_where_they_are():
    """The left and upper quarter of a box is the object: so it is of the 28 x 28 cells that are learned."""
    masks = torch.zeros(1, 32, 64, dtype=torch.bool)
    masks[0, 8:12, 16:20] = True
    boxes = torch.tensor([[20 / 64, 12 / 32, 8 / 64, 8 / 32]])
    labels = [{"class_labels": torch.tensor([0]), "boxes": boxes, "masks": masks}]
    (target,) = detection_targets(labels, (32, 64), num_labels=1, has_masks=True)
    learned = project_masks_on_boxes(target["masks"], target["boxes"], torch.tensor([0]), MASK_SIZE)[0]
    half = (torch.arange(MASK_SIZE) < MASK_SIZE // 2).float()
    assert torch.equal((learned[7] > 0.5).float(), half) and torch.equal((learned[:, 7] > 0.5).float(), half)


def label(**fields) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.0, 0.1], [0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.2, 0.2]])
    masks = torch.zeros(4, 32, 64, dtype=torch.bool)
    return {
        "class_labels": torch.tensor([0, 1, 2, 1]),
        "boxes": boxes,
        "masks": masks,
        "iscrowd": torch.tensor([0, 0, 1, 0]),
        **fields,
    }


def test_targets():
    (target,) = detection_targets([label()], (32, 64), num_labels=3, has_masks=True)
    # Without the one that has no width, and the crowd.
    assert torch.allclose(target["boxes"], torch.tensor([[16.0, 12.0, 48.0, 20.0], [0.0, 0.0, 12.8, 6.4]]), atol=1e-5)
    assert target["labels"].tolist() == [1, 2] and target["masks"].shape == (2, 32, 64)
    plain = label()
    del plain["masks"], plain["iscrowd"]
    (target,) = detection_targets([plain], (32, 64), num_labels=3, has_masks=False)
    assert target["labels"].tolist() == [1, 3, 2] and "masks" not in target
    empty = {
        "class_labels": torch.zeros(0, dtype=torch.int64),
        "boxes": torch.zeros(0),
        "masks": torch.zeros(0, 32, 64),
    }
    (target,) = detection_targets([empty], (32, 64), num_labels=3, has_masks=True)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 32, 64)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"class_labels": torch.tensor([0, 1, 3, 1])}, r"labels\[0\]: class_labels must be from 0 to 2"),
        ({"class_labels": torch.tensor([0, -1, 2, 1])}, r"labels\[0\]: class_labels must be from 0 to 2"),
        ({"class_labels": torch.tensor([0])}, r"labels\[0\] has 1 class_labels, but 4 boxes"),
        ({"boxes": torch.full((4, 4), float("nan"))}, r"labels\[0\]: boxes must be finite"),
        ({"masks": None}, r"labels\[0\] has no masks"),
        ({"masks": torch.zeros(4, 64, 32)}, r"masks have the shape \(4, 64, 32\), but \(4, 32, 64\) is needed"),
    ],
)
def test_labels_that_do_not_fit(fields, problem):
    with pytest.raises(ValueError, match=problem):
        detection_targets([label(**fields)], (32, 64), num_labels=3, has_masks=True)


def test_detections_are_filled_up():
    found = [
        {
            "boxes": torch.tensor([[0.0, 0.0, 10.0, 20.0]]),
            "scores": torch.tensor([0.9]),
            "labels": torch.tensor([2]),
            "masks": torch.ones(1, 1, 28, 28),
        },
        {
            "boxes": torch.zeros(0, 4),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 1, 28, 28),
        },
    ]
    stacked = stack_detections(found, [(20, 40), (32, 32)], 3)
    assert torch.allclose(stacked["pred_boxes"][0, 0], torch.tensor([0.125, 0.5, 0.25, 1.0]))
    assert stacked["pred_labels"].tolist() == [[1, -1, -1], [-1, -1, -1]]
    assert torch.allclose(stacked["scores"], torch.tensor([[0.9, 0, 0], [0, 0, 0]]))
    assert stacked["pred_masks"].shape == (2, 3, 28, 28) and stacked["pred_masks"].sum() == 28 * 28
