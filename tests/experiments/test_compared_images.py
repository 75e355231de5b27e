"""The images of a comparison."""

import io
from dataclasses import dataclass

import PIL.Image
import pytest

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.experiments.compared_images import compared_images
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.labeled_splits import load_splits


@dataclass(kw_only=True)
class Arguments(DatasetArguments):
    """With what a comparison has beside them."""

    validation_split: str | None = None


def test_fingerprint_follows_what_is_in_the_folder(save_images, tmp_path):
    def fingerprint() -> str:
        return compared_images(Arguments(dataset=str(tmp_path / "images"))).fingerprint()

    for number, name in enumerate(("cats", "dogs")):
        save_images(tmp_path / "images" / name, 6, seed=number)
    before = fingerprint()
    assert fingerprint() == before
    image = next((tmp_path / "images" / "cats").iterdir())
    image.rename(tmp_path / "images" / "dogs" / "other.png")
    relabeled = fingerprint()
    (tmp_path / "images" / "dogs" / "other.png").unlink()
    one_less = fingerprint()
    replaced = next((tmp_path / "images" / "cats").iterdir())
    PIL.Image.new("RGB", (90, 70)).save(replaced)
    assert len({before, relabeled, one_less, fingerprint()}) == 4


def test_fingerprint_of_images_in_memory():
    images = compared_images(Arguments(dataset="digits"))
    content = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(content, "PNG")

    def replace(row: dict, number: int) -> dict:
        return {"image": {"bytes": content.getvalue(), "path": None}} if number == 3 else row

    changed = images.test.map(replace, with_indices=True)
    assert images.in_memory(images.train, images.test).fingerprint() == images.fingerprint()
    assert images.in_memory(images.train, changed).fingerprint() != images.fingerprint()


@pytest.mark.parametrize("measured", [None, "test", "validation"])
def test_networks_choose_by_no_other_split(save_images, tmp_path, measured):
    """All its labels would be used, whatever the fraction."""
    for number, split in enumerate(("train", "validation", "test")):
        for label in ("cats", "dogs"):
            save_images(tmp_path / "images" / split / label, 2 + number, seed=number)
    images = compared_images(Arguments(dataset=str(tmp_path / "images"), validation_split=measured))
    assert len(images.test) == (6 if measured == "validation" else 8)
    given = {**images.arguments, "test_split": images.arguments["validation_split"], "validation_split": None}
    run = FinetuningArguments(model_name_or_path="none", label_fraction=0.5, **given)
    splits = load_splits(run, seed=0, evaluates=None)
    assert (len(splits.train), splits.validation, len(splits.test)) == (2, None, len(images.test))
