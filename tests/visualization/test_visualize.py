"""`modeling_sit.visualize`: figures in Python, which a notebook shows."""

import base64
import io

import PIL.Image
import pytest
from IPython.utils.capture import capture_output

import modeling_sit


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model")


@pytest.fixture
def images(save_images, tmp_path):
    return save_images(tmp_path / "images", 4)


def test_figure_is_drawn_and_written_only_if_asked(model, images, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    drawn = modeling_sit.visualize("reconstructions", model, str(images), num_images=3, seed=1)
    assert drawn.paths == [] and sorted(tmp_path.rglob("*")) == before
    again = modeling_sit.visualize(
        "reconstructions",
        model,
        images=[str(path) for path in sorted(images.glob("*.png"))],
        output=tmp_path / "a.png",
    )
    assert again.paths == [tmp_path / "a.png"]
    with PIL.Image.open(tmp_path / "a.png") as written:
        assert written.tobytes() == again.figure.tobytes()
    assert again.figure.width > drawn.figure.width  # four images, not three


def test_notebook_shows_the_figure(model, images, ipython):
    with capture_output() as captured:
        ipython.push({"drawn": modeling_sit.visualize("attention", model, str(images), num_images=2)})
        ipython.run_cell("drawn").raise_error()
    (shown,) = [each.data for each in captured.outputs]
    assert PIL.Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))).size[0] > 100
    assert "Loading weights" not in captured.stderr  # transformers is quiet


def test_mistakes(model, images):
    with pytest.raises(modeling_sit.SiTError, match="did you mean attention") as error:
        modeling_sit.visualize("atention", model, str(images))
    assert error.value.argument == "kind"
    with pytest.raises(TypeError, match="num_heads"):
        modeling_sit.visualize("attention", model, str(images), num_heads=2)
    with pytest.raises(modeling_sit.SiTError) as error:
        modeling_sit.visualize("attention", model, str(images), output="figure.txt")
    assert error.value.argument == "output"
