"""MAE: its masks, its loss against a slow twin and against transformers' class, and what its previews show."""

import numpy as np
import pytest
import torch
from masked_methods import BACKBONE_NAMES, assert_halves_make_the_whole, create_method, images, renamed
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.methods.mae import MAE
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def create(flags_of, tiny_config):
    """[`create_method`]: a small MAE."""
    settings = {"method": "mae", "decoder_width": 64, "decoder_depth": 2}
    return lambda fields=None, **arguments: create_method(flags_of, tiny_config, fields, **{**settings, **arguments})


def slow_patches(image: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The patches of an image `(channels, height, width)`, row by row."""
    rows = range(0, image.shape[1], height)
    return [image[:, y : y + height, x : x + width] for y in rows for x in range(0, image.shape[2], width)]


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_that_of_loops(create, normalize):
    """Of images and patches of different sides, so that nothing is turned around."""
    method = create({"image_size": (16, 24), "patch_size": (8, 4)}, normalize_targets=normalize)
    views = images(height=16, width=24)
    masks = method.draw_masks(4, views.device)
    output = method.student(views, **masks)
    errors = []
    for image, kept, predicted in zip(
        views.numpy(), masks["kept_patches"].tolist(), output.reconstruction, strict=True
    ):
        assert len(kept) == 3
        for number, patch in enumerate(slow_patches(image.astype(np.float64), 8, 4)):
            if normalize:
                mean = sum(patch.flatten()) / patch.size
                variance = sum((value - mean) ** 2 for value in patch.flatten()) / (patch.size - 1)
                patch = (patch - mean) / (variance + 1e-6) ** 0.5
            if number not in kept:
                errors.append(np.mean((predicted[number].detach().double().numpy() - patch.flatten()) ** 2))
    assert len(errors) == 4 * 9
    assert output.loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert output.reconstruction_loss is output.loss


NAMES = (
    (r"^head\.encoder\.layer\.", "decoder.decoder_layers."),
    (r"^head\.embedding", "decoder.decoder_embed"),
    (r"^head\.layernorm", "decoder.decoder_norm"),
    (r"^head\.projection", "decoder.decoder_pred"),
    (r"^head\.mask_token", "decoder.mask_token"),
    (r"^head\.positions", "decoder.decoder_pos_embed"),
    *BACKBONE_NAMES,
)


def theirs(name: str, value: torch.Tensor, channels: int) -> tuple[str, torch.Tensor]:
    """The name in transformers' classes, and the value; their patches have the channels last."""
    if name.startswith("head.projection"):
        value = value.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)
    if name.startswith("head.mask_token"):
        value = value.view(1, 1, -1)
    return renamed(name, NAMES), value


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_transformers(create, normalize, channels):
    """With copied weights, the same noise, and positions handed in: from a configuration theirs has none but zeros."""
    method = create({"num_channels": channels}, normalize_targets=normalize, mask_ratio=0.6)
    ours = method.student
    other = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            decoder_hidden_size=64,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=256,
            image_size=16,
            patch_size=4,
            num_channels=channels,
            mask_ratio=0.6,
            norm_pix_loss=normalize,
            layer_norm_eps=ours.config.layer_norm_eps,
        )
    )
    assert not other.vit.embeddings.position_embeddings.any() and not other.decoder.decoder_pos_embed.any()
    other.load_state_dict(dict(theirs(name, value, channels) for name, value in ours.state_dict().items()))
    views, noise = images(channels=channels), torch.rand(4, 16, generator=torch.Generator().manual_seed(2))
    expected = other.eval()(views, noise=noise)
    output = ours.eval()(views, noise.argsort(dim=1)[:, : method.num_kept])
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert torch.equal(output.masked_patches, expected.mask.bool())
    logits = expected.logits.unflatten(2, (-1, channels)).transpose(2, 3).flatten(2)
    torch.testing.assert_close(output.reconstruction, logits, rtol=1e-4, atol=1e-5)
    expected.loss.backward()
    output.loss.backward()
    weights = (
        ours.vit.embeddings.patch_embeddings.projection.weight,
        other.vit.embeddings.patch_embeddings.projection.weight,
    )
    torch.testing.assert_close(*(weight.grad for weight in weights), rtol=1e-3, atol=1e-6)


def test_two_halves_have_the_gradients_of_the_whole(create):
    method, views = create(), images()
    assert_halves_make_the_whole(method.student, views, method.draw_masks(4, views.device)["kept_patches"])


def test_masked_patches_are_not_read(create):
    method, views = create(), images(1)
    kept = torch.tensor([[9, 2, 4, 15]])
    before = method.student(views, kept)
    masked = views.clone()
    for number in set(range(16)) - set(kept[0].tolist()):
        masked[:, :, number // 4 * 4 : number // 4 * 4 + 4, number % 4 * 4 : number % 4 * 4 + 4] = 7.0
    torch.testing.assert_close(method.student(masked, kept).reconstruction, before.reconstruction)
    assert before.masked_patches[0].logical_not().nonzero()[:, 0].tolist() == [2, 4, 9, 15]
    # The order of what is kept says nothing.
    other = method.student(views, kept.flip(1))
    torch.testing.assert_close(other.reconstruction, before.reconstruction, rtol=1e-4, atol=1e-5)


def test_masks_are_drawn_for_each_image(create):
    method = create()
    kept = method.draw_masks(2000, torch.device("cpu"), torch.Generator().manual_seed(0))["kept_patches"]
    assert kept.shape == (2000, 4) and all(len(set(row)) == 4 for row in kept.tolist())
    chances = kept.flatten().bincount(minlength=16) / 2000
    assert ((chances - 0.25).abs() < 0.05).all()
    again = method.draw_masks(2000, torch.device("cpu"), torch.Generator().manual_seed(0))["kept_patches"]
    assert torch.equal(kept, again)


def test_previews_have_the_clean_patches_statistics(create, monkeypatch):
    """What predicts the normalized patches without an error shows the clean image."""
    method = create()
    views = images()
    patches = torch.tensor(
        np.array([[patch.flatten() for patch in slow_patches(image, 4, 4)] for image in views.numpy()])
    )
    normalized = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(method.pixels(normalized, views), views, rtol=1e-4, atol=1e-5)
    method.arguments.normalize_targets = False
    torch.testing.assert_close(method.pixels(patches, views), views)

    sheets = []
    monkeypatch.setattr("modeling_sit.pretraining.masked.masked_sheet", lambda *shown: sheets.append(shown))
    crops = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    method.student.train()
    for _ in range(2):
        method.preview(crops, seed=3)
    (clean, reconstruction, mask, processor), (_, again, same_mask, _) = sheets
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(clean * std + mean, crops / 255)
    assert mask.shape == (2, 1, 16, 16) and mask.float().mean(dim=(1, 2, 3)).tolist() == [0.75, 0.75]
    assert reconstruction.shape == clean.shape
    assert torch.equal(reconstruction, again) and torch.equal(mask, same_mask) and method.student.training


def test_features_are_the_mean_of_all_patches(create):
    method, views = create(), images()
    tokens = method.student.vit(views).last_hidden_state
    assert tokens.shape == (4, 17, 16)
    torch.testing.assert_close(method.embed(views)["features"], tokens[:, 1:].mean(dim=1))


def test_one_view_without_color(create, flags_of):
    method = create()
    (group,) = method.view_groups(flags_of(method="mae").views)
    assert (group.crops.number, group.crops.image_shape, group.crops.scale) == (1, (16, 16), (0.2, 1.0))
    assert [name for name, possible in group.augment.possible.items() if possible] == ["horizontal_flip"]


def test_starts_as_the_method_wants(tiny_config, flags_of):
    flags = flags_of(method="mae", decoder_width=48, decoder_depth=1)
    config = tiny_config()
    head = MAE(config, create_processor(config, flags.model, flags.corruption), flags).student.head
    assert 0.01 < head.mask_token.std() < 0.04
    assert head.config.num_attention_heads == 1 and len(head.encoder.layer) == 1
    assert head.positions.shape == (1, 5, 48) and not head.positions[:, 0].any() and head.positions[:, 1:].any()
    assert not isinstance(head.positions, nn.Parameter)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_ratio", "tokens"),
    [(224, 16, 0.75, 150), (64, 8, 0.75, 51), ([16, 24], [8, 4], 0.5, 21)],
)
def test_encoder_tokens(image_size, patch_size, mask_ratio, tokens):
    assert MAE.encoder_tokens({"image_size": image_size, "patch_size": patch_size, "mask_ratio": mask_ratio}) == tokens


@pytest.mark.parametrize(("width", "decoder"), [(96, (64, 1)), (192, (96, 2)), (384, (192, 2)), (1024, (512, 8))])
def test_the_decoder_grows_with_the_backbone(width, decoder):
    facts = Facts(ImageFacts(5000, 64, 64, 3), "cpu")
    given = {"hidden_size": width, "num_hidden_layers": 12, "num_attention_heads": 4}
    chosen = {choice.name: choice.value for choice in choose(facts, given, MAE)}
    assert (chosen["decoder_width"], chosen["decoder_depth"]) == decoder
    assert chosen["crop_scale"] == [0.2, 1.0] and chosen["drop_path_rate"] == 0
    assert not any([*chosen["color_jitter"], *chosen["blur_probability"], chosen["grayscale_probability"]])


def test_published_values(flags_of):
    flags = flags_of(method="mae")
    own = flags.method
    assert (own.mask_ratio, own.decoder_width, own.decoder_depth, own.normalize_targets) == (0.75, 512, 8, True)
    run = flags.run
    assert (run.adam_beta2, run.weight_decay, run.base_learning_rate, run.max_grad_norm) == (0.95, 0.05, 1.5e-4, 0)
    assert "pooling=mean" in flags.model.config_overrides


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": 0.99}, "mask_ratio"),
        ({"decoder_width": 30}, "decoder_width"),
        ({"decoder_depth": 0}, "decoder_depth"),
    ],
)
def test_what_does_not_fit_is_refused(create, arguments, named):
    with pytest.raises(SiTError) as error:
        create(**arguments)
    assert error.value.argument == named
