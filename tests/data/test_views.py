"""The two views: every augmentation against its closed form."""

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.data.views import ViewArguments, ViewAugmentation, rotate_views

SHAPE = (16, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# No augmentation at all, for tests to switch on the one that they are about.
OFF = {
    "horizontal_flip_probability": 0.0,
    "vertical_flip_probability": 0.0,
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": [0.0, 0.0],
    "solarize_probability": [0.0, 0.0],
}


def random_crops(batch: int = 3, channels: int = 3, shape=SHAPE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, batch, channels, *shape), generator=generator, dtype=torch.uint8)


def augmentation(mean=MEAN, std=STD, shape=SHAPE, **settings) -> ViewAugmentation:
    return ViewAugmentation(ViewArguments(**{**OFF, **settings}), shape, mean, std)


def raw_views(crops: torch.Tensor, seed: int = 0, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """View 1 and view 2 in [0, 1]: with mean 0 and standard deviation 1, normalisation changes nothing."""
    channels = crops.shape[2]
    augment = augmentation([0.0] * channels, [1.0] * channels, tuple(crops.shape[-2:]), **settings)
    torch.manual_seed(seed)
    return augment(crops).chunk(2)


class TestViewAugmentation:
    @pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,))])
    def test_without_augmentation_it_normalises(self, mean, std):
        crops = random_crops(channels=len(mean), shape=(16, 8))
        given = crops.clone()
        views = augmentation(mean, std, (16, 8))(crops)
        assert torch.equal(crops, given)
        assert views.shape == (6, len(mean), 16, 8)
        for row, (view, picture) in enumerate((view, picture) for view in range(2) for picture in range(3)):
            for channel in range(len(mean)):
                expected = (crops[view, picture, channel].double() / 255 - mean[channel]) / std[channel]
                torch.testing.assert_close(views[row, channel].double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("flag", "dimension"), [("horizontal", -1), ("vertical", -2)])
    def test_flip(self, flag, dimension):
        crops = random_crops()
        views = raw_views(crops, **{f"{flag}_flip_probability": 1.0})
        torch.testing.assert_close(torch.stack(views), crops.flip(dimension) / 255)

    def test_grey(self):
        crops = random_crops()
        red, green, blue = (crops / 255).unbind(2)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        for view, expected in zip(raw_views(crops, grayscale_probability=1.0), grey, strict=True):
            assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])
            torch.testing.assert_close(view[:, 0], expected, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_solarisation_of_the_view_it_is_asked_for(self, threshold, channels):
        crops = random_crops(channels=channels)
        for probabilities in ([0.0, 1.0], [1.0, 0.0]):
            views = raw_views(crops, solarize_probability=probabilities, solarize_threshold=threshold)
            for view, crop, probability in zip(views, crops / 255, probabilities, strict=True):
                expected = torch.where(crop < threshold, crop, 1 - crop) if probability else crop
                torch.testing.assert_close(view, expected)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_blur_of_the_view_it_is_asked_for(self, channels):
        crops = random_crops(channels=channels)
        for blurred in range(2):
            probabilities = [float(view == blurred) for view in range(2)]
            views = raw_views(crops, blur_probability=probabilities, blur_sigma=[14.0, 14.0])
            assert views[blurred].var() < 0.5 * (crops[blurred] / 255).var()
            torch.testing.assert_close(views[1 - blurred], crops[1 - blurred] / 255)

    @pytest.mark.parametrize("size", [16, 32])
    def test_blur_is_gaussian_with_a_sigma_of_a_view_224_wide(self, size):
        crops = random_crops(shape=(size, size))
        sigma = 14 * size / 224  # 1 and 2 pixels
        reach = round(2 * sigma)
        offsets = torch.arange(-reach, reach + 1)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        padded = torch.nn.functional.pad(crops[0] / 255, [reach] * 4, mode="reflect")
        rows = sum(weight * padded[..., start : start + size, :] for start, weight in enumerate(kernel))
        expected = sum(weight * rows[..., start : start + size] for start, weight in enumerate(kernel))
        view, _ = raw_views(crops, blur_probability=[1.0, 0.0], blur_sigma=[14.0, 14.0])
        torch.testing.assert_close(view, expected, rtol=1e-4, atol=1e-4)

    def test_blur_draws_its_sigma(self):
        crops = random_crops(1).expand(-1, 30, -1, -1, -1)
        view, _ = raw_views(crops, blur_probability=[1.0, 0.0], blur_sigma=[3.0, 20.0])
        variances = view.flatten(1).var(dim=1)
        assert variances.max() > 1.5 * variances.min()

    def test_brightness_is_a_factor_of_one_minus_to_one_plus_its_strength(self):
        crops = torch.full((2, 100, 3, *SHAPE), 128, dtype=torch.uint8)
        views = torch.cat(raw_views(crops, color_jitter=[0.4, 0.0, 0.0, 0.0], color_jitter_probability=1.0))
        factors = views.mean(dim=(1, 2, 3)) / (128 / 255)
        assert views.flatten(1).std(dim=1).max() < 1e-5
        assert 0.6 - 1e-3 <= factors.min() < 0.65
        assert 1.35 < factors.max() <= 1.4 + 1e-3

    def test_contrast_stretches_around_a_mean(self):
        crops = random_crops(1).expand(-1, 100, -1, -1, -1)
        views = torch.cat(raw_views(crops // 2 + 64, color_jitter=[0.0, 0.4, 0.0, 0.0], color_jitter_probability=1.0))
        clean = torch.cat(raw_views(crops // 2 + 64))
        factors = views.flatten(1).std(dim=1) / clean.flatten(1).std(dim=1)
        assert 0.6 - 1e-2 <= factors.min() < 0.65
        assert 1.3 < factors.max() <= 1.4 + 1e-2

    def test_saturation_keeps_grey_and_pulls_colours_from_it(self):
        grey = random_crops(4, channels=1).expand(-1, -1, 3, -1, -1)
        settings = {"color_jitter": [0.0, 0.0, 0.9, 0.0], "color_jitter_probability": 1.0}
        torch.testing.assert_close(torch.stack(raw_views(grey, **settings)), grey / 255, rtol=0, atol=2e-3)
        colour = random_crops(20)
        distances = [
            torch.cat(views).std(dim=1).mean(dim=(1, 2))
            for views in (raw_views(colour, **settings), raw_views(colour))
        ]
        assert (distances[0] < 0.6 * distances[1]).any()

    def test_hue_turns_by_up_to_its_strength(self):
        crops = torch.zeros(2, 100, 3, *SHAPE, dtype=torch.uint8)
        crops[:, :, 0] = 255  # red, at hue 0; yellow is a sixth of a turn on
        views = torch.cat(raw_views(crops, color_jitter=[0.0, 0.0, 0.0, 0.1], color_jitter_probability=1.0))
        red, green, blue = views.mean(dim=(2, 3)).unbind(1)
        turns = (green - blue) / 6
        torch.testing.assert_close(red, torch.ones_like(red), rtol=0, atol=1e-3)
        assert -0.1 - 1e-3 <= turns.min() < -0.08
        assert 0.08 < turns.max() <= 0.1 + 1e-3

    def test_jitter_of_strength_0_changes_nothing(self):
        crops = random_crops()
        views = raw_views(crops, color_jitter=[0.0] * 4, color_jitter_probability=1.0)
        torch.testing.assert_close(torch.stack(views), crops / 255)

    def test_jitter_of_one_strength_alone(self):
        """A strength of 0 beside another one leaves its property alone: a hue jitter keeps grey as it is."""
        grey = random_crops(channels=1).expand(-1, -1, 3, -1, -1)
        views = raw_views(grey, color_jitter=[0.0, 0.0, 0.0, 0.5], color_jitter_probability=1.0)
        torch.testing.assert_close(torch.stack(views), grey / 255, rtol=0, atol=2e-3)

    def test_each_picture_and_view_has_its_own_draw(self):
        crops = random_crops(1)[:1].expand(2, 8, -1, -1, -1)
        views = torch.cat(raw_views(crops, color_jitter=[0.4, 0.0, 0.0, 0.0], color_jitter_probability=1.0))
        means = views.mean(dim=(1, 2, 3))
        assert len(set(means.tolist())) == 16

    @pytest.mark.parametrize(
        ("settings", "shares"),
        [
            ({"horizontal_flip_probability": 0.5}, (0.5, 0.5)),
            ({"color_jitter_probability": 0.8}, (0.8, 0.8)),
            ({"grayscale_probability": 0.2}, (0.2, 0.2)),
            ({"blur_probability": [1.0, 0.1]}, (1.0, 0.1)),
            ({"solarize_probability": [0.0, 0.2]}, (0.0, 0.2)),
        ],
    )
    def test_chances(self, settings, shares):
        crops = random_crops(400)
        for view, crop, share in zip(
            raw_views(crops, blur_sigma=[14.0, 14.0], **settings), crops / 255, shares, strict=True
        ):
            changed = ((view - crop).abs().flatten(1).amax(dim=1) > 0.01).float().mean().item()
            margin = 4 * (share * (1 - share) / 400) ** 0.5
            assert share - margin <= changed <= share + margin

    @pytest.mark.parametrize("channels", [1, 3])
    def test_everything_on(self, channels):
        everything = {
            "horizontal_flip_probability": 1.0,
            "vertical_flip_probability": 1.0,
            "color_jitter_probability": 1.0,
            "grayscale_probability": 1.0,
            "blur_probability": [1.0, 1.0],
            "solarize_probability": [1.0, 1.0],
        }
        crops = random_crops(channels=channels)
        views = torch.cat(raw_views(crops, **everything))
        assert views.shape == (6, channels, *SHAPE)
        assert views.min() >= 0 and views.max() <= 1
        assert ((views - crops.flatten(0, 1) / 255).abs().flatten(1).mean(dim=1) > 0.05).all()

    def test_grey_pictures_are_jittered_in_brightness(self):
        crops = torch.full((2, 20, 1, *SHAPE), 100, dtype=torch.uint8)
        views = torch.cat(raw_views(crops, color_jitter_probability=1.0))
        assert views.mean(dim=(1, 2, 3)).std() > 0.02

    def test_default_view_1_is_blurred_and_not_solarised(self):
        """White stays white in view 1, whatever it meets there; solarisation turns it black in some views 2."""
        crops = torch.full((2, 60, 3, *SHAPE), 255, dtype=torch.uint8)
        augment = ViewAugmentation(ViewArguments(color_jitter=[0.0] * 4), SHAPE, (0.0,) * 3, (1.0,) * 3)
        torch.manual_seed(0)
        view_1, view_2 = augment(crops).chunk(2)
        assert view_1.min() > 0.99
        assert 2 < (view_2.mean(dim=(1, 2, 3)) < 0.01).sum() < 25

    def test_is_a_function_of_torch_manual_seed(self):
        crops = random_crops()
        augment = ViewAugmentation(ViewArguments(), SHAPE, MEAN, STD)
        results = []
        for seed, other_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(seed)
            np.random.seed(other_seed)
            results.append(augment(crops))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_needs_no_gradient(self):
        assert not augmentation()(random_crops()).requires_grad


def random_views(count: int, channels: int = 3, side: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


class TestRotateViews:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
    def test_is_numpys_quarter_turns_picture_by_picture(self, dtype):
        views = (50 * random_views(40).abs()).to(dtype)
        given = views.clone()
        rotated, labels = rotate_views(views, torch.Generator().manual_seed(0))
        assert torch.equal(views, given)
        assert rotated.dtype == dtype and labels.dtype == torch.int64 and labels.shape == (40,)
        assert set(labels.tolist()) == {0, 1, 2, 3}
        for view, turned, label in zip(views.float(), rotated.float(), labels.tolist(), strict=True):
            assert np.array_equal(turned.numpy(), np.rot90(view.numpy(), label, axes=(1, 2)))

    def test_one_quarter_turn_is_counter_clockwise(self):
        """As Pillow turns a picture on the screen: what was at the right comes to the top."""
        view = torch.arange(9.0).view(1, 1, 3, 3)
        rotated, labels = rotate_views(view.expand(30, -1, -1, -1), torch.Generator().manual_seed(0))
        turned = PIL.Image.fromarray(view[0, 0].numpy()).transpose(PIL.Image.Transpose.ROTATE_90)
        assert np.array_equal(rotated[labels == 1][0, 0].numpy(), np.asarray(turned))
        assert rotated[labels == 1][0, 0, 0].tolist() == [2, 5, 8]

    def test_every_view_has_its_own_draw_of_equal_chances(self):
        _, labels = rotate_views(torch.zeros(4000, 1, 1, 1), torch.Generator().manual_seed(0))
        shares = torch.bincount(labels, minlength=4) / 4000
        assert shares.shape == (4,)
        assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
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
def test_arguments_out_of_range_name_the_flag(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"--{name}"):
        ViewArguments(**settings)


def test_default_arguments_are_the_papers():
    arguments = vars(ViewArguments())
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
