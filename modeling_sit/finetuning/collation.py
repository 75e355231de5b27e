"""Training and validation pictures on their way to the model."""

import sys
from typing import Any

import torch
from torchvision.transforms import v2

from modeling_sit.data.labeled import IGNORED_LABEL, LabelledPictures
from modeling_sit.finetuning.augmentation import seeded


class AugmentedPictures(torch.utils.data.Dataset):
    """
    Labelled pictures to train on. An item is asked for by a pair (index, seed), and is random by that seed only.

    Args:
        pictures ([`LabelledPictures`]): The pictures as they are.
        augmentation (callable): From picture to picture, random by PyTorch's global generator.

    An item is as of [`LabelledPictures`], with `seed`, for what else is random about it, beside.
    """

    def __init__(self, pictures: LabelledPictures, augmentation: v2.Transform):
        self.pictures = pictures
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        item = self.pictures[index]
        with seeded(seed):
            image = self.augmentation(item["image"])
            return {**item, "image": image, "seed": torch.randint(2**62, ()).item()}


class Collator:
    """
    Pictures to `pixel_values` and `labels`; names what could not be read.

    Args:
        processor: The model's image processor.
        erasing (callable, *optional*):
            What is done to the normalised pictures of [`AugmentedPictures`], random by their seeds.
    """

    def __init__(self, processor: Any, erasing: v2.Transform | None = None):
        self.processor = processor
        self.erasing = erasing

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        for item in items:
            if item["unreadable"] is not None:
                print(f"skipped an unreadable picture: {item['unreadable']}", file=sys.stderr, flush=True)
        pixel_values = self.processor([item["image"] for item in items], return_tensors="pt")["pixel_values"]
        if self.erasing is not None and "seed" in items[0]:
            pixel_values = torch.stack(
                [self._erase(picture, item["seed"]) for picture, item in zip(pixel_values, items, strict=True)]
            )
        return {"pixel_values": pixel_values, "labels": torch.stack([torch.as_tensor(i["label"]) for i in items])}

    def _erase(self, picture: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            return self.erasing(picture)


def is_readable(labels: torch.Tensor) -> torch.Tensor:
    """Which pictures of a batch could be read, `(batch,)`, bool, by their labels `(batch,)` or `(batch, num_labels)`."""
    readable = labels != IGNORED_LABEL
    return readable if labels.ndim == 1 else readable.all(dim=1)
