"""Models and processors for images of another size."""

import pytest
import torch
from transformers import CLIPImageProcessor, ResNetConfig, ViTConfig, ViTForImageClassification

from modeling_sit import SiTForImageClassification, SiTImageProcessor, SiTModel
from modeling_sit.interop.resize import check_image_size, image_shape, resize_model, resize_processor
from modeling_sit.runtime.errors import SiTError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["sit", "sincos", "vit"])
def model(request, tiny_config):
    torch.manual_seed(0)
    if request.param == "vit":
        return ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=24)).eval()
    positions = "sincos" if request.param == "sincos" else "learnable"
    return SiTForImageClassification(tiny_config(position_embedding_type=positions)).eval()


def test_is_what_interpolation_on_the_fly_gives(model):
    resized = resize_model(model, 40).eval()
    expected = model(images(40), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(resized(images(40)).logits, expected)
    assert resized.config.image_size == 40 and model.config.image_size == 16


def test_is_loaded_at_its_new_size(model, tmp_path):
    resized = resize_model(model, 40).eval()
    resized.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images(40)).logits, resized(images(40)).logits)


def test_same_size_changes_nothing(model):
    resized = resize_model(model, 16)
    assert all(value.equal(model.state_dict()[name]) for name, value in resized.state_dict().items())


def test_oblong_images_become_square(tiny_config):
    model = SiTForImageClassification(tiny_config(image_size=(16, 32))).eval()
    expected = model(images(40), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(resize_model(model, 40).eval()(images(40)).logits, expected)


def test_whole_patches(tiny_config):
    check_image_size(tiny_config(), 24)
    with pytest.raises(SiTError, match=r"30 .* multiple of 8, such as 32") as error:
        check_image_size(tiny_config(), 30)
    assert error.value.argument == "image_size"


def test_model_without_positions():
    for refused in (lambda: resize_model(torch.nn.Linear(2, 2), 32), lambda: check_image_size(ResNetConfig(), 32)):
        with pytest.raises(SiTError, match="no position") as error:
            refused()
        assert error.value.argument == "image_size"


def test_rectangles(tiny_config):
    resized = resize_model(SiTModel(tiny_config()), (16, 32)).eval()
    assert resized(torch.zeros(1, 3, 16, 32)).last_hidden_state.shape[1] == 1 + 2 * 4


@pytest.mark.parametrize(
    "processor",
    [
        SiTImageProcessor(size={"height": 16, "width": 16}),
        CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}),
    ],
)
def test_processor(processor):
    assert image_shape(processor) == (16, 16)
    resize_processor(processor, 32)
    assert image_shape(processor) == (32, 32)
    pixels = processor(torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    if processor.do_center_crop:
        assert processor.size.shortest_edge == 40
