"""The images of a comparison."""

import io
import re
import shutil
from dataclasses import dataclass

import datasets
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
    assert len({before, relabeled, fingerprint()}) == 3


def test_files_differ_where_an_image_was_replaced(save_images, tmp_path):
    def files() -> str:
        return compared_images(Arguments(dataset=str(tmp_path / "images"))).files()

    for number, name in enumerate(("cats", "dogs")):
        save_images(tmp_path / "images" / name, 6, seed=number)
    before = files()
    (tmp_path / "images").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "images")
    assert files() == before
    PIL.Image.new("RGB", (90, 70)).save(next((tmp_path / "images" / "cats").iterdir()))
    assert files() != before


def test_files_of_images_in_memory():
    images = compared_images(Arguments(dataset="digits"))
    content = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(content, "PNG")

    def replace(row: dict, number: int) -> dict:
        return {"image": {"bytes": content.getvalue(), "path": None}} if number == 3 else row

    changed = images.test.map(replace, with_indices=True)
    assert images.in_memory(images.train, changed).files() != images.files()
    assert images.in_memory(images.train, changed).fingerprint() == images.fingerprint()


@pytest.mark.parametrize("form", ["held back", "in memory", "two splits", "without"])
def test_copies_of_training_images_among_those_that_are_measured(save_images, tmp_path, capsys, form):
    """Also where a part of train is held back. They are named where the dataset has them."""
    folder = tmp_path / "images"
    for number, name in enumerate(("cats", "dogs")):
        save_images(folder / "train" / name, 10, seed=number)
        if form == "two splits":
            save_images(folder / "test" / name, 2, seed=number)
        elif form != "without":
            for path in list((folder / "train" / name).iterdir()):
                shutil.copy(path, path.with_name(f"{path.stem}_copy.png"))
    dataset = str(folder)
    if form == "in memory":
        rows = [{"image": {"bytes": path.read_bytes()}, "label": -1} for path in sorted(folder.rglob("*.png"))]
        for number, row in enumerate(rows[1:]):  # the first one has no label
            row["label"] = int(number >= 19)
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])}
        dataset = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    images = compared_images(Arguments(dataset=dataset))
    lines = [line for line in capsys.readouterr().out.splitlines() if "byte for byte" in line]
    if form == "without":
        assert images.copies is None and not lines
        return
    assert lines == [f"  warning: {images.copies}"]
    train, test = (
        [opened.tobytes() for opened in split.cast_column("image", datasets.Image())["image"]]
        for split in (images.train, images.test)
    )
    number = sum(image in train for image in test)
    where = (
        "test and in train" if form == "two splits" else "the part of train that is held back and in the rest of it"
    )
    assert number > 2 and images.copies.startswith(f"{number} images are in {where} too, ")
    pattern = r"row (\d+) of train" if form == "in memory" else r"(\S+\.png)"
    found = re.fullmatch(rf".* such as {pattern} and {pattern}; results on them are too good", images.copies).groups()
    one, other = (
        dataset[int(place)]["image"] if form == "in memory" else PIL.Image.open(folder / place) for place in found
    )
    assert len(set(found)) == 2 and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("form", ["folder", "parquet", "saved", "memory"])
@pytest.mark.parametrize("measured", [None, "test", "validation"])
def test_networks_choose_by_no_other_split(save_images, tmp_path, measured, form):
    """All its labels would be used, whatever the fraction."""
    for number, split in enumerate(("train", "validation", "test")):
        for label in ("cats", "dogs"):
            save_images(tmp_path / "images" / split / label, 2 + number, seed=number)
    dataset = str(tmp_path / "images")
    if form != "folder":
        found = datasets.load_dataset("imagefolder", data_dir=dataset, cache_dir=tmp_path / "cache")
        if form == "parquet":
            for split, rows in found.items():
                rows.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
        elif form == "saved":
            found.save_to_disk(tmp_path / "saved")
        dataset = found if form == "memory" else str(tmp_path / form)
    images = compared_images(Arguments(dataset=dataset, validation_split=measured))
    assert len(images.test) == (6 if measured == "validation" else 8)
    assert images.arguments["dataset"] is dataset  # pretraining may measure itself on any split
    given = {**images.for_finetuning, "test_split": images.arguments["validation_split"], "validation_split": None}
    run = FinetuningArguments(model_name_or_path="none", label_fraction=0.5, **given)
    splits = load_splits(run, seed=0, evaluates=None)
    assert (len(splits.train), splits.validation, len(splits.test)) == (2, None, len(images.test))
    assert splits.test_name == (measured or "test")
