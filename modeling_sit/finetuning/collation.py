"""Training and validation images on their way to the model."""

import sys
from typing import Any

import torch
from torchvision.transforms import v2

from modeling_sit.data.labeled import IGNORED_LABEL, LabeledImageDataset
from modeling_sit.finetuning.augmentation import seeded


class AugmentedImages(torch.utils.data.Dataset):
    """
    Labeled images to train on. An item is asked for by a pair (index, seed), and is random by that seed only.

    Args:
        images ([`LabeledImageDataset`]): The images as they are.
        augmentation (callable): From image to image, random by PyTorch's global generator.

    An item is as of [`LabeledImageDataset`], with `seed`, for what else is random about it, beside.
    """

    def __init__(self, images: LabeledImageDataset, augmentation: v2.Transform):
        self.images = images
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        item = self.images[index]
        with seeded(seed):
            image = self.augmentation(item["image"])
            return {**item, "image": image, "seed": torch.randint(2**62, ()).item()}


class Collator:
    """
    Images to `pixel_values` and `labels`; names what could not be read.

    Args:
        processor: The model's image processor.
        erasing (callable, *optional*):
            What is done to the normalized images of [`AugmentedImages`], random by their seeds.
    """

    def __init__(self, processor: Any, erasing: v2.Transform | None = None):
        self.processor = processor
        self.erasing = erasing

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        for item in items:
            if item["unreadable"] is not None:
                print(f"skipped an unreadable image: {item['unreadable']}", file=sys.stderr, flush=True)
        pixel_values = self.processor([item["image"] for item in items], return_tensors="pt")["pixel_values"]
        if self.erasing is not None and "seed" in items[0]:
            pixel_values = torch.stack(
                [self._erase(image, item["seed"]) for image, item in zip(pixel_values, items, strict=True)]
            )
        return {"pixel_values": pixel_values, "labels": torch.stack([torch.as_tensor(i["label"]) for i in items])}

    def _erase(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            return self.erasing(image)


def is_readable(labels: torch.Tensor) -> torch.Tensor:
    """Which images of a batch could be read, `(batch,)`, bool, by their labels `(batch,)` or `(batch, num_labels)`."""
    readable = labels != IGNORED_LABEL
    return readable if labels.ndim == 1 else readable.all(dim=1)
