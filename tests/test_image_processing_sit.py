"""Image processors of both backends against Pillow and NumPy written out, and their corruption against GMML's."""

import importlib
import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor

from modeling_sit import SiTImageProcessor, SiTImageProcessorPil
from modeling_sit.gmml import CORRUPTIONS, corrupt

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = {"height": 32, "width": 48}
# Both backends interpolate 8-bit images in whole numbers, with another precision and another order of rows and
# columns: up to two levels apart on images with any smoothness, more on noise, where cutting at 0 and 255 in between
# tells.
TWO_LEVELS = 2.01 / 255 / min(STD)
EXACT = 1e-5
BACKENDS = [SiTImageProcessor, SiTImageProcessorPil]
TOLERANCES = {SiTImageProcessor: TWO_LEVELS, SiTImageProcessorPil: EXACT}


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def backend(request):
    return request.param


def random_values(height=50, width=40, *channels, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, high, (height, width, *channels)).astype(dtype)


def smooth_values(height=50, width=40, seed=0):
    """Color gradients: images on which a resize is more than noise."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = np.random.default_rng(seed).random((3, 3))
    waves = [np.sin(6 * (a * y + b * x + c)) for a, b, c in phase]
    return np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)


def images(count=4):
    return [PIL.Image.fromarray(smooth_values(seed=seed)) for seed in range(count)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def expected_pixels(image, size=(32, 48), mean=MEAN, std=STD, resample=PIL.Image.Resampling.BICUBIC):
    """Resized, rescaled and normalized by Pillow and NumPy, channel by channel."""
    values = np.asarray(image.resize((size[1], size[0]), resample), dtype=np.float64)
    if values.ndim == 2:
        values = values[..., None]
    channels = [(values[..., channel] / 255 - mean[channel]) / std[channel] for channel in range(values.shape[2])]
    return torch.from_numpy(np.stack(channels)).float()


def pixels(processor, image, **kwargs):
    features = processor(image, return_tensors="pt", **kwargs)
    assert list(features) == ["pixel_values"]
    return features["pixel_values"]


def assert_close(one, other, tolerance):
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    assert (one - other).abs().max().item() <= tolerance


# Without corruption.


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (50, 40), (100, 20)])
def test_equals_pillow_and_numpy(backend, size):
    image = PIL.Image.fromarray(smooth_values())
    processor = backend(size={"height": size[0], "width": size[1]})
    actual, expected = pixels(processor, image)[0], expected_pixels(image, size)
    assert_close(actual, expected, TOLERANCES[backend])
    assert (actual - expected).abs().mean() < 0.05 * TOLERANCES[backend]


def test_pillow_equals_pillow_on_noise():
    image = PIL.Image.fromarray(random_values(50, 40, 3))
    assert_close(pixels(SiTImageProcessorPil(size=SIZE), image)[0], expected_pixels(image), EXACT)


def test_defaults(backend):
    processor = backend()
    assert pixels(processor, images(1)).shape == (1, 3, 224, 224)
    assert processor.do_corrupt is False
    assert processor.generator is None
    assert processor.corruption == "noise+replace"
    assert tuple(processor.noise_ratio) == tuple(processor.zeros_ratio) == (0.5, 0.7)
    assert tuple(processor.replace_ratio) == (0.3, 0.3)
    assert tuple(processor.block_size) == (0.05, 0.25)
    assert processor.align_to_patches is False
    assert processor.patch_size == 16


def test_backends_agree():
    one, other = (pixels(backend(size=SIZE), images()) for backend in BACKENDS)
    assert_close(one, other, TWO_LEVELS)
    assert (one - other).abs().mean() < 0.05 * TWO_LEVELS


def test_images_of_different_sizes(backend):
    shapes = [(50, 40), (20, 90), (50, 40), (32, 48), (200, 10)]
    batch = [PIL.Image.fromarray(smooth_values(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    result = pixels(backend(size=SIZE), batch)
    assert result.shape == (5, 3, 32, 48)
    for image, array in zip(result, batch, strict=True):
        assert_close(image, expected_pixels(array), TOLERANCES[backend])


@pytest.mark.parametrize("kind", ["numpy_last", "numpy_first", "torch_first", "pil"])
def test_kinds_of_images(backend, kind):
    values = smooth_values()
    image = {
        "numpy_last": values,
        "numpy_first": values.transpose(2, 0, 1),
        "torch_first": torch.from_numpy(values.transpose(2, 0, 1).copy()),
        "pil": PIL.Image.fromarray(values),
    }[kind]
    expected = expected_pixels(PIL.Image.fromarray(values))
    assert_close(pixels(backend(size=SIZE), [image])[0], expected, TOLERANCES[backend])


def test_steps_can_be_switched_off(backend):
    values = smooth_values(32, 48)
    image, raw = PIL.Image.fromarray(values), torch.from_numpy(values).permute(2, 0, 1).float()
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    assert_close(pixels(backend(), image, **off)[0].float(), raw, 0)
    assert_close(pixels(backend(), image, **{**off, "do_rescale": True})[0].float(), raw / 255, EXACT)


def test_call_overrides_settings_for_the_call_only(backend):
    processor = backend(size=SIZE)
    other = {"size": {"height": 16, "width": 24}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    image = images(1)[0]
    expected = expected_pixels(image, (16, 24), [0.5] * 3, [0.5] * 3, PIL.Image.Resampling.BILINEAR)
    assert_close(pixels(processor, image, **other)[0], expected, 2.01 / 255 / 0.5)
    assert_close(pixels(processor, image)[0], expected_pixels(image), TOLERANCES[backend])


@pytest.mark.parametrize("return_tensors", ["np", "pt"])
def test_return_tensors(backend, return_tensors):
    kind = {"np": np.ndarray, "pt": torch.Tensor}[return_tensors]
    clean = backend(size=SIZE)(images(), return_tensors=return_tensors)
    corrupted = backend(size=SIZE)(images(), do_corrupt=True, generator=seeded(), return_tensors=return_tensors)
    for value in [*clean.values(), *corrupted.values()]:
        assert isinstance(value, kind)
    assert str(clean["pixel_values"].dtype).endswith("float32")


# Modes.


def over_white(values, alpha):
    alpha = alpha[..., None].astype(float) / 255
    return np.rint(values * alpha + 255 * (1 - alpha)).astype(np.uint8)


def luma(values):
    return np.rint(values.astype(float) @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def unresized(processor, image):
    """The processor's pixels back in [0, 255], of an image that has its size already."""
    result = pixels(processor, image)[0].permute(1, 2, 0).double().numpy()
    return (result * np.array(processor.image_std) + np.array(processor.image_mean)) * 255


SAME = {"size": {"height": 20, "width": 24}}
GREY = {"image_mean": [0.5], "image_std": [0.25]}


def test_grey_becomes_color(backend):
    values = random_values(20, 24)
    result = unresized(backend(**SAME), PIL.Image.fromarray(values))
    assert np.abs(result - values[..., None]).max() < 1e-2
    assert result.shape == (20, 24, 3)


def test_transparency_shows_white(backend):
    values, alpha = random_values(20, 24, 3), random_values(20, 24, seed=1)
    image = PIL.Image.fromarray(np.dstack([values, alpha]), "RGBA")
    assert np.abs(unresized(backend(**SAME), image) - over_white(values, alpha)).max() < 1.01


@pytest.mark.parametrize("settings", [{}, GREY], ids=["color", "grey"])
def test_palette_with_transparency(backend, settings):
    indices = random_values(20, 24) % 4
    palette = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [90, 90, 90]], dtype=np.uint8)
    alpha = np.array([255, 0, 128, 255], dtype=np.uint8)
    image = PIL.Image.fromarray(indices)
    image.putpalette(palette.ravel().tolist())
    image.info["transparency"] = alpha.tobytes()
    assert image.mode == "P"
    expected = over_white(palette[indices], alpha[indices])
    if settings:
        expected = luma(expected)[..., None]
    assert np.abs(unresized(backend(**SAME, **settings), image) - expected).max() < 1.6


@pytest.mark.parametrize("settings", [{}, GREY], ids=["color", "grey"])
def test_sixteen_bits_are_scaled_not_cut(backend, settings):
    values = random_values(20, 24, dtype=np.uint16)
    image = PIL.Image.fromarray(values)
    assert image.mode.startswith("I;16")
    result = unresized(backend(**SAME, **settings), image)
    assert result.shape == (20, 24, 1 if settings else 3)
    assert np.abs(result - (values / 257)[..., None]).max() < 1.01


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_model_takes_grey_and_color(backend, mode):
    values = random_values(20, 24, *([3] if mode == "RGB" else []))
    result = unresized(backend(**SAME, **GREY), PIL.Image.fromarray(values))
    expected = luma(values) if mode == "RGB" else values
    assert result.shape == (20, 24, 1)
    assert np.abs(result[..., 0] - expected).max() < 1.01


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_grey_model_takes_grey_arrays(backend, kind):
    values = random_values(20, 24)
    array = values[None] if kind == "numpy" else torch.from_numpy(values)[None]
    result = unresized(backend(**SAME, **GREY), [array])
    assert result.shape == (20, 24, 1)
    assert np.abs(result[..., 0] - values).max() < 1.01


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_color_model_takes_grey_arrays(backend, kind):
    values = random_values(20, 24)
    array = values[None] if kind == "numpy" else torch.from_numpy(values)[None]
    result = unresized(backend(**SAME), [array])
    assert result.shape == (20, 24, 3)
    assert np.abs(result - values[..., None]).max() < 1.01


def test_grey_is_resized_and_normalized(backend):
    image = PIL.Image.fromarray(smooth_values()[..., 0].copy())
    processor = backend(size=SIZE, **GREY)
    expected = expected_pixels(image, mean=[0.5], std=[0.25])
    assert_close(pixels(processor, image)[0], expected, 2.01 / 255 / 0.25)


# With corruption.


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruption_gives_three_tensors(backend, corruption):
    processor = backend(size=SIZE, corruption=corruption)
    features = processor(images(), do_corrupt=True, generator=seeded(), return_tensors="pt")
    assert set(features) == {"pixel_values", "target_pixel_values", "corruption_mask"}
    corrupted, target, mask = (features[n] for n in ("pixel_values", "target_pixel_values", "corruption_mask"))
    assert corrupted.shape == target.shape == (4, 3, 32, 48)
    assert corrupted.dtype == target.dtype == torch.float32
    assert mask.shape == (4, 1, 32, 48)
    assert mask.dtype == torch.bool
    assert torch.equal(target, pixels(processor, images()))
    outside = ~mask.expand_as(target)
    assert outside.any()
    assert torch.equal(corrupted[outside], target[outside])
    assert mask.any() == (corruption != "none")
    assert torch.equal(corrupted, target) == (corruption == "none")


def test_corruption_is_gmmls(backend):
    settings = {"corruption": "zeros+replace", "zeros_ratio": (0.1, 0.4), "replace_ratio": (0.2, 0.5)}
    settings |= {"noise_ratio": (0.3, 0.6), "block_size": (0.1, 0.3), "align_to_patches": True, "patch_size": (4, 8)}
    processor = backend(size=SIZE, **settings)
    clean = pixels(processor, images())
    expected, expected_mask = corrupt(clean, **settings, generator=seeded())
    by_method, mask_by_method = processor.corrupt(clean, generator=seeded())
    by_call = processor(images(), do_corrupt=True, generator=seeded(), return_tensors="pt")
    assert torch.equal(by_method, expected)
    assert torch.equal(mask_by_method, expected_mask)
    assert torch.equal(by_call["pixel_values"], expected)
    assert torch.equal(by_call["corruption_mask"], expected_mask)


def test_default_corruption_is_gmmls(backend):
    clean = pixels(backend(size=SIZE), images())
    for one, other in zip(backend().corrupt(clean, seeded()), corrupt(clean, generator=seeded()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_corrupt_keeps_type_and_input(backend, dtype):
    clean = torch.randn(3, 5, 20, 30, generator=seeded()).to(dtype)
    copy = clean.clone()
    corrupted, mask = backend().corrupt(clean, generator=seeded())
    assert corrupted.dtype == dtype
    assert mask.shape == (3, 1, 20, 30)
    assert torch.equal(clean, copy)


def test_generator_decides(backend):
    processor = backend(size=SIZE)

    def run(seed):
        return processor(images(), do_corrupt=True, generator=seeded(seed), return_tensors="pt")

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["corruption_mask"], other["corruption_mask"])
    before = torch.get_rng_state()
    run(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_torch_decides(backend):
    processor = backend(size=SIZE)
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(processor(images(), do_corrupt=True, return_tensors="pt")["corruption_mask"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_call_overrides_corruption_for_the_call_only(backend):
    processor = backend(size=SIZE)
    overridden = processor(
        images(),
        do_corrupt=True,
        corruption="zeros",
        zeros_ratio=(0.1, 0.1),
        block_size=(0.05, 0.1),
        generator=seeded(),
        return_tensors="pt",
    )
    mask = overridden["corruption_mask"]
    assert torch.equal(overridden["pixel_values"] == 0, mask.expand(-1, 3, -1, -1))
    shares = mask.flatten(1).double().mean(1)
    assert (shares >= 0.1).all()
    assert (shares <= 0.1 + 3 * 4 / (32 * 48)).all()
    assert processor.corruption == "noise+replace"
    assert processor.do_corrupt is False
    assert processor.generator is None
    assert pixels(processor, images()).shape == (4, 3, 32, 48)


def test_inference_never_corrupts(backend):
    """A setting kept for the calls of pretraining does not reach a call that does not ask."""
    plain, pretraining = backend(size=SIZE), backend(size=SIZE, corruption="zeros", zeros_ratio=(0.9, 0.9))
    assert torch.equal(pixels(plain, images()), pixels(pretraining, images()))


# Files.

OTHER_SETTINGS = {
    "corruption": "zeros+replace",
    "noise_ratio": [0.1, 0.2],
    "zeros_ratio": [0.3, 0.4],
    "replace_ratio": [0.5, 0.6],
    "block_size": [0.1, 0.3],
    "align_to_patches": True,
    "patch_size": 8,
}


@pytest.mark.parametrize("form", [list, tuple])
def test_settings_survive_a_file(backend, tmp_path, form):
    settings = {name: form(value) if isinstance(value, list) else value for name, value in OTHER_SETTINGS.items()}
    processor = backend(size=SIZE, **settings)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in OTHER_SETTINGS} == OTHER_SETTINGS
    loaded = backend.from_pretrained(tmp_path)
    for name, value in OTHER_SETTINGS.items():
        assert loaded.to_dict()[name] == value
    assert loaded.to_dict() == processor.to_dict()
    one, other = (
        each(images(), do_corrupt=True, generator=seeded(), return_tensors="pt") for each in (processor, loaded)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    clean = one["target_pixel_values"]
    assert torch.equal(loaded.corrupt(clean, seeded())[0], one["pixel_values"])


def test_default_settings_are_equal_after_a_file(backend, tmp_path):
    processor = backend()
    processor.save_pretrained(tmp_path)
    assert backend.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_both_modules_show_the_names_of_the_arguments():
    kwargs = [
        importlib.import_module(each.__module__).SiTImageProcessorKwargs
        for each in (SiTImageProcessor, SiTImageProcessorPil)
    ]
    assert kwargs == [SiTImageProcessor.valid_kwargs] * 2


def test_nothing_of_a_call_reaches_the_file(backend, tmp_path):
    processor = backend(size=SIZE)
    processor(images(), do_corrupt=True, generator=seeded(), corruption="zeros", return_tensors="pt")
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "generator" not in written
    assert written["do_corrupt"] is False
    assert written["corruption"] == "noise+replace"
    assert list(backend.from_pretrained(tmp_path)(images(), return_tensors="pt")) == ["pixel_values"]


def test_a_generator_of_the_processors_own_is_not_saved(backend, tmp_path):
    processor = backend(size=SIZE, generator=seeded())
    expected = backend(size=SIZE)(images(), do_corrupt=True, generator=seeded(), return_tensors="pt")
    processor.save_pretrained(tmp_path)
    assert "generator" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "generator" not in repr(processor)
    assert backend.from_pretrained(tmp_path).generator is None
    actual = processor(images(), do_corrupt=True, return_tensors="pt")
    assert torch.equal(actual["corruption_mask"], expected["corruption_mask"])


def test_auto_class_loads_either_backend(tmp_path, backend):
    backend(size=SIZE, **OTHER_SETTINGS).save_pretrained(tmp_path)
    best = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(best) is SiTImageProcessor
    assert best.corruption == "zeros+replace"
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="pil")) is SiTImageProcessorPil


def test_file_names_the_classes_that_load_it_elsewhere(tmp_path):
    SiTImageProcessor().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "SiTImageProcessor"
    assert written["auto_map"] == {
        "AutoImageProcessor": [
            "image_processing_pil_sit.SiTImageProcessorPil",
            "image_processing_sit.SiTImageProcessor",
        ]
    }


# Bad settings.

BAD_SETTINGS = [
    {"corruption": "blur"},
    {"noise_ratio": (0.7, 0.5)},
    {"zeros_ratio": (0.5, 0.95)},
    {"replace_ratio": (-0.1, 0.3)},
    {"noise_ratio": (0.5,)},
    {"noise_ratio": 0.6},
    {"block_size": (0.0, 0.2)},
    {"block_size": (0.3, 0.2)},
    {"patch_size": 0, "align_to_patches": True},
    {"patch_size": -8, "align_to_patches": True},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_bad_settings_are_refused(backend, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        backend(**settings)


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_bad_settings_of_a_call_are_refused(backend, settings):
    # transformers checks types at a call, with an error that is no ValueError.
    with pytest.raises(Exception, match=next(iter(settings))):
        backend(size=SIZE)(images(), do_corrupt=True, return_tensors="pt", **settings)


def test_patches_that_do_not_fit_are_refused(backend):
    with pytest.raises(ValueError, match="align_to_patches"):
        backend(size=SIZE, align_to_patches=True, patch_size=7)(images(), do_corrupt=True, return_tensors="pt")


class TestChannelsAndRange:
    """Channels that are no colors, and values of more than 8 bits."""

    @staticmethod
    def deep(channels: int, shape=(50, 40)) -> np.ndarray:
        return np.random.default_rng(channels).integers(0, 4096, (*shape, channels), dtype=np.uint16)

    @staticmethod
    def processor(backend, channels: int, **settings):
        statistics = {"image_mean": [0.1 * (1 + c % 5) for c in range(channels)], "image_std": [0.5] * channels}
        return backend(size=SIZE, **{**statistics, **settings})

    @pytest.mark.parametrize("channels", [2, 4, 5, 12, 16])
    def test_each_channel_is_resized_and_normalized_by_itself(self, backend, channels):
        processor = self.processor(backend, channels, intensity_range=[0, 4095])
        values = self.deep(channels)
        small = np.rint(values * (255 / 4095)).astype(np.uint8)
        found = processor([values], return_tensors="pt")["pixel_values"]
        for channel in range(channels):
            gray = backend(size=SIZE, image_mean=[processor.image_mean[channel]], image_std=[0.5])
            alone = gray([PIL.Image.fromarray(small[..., channel])], return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(found[:, channel : channel + 1], alone, atol=EXACT, rtol=0)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
    def test_the_forms_of_an_image(self, backend, channels):
        processor = self.processor(backend, channels, intensity_range=[0, 4095])
        values = self.deep(channels)
        expected = processor([values], return_tensors="pt")["pixel_values"]
        forms = [
            np.moveaxis(values, -1, 0),
            torch.from_numpy(values.astype(np.int32)),
            torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1),
            np.rint(values * (255 / 4095)).astype(np.uint8),  # of 8 bits, and so not scaled once more
        ]
        for form in forms:
            torch.testing.assert_close(processor([form], return_tensors="pt")["pixel_values"], expected)

    def test_deep_images_of_pillow(self, backend):
        processor = self.processor(backend, 1, intensity_range=[0, 4095], do_resize=False)
        values = self.deep(1)[..., 0]
        found = processor([PIL.Image.fromarray(values)], return_tensors="pt")["pixel_values"]
        expected = (np.rint(values * (255 / 4095)) / 255 - 0.1) / 0.5
        torch.testing.assert_close(found[0, 0], torch.from_numpy(expected).float(), atol=EXACT, rtol=0)

    def test_a_range_for_each_channel(self, backend):
        processor = self.processor(backend, 2, intensity_range=[0, 4095, 1000, 2000], do_resize=False)
        values = self.deep(2)
        small = [
            ((values[..., c].astype(float) - low) / (high - low)).clip(0, 1)
            for c, low, high in [(0, 0, 4095), (1, 1000, 2000)]
        ]
        found = processor([values], return_tensors="pt")["pixel_values"][0].numpy() * 0.5
        for channel in range(2):
            wanted = np.rint(small[channel] * 255) / 255 - processor.image_mean[channel]
            np.testing.assert_allclose(found[channel], wanted, atol=EXACT)

    def test_values_that_are_not_to_be_rescaled_stay(self, backend):
        processor = self.processor(backend, 3, intensity_range=[0, 4095], do_resize=False, do_normalize=False)
        values = np.random.default_rng(0).random((3, 50, 40)).astype(np.float32)
        found = processor([values], do_rescale=False, return_tensors="pt")["pixel_values"]
        np.testing.assert_array_equal(found[0], values)

    def test_saved_and_loaded(self, backend, tmp_path):
        processor = self.processor(backend, 12, intensity_range=(0, 4095))
        processor.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["intensity_range"] == [0, 4095]
        loaded = backend.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict() and loaded.num_channels == 12

    def test_without_a_range_nothing_is_saved(self, backend, tmp_path):
        backend().save_pretrained(tmp_path)
        assert "intensity_range" not in json.loads((tmp_path / "preprocessor_config.json").read_text())

    @pytest.mark.parametrize("values", [[1], [5, 5], [0, 1, 0, 1]])
    def test_ranges_that_are_none(self, backend, values):
        with pytest.raises(ValueError, match="intensity_range"):
            self.processor(backend, 3, intensity_range=values)
        with pytest.raises(ValueError, match="intensity_range"):
            backend()(images(1), intensity_range=values)

    def test_corruption(self, backend):
        processor = self.processor(backend, 12, intensity_range=[0, 4095])
        made = processor([self.deep(12)] * 2, do_corrupt=True, generator=seeded(), return_tensors="pt")
        assert made["pixel_values"].shape == (2, 12, 32, 48)
        same = (made["pixel_values"] == made["target_pixel_values"]).all(dim=1, keepdim=True)
        assert same[~made["corruption_mask"].bool()].all()
