"""Boxes, segments and label maps of original images, from outputs in the form of SiT's detectors."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import roi_align
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput

from modeling_sit import SiTImageProcessor, SiTImageProcessorPil
from modeling_sit.dense_outputs import detections_of, paste_mask
from modeling_sit.detection_heads import detection_targets
from modeling_sit.run_length_encoding import decode_mask, encode_mask

# No side is a multiple of 32, before resizing and after it.
SIZES = [(50, 70), (90, 41)]
SHAPES = [
    [(3, 5, 25, 30), (20, 10, 60, 45), (64, 1, 70, 9)],
    [(0, 0, 41, 90), (7, 40, 23, 61)],
]


@pytest.fixture(params=[SiTImageProcessor, SiTImageProcessorPil], ids=["torchvision", "pil"])
def processor(request):
    return request.param(size={"longest_edge": 150}, do_pad=True)


def ellipse(height, width, left, top, right, bottom):
    y, x = np.mgrid[:height, :width] + 0.5
    center, radius = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
    return ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 <= 1


def truth():
    """Annotations of two images, and their masks."""
    masks = [[ellipse(*size, *box) for box in boxes] for size, boxes in zip(SIZES, SHAPES, strict=True)]
    annotations = [
        {
            "image_id": number,
            "annotations": [
                {
                    "category_id": category,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": encode_mask(mask),
                }
                for category, (box, mask) in enumerate(zip(boxes, masks[number], strict=True))
            ],
        }
        for number, boxes in enumerate(SHAPES)
    ]
    return annotations, masks


def perfect_outputs(features, places=6, dtype=torch.float32):
    """What a detector without a mistake gives: boxes relative to the images without padding, masks of 28 x 28."""
    count = len(features["labels"])
    scores, boxes, masks = (
        torch.zeros(count, places),
        torch.zeros(count, places, 4),
        torch.zeros(count, places, 28, 28),
    )
    labels = torch.full((count, places), -1)
    height, width = features["pixel_values"].shape[2:]
    for number, label in enumerate(features["labels"]):
        objects = len(label["boxes"])
        true_height, true_width = (features["pixel_mask"][number].sum(dim=axis).max().item() for axis in (0, 1))
        relative = torch.tensor([width / true_width, height / true_height] * 2)
        scores[number, :objects] = 0.95 - 0.1 * torch.arange(objects)
        labels[number, :objects] = label["class_labels"]
        boxes[number, :objects] = label["boxes"] * relative
        center, half = label["boxes"][:, :2], label["boxes"][:, 2:] / 2
        corners = torch.cat([center - half, center + half], dim=1) * torch.tensor([width, height] * 2)
        places_of = torch.cat([torch.arange(objects)[:, None], corners], dim=1)
        masks[number, :objects] = roi_align(label["masks"][:, None].float(), places_of, 28, aligned=True)[:, 0]
    return ModelOutput(
        scores=scores.to(dtype), pred_labels=labels, pred_boxes=boxes.to(dtype), pred_masks=masks.to(dtype)
    )


@pytest.fixture
def outputs(processor):
    annotations, _ = truth()
    batch = [PIL.Image.new("RGB", size[::-1]) for size in SIZES]
    features = processor(batch, annotations=annotations, return_segmentation_masks=True, return_tensors="pt")
    assert features["pixel_values"].shape == (2, 3, 160, 160)
    return perfect_outputs(features)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_boxes_come_back(processor, outputs):
    for sizes in (SIZES, torch.tensor(SIZES)):
        results = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=sizes)
        for result, boxes in zip(results, SHAPES, strict=True):
            assert list(result) == ["scores", "labels", "boxes"]
            torch.testing.assert_close(result["boxes"], torch.tensor(boxes, dtype=torch.float32), atol=1e-3, rtol=0)
            assert result["labels"].tolist() == list(range(len(boxes)))
    relative = processor.post_process_object_detection(outputs)[1]["boxes"]
    torch.testing.assert_close(relative[0], torch.tensor([0.0, 0, 1, 1]))


def test_the_threshold_and_the_empty_places(processor, outputs):
    kept = [len(each["scores"]) for each in processor.post_process_object_detection(outputs, 0.8, SIZES)]
    assert kept == [2, 2]
    everything = processor.post_process_object_detection(outputs, -1.0, SIZES)
    assert [len(each["scores"]) for each in everything] == [3, 2]
    outputs["pred_labels"][:] = -1
    for result in processor.post_process_object_detection(outputs, 0.0, SIZES):
        assert result["boxes"].shape == (0, 4)


def test_outputs_of_any_kind(processor, outputs):
    expected = processor.post_process_object_detection(outputs, target_sizes=SIZES)[0]["boxes"]
    others = (
        dict(outputs),
        SimpleNamespace(**{name.replace("pred_labels", "labels"): v for name, v in outputs.items()}),
    )
    for other in others:
        assert torch.equal(processor.post_process_object_detection(other, target_sizes=SIZES)[0]["boxes"], expected)


def test_masks_come_back(processor, outputs):
    _, masks = truth()
    results = processor.post_process_instance_segmentation(outputs, target_sizes=SIZES, return_binary_maps=True)
    for result, expected in zip(results, masks, strict=True):
        assert result["segmentation"].dtype == torch.bool
        assert [info["label_id"] for info in result["segments_info"]] == list(range(len(expected)))
        for found, mask in zip(result["segmentation"].numpy(), expected, strict=True):
            assert overlap(found, mask) > 0.93
    as_coco = processor.post_process_instance_segmentation(outputs, target_sizes=SIZES, return_coco_annotation=True)
    for result, binary in zip(as_coco, results, strict=True):
        assert result["segments_info"] == binary["segments_info"]
        decoded = np.stack([coco.decode(rle) for rle in result["segmentation"]])
        assert np.array_equal(decoded, binary["segmentation"])


def test_the_map_of_segments(processor, outputs):
    _, masks = truth()
    (first, second) = processor.post_process_instance_segmentation(outputs, target_sizes=SIZES)
    assert first["segmentation"].dtype == torch.int32
    assert first["segmentation"].shape == SIZES[0]
    assert first["segments_info"][0] == {"id": 1, "label_id": 0, "score": 0.95, "was_fused": False}
    assert [info["id"] for info in first["segments_info"]] == [1, 2, 3]
    # The first lies above the second.
    assert overlap(first["segmentation"].numpy() == 1, masks[0][0]) > 0.93
    assert overlap(first["segmentation"].numpy() == 2, masks[0][1] & ~masks[0][0]) > 0.93
    # Of the second image, the small one is hidden by the large one, whose score is higher.
    assert [info["label_id"] for info in second["segments_info"]] == [0]
    assert set(second["segmentation"].unique().tolist()) == {-1, 1}
    outputs["scores"][1, 1] = 0.99
    second = processor.post_process_instance_segmentation(outputs, target_sizes=SIZES)[1]
    assert [info["label_id"] for info in second["segments_info"]] == [1, 0]
    loose = processor.post_process_instance_segmentation(
        outputs, target_sizes=SIZES, overlap_mask_area_threshold=0.95
    )[1]
    assert [info["label_id"] for info in loose["segments_info"]] == [1]


def test_an_image_without_segments(processor, outputs):
    for options, shape in (({}, SIZES[0]), ({"return_binary_maps": True}, (0, *SIZES[0]))):
        result = processor.post_process_instance_segmentation(outputs, 0.96, target_sizes=SIZES, **options)[0]
        assert result["segments_info"] == []
        assert result["segmentation"].shape == shape
    assert (
        processor.post_process_instance_segmentation(outputs, 0.96, target_sizes=SIZES)[0]["segmentation"] == -1
    ).all()


def test_detections_for_cocos_measures(processor, outputs):
    found = detections_of(outputs, SIZES, threshold=0.8)
    expected = processor.post_process_object_detection(outputs, 0.8, SIZES)
    whole = processor.post_process_instance_segmentation(outputs, 0.8, target_sizes=SIZES, return_coco_annotation=True)
    for one, two, three in zip(found, expected, whole, strict=True):
        for name, value in two.items():
            assert np.array_equal(one[name], value)
        assert one["masks"] == three["segmentation"]
    outputs = ModelOutput({name: value for name, value in outputs.items() if name != "pred_masks"})
    assert detections_of(outputs, SIZES)[0]["masks"] is None


def test_bfloat16(processor, outputs):
    low = ModelOutput({name: v.bfloat16() if v.is_floating_point() else v for name, v in outputs.items()})
    results = processor.post_process_instance_segmentation(low, target_sizes=SIZES)
    assert [len(result["segments_info"]) for result in results] == [3, 1]
    assert detections_of(low, SIZES)[0]["scores"].dtype == np.float32


@pytest.mark.parametrize(
    "box", [(3.2, 4.9, 17.7, 12.1), (-5, 3, 9, 40), (30, 20, 45, 33), (8.4, 8.4, 8.6, 30), (7, 7, 7, 7)]
)
def test_pasting_against_a_loop(box):
    mask = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    height, width = 30, 40
    expected = np.zeros((height, width), dtype=bool)
    left, top, right, bottom = box
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            if not (left <= x < right and top <= y < bottom):
                continue
            u = np.clip((x - left) / (right - left) * 5 - 0.5, 0, 4)
            v = np.clip((y - top) / (bottom - top) * 7 - 0.5, 0, 6)
            columns, rows = [max(0, 1 - abs(u - k)) for k in range(5)], [max(0, 1 - abs(v - k)) for k in range(7)]
            expected[row, column] = np.array(rows) @ mask @ np.array(columns) >= 0.5
    assert np.array_equal(paste_mask(mask, np.array(box), height, width), expected)


# Semantic segmentation.


def semantic_outputs(processor, maps, shape=(160, 160)):
    """Logits of a model without a mistake."""
    batch = [PIL.Image.new("RGB", label_map.shape[::-1]) for label_map in maps]
    labels = processor(batch, segmentation_maps=maps, return_tensors="pt")["labels"]
    assert labels.shape[1:] == shape
    classes = torch.nn.functional.one_hot(labels.where(labels != 255, 0), 4).permute(0, 3, 1, 2).float()
    return SemanticSegmenterOutput(logits=9 * torch.nn.functional.avg_pool2d(classes, 4))


def quadrants(height, width):
    label_map = np.zeros((height, width), dtype=np.uint8)
    label_map[height // 3 :, : width // 2] = 1
    label_map[height // 3 :, width // 2 :] = 3
    return label_map


def test_label_maps_come_back(processor):
    maps = [quadrants(*size) for size in SIZES]
    outputs = semantic_outputs(processor, maps)
    results = processor.post_process_semantic_segmentation(outputs, target_sizes=SIZES)
    for result, label_map in zip(results, maps, strict=True):
        assert result.shape == label_map.shape
        assert (result.numpy() == label_map).mean() > 0.98
    # Of one image alone, too.
    alone = processor.post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=outputs.logits[1:]), target_sizes=torch.tensor(SIZES[1:])
    )
    assert torch.equal(alone[0], results[1])
    scores = processor.post_process_semantic_segmentation(outputs, SIZES, return_segmentation_scores=True)
    assert torch.equal(scores[0].segmentation_scores.argmax(0), results[0])
    assert scores[0]["segmentation_scores"].shape == (4, *SIZES[0])
    assert [tuple(m.shape) for m in processor.post_process_semantic_segmentation(outputs)] == [(40, 40)] * 2


@pytest.mark.parametrize("pad_size", [None, {"height": 200, "width": 180}])
def test_label_maps_of_a_model_with_logits_of_pixels(processor, pad_size):
    """As UperNet has them."""
    maps = [quadrants(*size) for size in SIZES]
    padding = type(processor)(**{**processor.to_dict(), "pad_size": pad_size})
    shape = (160, 160) if pad_size is None else (200, 180)
    outputs = semantic_outputs(padding, maps, shape)
    large = torch.nn.functional.interpolate(outputs.logits, shape, mode="bilinear")
    results = padding.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=large), SIZES)
    for result, label_map in zip(results, maps, strict=True):
        assert (result.numpy() == label_map).mean() > 0.98


def test_label_maps_of_squares(processor):
    square = type(processor)(size={"height": 64, "width": 64})
    maps = [quadrants(*size) for size in SIZES]
    results = square.post_process_semantic_segmentation(semantic_outputs(square, maps, (64, 64)), SIZES)
    for result, label_map in zip(results, maps, strict=True):
        assert (result.numpy() == label_map).mean() > 0.95


def test_segments_of_a_label_map(processor):
    """What transformers' pipeline asks of a semantic model."""
    maps = [quadrants(*size) for size in SIZES]
    outputs = semantic_outputs(processor, maps)
    semantic = processor.post_process_semantic_segmentation(outputs, target_sizes=SIZES)
    results = processor.post_process_instance_segmentation(outputs, threshold=0.9999, target_sizes=SIZES)
    for result, label_map in zip(results, semantic, strict=True):
        assert [info["label_id"] for info in result["segments_info"]] == [0, 1, 3]
        for info in result["segments_info"]:
            assert torch.equal(result["segmentation"] == info["id"], label_map == info["label_id"])
            assert 0.9 < info["score"] <= 1
    as_coco = processor.post_process_instance_segmentation(outputs, target_sizes=SIZES, return_coco_annotation=True)
    assert np.array_equal(decode_mask(as_coco[0]["segmentation"][2]), semantic[0] == 3)


# Mistakes, one clear line each.


def test_what_is_refused(processor, outputs):
    def problem(method, *arguments, **options):
        with pytest.raises(ValueError) as raised:
            getattr(processor, method)(*arguments, **options)
        return str(raised.value)

    semantic = SemanticSegmenterOutput(logits=torch.zeros(2, 4, 40, 40))
    instance = "post_process_instance_segmentation"
    assert "there are 2 images, and 1 target_sizes" in problem(
        "post_process_object_detection", outputs, 0.5, SIZES[:1]
    )
    assert "need a detector" in problem("post_process_object_detection", semantic)
    assert "cannot both be True" in problem(instance, outputs, return_coco_annotation=True, return_binary_maps=True)
    assert "target_sizes are needed" in problem(instance, outputs)
    outputs = ModelOutput({name: value for name, value in outputs.items() if name != "pred_masks"})
    assert "no pred_masks" in problem(instance, outputs, target_sizes=SIZES)
    assert "no logits" in problem("post_process_semantic_segmentation", outputs)
    assert "original sizes" in problem(
        "post_process_semantic_segmentation", SemanticSegmenterOutput(logits=torch.zeros(1, 4, 8, 8)), [(50, 70)]
    )


def test_targets_of_training_and_drawing_are_inverse():
    """A true mask, as the mask head learns it, and drawn again: half a pixel beside it would be much for small objects."""
    boxes = [(3, 5, 15, 17), (20, 10, 60, 45), (60, 1, 70, 9), (0, 30, 70, 49)]
    masks = torch.from_numpy(np.stack([ellipse(50, 70, *box) for box in boxes]))
    corners = torch.tensor(boxes, dtype=torch.float32)
    center = (corners[:, :2] + corners[:, 2:]) / 2
    relative = torch.cat([center, corners[:, 2:] - corners[:, :2]], dim=1) / torch.tensor([70, 50, 70, 50])
    label = {"class_labels": torch.zeros(4, dtype=torch.int64), "boxes": relative, "masks": masks}
    (target,) = detection_targets([label], (50, 70), 1, True)
    learned = project_masks_on_boxes(target["masks"], target["boxes"], torch.arange(4), 28)
    for mask, box, expected in zip(learned.numpy(), boxes, masks.numpy(), strict=True):
        assert overlap(paste_mask(mask, np.array(box), 50, 70), expected) > 0.97


def test_at_the_threshold_scores_are_below_and_pixels_above(processor, outputs):
    score = outputs["scores"][0, 0].item()
    assert score not in processor.post_process_object_detection(outputs, score, SIZES)[0]["scores"].tolist()
    assert paste_mask(np.full((2, 2), 0.5), np.array([0, 0, 4, 4]), 4, 4).all()
