"""Attention of the first token, against the attention weights written out."""

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    YolosConfig,
    YolosModel,
)

from modeling_sit import SiTImageProcessor, SiTModel
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.attention import attention_figure, attention_maps, draw_attention


@pytest.fixture
def model(tiny_config) -> SiTModel:
    torch.manual_seed(0)
    return SiTModel(tiny_config(image_size=(16, 24), initializer_range=0.5, drop_path_rate=0.9)).train()


IMAGES = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def slow_maps(model: SiTModel, layer: int) -> torch.Tensor:
    """From the queries and keys of a layer, one head, image and patch at a time."""
    model.eval()
    states = model(IMAGES, output_hidden_states=True).hidden_states[layer - 1]
    block = model.encoder.layer[layer - 1]
    normed = block.layernorm_before(states)
    attention = block.attention.attention
    query, key = attention.query(normed), attention.key(normed)
    maps = torch.zeros(3, 2, 2, 3)
    for image in range(3):
        for head in range(2):
            part = slice(head * 8, (head + 1) * 8)
            scores = key[image, :, part] @ query[image, 0, part] / 8**0.5
            weights = scores.exp() / scores.exp().sum()
            for patch in range(6):
                maps[image, head, patch // 3, patch % 3] = 7 * weights[1 + patch]
    return maps


@pytest.mark.parametrize("layer", [1, 2, None])
def test_maps_against_a_slow_version(model, layer):
    torch.testing.assert_close(attention_maps(model, IMAGES, layer), slow_maps(model, layer or 2))


def test_model_is_left_as_it_was(model):
    implementation = model.config._attn_implementation
    model.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    first = attention_maps(model, IMAGES)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == implementation == "sdpa"
    assert torch.equal(first, attention_maps(model, IMAGES))  # without stochastic depth


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}


@pytest.mark.parametrize(
    ("model", "in_front", "behind"),
    [
        (
            lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, image_size=16, num_register_tokens=3)),
            4,
            0,
        ),
        (lambda: DeiTModel(DeiTConfig(**SIZES, image_size=16)), 2, 0),
        (lambda: YolosModel(YolosConfig(**SIZES, image_size=[16, 16], num_detection_tokens=5)), 1, 5),
    ],
)
def test_other_tokens_are_no_patches(model, in_front, behind):
    model = model().eval()
    images = IMAGES[..., :16]
    model.set_attn_implementation("eager")
    weights = model(images, output_attentions=True).attentions[0]
    num_tokens = in_front + 4 + behind
    assert weights.shape[-1] == num_tokens
    expected = (weights[:, :, 0, in_front : in_front + 4] * num_tokens).unflatten(2, (2, 2))
    torch.testing.assert_close(attention_maps(model, images), expected.detach())


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_layer_that_is_not_there(model, layer):
    with pytest.raises(SiTError, match=f"no layer {layer}: the model has layers 1 to 2") as error:
        attention_maps(model, IMAGES, layer)
    assert error.value.argument == "layer"


@pytest.mark.parametrize(
    "model",
    [
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)),
    ],
)
def test_model_without_attention(model):
    model = model()
    with pytest.raises(SiTError, match=f"a {model.config.model_type} gives no attention"):
        attention_maps(model, IMAGES.repeat(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("channels", "title"), [(1, "image"), (2, "channels 1-2 of 2"), (3, "image"), (4, "channels 1-3 of 4")]
)
def test_figure_has_the_image_the_mean_and_every_head(channels, title, tmp_path, texts_on):
    images = torch.randint(256, (2, channels, 16, 24), dtype=torch.uint8)
    maps = torch.rand(2, 3, 2, 3)
    figure = attention_figure(images, maps, ["a $dollar$", ""], layer=5)
    *grid, bar = figure.axes
    assert {title, "mean of heads", "head 1", "head 2", "head 3", "a $dollar$"} <= set(texts_on(figure))
    assert len(grid) == 10 and "layer 5" in bar.get_xlabel()
    np.testing.assert_allclose(grid[1].images[-1].get_array(), maps[0].mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(grid[9].images[-1].get_array(), maps[1, 2], rtol=1e-6)
    assert {axes.images[-1].norm for axes in grid if len(axes.images) == 2} == {grid[1].images[-1].norm}
    figure.savefig(tmp_path / "figure.png", dpi=30)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize("caption", ["", "iris", "a class whose name is very long, of many words", "x" * 60])
def test_texts_stay_on_the_page(num_rows, caption, assert_texts_stay_on_the_page):
    images = torch.zeros(num_rows, 3, 8, 16, dtype=torch.uint8)
    assert_texts_stay_on_the_page(attention_figure(images, torch.rand(num_rows, 1, 1, 2), [caption] * num_rows, 12))


@pytest.mark.parametrize("lightness", [0, 128, 255, "stripes"])
def test_colors_are_read_off_the_bar_on_any_image(lightness):
    """A map of one value has about the color that the bar has there, and no other value's, even where the image is black
    and white: of the scale from 0 to 2, a reader is a seventh off at most."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:] = torch.arange(32) // 8 % 2 * 255 if lightness == "stripes" else lightness
    values = torch.linspace(0, 2, 9)
    maps = values[None, :, None, None].expand(1, 9, 4, 4)
    figure = attention_figure(image, maps, [""], 1)
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    *panels, bar = figure.axes

    def place(axes):
        box = axes.get_window_extent()
        return [round(end) for end in (len(page) - box.y1, len(page) - box.y0, box.x0, box.x1)]

    top, bottom, left, right = place(bar)
    scale = page[(top + bottom) // 2, left + 2 : right - 2]
    # The bar's halves are even and more; its places are values in between.
    marks = np.interp(np.linspace(0, 1, len(scale)), [0, 0.5, 1], [0, 1, 2])
    for value, axes in zip(values.tolist(), panels[2:], strict=True):
        top, bottom, left, right = place(axes)
        colors = page[top + 4 : bottom - 4 : 5, left + 4 : right - 4 : 5].reshape(-1, 3)
        read = marks[np.linalg.norm(colors[:, None] - scale, axis=2).argmin(axis=1)]
        assert np.abs(read - value).max() < 2 / 7, value


def test_draws_the_maps_of_images(model, texts_on):
    processor = SiTImageProcessor(size={"height": 16, "width": 24}, patch_size=8)
    generator = np.random.default_rng(0)
    images = [PIL.Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(2)]
    figure = draw_attention(model, processor, images, layer=1)
    maps = attention_maps(model, processor(images, return_tensors="pt")["pixel_values"], 1)
    *grid, bar = figure.axes
    assert len(grid) == 8 and "layer 1" in bar.get_xlabel()
    np.testing.assert_allclose(grid[2].images[-1].get_array(), maps[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(np.rint(255 * grid[0].images[0].get_array()), images[0])
    assert "layer 2" in draw_attention(model, processor, images, ["a", "b"]).axes[-1].get_xlabel()
