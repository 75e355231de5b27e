"""Maps of features, from arguments to what is said of them."""

import datasets
import pytest

from modeling_sit import visualize


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model")


def test_only_images_that_can_be_read_vote(model, save_images, tmp_path):
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 5, seed=number)
    (tmp_path / "flowers" / "train" / "tulip" / "04.png").write_bytes(b"no image")
    page = tmp_path / "a.html"
    drawn = visualize("embeddings", model, str(tmp_path / "flowers"), knn=True, method="pca", html=page)
    assert drawn.paths == [page]
    assert "votes of the 9 nearest of 9 labeled images" in page.read_text()


def test_images_without_any_class_are_drawn_and_not_measured(model, save_images, tmp_path):
    """Where an image can have several classes, it can have none. The only one that has some cannot be read."""
    images = [{"bytes": path.read_bytes(), "path": None} for path in save_images(tmp_path / "images", 8).iterdir()]
    classes = datasets.List(datasets.ClassLabel(names=["rose", "tulip"]))
    features = datasets.Features({"image": datasets.Image(decode=False), "label": classes})
    train = {"image": images, "label": [[0], [1], [0, 1], []] * 2}
    validation = {"image": [*images, {"bytes": b"no image", "path": None}], "label": [*[[]] * 8, [1]]}
    splits = {
        name: datasets.Dataset.from_dict(columns, features=features)
        for name, columns in (("train", train), ("validation", validation))
    }
    page = tmp_path / "a.html"
    visualize("embeddings", model, datasets.DatasetDict(splits), knn=True, method="pca", html=page)
    assert "votes of" not in page.read_text()
