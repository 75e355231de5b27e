"""The preset as a table: facts of images and device, and what must follow from them."""

import itertools

import pytest

from modeling_sit import SiTConfig
from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.presets import MODEL_SIZES, PAPER_RATIOS, Facts, choose, look_up, teacher_momentum


def facts_of(num_images=2000, side=224, gray=False, device="cpu", **other) -> Facts:
    height, width = side if isinstance(side, tuple) else (side, side)
    return Facts(ImageFacts(num_images, height, width, 1 if gray else 3), device, **other)


def chosen(facts: Facts, **given) -> dict:
    return {choice.name: choice.value for choice in choose(facts, given, SiT)}


EXPECTED = [
    # device, images, side -> model, views, patch, batch, steps
    ("cpu", 200, 32, ("micro", 32, 4, 64, 1_000)),
    ("cpu", 2_000, 32, ("micro", 32, 4, 128, 1_500)),
    ("cpu", 20_000, 32, ("mini", 32, 4, 128, 3_000)),
    ("cpu", 200_000, 28, ("mini", 28, 4, 128, 3_000)),
    ("cpu", 200, 64, ("mini", 64, 8, 64, 1_000)),
    ("cpu", 2_000, 224, ("mini", 64, 8, 128, 1_500)),
    ("cpu", 200_000, 500, ("mini", 64, 8, 128, 3_000)),
    ("cuda", 200, 32, ("tiny", 32, 4, 128, 4_000)),
    ("cuda", 2_000, 64, ("tiny", 64, 8, 256, 10_000)),
    ("cuda", 20_000, 224, ("tiny", 224, 16, 64, 20_000)),
    ("cuda", 200_000, 500, ("small", 224, 16, 64, 100_000)),
]
DEVICES, COUNTS, SIDES = (
    ("cpu", "cuda"),
    (1, 5, 40, 200, 2_000, 20_000, 200_000, 2_000_000, None),
    (8, 28, 33, 64, 97, 224, 3000),
)


@pytest.mark.parametrize(("device", "count", "side", "expected"), EXPECTED)
def test_table(device, count, side, expected):
    values = chosen(facts_of(count, side, device=device))
    names = ("model_size", "image_size", "patch_size", "per_device_train_batch_size", "max_steps")
    assert tuple(values[name] for name in names) == expected


@pytest.mark.parametrize(("device", "count", "side"), list(itertools.product(DEVICES, COUNTS, SIDES)))
def test_what_holds_for_all(device, count, side):
    facts = facts_of(count, side, device=device)
    values = chosen(facts)
    width, heads = (MODEL_SIZES[values["model_size"]][name] for name in ("hidden_size", "num_attention_heads"))
    assert values["image_size"] % values["patch_size"] == 0 and width % heads == 0
    assert 16 <= (values["image_size"] // values["patch_size"]) ** 2 <= 256
    assert values["image_size"] <= max(side * 2, 16)  # small images are not blown up without need
    assert 1 <= values["per_device_train_batch_size"] <= (count or 10**9)
    memory = 1 / (1 - values["teacher_momentum"])
    assert 0.0095 <= memory / values["max_steps"] <= 0.05
    assert values["warmup_steps"] == values["max_steps"] // 10
    assert values["projection_hidden_size"] <= min(4 * width, 4096) and values["decoder_hidden_size"] <= 2 * width
    fields = {name: value for name, value in values.items() if name in SiTConfig.__annotations__}
    SiTConfig(**MODEL_SIZES[values["model_size"]], **fields)  # accepts them all


@pytest.mark.parametrize(("device", "side"), list(itertools.product(DEVICES, SIDES)))
def test_more_images_never_get_less(device, side):
    values = [chosen(facts_of(count, side, device=device)) for count in COUNTS]
    for name in ("max_steps", "per_device_train_batch_size"):
        assert [each[name] for each in values] == sorted(each[name] for each in values)
    widths = [MODEL_SIZES[each["model_size"]]["hidden_size"] for each in values]
    assert widths == sorted(widths)


@pytest.mark.parametrize("device", DEVICES)
def test_larger_images_never_get_smaller_views(device):
    sizes = [chosen(facts_of(2000, side, device=device))["image_size"] for side in range(4, 700)]
    assert sizes == sorted(sizes)


def test_blur_color_and_channels():
    small, middle, large = (chosen(facts_of(2000, side)) for side in (32, 64, 224))
    assert small["blur_probability"] == [0, 0] and small["crop_scale"] > middle["crop_scale"] > large["crop_scale"]
    assert middle["blur_probability"] == large["blur_probability"] == [0.5, 0.1]  # views of 64 pixels each
    assert "num_channels" not in small
    gray = chosen(facts_of(2000, 32, gray=True))
    assert (gray["num_channels"], gray["grayscale_probability"], gray["solarize_probability"]) == (1, 0, [0, 0])
    assert gray["color_jitter"][2:] == [0, 0]


def test_long_runs_have_the_papers_corruption_and_color():
    values = chosen(facts_of(200_000, 500, device="cuda"))
    assert values["noise_ratio"] == PAPER_RATIOS["noise"] and values["replace_ratio"] == PAPER_RATIOS["replace"]
    assert values["color_jitter"] == [0.4, 0.4, 0.2, 0.1] and values["blur_probability"] == [1.0, 0.1]
    assert (values["export"], values["drop_path_rate"], values["reconstruction_weight"]) == ("teacher", 0.1, 1)
    short = chosen(facts_of(200_000, 500, device="cuda"), max_steps=2_000)
    assert (short["export"], short["drop_path_rate"], short["noise_ratio"]) == ("student", 0, [0.2, 0.4])


@pytest.mark.parametrize("kind", ["zeros", "replace", "none"])
def test_only_ratios_of_the_kinds_in_use(kind):
    ratios = {name for name in chosen(facts_of(), corruption=kind) if name.endswith("_ratio")}
    assert ratios == ({f"{kind}_ratio"} if kind != "none" else set())


def test_what_is_given_is_never_chosen():
    everything = chosen(facts_of())
    given = {**everything, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert choose(facts_of(gray=True), {**given, "num_channels": 3}, SiT) == []


class TestFollowsWhatIsGiven:
    def test_steps(self):
        values = chosen(facts_of(), max_steps=400)
        assert "max_steps" not in values
        assert (values["warmup_steps"], values["teacher_momentum"]) == (40, pytest.approx(1 - 1 / 10))

    @pytest.mark.parametrize(("accumulation", "processes", "steps"), [(1, 1, 150), (2, 1, 75), (1, 2, 70)])
    def test_epochs(self, accumulation, processes, steps):
        values = chosen(
            facts_of(2000, num_processes=processes), num_train_epochs=10, gradient_accumulation_steps=accumulation
        )
        assert "max_steps" not in values and values["warmup_steps"] == steps // 10

    def test_warm_up_epochs(self):
        assert "warmup_steps" not in chosen(facts_of(), warmup_epochs=3)

    def test_width(self):
        values = chosen(facts_of(), hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
        assert "model_size" not in values
        assert values["projection_hidden_size"] == 3072 and values["projection_size"] == 256
        assert values["base_learning_rate"] * values["per_device_train_batch_size"] / 256 == pytest.approx(5e-4)
        assert chosen(facts_of(), model_size="small")["decoder_hidden_size"] == 768

    @pytest.mark.parametrize(
        ("given", "batch"),
        [
            ({}, 128),
            ({"model_size": "small", "image_size": 64}, 32),  # 64 tokens
            ({"model_size": "small", "image_size": 224, "patch_size": 16}, 16),  # 196
            (
                {"model_size": "base", "image_size": 224, "patch_size": 14},
                8,
            ),  # 256: less than that contrasts with too few
            ({"patch_size": 2}, 16),  # 1,024
            ({"model_size": "base", "per_device_train_batch_size": 64}, None),
        ],
    )
    def test_a_batch_on_a_cpu_fits_into_its_memory(self, given, batch):
        assert chosen(facts_of(), **given).get("per_device_train_batch_size") == batch

    @pytest.mark.parametrize(
        ("width", "heads"), [(16, 1), (64, 2), (96, 3), (100, 2), (128, 4), (192, 3), (384, 6), (768, 12), (7, 1)]
    )
    @pytest.mark.parametrize("device", DEVICES)
    def test_heads_of_a_width(self, device, width, heads):
        assert chosen(facts_of(side=32, device=device), hidden_size=width)["num_attention_heads"] == heads
        given = chosen(facts_of(side=32, device=device), hidden_size=width, num_attention_heads=1)
        assert "num_attention_heads" not in given

    def test_epochs_of_less_than_a_batch(self):
        assert chosen(facts_of(1437), num_train_epochs=3, per_device_train_batch_size=2048)["warmup_steps"] == 0

    def test_epochs_of_an_endless_stream(self):
        assert chosen(facts_of(None, is_streamed=True), num_train_epochs=3)["max_steps"] == 3_000

    @pytest.mark.parametrize(
        ("image_size", "patch_size"), [(28, 4), (32, 4), (48, 8), (96, 8), (224, 16), (128, 8), (98, 7), ([32, 64], 4)]
    )
    def test_views(self, image_size, patch_size):
        assert chosen(facts_of(), image_size=image_size)["patch_size"] == patch_size

    def test_views_that_no_patch_divides(self):
        """Of 100 pixels, patches of 4 would give 625 tokens. The configuration then names the nearest size."""
        assert chosen(facts_of(), image_size=100)["patch_size"] == 8

    @pytest.mark.parametrize(
        ("patch_size", "image_size"),
        [(16, 64), (14, 56), (7, 63), (4, 64), ([8, 8], 64), ([7, 14], 56), ([16, 24], 96)],
    )
    def test_patches(self, patch_size, image_size):
        assert chosen(facts_of(), patch_size=patch_size)["image_size"] == image_size

    @pytest.mark.parametrize("patch_size", [[8, 4], [4, 8]])
    def test_patches_that_are_no_squares(self, patch_size):
        assert chosen(facts_of(side=28), patch_size=patch_size)["image_size"] == 32
        given = {"patch_size": patch_size, "image_size": 128, "model_size": "base"}
        (batch,) = (each for each in choose(facts_of(), given, SiT) if each.name == "per_device_train_batch_size")
        assert batch.reason.startswith("512 tokens")

    @pytest.mark.parametrize(("batch", "peak"), [(16, 3e-3), (256, 3e-3), (1024, 6e-3)])
    def test_peak_learning_rate_by_the_total_batch(self, batch, peak):
        rate = chosen(facts_of(200_000), per_device_train_batch_size=batch)["base_learning_rate"]
        assert rate * batch / 256 == pytest.approx(peak, rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_batch_of_all_processes_fits_the_images(processes):
    batch = chosen(facts_of(100, device="cuda", num_processes=processes))["per_device_train_batch_size"]
    assert 50 < batch * processes <= 100


def test_little_time_on_a_cpu_gets_the_smallest_model():
    sizes = [chosen(facts_of(side=224, time_budget=minutes * 60))["model_size"] for minutes in (5, 30)]
    assert sizes == ["micro", "mini"]


def test_bf16_where_the_device_is_fast_in_it():
    assert "mixed_precision" not in chosen(facts_of(device="cuda"))
    assert chosen(facts_of(device="cuda", has_bf16=True))["mixed_precision"] == "bf16"


@pytest.mark.parametrize("steps", [40, 200, 880, 1125, 4_000, 100_000])
def test_momentum(steps):
    assert 0.01 <= 1 / (1 - teacher_momentum(steps)) / steps <= 0.05


@pytest.mark.parametrize(
    ("count", "accumulation", "epochs"),
    [(200, 1, "333"), (2_000, 1, "100"), (2_000, 2, "200"), (20_000, 1, "19"), (17, 1, "1,000"), (17, 4, "4,000")],
)
def test_epochs_in_the_reason_are_of_whole_batches(count, accumulation, epochs):
    """As the run counts them: it leaves out the images that do not fill a batch."""
    choices = choose(facts_of(count), {"gradient_accumulation_steps": accumulation}, SiT)
    (steps,) = (choice for choice in choices if choice.name == "max_steps")
    assert steps.reason.endswith(f", {epochs} epochs")


def test_every_choice_has_a_reason():
    for device, count in itertools.product(DEVICES, COUNTS):
        assert all(choice.reason.strip() for choice in choose(facts_of(count, device=device, gray=True), {}, SiT))


def test_look_up():
    assert [look_up(((2, "a"), (5, "b"), (float("inf"), "c")), n) for n in (0, 2, 2.5, 5, 6)] == list("aabbc")


def test_channels_without_color():
    facts = Facts(ImageFacts(1000, 64, 64, 12, (0.2,) * 12, (0.1,) * 12), "cpu")
    chosen = {choice.name: choice.value for choice in choose(facts, {}, SiT)}
    assert chosen["num_channels"] == 12
    assert (chosen["image_mean"], chosen["image_std"]) == ([0.2] * 12, [0.1] * 12)
    assert chosen["color_jitter"][2:] == [0, 0] and chosen["color_jitter"][0] > 0
    assert (chosen["grayscale_probability"], chosen["solarize_probability"]) == (0, [0, 0])
    # Another number of channels, or a model, has its own normalization.
    for given in ({"num_channels": 3}, {"model_name_or_path": "some", "num_channels": 12}):
        assert "image_mean" not in {choice.name for choice in choose(facts, given, SiT)}


def test_few_images_have_mild_color_in_long_runs_too():
    few, many = (chosen(facts_of(count, 500, device="cuda"), max_steps=20_000) for count in (19_999, 20_000))
    assert few["color_jitter"] == [0.2, 0.2, 0.1, 0.05] and few["solarize_probability"] == [0, 0]
    assert many["color_jitter"] == [0.4, 0.4, 0.2, 0.1] and many["solarize_probability"] == [0, 0.2]
