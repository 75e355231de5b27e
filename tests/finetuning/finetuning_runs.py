"""What runs of fine-tuning are given, and what they leave in their folder."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoImageProcessor, AutoModelForImageClassification

from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images

COLORS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (210, 30, 30)}
EVERYTHING_RANDOM = {
    "augmentation": "randaugment",
    "random_erasing_probability": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1,
    "drop_path_rate": 0.3,
    "ema_decay": 0.9,
    "balanced_sampling": True,
    "layer_decay": 0.75,
    "class_weights": "balanced",
}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "warmup_steps": 0}
ON_THE_WAY = {"eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.01}


def write_colors(folder: Path) -> Path:
    """Images of noise around one color each, a folder a class: 20, 10 and 10 to train, 4 a class to validate."""
    generator = np.random.default_rng(0)
    for split, counts in (("train", (20, 10, 10)), ("test", (4, 4, 4))):
        for (name, color), count in zip(COLORS.items(), counts, strict=True):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(color + generator.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{index:02}.png")
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "eval_results.json").read_text())["finetune"]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def backbone_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights_in(folder).items() if name.startswith("vit.")}


def accuracy_by_hand(folder: Path, dataset) -> float:
    images = load_images(str(dataset))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    read = [decode_image(image, model.config.num_channels) for image in images.validation["image"]]
    with torch.no_grad():
        predicted = model(**processor(read, return_tensors="pt")).logits.argmax(-1)
    return accuracy_score(images.validation["label"][:], predicted)


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert len(weights) > 30
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
