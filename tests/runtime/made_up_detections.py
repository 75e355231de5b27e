"""Made-up objects in images, and what a detector might find of them."""

import datasets
import numpy as np
from pycocotools import mask

NAMES = ["cell", "crowded"]


def encoded(dense: np.ndarray) -> dict:
    found = mask.encode(np.asfortranarray(dense.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def made_up_rows(seed: int = 0, num_images: int = 6) -> datasets.Dataset:
    """Rectangles of two classes; each image has a crowd, and the last one has nothing."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_images):
        objects = {name: [] for name in ("id", "bbox", "category", "area", "iscrowd", "segmentation")}
        for index in range(0 if number == num_images - 1 else 4):
            left, top, width, height = (int(value) for value in generator.integers(4, 30, 4))
            dense = np.zeros((64, 80), bool)
            dense[top : top + height, left : left + width] = True
            values = (10 * number + index, [left, top, width, height], index % 2, width * height, int(index == 3))
            for name, value in zip(objects, (*values, encoded(dense)), strict=True):
                objects[name].append(value)
        rows.append({"image_id": 100 - number, "width": 80, "height": 64, "objects": objects})
    return datasets.Dataset.from_list(rows)


def found_in(row: dict, generator: np.random.Generator) -> tuple:
    """Objects near the true ones, some of the wrong class, some twice."""
    boxes, labels, masks = [], [], []
    for bbox, label, rle in zip(*(row["objects"][name] for name in ("bbox", "category", "segmentation")), strict=True):
        for _ in range(2):
            left, top, width, height = np.array(bbox) + generator.integers(-3, 4, 4)
            boxes.append([left, top, left + max(width, 1), top + max(height, 1)])
            labels.append(label if generator.random() < 0.8 else 1 - label)
            shift = int(generator.integers(-2, 3))
            masks.append(encoded(np.roll(mask.decode({**rle, "counts": rle["counts"].encode()}), shift, axis=1)))
    return np.array(boxes).reshape(-1, 4), generator.random(len(boxes)).round(1), np.array(labels), masks
