import json

import PIL.Image
import pytest

from modeling_sit.data.sources import load_images


def write(folder, lists, names):
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8)).save(path)
    for file, images in lists.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        content = {"images": [{"id": n, "file_name": name} for n, name in enumerate(images)], "annotations": []}
        (folder / file).write_text(json.dumps(content))
    return folder


def names(split):
    return [image["path"].rpartition("/images/")[2] for image in split["image"]]


@pytest.mark.parametrize(
    "lists",
    [
        {"train.json": ["0.png"], "test.json": ["2.png", "3.png"]},
        {"annotations/instances_test.json": ["images/2.png", "C:\\data\\3.png"]},
        {"test/_annotations.coco.json": ["2.png", "3.png", "of_another_set.png"]},
    ],
)
def test_images_of_a_test_list_are_not_trained_on(tmp_path, lists, caplog):
    images = load_images(str(write(tmp_path, lists, [f"{n}.png" for n in range(4)])))
    # Images that no file lists are there to be pretrained on.
    assert names(images.train) == ["0.png", "1.png"] and names(images.validation) == ["2.png", "3.png"]
    assert images.splits == ["train", "test"] and images.label_names is None
    assert "which are not trained on: test (2 images, by " in caplog.text


def test_three_splits_and_names_in_folders(tmp_path):
    lists = {"train.json": ["a/0.png"], "val.json": ["b/0.png"], "test.json": ["c/0.png"]}
    images = load_images(str(write(tmp_path, lists, ["a/0.png", "b/0.png", "c/0.png"])), validation_split="val")
    assert sorted(images.splits) == ["test", "train", "val"]
    assert names(images.train) == ["a/0.png"] and names(images.validation) == ["b/0.png"]


@pytest.mark.parametrize(
    "lists",
    [
        {"train.json": ["0.png"]},
        {"test.json": []},
        {"test.json": ["0.png", "1.png"]},  # all: they are meant
        {"test.json": ["8.png"]},
    ],
)
def test_all_others_are_to_train_on(tmp_path, lists):
    images = load_images(str(write(tmp_path, lists, ["0.png", "1.png"])))
    assert names(images.train) == ["0.png", "1.png"] and images.splits == ["train"]


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"images": 3}', '{"images": [{"id": 1}]}', '{"0": "sky"}'])
def test_other_files(tmp_path, text):
    folder = write(tmp_path, {}, ["0.png", "1.png"])
    (folder / "test.json").write_text(text)
    assert len(load_images(str(folder)).train) == 2
