"""Maps of features, from arguments to what is said of them."""

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
