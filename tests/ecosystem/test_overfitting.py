"""Models of detection and segmentation learn a few images by heart, measured as users measure them."""

import io
from pathlib import Path

import PIL.Image
import pytest
import torch

import modeling_sit
from modeling_sit import SiTConfig, SiTForInstanceSegmentation, SiTImageProcessor
from modeling_sit.data.dense.loading import open_dense
from modeling_sit.data.dense.rows import annotations_of
from modeling_sit.dense_outputs import detections_of
from modeling_sit.evaluation.coco_evaluation import CocoEvaluation

NUCLEI = Path(modeling_sit.__file__).parents[2] / "shared" / "data" / "nuclei"
SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "patch_size": 8,
    "pyramid_size": 32,
    "mask_head_num_layers": 1,
    "drop_path_rate": 0.0,
}


def learn_by_heart(model: SiTForInstanceSegmentation, batch: dict, num_steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.1)
    model.train()
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        schedule.step()
    model.eval()


def rectangles_and_ellipses(num_images: int, side: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Images `(num_images, 3, side, side)` of a rectangle (class 0) on the left and an ellipse (class 1) on the right."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(num_images, 3, side, side, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    labels = []
    for image in images:
        boxes, masks = [], []
        for number, color in enumerate(torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5]])):
            height, width = torch.randint(12, 26, (2,), generator=generator).tolist()
            top = torch.randint(0, side - height, (1,), generator=generator).item()
            left = torch.randint(0, side // 2 - width, (1,), generator=generator).item() + number * side // 2
            down, right = (rows - top) / height, (columns - left) / width
            inside = (down > 0) & (down < 1) & (right > 0) & (right < 1)
            mask = inside if number == 0 else (down - 0.5) ** 2 + (right - 0.5) ** 2 < 0.25
            image[:, mask] += color[:, None]
            boxes.append([left + width / 2, top + height / 2, width, height])
            masks.append(mask)
        labels.append(
            {
                "class_labels": torch.tensor([0, 1]),
                "boxes": torch.tensor(boxes) / side,
                "masks": torch.stack(masks),
            }
        )
    return images, labels


@pytest.mark.slow
def test_two_objects_an_image_to_the_pixel():
    """180 steps, half a minute on a free core."""
    images, labels = rectangles_and_ellipses(4, 64)
    torch.manual_seed(0)
    model = SiTForInstanceSegmentation(
        SiTConfig(**SMALL, num_hidden_layers=2, image_size=64, box_head_size=64, rois_per_image=32, num_labels=2)
    )
    learn_by_heart(model, {"pixel_values": images, "labels": labels}, 180, 2e-3)
    with torch.no_grad():
        output = model(images)
    for number, label in enumerate(labels):
        # The best of each class.
        best = [(output.pred_labels[number] == kind).nonzero()[0, 0] for kind in (0, 1)]
        assert output.scores[number, best].min() > 0.9
        boxes = output.pred_boxes[number, best]
        corners, expected = (
            64 * torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)
            for box in (boxes, label["boxes"])
        )
        assert (corners - expected).abs().max() < 1
        rectangle, ellipse = (output.pred_masks[number, best] > 0.5).float().mean(dim=(1, 2))
        assert rectangle > 0.95 and abs(ellipse - torch.pi / 4) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(not NUCLEI.is_dir(), reason="needs ../shared/data")
def test_eight_images_of_nuclei():
    """From the files to COCO's figures; 150 steps, a minute on a free core."""
    rows = open_dense(NUCLEI, "boxes").read("train").select(range(60)).filter(is_small)
    rows = rows.select(range(8))
    images = [read_image(row) for row in rows]
    annotations = [{"image_id": row["image_id"], "annotations": annotations_of(row)} for row in rows]
    processor = SiTImageProcessor(size={"longest_edge": 128}, do_pad=True, patch_size=8)
    batch = dict(processor(images, annotations, return_segmentation_masks=True, return_tensors="pt"))
    torch.manual_seed(0)
    model = SiTForInstanceSegmentation(
        SiTConfig(
            **SMALL,
            num_hidden_layers=3,
            image_size=128,
            box_head_size=128,
            rois_per_image=64,
            anchor_sizes=[8, 16, 32, 64, 128],
            num_labels=1,
        )
    )
    learn_by_heart(model, batch, 150, 2e-3)
    with torch.no_grad():
        output = model(batch["pixel_values"], batch["pixel_mask"])
    evaluation = CocoEvaluation(rows, ["nucleus"], ("bbox", "segm"))
    found = detections_of(output, [(row["height"], row["width"]) for row in rows])
    for row, detected in zip(rows, found, strict=True):
        evaluation.add(row["image_id"], detected["boxes"], detected["scores"], detected["labels"], detected["masks"])
    figures = evaluation.compute()
    assert figures["map_50"] > 0.9 and figures["mask_map_50"] > 0.9, figures


def is_small(row: dict) -> bool:
    return max(row["width"], row["height"]) <= 256 and 5 <= len(row["objects"]["bbox"]) <= 40


def read_image(row: dict) -> PIL.Image.Image:
    image = row["image"]
    return PIL.Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]).convert("RGB")
