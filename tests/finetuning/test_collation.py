"""Training images on their way to the model: random by their seeds, whoever asks for them."""

import datasets
import pytest
import torch
from torchvision.transforms import v2

from modeling_sit import SiTImageProcessor
from modeling_sit.data.labeled import IGNORED_LABEL, LabeledImageDataset
from modeling_sit.finetuning.augmentation import create_erasing
from modeling_sit.finetuning.collation import AugmentedImages, Collator, is_readable


@pytest.fixture
def images(save_images, tmp_path) -> LabeledImageDataset:
    paths = sorted(save_images(tmp_path / "images", 4).iterdir())
    paths[3].write_bytes(b"broken")
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"path": str(path), "bytes": None} for path in paths], "label": [0, 1, 0, 1]}
    return LabeledImageDataset(datasets.Dataset.from_dict(rows, features=features), 3)


@pytest.fixture
def collate() -> Collator:
    return Collator(SiTImageProcessor(size={"height": 16, "width": 16}), create_erasing(1.0))


def batches(images, collate, num_workers: int) -> list[dict]:
    augmented = AugmentedImages(images, v2.RandomResizedCrop(16))
    order = [(0, 5), (1, 6), (0, 7), (0, 5)]
    return list(torch.utils.data.DataLoader(augmented, 2, sampler=order, collate_fn=collate, num_workers=num_workers))


def test_random_by_its_seed_only(images, collate):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    item = AugmentedImages(images, v2.RandomResizedCrop(16))[1, 6]
    collate([item])
    assert torch.equal(torch.get_rng_state(), before)
    assert item["label"] == 1
    first, second = batches(images, collate, 0)
    assert first["pixel_values"][0].equal(second["pixel_values"][1])
    assert not first["pixel_values"][0].equal(second["pixel_values"][0])
    assert first["labels"].tolist() == [0, 1]


def test_the_same_from_workers(images, collate):
    for alone, by_worker in zip(batches(images, collate, 0), batches(images, collate, 1), strict=True):
        assert alone["pixel_values"].equal(by_worker["pixel_values"])


def test_erasing_is_of_training_images_only(images, collate):
    plain = Collator(collate.processor)
    items = [images[0], images[1]]
    assert collate(items)["pixel_values"].equal(plain(items)["pixel_values"])
    augmented = AugmentedImages(images, v2.Identity())
    trained = [augmented[0, 3], augmented[1, 4]]
    erased = (collate(trained)["pixel_values"] != plain(trained)["pixel_values"]).any(dim=1)
    assert all(0.01 < share < 0.4 for share in erased.float().mean(dim=(1, 2)))
    assert not torch.equal(*erased)


def test_what_cannot_be_read_is_named(images, collate, capsys):
    batch = collate([images[0], images[3]])
    assert "03.png" in capsys.readouterr().err
    assert batch["labels"].tolist() == [0, IGNORED_LABEL]
    assert is_readable(batch["labels"]).tolist() == [True, False]


def test_readable_of_several_labels():
    labels = torch.tensor([[0, 0.0], [1, 0], [IGNORED_LABEL, IGNORED_LABEL]])
    assert is_readable(labels).tolist() == [True, True, False]
