"""Views: their quarter turns, and the arguments of their augmentation."""

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.data.views import PAPER_VIEWS, ViewArguments, rotate_views
from modeling_sit.runtime.errors import SiTError

SHAPE = (16, 16)


def random_views(count: int, channels: int = 3, side: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


class TestRotateViews:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
    def test_is_numpys_quarter_turns_image_by_image(self, dtype):
        views = (50 * random_views(40).abs()).to(dtype)
        given = views.clone()
        rotated, labels = rotate_views(views, torch.Generator().manual_seed(0))
        assert torch.equal(views, given)
        assert rotated.dtype == dtype and labels.dtype == torch.int64 and labels.shape == (40,)
        assert set(labels.tolist()) == {0, 1, 2, 3}
        for view, turned, label in zip(views.float(), rotated.float(), labels.tolist(), strict=True):
            assert np.array_equal(turned.numpy(), np.rot90(view.numpy(), label, axes=(1, 2)))

    def test_one_quarter_turn_is_counter_clockwise(self):
        """As Pillow turns an image on the screen: what was at the right comes to the top."""
        view = torch.arange(9.0).view(1, 1, 3, 3)
        rotated, labels = rotate_views(view.expand(30, -1, -1, -1), torch.Generator().manual_seed(0))
        turned = PIL.Image.fromarray(view[0, 0].numpy()).transpose(PIL.Image.Transpose.ROTATE_90)
        assert np.array_equal(rotated[labels == 1][0, 0].numpy(), np.asarray(turned))
        assert rotated[labels == 1][0, 0, 0].tolist() == [2, 5, 8]

    def test_every_view_has_its_own_draw_of_equal_chances(self):
        _, labels = rotate_views(torch.zeros(4000, 1, 1, 1), torch.Generator().manual_seed(0))
        fractions = torch.bincount(labels, minlength=4) / 4000
        assert fractions.shape == (4,)
        assert (fractions - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
        view_1, view_2 = labels.chunk(2)
        assert (view_1 == view_2).float().mean().item() == pytest.approx(0.25, abs=0.04)

    def test_draws_from_the_generator_handed_in_and_from_no_other(self):
        views = random_views(16)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        _, labels = rotate_views(views, torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(rotate_views(views, torch.Generator().manual_seed(1))[1], labels)
        assert not torch.equal(rotate_views(views, torch.Generator().manual_seed(2))[1], labels)

    def test_is_a_function_of_torch_manual_seed_by_default(self):
        views, results = random_views(16), []
        for seed, other_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(seed)
            np.random.seed(other_seed)
            results.append(rotate_views(views)[1])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_views_that_are_not_square_are_refused(self):
        with pytest.raises(ValueError, match="8 x 16"):
            rotate_views(torch.zeros(4, 3, 8, 16))


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": [0.2]},
        {"crop_scale": [0.0, 1.0]},
        {"crop_scale": [0.6, 0.4]},
        {"crop_scale": [0.5, 1.5]},
        {"crop_ratio": [1.0, 1.0, 1.0]},
        {"crop_ratio": [-1.0, 1.0]},
        {"horizontal_flip_probability": 1.1},
        {"vertical_flip_probability": -0.1},
        {"color_jitter": [0.4, 0.4, 0.2]},
        {"color_jitter": [0.4, 0.4, 0.2, 0.6]},
        {"color_jitter": [-0.4, 0.4, 0.2, 0.1]},
        {"color_jitter_probability": 2.0},
        {"grayscale_probability": float("nan")},
        {"blur_probability": [1.0]},
        {"blur_probability": [1.0, 1.1]},
        {"blur_sigma": [0.0, 2.0]},
        {"blur_sigma": [2.0, 0.1]},
        {"solarize_probability": [0.0, -0.2]},
        {"solarize_threshold": 2.0},
        {"solarize_threshold": -0.1},
    ],
)
def test_arguments_out_of_range(settings):
    (name,) = settings
    with pytest.raises(SiTError) as error:
        ViewArguments(**settings)
    assert error.value.argument == name


def test_default_arguments_are_the_papers():
    arguments = vars(ViewArguments(**PAPER_VIEWS))
    assert arguments == {
        "crop_scale": [0.2, 1.0],
        "crop_ratio": [3 / 4, 4 / 3],
        "horizontal_flip_probability": 0.5,
        "vertical_flip_probability": 0.0,
        "color_jitter": [0.4, 0.4, 0.2, 0.1],
        "color_jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_probability": [1.0, 0.1],
        "blur_sigma": [0.1, 2.0],
        "solarize_probability": [0.0, 0.2],
        "solarize_threshold": 0.5,
    }
