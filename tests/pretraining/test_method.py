"""The interface of methods: its default views, each as the arguments ask for them, seen in what a student is given."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pretraining_runs import OFF

from modeling_sit.data.views import ViewArguments


@pytest.fixture
def ramps(tmp_path) -> Path:
    """Four images of 24 x 20 pixels, the whole of which has the ratio 1.2: red shows the column, green the row."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:20, :24]
    for number in range(4):
        blue = generator.integers(0, 256, (20, 24))
        pixels = np.stack([10 * column, 12 * row, blue], axis=-1).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def views_of(recorded, ramps):
    """The clean views of a run's first batch, in [0, 1]: with mean 0 and standard deviation 1 nothing is normalized."""

    def views_of(settings: dict, name: str, by_recipe: bool = False, **sizes) -> torch.Tensor:
        settings = {**OFF, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], **settings}
        run = recorded(settings, name, by_recipe, dataset=ramps, channels=3, steps=1, **sizes)
        return run.batches[0]["target_pixel_values"]

    return views_of


@pytest.fixture(scope="module")
def views_of_earlier_tests() -> dict:
    return {}


@pytest.fixture
def clean(views_of_earlier_tests, views_of) -> torch.Tensor:
    """The views without augmentation: the first test that needs them makes them."""
    if not views_of_earlier_tests:
        views_of_earlier_tests["clean"] = views_of({}, "clean")
    return views_of_earlier_tests["clean"]


def crop_sizes(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Widths and heights of the crops in pixels, by the slopes of red and green."""
    width = (views[:, 0, :, 11] - views[:, 0, :, 4]).mean(dim=1) * 255 / 10 / 7 * 16
    height = (views[:, 1, 11] - views[:, 1, 4]).mean(dim=1) * 255 / 12 / 7 * 16
    return width, height


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-3)


def has_area(fraction):
    def check(views, clean):
        width, height = crop_sizes(views)
        return ((width * height / 480 - fraction).abs() < 0.1 * fraction).all()

    return check


def has_ratio(ratio):
    def check(views, clean):
        width, height = crop_sizes(views)
        return ((width / height - ratio).abs() < 0.1 * ratio).all()

    return check


def is_brighter_or_darker(views, clean):
    """By one factor from 0.6 to 1.4 in each view, of its own draw."""
    factors = views[:, :, 4:8, 4:8].mean(dim=(1, 2, 3)) / clean[:, :, 4:8, 4:8].mean(dim=(1, 2, 3))
    return 0.55 < factors.min() < factors.max() < 1.45 and factors.std() > 0.02


def is_grey(views, clean):
    return is_close(views[:, :1].expand_as(views), views) and not is_close(views, clean)


def is_blurred(views, clean):
    return views[:, 2].var() < 0.5 * clean[:, 2].var()


def is_solarized(threshold):
    return lambda views, clean: is_close(views, torch.where(clean < threshold, clean, 1 - clean))


def of_view_1(check):
    return lambda views, clean: check(views[:4], clean[:4]) and is_close(views[4:], clean[4:])


def of_view_2(check):
    return lambda views, clean: check(views[4:], clean[4:]) and is_close(views[:4], clean[:4])


JITTER = {"color_jitter": [0.4, 0, 0, 0], "color_jitter_probability": 1}
# An argument, settings in which it acts, and what the views are then, beside those without augmentation.
EFFECTS = [
    ("crop_scale", {"crop_scale": [0.25, 0.25]}, has_area(0.25)),
    ("crop_scale", {"crop_scale": [0.5, 0.5]}, has_area(0.5)),
    ("crop_ratio", {"crop_ratio": [0.8, 0.8], "crop_scale": [0.5, 0.5]}, has_ratio(0.8)),
    ("crop_ratio", {"crop_ratio": [1.5, 1.5], "crop_scale": [0.5, 0.5]}, has_ratio(1.5)),
    ("horizontal_flip_probability", {"horizontal_flip_probability": 1}, lambda v, c: is_close(v, c.flip(-1))),
    ("vertical_flip_probability", {"vertical_flip_probability": 1}, lambda v, c: is_close(v, c.flip(-2))),
    ("color_jitter", JITTER, is_brighter_or_darker),
    ("color_jitter", {**JITTER, "color_jitter": [0, 0, 0, 0]}, is_close),
    ("color_jitter_probability", {**JITTER, "color_jitter_probability": 0}, is_close),
    ("grayscale_probability", {"grayscale_probability": 1}, is_grey),
    ("blur_probability", {"blur_probability": [1, 0]}, of_view_1(is_blurred)),
    ("blur_probability", {"blur_probability": [0, 1]}, of_view_2(is_blurred)),
    ("blur_sigma", {"blur_probability": [1, 1], "blur_sigma": [0.1, 0.2]}, is_close),
    ("solarize_probability", {"solarize_probability": [1, 0]}, of_view_1(is_solarized(0.5))),
    ("solarize_probability", {"solarize_probability": [0, 1]}, of_view_2(is_solarized(0.5))),
    ("solarize_threshold", {"solarize_probability": [1, 1], "solarize_threshold": 0.8}, is_solarized(0.8)),
]


class TestViews:
    @pytest.mark.parametrize(
        ("argument", "settings", "is_as_asked"), EFFECTS, ids=[str(effect[1]) for effect in EFFECTS]
    )
    def test_every_augmentation_by_its_argument(self, views_of, clean, argument, settings, is_as_asked):
        width, height = crop_sizes(clean)
        torch.testing.assert_close(
            torch.stack([width, height], dim=1), torch.tensor([[24.0, 20.0]] * 8), rtol=0, atol=1
        )
        assert is_as_asked(views_of(settings, "asked"), clean)

    def test_wide_views_are_of_wide_crops(self, views_of):
        """They show things as they are, like square views of square crops."""
        views = views_of({"crop_ratio": [1, 1], "crop_scale": [0.3, 0.3]}, "wide", image_size="[16,32]")
        width = (views[:, 0, :, 22] - views[:, 0, :, 9]).mean(dim=1) * 255 / 10 / 13 * 32
        _, height = crop_sizes(views)
        assert ((width / height - 2).abs() < 0.2).all()

    def test_no_argument_is_left_out(self):
        assert {argument for argument, _, _ in EFFECTS} == {field.name for field in fields(ViewArguments)} == set(OFF)

    def test_from_a_recipe(self, views_of):
        """Every argument of the views at once, at other values than their defaults."""
        settings = {
            "crop_scale": [0.3, 0.6],
            "crop_ratio": [0.9, 1.1],
            "horizontal_flip_probability": 0.6,
            "vertical_flip_probability": 0.4,
            "color_jitter": [0.3, 0.2, 0.1, 0.05],
            "color_jitter_probability": 0.7,
            "grayscale_probability": 0.3,
            "blur_probability": [0.9, 0.2],
            "blur_sigma": [5.0, 20.0],
            "solarize_probability": [0.7, 0.9],
            "solarize_threshold": 0.6,
        }
        assert settings.keys() == OFF.keys()
        by_arguments, by_recipe = views_of(settings, "arguments"), views_of(settings, "recipe", by_recipe=True)
        assert torch.equal(by_arguments, by_recipe)
        assert not torch.equal(by_arguments, views_of({**settings, "solarize_threshold": 0.1}, "other"))
