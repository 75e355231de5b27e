"""Local crops: their size, their augmentation, what they cost, and which ones are refused."""

import pytest
import torch

from modeling_sit import SiTImageProcessor
from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments
from modeling_sit.pretraining.local_views import (
    LocalCropArguments,
    choose_local_crops,
    local_crop_shape,
    local_tokens,
    local_view_groups,
)
from modeling_sit.pretraining.presets import Choosing, Facts
from modeling_sit.runtime.errors import SiTError


@pytest.mark.parametrize(
    ("image_shape", "patch_shape", "size", "expected"),
    [
        ((224, 224), (16, 16), None, (96, 96)),
        ((64, 64), (8, 8), None, (24, 24)),
        ((32, 32), (4, 4), None, (12, 12)),
        ((16, 16), (8, 8), None, (8, 8)),
        ((8, 8), (8, 8), None, (8, 8)),
        ((224, 448), (16, 16), None, (96, 192)),
        ((448, 224), (16, 32), None, (192, 96)),
        ((32, 32), (4, 4), 16, (16, 16)),
        ((32, 32), (4, 4), 32, (32, 32)),
        ((32, 64), (4, 8), 16, (16, 32)),
    ],
)
def test_shape(image_shape, patch_shape, size, expected):
    assert local_crop_shape(image_shape, patch_shape, size) == expected


@pytest.mark.parametrize(
    ("size", "problem"), [(36, "36 pixels are more than the 32"), (14, "multiple of 4, such as 12")]
)
def test_sizes_that_do_not_fit(size, problem):
    with pytest.raises(SiTError, match=problem) as error:
        local_crop_shape((32, 48), (4, 4), size)
    assert error.value.argument == "local_crop_size"


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_local_crops": -1},
        {"local_crop_size": 0},
        {"local_crop_scale": [0.1]},
        {"local_crop_scale": [0.0, 0.4]},
        {"local_crop_scale": [0.4, 0.1]},
        {"local_crop_scale": [0.1, 1.5]},  # larger than the image
    ],
)
def test_values_out_of_range(arguments):
    with pytest.raises(SiTError) as error:
        LocalCropArguments(**arguments)
    assert [error.value.argument] == list(arguments)


def groups_of(tiny_config, local: LocalCropArguments, views: dict | None = None, **chances):
    config = tiny_config(image_size=32, patch_size=4)
    processor = SiTImageProcessor(size={"height": 32, "width": 32}, patch_size=4)
    return local_view_groups(local, ViewArguments(**{**PAPER_VIEWS, **(views or {})}), config, processor, **chances)


def test_group(tiny_config):
    (group,) = groups_of(tiny_config, LocalCropArguments(3, None, [0.1, 0.4]))
    assert (group.crops.number, group.crops.image_shape, group.crops.scale) == (3, (12, 12), (0.1, 0.4))
    crops = torch.randint(256, (3, 2, 3, 12, 12), dtype=torch.uint8)
    assert group.augment(crops).shape == (6, 3, 12, 12)
    assert groups_of(tiny_config, LocalCropArguments(0)) == []


def test_blur_and_solarization_are_their_own_but_not_above_the_views(tiny_config):
    def chances(views: dict | None = None, **own) -> list[list[float]]:
        (group,) = groups_of(tiny_config, LocalCropArguments(2, 16, [0.1, 0.4]), views, **own)
        return [group.augment.chances[place, :, 0].tolist() for place in (4, 5)]

    assert chances() == [[0.5, 0.5], [0.0, 0.0]]
    assert chances(blur_probability=0.25, solarize_probability=0.125) == [[0.25, 0.25], [0.125, 0.125]]
    off = {"blur_probability": [0.0, 0.0], "solarize_probability": [0.0, 0.0]}
    assert chances(off, solarize_probability=0.2) == [[0.0, 0.0], [0.0, 0.0]]


def test_tokens():
    settings = {"image_size": 32, "patch_size": 4, "num_local_crops": 8, "local_crop_size": 16}
    assert local_tokens(settings) == 8 * 17
    assert local_tokens({**settings, "image_size": [32, 64], "local_crop_size": None}) == 8 * (1 + 3 * 7)


def choices_of(side: int, device: str, **given) -> dict:
    facts = Facts(ImageFacts(1000, side, side, 3), device)
    choosing = Choosing(facts, given)
    choose_local_crops(choosing, facts, number=8, scale=(0.05, 0.3))
    return {choice.name: choice.value for choice in choosing.choices}


def test_choices():
    sizes = {"image_size": 32, "patch_size": 4}
    chosen = {"num_local_crops": 4, "local_crop_size": 12, "local_crop_scale": [0.2, 0.5], "crop_scale": [0.5, 1.0]}
    assert choices_of(32, "cpu", **sizes) == chosen
    large = {"num_local_crops": 8, "local_crop_size": 96, "local_crop_scale": [0.05, 0.3], "crop_scale": [0.3, 1.0]}
    assert choices_of(300, "cuda", image_size=224, patch_size=16) == large


def test_choices_fit_what_is_given():
    sizes = {"image_size": 32, "patch_size": 4}
    assert choices_of(32, "cpu", num_local_crops=0, **sizes) == {}
    chosen = choices_of(32, "cpu", local_crop_size=16, local_crop_scale=[0.1, 0.6], **sizes)
    assert chosen == {"num_local_crops": 4, "crop_scale": [0.6, 1.0]}
