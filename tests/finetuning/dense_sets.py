"""Small sets of squares and of halves, written to a folder."""

import json
from pathlib import Path

import numpy as np
import PIL.Image

COLORS = {"blue": (20, 30, 220), "red": (210, 30, 30)}


def write_squares(folder: Path, size: tuple[int, int] = (48, 64), **counts: int) -> Path:
    """COCO files of images with two squares each, blue or red, and one image without any; `counts` by split."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in enumerate(COLORS, 1)]
    for split, count in counts.items():
        images, annotations = [], []
        for number in range(count):
            # The second one is turned, so that images of two shapes are measured.
            height, width = size if number != 1 else size[::-1]
            pixels = generator.integers(90, 130, (height, width, 3), dtype=np.uint8)
            name = f"{split}{number}.png"
            images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
            for _ in range(2 if number != 2 else 0):
                side = int(generator.integers(10, 20))
                left, top = (int(generator.integers(0, extent - side)) for extent in (width, height))
                category = int(generator.integers(0, 2))
                pixels[top : top + side, left : left + side] = list(COLORS.values())[category]
                corners = [left, top, left + side, top, left + side, top + side, left, top + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category + 1,
                        "bbox": [left, top, side, side],
                        "segmentation": [corners],
                        "iscrowd": 0,
                    }
                )
            PIL.Image.fromarray(pixels).save(folder / "images" / name)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def write_halves(folder: Path, size: tuple[int, int] = (48, 64), **counts: int) -> Path:
    """Images and masks: blue on the left, red on the right, and a row without a class; `counts` by split."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            height, width = size if number != 1 else size[::-1]
            border = int(generator.integers(8, width - 8))
            mask = np.zeros((height, width), np.uint8)
            mask[:, border:], mask[-1] = 1, 255
            pixels = np.array(list(COLORS.values()))[mask.clip(max=1)] + generator.integers(
                -20, 20, (height, width, 3)
            )
            image = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / split / "images" / f"{number}.png")
            PIL.Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(COLORS))))
    return folder
