"""SimMIM: its squares, its loss against a slow twin and against transformers' class."""

import math

import numpy as np
import pytest
import torch
from masked_methods import BACKBONE_NAMES, assert_halves_make_the_whole, create_method, images, renamed
from transformers import ViTConfig, ViTForMaskedImageModeling

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.evaluation.collapse import collapse_warning
from modeling_sit.pretraining.methods.simmim import SimMIM, square_sizes
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def create(flags_of, tiny_config):
    """[`create_method`]: a small SimMIM."""
    settings = {"method": "simmim", "mask_square_size": 8}
    return lambda fields=None, **arguments: create_method(flags_of, tiny_config, fields, **{**settings, **arguments})


def test_loss_is_that_of_loops(create):
    method = create({"image_size": (16, 24), "patch_size": (8, 4)})
    views = images(height=16, width=24)
    masks = method.draw_masks(4, views.device)
    output = method.student(views, **masks)
    errors = []
    for image, masked, predicted in zip(views, masks["masked_patches"].tolist(), output.reconstruction, strict=True):
        for y in range(16):
            for x in range(24):
                if masked[y // 8 * 6 + x // 4]:
                    errors += (predicted[:, y, x].detach().double() - image[:, y, x]).abs().tolist()
    assert len(errors) == 4 * 4 * 64 * 3  # 4 of 6 squares, in 3 channels
    assert output.loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert output.reconstruction_loss is output.loss


NAMES = (
    (r"^head\.", "decoder.0."),
    (r"^mask_token", "vit.embeddings.mask_token"),
    *BACKBONE_NAMES,
)


def theirs(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The name in transformers' classes, and the value."""
    if name == "head.weight":
        value = value[:, :, None, None]
    if name == "mask_token":
        value = value.view(1, 1, -1)
    return renamed(name, NAMES), value


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_transformers(create, channels):
    """With copied weights and the same mask."""
    method = create({"num_channels": channels})
    ours = method.student
    other = ViTForMaskedImageModeling(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=4,
            encoder_stride=4,
            num_channels=channels,
            layer_norm_eps=ours.config.layer_norm_eps,
        )
    )
    other.load_state_dict(dict(theirs(name, value) for name, value in ours.state_dict().items()))
    views = images(channels=channels)
    masks = method.draw_masks(4, views.device)["masked_patches"]
    expected, output = other.eval()(views, bool_masked_pos=masks), ours.eval()(views, masks)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)
    expected.loss.backward()
    output.loss.backward()
    theirs_grad = other.vit.embeddings.mask_token.grad.flatten()
    torch.testing.assert_close(ours.mask_token.grad, theirs_grad, rtol=1e-3, atol=1e-6)


def test_two_halves_have_the_gradients_of_the_whole(create):
    method, views = create(), images()
    assert_halves_make_the_whole(method.student, views, method.draw_masks(4, views.device)["masked_patches"])


def test_what_is_masked_is_not_read(create):
    method, views = create(), images()
    masks = method.draw_masks(4, views.device)["masked_patches"]
    pixels = masks.view(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    output, other = method.student(views, masks), method.student(views.masked_fill(pixels, 7.0), masks)
    torch.testing.assert_close(other.reconstruction, output.reconstruction)


@pytest.mark.parametrize(("side", "patches", "count"), [(8, 2, 4), (4, 1, 16), (16, 4, 4)])
def test_squares_of_whole_patches_are_masked(create, side, patches, count):
    """As many in every image, each square equally often."""
    size = math.isqrt(count) * side
    method = create({"image_size": size}, mask_square_size=side)
    masks = method.draw_masks(2000, torch.device("cpu"), torch.Generator().manual_seed(0))["masked_patches"]
    rows = masks.view(2000, size // side, patches, size // side, patches)
    squares = rows[:, :, :1, :, :1]
    assert torch.equal(rows, squares.expand_as(rows))
    squares = squares.flatten(1)
    num_masked = math.ceil(0.6 * count)
    assert squares.shape == (2000, count) and set(squares.sum(dim=1).tolist()) == {num_masked}
    assert ((squares.float().mean(dim=0) - num_masked / count).abs() < 0.05).all()
    again = method.draw_masks(2000, torch.device("cpu"), torch.Generator().manual_seed(0))["masked_patches"]
    assert torch.equal(masks, again)


def test_preview(create, monkeypatch):
    sheets = []
    monkeypatch.setattr("modeling_sit.pretraining.masked.masked_sheet", lambda *shown: sheets.append(shown))
    method = create()
    method.preview(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), seed=3)
    ((clean, reconstruction, mask, _),) = sheets
    masks = method.draw_masks(2, clean.device, torch.Generator().manual_seed(3))["masked_patches"]
    assert torch.equal(mask[:, 0, ::4, ::4].flatten(1), masks)
    assert torch.equal(reconstruction, method.student.eval()(clean, masks).reconstruction)


def test_features_are_the_mean_of_all_patches(create):
    method, views = create(), images()
    tokens = method.student.vit(views).last_hidden_state
    torch.testing.assert_close(method.embed(views)["features"], tokens[:, 1:].mean(dim=1))
    assert method.compiled_parts() == [method.student.vit]


def test_one_view_without_color(create, flags_of):
    (group,) = create().view_groups(flags_of(method="simmim").views)
    assert (group.crops.number, group.crops.image_shape, group.crops.scale) == (1, (16, 16), (0.67, 1.0))
    assert [name for name, possible in group.augment.possible.items() if possible] == ["horizontal_flip"]


def test_mask_token_starts_small(tiny_config, flags_of):
    flags, config = flags_of(method="simmim", mask_square_size=8), tiny_config()
    token = SimMIM(config, create_processor(config, flags.model, flags.corruption), flags).student.mask_token
    assert 0 < token.abs().max() <= 0.02


@pytest.mark.parametrize(
    ("image_size", "patch_size", "tokens"), [(224, 16, 591), (64, 8, 195), ([16, 24], [8, 4], 39)]
)
def test_encoder_tokens(image_size, patch_size, tokens):
    assert SimMIM.encoder_tokens({"image_size": image_size, "patch_size": patch_size}) == tokens


@pytest.mark.parametrize(
    ("image", "patch", "sizes", "chosen"),
    [
        ((224, 224), (16, 16), [16, 32, 112], 32),
        ((16, 16), (4, 4), [4, 8], 4),  # 2 x 2 squares of two patches would be too few
        ((28, 28), (4, 4), [4], 4),  # 7 x 7 patches are not made of squares of 2 x 2
        ((36, 36), (4, 4), [4, 12], 4),
        ((32, 64), (8, 4), [8, 16], 8),
        ((64, 64), (8, 8), [8, 16, 32], 16),
        ((16, 16), (16, 16), [], 32),
    ],
)
def test_squares_fit_the_patches_and_the_image(image, patch, sizes, chosen):
    assert square_sizes(image, patch) == sizes
    facts = Facts(ImageFacts(5000, 64, 64, 3), "cpu")
    given = {"image_size": list(image), "patch_size": patch[0] if patch[0] == patch[1] else list(patch)}
    by_name = {choice.name: choice.value for choice in choose(facts, given, SimMIM)}
    assert by_name["mask_square_size"] == chosen and by_name["crop_scale"] == [0.67, 1.0]


def test_published_values(flags_of):
    flags = flags_of(method="simmim")
    assert (flags.method.mask_ratio, flags.method.mask_square_size) == (0.6, 32)
    run = flags.run
    assert (run.adam_beta2, run.weight_decay, run.base_learning_rate, run.max_grad_norm) == (0.999, 0.05, 5e-5, 5)
    assert "pooling=mean" in flags.model.config_overrides


def test_no_false_alarm():
    """The means of patch tokens point all the same way: these are of a run that learns."""
    values = {"embedding_std": 0.022, "rankme": 1.9}
    assert collapse_warning({name: values[name] for name in SimMIM.collapse_signs}) is None
    assert collapse_warning(values) is not None


@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio", None),
        ({"mask_ratio": 0.9}, "mask_ratio", "lower one"),
        ({"mask_square_size": 6}, "mask_square_size", "one of 4, 8"),
        ({"mask_square_size": 16}, "mask_square_size", "one of 4, 8"),
        ({"mask_square_size": -4}, "mask_square_size", None),
    ],
)
def test_what_does_not_fit_is_refused(create, arguments, named, remedy):
    with pytest.raises(SiTError) as error:
        create(**arguments)
    assert error.value.argument == named and "\n" not in str(error.value)
    assert remedy is None or remedy in error.value.remedy


def test_squares_of_an_odd_number_of_patches(create):
    with pytest.raises(SiTError, match=r"of whole patches of 4, and the image of 28") as error:
        create({"image_size": 28}, mask_square_size=8)
    assert error.value.remedy == "choose one of 4"
