"""The augmentation of views: every operation against torchvision's and against its closed form, and what is drawn."""

from itertools import permutations

import numpy as np
import pytest
import torch
from no_waiting import NoWaiting
from scipy import stats
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as F

from modeling_sit.data import augmentation as augmentations
from modeling_sit.data.augmentation import (
    CHANCES,
    JITTERS,
    ViewAugmentation,
    ViewParams,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    blur_by_convolution,
    gaussian_kernels,
    make_gray,
    solarize,
)
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments
from modeling_sit.runtime.errors import SiTError

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
    return ViewAugmentation(ViewArguments(**{**PAPER_VIEWS, **OFF, **settings}), shape, mean, std)


def raw_views(crops: torch.Tensor, seed: int = 0, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """View 1 and view 2 in [0, 1]: with mean 0 and standard deviation 1, normalization changes nothing."""
    channels = crops.shape[2]
    augment = augmentation([0.0] * channels, [1.0] * channels, tuple(crops.shape[-2:]), **settings)
    torch.manual_seed(seed)
    return augment(crops).chunk(2)


class TestViewAugmentation:
    @pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,))])
    def test_without_augmentation_it_normalizes(self, mean, std):
        crops = random_crops(channels=len(mean), shape=(16, 8))
        given = crops.clone()
        views = augmentation(mean, std, (16, 8))(crops)
        assert torch.equal(crops, given)
        assert views.shape == (6, len(mean), 16, 8)
        for row, (view, image) in enumerate((view, image) for view in range(2) for image in range(3)):
            for channel in range(len(mean)):
                expected = (crops[view, image, channel].double() / 255 - mean[channel]) / std[channel]
                torch.testing.assert_close(views[row, channel].double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("direction", "dimension"), [("horizontal", -1), ("vertical", -2)])
    def test_flip(self, direction, dimension):
        crops = random_crops()
        views = raw_views(crops, **{f"{direction}_flip_probability": 1.0})
        torch.testing.assert_close(torch.stack(views), crops.flip(dimension) / 255)

    def test_gray(self):
        crops = random_crops()
        red, green, blue = (crops / 255).unbind(2)
        gray = 0.299 * red + 0.587 * green + 0.114 * blue
        for view, expected in zip(raw_views(crops, grayscale_probability=1.0), gray, strict=True):
            assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])
            torch.testing.assert_close(view[:, 0], expected, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_solarization_of_the_view_it_is_asked_for(self, threshold, channels):
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

    def test_saturation_keeps_gray_and_pulls_colors_from_it(self):
        gray = random_crops(4, channels=1).expand(-1, -1, 3, -1, -1)
        settings = {"color_jitter": [0.0, 0.0, 0.9, 0.0], "color_jitter_probability": 1.0}
        torch.testing.assert_close(torch.stack(raw_views(gray, **settings)), gray / 255, rtol=0, atol=2e-3)
        color = random_crops(20)
        distances = [
            torch.cat(views).std(dim=1).mean(dim=(1, 2)) for views in (raw_views(color, **settings), raw_views(color))
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
        """A strength of 0 beside another one leaves its property alone: a hue jitter keeps gray as it is."""
        gray = random_crops(channels=1).expand(-1, -1, 3, -1, -1)
        views = raw_views(gray, color_jitter=[0.0, 0.0, 0.0, 0.5], color_jitter_probability=1.0)
        torch.testing.assert_close(torch.stack(views), gray / 255, rtol=0, atol=2e-3)

    def test_each_image_and_view_has_its_own_draw(self):
        crops = random_crops(1)[:1].expand(2, 8, -1, -1, -1)
        views = torch.cat(raw_views(crops, color_jitter=[0.4, 0.0, 0.0, 0.0], color_jitter_probability=1.0))
        means = views.mean(dim=(1, 2, 3))
        assert len(set(means.tolist())) == 16

    @pytest.mark.parametrize(
        ("settings", "fractions"),
        [
            ({"horizontal_flip_probability": 0.5}, (0.5, 0.5)),
            ({"color_jitter_probability": 0.8}, (0.8, 0.8)),
            ({"grayscale_probability": 0.2}, (0.2, 0.2)),
            ({"blur_probability": [1.0, 0.1]}, (1.0, 0.1)),
            ({"solarize_probability": [0.0, 0.2]}, (0.0, 0.2)),
        ],
    )
    def test_chances(self, settings, fractions):
        crops = random_crops(400)
        for view, crop, fraction in zip(
            raw_views(crops, blur_sigma=[14.0, 14.0], **settings), crops / 255, fractions, strict=True
        ):
            changed = ((view - crop).abs().flatten(1).amax(dim=1) > 0.01).float().mean().item()
            margin = 4 * (fraction * (1 - fraction) / 400) ** 0.5
            assert fraction - margin <= changed <= fraction + margin

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
        assert views.min() >= 0 and views.max() <= 1 + 1e-6
        assert ((views - crops.flatten(0, 1) / 255).abs().flatten(1).mean(dim=1) > 0.05).all()

    def test_gray_images_are_jittered_in_brightness(self):
        crops = torch.full((2, 20, 1, *SHAPE), 100, dtype=torch.uint8)
        views = torch.cat(raw_views(crops, color_jitter_probability=1.0))
        assert views.mean(dim=(1, 2, 3)).std() > 0.02

    def test_default_view_1_is_blurred_and_not_solarised(self):
        """White stays white in view 1, whatever it meets there; solarization turns it black in some views 2."""
        crops = torch.full((2, 60, 3, *SHAPE), 255, dtype=torch.uint8)
        augment = ViewAugmentation(
            ViewArguments(**{**PAPER_VIEWS, "color_jitter": [0.0] * 4}), SHAPE, (0.0,) * 3, (1.0,) * 3
        )
        torch.manual_seed(0)
        view_1, view_2 = augment(crops).chunk(2)
        assert view_1.min() > 0.99
        assert 2 < (view_2.mean(dim=(1, 2, 3)) < 0.01).sum() < 25

    def test_is_a_function_of_torch_manual_seed(self):
        crops = random_crops()
        augment = ViewAugmentation(ViewArguments(**PAPER_VIEWS), SHAPE, MEAN, STD)
        results = []
        for seed, other_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(seed)
            np.random.seed(other_seed)
            results.append(augment(crops))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_needs_no_gradient(self):
        assert not augmentation()(random_crops()).requires_grad


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Parts of real photographs, uint8 `(8, 3, 24, 32)`, among them black, white and gray ones."""
    images = [torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]
    parts = [
        image[:, top : top + 24, left : left + 32]
        for image in images
        for top, left in ((0, 0), (200, 150), (250, 300))
    ]
    gray = parts[1][:1].expand(3, -1, -1)
    return torch.stack([*parts, gray, torch.tensor([0, 255]).repeat(16).to(torch.uint8).expand(3, 24, -1)])


def per_image(*values: float) -> torch.Tensor:
    """Eight numbers from the given ones on, as an operation takes them."""
    return torch.tensor([*values] * 8)[:8].view(-1, 1, 1, 1)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


class TestOperations:
    """Each with another parameter for each image, against torchvision's image by image."""

    @pytest.mark.parametrize(
        ("operation", "reference", "values"),
        [
            (adjust_brightness, F.adjust_brightness, (0.0, 0.6, 1.0, 1.37, 3.0)),
            (adjust_contrast, F.adjust_contrast, (0.0, 0.6, 1.0, 1.37, 3.0)),
            (adjust_saturation, F.adjust_saturation, (0.0, 0.6, 1.0, 1.37, 3.0)),
            (adjust_hue, F.adjust_hue, (-0.5, -0.31, -0.1, 0.0, 0.03, 0.1, 0.27, 0.5)),
        ],
    )
    def test_jitter(self, photographs, operation, reference, values):
        views = photographs / 255
        given, parameters = views.clone(), per_image(*values)
        found = operation(views, parameters)
        assert torch.equal(views, given)
        expected = [
            reference(view, value) for view, value in zip(views, parameters.double().flatten().tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)

    def test_hue_of_every_color(self):
        """All mixtures of five levels: every sector of the circle and every border between two."""
        levels = torch.linspace(0, 1, 5)
        colors = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
        for turns in (-0.5, -1 / 3, -0.07, 0.0, 1 / 6, 0.2, 0.5):
            found = adjust_hue(colors, torch.full((1, 1, 1, 1), turns))
            assert_close(found[0], F.adjust_hue(colors[0], turns))

    def test_gray(self, photographs):
        views = photographs / 255
        assert_close(make_gray(views), F.rgb_to_grayscale(views, num_output_channels=3))

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 128 / 255, 1.0])
    def test_solarization(self, photographs, threshold):
        views = photographs / 255
        given = views.clone()
        assert torch.equal(solarize(views, threshold), F.solarize(views, threshold))
        assert torch.equal(views, given)

    @pytest.mark.parametrize("radius", [1, 4, 10])
    @pytest.mark.parametrize("blur_of_a_device", [blur, blur_by_convolution])
    def test_blur(self, photographs, radius, blur_of_a_device):
        views = photographs / 255
        given, sigmas = views.clone(), torch.linspace(0.1, 5, 8)
        found = blur_of_a_device(views, gaussian_kernels(sigmas, radius))
        assert torch.equal(views, given)
        size = 2 * radius + 1
        expected = [F.gaussian_blur(view, size, sigma) for view, sigma in zip(views, sigmas.tolist(), strict=True)]
        assert_close(found, torch.stack(expected))


def augment_slowly(crops: torch.Tensor, params: ViewParams, radius: int, threshold: float) -> torch.Tensor:
    """What `params` say, image by image and by torchvision, up to the normalization."""
    adjust = {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
    }
    views = []
    for number, crop in enumerate(crops):
        apply = {name: bool(params.apply[name][number]) for name in CHANCES}
        view = F.to_dtype(crop, torch.float32, scale=True)
        if apply["horizontal_flip"]:
            view = F.horizontal_flip(view)
        if apply["vertical_flip"]:
            view = F.vertical_flip(view)
        if apply["color_jitter"]:
            for jitter in params.order[number].tolist():
                view = adjust[JITTERS[jitter]](view, params.value[JITTERS[jitter]][number].item())
        if apply["grayscale"]:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        if apply["blur"]:
            view = F.gaussian_blur(view, 2 * radius + 1, params.value["sigma"][number].item())
        if apply["solarize"]:
            view = F.solarize(view, threshold)
        views.append(view)
    return torch.stack(views)


WAYS = ("_augment_cpu", "augment_at_once")
# All that a view can meet, with chances of a half, so that a few images meet all of it.
HALVES = {
    **{f"{name}_probability": 0.5 for name in ("horizontal_flip", "vertical_flip", "grayscale")},
    "color_jitter_probability": 0.8,
    "color_jitter": [0.4, 0.5, 0.6, 0.3],
    "blur_probability": [0.5, 0.5],
    "blur_sigma": [4.0, 20.0],
    "solarize_probability": [0.3, 0.3],
}


class TestWhole:
    @pytest.mark.parametrize("numbers_at_a_time", [1, 5 * 3 * 24 * 32, 10**6])
    @pytest.mark.parametrize("way", WAYS)
    def test_is_torchvisions_in_the_order_drawn(self, photographs, way, numbers_at_a_time, monkeypatch):
        """Both ways of computing, whatever the number of images at a time, against torchvision image by image."""
        monkeypatch.setattr(augmentations, "NUMBERS_AT_A_TIME", max(numbers_at_a_time, 3 * 24 * 32))
        if numbers_at_a_time == 1:
            monkeypatch.setattr(augmentations, "NUMBERS_OF_A_LARGE_IMAGE", 0)
        crops = photographs.repeat(8, 1, 1, 1)
        given = crops.clone()
        augment = ViewAugmentation(ViewArguments(**{**PAPER_VIEWS, **HALVES}), (24, 32), MEAN, STD)
        torch.manual_seed(0)
        params = augment.draw(32, crops.device)
        views = getattr(augment, way)(crops, params)
        assert torch.equal(crops, given)
        expected = augment_slowly(crops, params, radius=round(2 * 20 * 32 / 224), threshold=0.5)
        # Where rounding puts a pixel on the other side of the threshold, solarization makes a jump of it.
        at_threshold = params.apply["solarize"].view(-1, 1, 1, 1) & ((expected - 0.5).abs() < 1e-5)
        expected = F.normalize(expected, MEAN, STD)
        assert at_threshold.float().mean() < 1e-3
        torch.testing.assert_close(
            views[~at_threshold.expand_as(views)], expected[~at_threshold.expand_as(views)], rtol=0, atol=1e-4
        )

    @pytest.mark.parametrize("strengths", [[0.4, 0.0, 0.0, 0.0], [0.0, 0.4, 0.6, 0.0], [0.0, 0.0, 0.0, 0.2]])
    def test_both_ways_with_some_jitters_only(self, photographs, strengths):
        settings = {**HALVES, "color_jitter": strengths}
        augment = ViewAugmentation(ViewArguments(**{**PAPER_VIEWS, **settings}), (24, 32), (0.0,) * 3, (1.0,) * 3)
        torch.manual_seed(0)
        params = augment.draw(4, torch.device("cpu"))
        one, other = (getattr(augment, way)(photographs, params) for way in WAYS)
        assert (one - other).abs().median() < 1e-6 and ((one - other).abs() < 1e-4).float().mean() > 0.999

    def test_both_ways_of_gray_images(self):
        crops = random_crops(8, channels=1).flatten(0, 1)
        augment = ViewAugmentation(ViewArguments(**{**PAPER_VIEWS, **HALVES}), SHAPE, (0.5,), (0.25,))
        torch.manual_seed(0)
        params = augment.draw(8, crops.device)
        one, other = (getattr(augment, way)(crops, params) for way in WAYS)
        assert ((one - other).abs() < 1e-4).float().mean() > 0.999

    def test_an_accelerator_never_has_the_host_wait(self):
        crops = random_crops(8)
        augment = ViewAugmentation(ViewArguments(**{**PAPER_VIEWS, **HALVES}), SHAPE, MEAN, STD)
        with NoWaiting() as called:
            augment.augment_at_once(crops.flatten(0, 1), augment.draw(8, crops.device))
        assert "aten.rand.default" in called.names and "aten.convolution.default" in called.names
        with pytest.raises(AssertionError, match="the host would wait"), NoWaiting():
            augment._augment_cpu(crops.flatten(0, 1), augment.draw(8, crops.device))


COUNT = 3000


@pytest.fixture(scope="module")
def params() -> ViewParams:
    augment = ViewAugmentation(ViewArguments(**PAPER_VIEWS, vertical_flip_probability=0.3), (224, 224), MEAN, STD)
    torch.manual_seed(0)
    return augment.draw(COUNT, torch.device("cpu"))


class TestDraws:
    def test_chances(self, params):
        expected = {
            "horizontal_flip": (0.5, 0.5),
            "vertical_flip": (0.3, 0.3),
            "color_jitter": (0.8, 0.8),
            "grayscale": (0.2, 0.2),
            "blur": (1.0, 0.1),
            "solarize": (0.0, 0.2),
        }
        assert params.apply.keys() == expected.keys()
        for name, chances in expected.items():
            for applies, chance in zip(params.apply[name].view(2, -1), chances, strict=True):
                assert stats.binomtest(int(applies.sum()), COUNT, chance).pvalue > 1e-4, name

    def test_numbers_are_uniform_in_their_ranges(self, params):
        ranges = {
            "brightness": (0.6, 1.4),
            "contrast": (0.6, 1.4),
            "saturation": (0.8, 1.2),
            "hue": (-0.1, 0.1),
            "sigma": (0.1, 2.0),
        }
        assert params.value.keys() == ranges.keys()
        for name, (low, high) in ranges.items():
            for numbers in params.value[name].double().view(2, -1):
                assert low - 1e-6 <= numbers.min() and numbers.max() <= high + 1e-6
                assert stats.kstest(numbers, stats.uniform(low, high - low).cdf).pvalue > 1e-4, name

    def test_every_order_is_as_likely(self, params):
        orders = [tuple(order) for order in params.order.tolist()]
        counts = [orders.count(order) for order in permutations(range(4))]
        assert sum(counts) == 2 * COUNT
        assert stats.chisquare(counts).pvalue > 1e-4

    def test_nothing_depends_on_anything_else(self, params):
        """Of images, of views and of operations: no two draws are correlated."""
        columns = [params.apply[name].double() for name in CHANCES] + [
            *(number.double() for number in params.value.values()),
            *params.order[:, :3].double().unbind(1),
        ]
        rows = torch.stack([part for column in columns for part in column.view(2, -1)])
        rows = torch.stack([row for row in rows if row.std() > 0])
        rows = torch.cat([rows, rows[:, torch.arange(1, COUNT + 1) % COUNT]])  # the next image's
        correlations = torch.corrcoef(rows).fill_diagonal_(0)
        of_an_order = 0.4  # places of one order exclude each other
        strong = correlations.abs() > 5 / COUNT**0.5
        assert correlations.abs().max() < of_an_order
        assert strong.sum() <= 2 * 4 * 6  # pairs of 3 places, of 2 views, here and at the next image

    def test_factors_are_not_below_0(self):
        augment = ViewAugmentation(
            ViewArguments(**{**PAPER_VIEWS, "color_jitter": [3.0, 0.0, 0.0, 0.0]}), SHAPE, MEAN, STD
        )
        factors = augment.draw(200, torch.device("cpu")).value["brightness"]
        assert factors.min() >= 0 and factors.max() > 3.5


class TestNumberOfViews:
    def draw(self, num_views: int, num_images: int = 400) -> ViewParams:
        arguments = ViewArguments(
            **{**PAPER_VIEWS, "blur_probability": [1.0, 0.0], "solarize_probability": [0.0, 1.0]}
        )
        augment = ViewAugmentation(arguments, SHAPE, MEAN, STD, num_views)
        torch.manual_seed(0)
        return augment.draw(num_images, torch.device("cpu"))

    @pytest.mark.parametrize("num_views", [1, 2, 3, 5])
    def test_further_views_have_the_last_probabilities(self, num_views):
        params = self.draw(num_views)
        assert params.order.shape == (num_views * 400, 4)
        for name, first in (("blur", True), ("solarize", False)):
            by_view = params.apply[name].view(num_views, 400)
            assert by_view[0].all() if first else not by_view[0].any()
            assert not by_view[1:].any() if first else by_view[1:].all()
        for applies in params.apply["horizontal_flip"].view(num_views, 400):
            assert stats.binomtest(int(applies.sum()), 400, 0.5).pvalue > 1e-4

    def test_no_two_views_are_drawn_alike(self):
        numbers = self.draw(4).value["brightness"].view(4, 400)
        assert (torch.corrcoef(numbers) - torch.eye(4)).abs().max() < 0.25

    @pytest.mark.parametrize("num_views", [1, 3])
    @pytest.mark.parametrize("way", WAYS)
    def test_views_are_torchvisions(self, photographs, num_views, way):
        crops = photographs[None].repeat(num_views, 1, 1, 1, 1)
        augment = ViewAugmentation(
            ViewArguments(**{**PAPER_VIEWS, **HALVES}), (24, 32), (0.0,) * 3, (1.0,) * 3, num_views
        )
        torch.manual_seed(0)
        params = augment.draw(crops.shape[1], crops.device)
        expected = augment_slowly(crops.flatten(0, 1), params, radius=augment.blur_radius, threshold=0.5)
        views = getattr(augment, way)(crops.flatten(0, 1), params)
        assert ((views - expected).abs() < 1e-4).float().mean() > 0.999
        torch.manual_seed(0)
        assert augment(crops).shape == views.shape


def test_too_much_blur_for_the_image_is_refused():
    with pytest.raises(SiTError) as error:
        augmentation(shape=(4, 4), blur_probability=[1.0, 0.0], blur_sigma=[0.1, 200.0])
    assert error.value.argument == "blur_sigma" and "4 x 4" in error.value.problem
    augmentation(shape=(4, 4), blur_sigma=[0.1, 200.0])


class TestChannelsWithoutColor:
    """Of other channels than 1 and 3, there is no color, but brightness, contrast, flips and blur."""

    @pytest.mark.parametrize("channels", [2, 4, 12])
    @pytest.mark.parametrize("at_once", [False, True])
    def test_as_gray_images_of_one_channel_each(self, channels, at_once):
        """The same parameters do to each channel what they do to a gray image."""
        crops = random_crops(channels=channels)
        settings = {**PAPER_VIEWS, "color_jitter_probability": 1.0, "vertical_flip_probability": 0.5}
        settings["solarize_probability"] = [0.0, 0.0]
        augment = augmentation([0.3] * channels, [0.5] * channels, **settings)
        torch.manual_seed(0)
        params = augment.draw(crops.shape[1], crops.device)
        run = augment.augment_at_once if at_once else augment._augment_cpu
        views = run(crops.flatten(0, 1), params)
        gray = augmentation([0.3], [0.5], **settings)
        for channel in range(channels):
            alone = gray._augment_cpu(crops[:, :, channel : channel + 1].flatten(0, 1), params)
            torch.testing.assert_close(views[:, channel : channel + 1], alone, atol=2e-5, rtol=1e-5)

    def test_colors_are_left_out(self):
        crops = random_crops(channels=5)
        settings = {"color_jitter": [0.0, 0.0, 0.4, 0.1], "color_jitter_probability": 1.0}
        view_1, view_2 = raw_views(crops, grayscale_probability=1.0, solarize_probability=[1.0, 1.0], **settings)
        torch.testing.assert_close(torch.cat([view_1, view_2]), crops.flatten(0, 1) / 255)
