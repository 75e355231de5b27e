"""Small sets of objects in COCO's form, written to a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

WIDTH, HEIGHT = 24, 20
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]
TRIANGLE = [[2.0, 2.0, 18.0, 3.0, 10.0, 15.0]]


def write_images(folder: Path, count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(folder.name))
    for number in range(count):
        pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


def content(count: int = 2, annotations: list[dict[str, Any]] | None = None, **lists: Any) -> dict[str, Any]:
    """The content of a file: images 1, 2, ... called `0.png`, `1.png`, and two categories with a gap."""
    images = [
        {"id": number + 1, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in range(count)
    ]
    categories = [{"id": 7, "name": "late"}, {"id": 3, "name": "early"}]
    return {"images": images, "annotations": annotations or [], "categories": categories, **lists}


def annotation(id: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id, "image_id": 1, "category_id": 3, "bbox": [4, 4, 8, 8], **fields}


def write_set(folder: Path, written: dict[str, Any], name: str = "train.json", images: str = "images") -> Path:
    write_images(folder / images, len(written.get("images", ())))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written))
    return folder
