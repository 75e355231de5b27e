"""Defaults by the data: a table of inputs and outputs, and what holds over a grid of inputs."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.presets import Preset, RunFacts, read_facts, settle_defaults
from modeling_sit.finetuning.trainer import Task
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments

NUMBERS = (5, 70, 144, 720, 1_437, 5_000, 20_000, 60_000, 200_000, 1_281_167, 10_000_000)
WIDTHS = (16, 64, 128, 192, 384, 768, 1024)
GRID = [
    RunFacts(num_train=number, from_scratch=scratch, hidden_size=width, image_size=size, on_cpu=on_cpu)
    for number, scratch, width, size, on_cpu in itertools.product(
        NUMBERS, (False, True), (64, 384, 768), (16, 64, 224), (False, True)
    )
]


def preset(num_train: int = 720, given: dict | None = None, **facts) -> Preset:
    return Preset(RunFacts(num_train=num_train, **facts), given or {})


@pytest.mark.parametrize(
    ("num_train", "from_scratch", "width", "image_size", "on_cpu", "steps", "batch_size", "rate"),
    [
        # few images: many epochs of small batches
        (70, False, 64, 16, True, 1000, 16, 7e-4),
        (144, True, 64, 16, True, 1670, 16, 1e-3),
        (720, False, 128, 64, True, 1810, 16, 5e-4),
        (720, True, 128, 64, True, 2710, 16, 1e-3),
        (1437, False, 64, 16, True, 2220, 16, 7e-4),
        (5000, False, 192, 32, False, 3230, 32, 4e-4),
        (50_000, False, 384, 32, False, 6450, 128, 3e-4),
        (50_000, True, 384, 32, False, 9680, 128, 6e-4),
        # a large model on large images gets smaller batches
        (50_000, False, 768, 224, False, 6450, 64, 2e-4),
        # many images: a few epochs
        (1_281_167, False, 384, 224, False, 30030, 128, 3e-4),
        # large images on a CPU: no more than it can do
        (5000, False, 384, 224, True, 1000, 32, 3e-4),
    ],
)
def test_table(num_train, from_scratch, width, image_size, on_cpu, steps, batch_size, rate):
    chosen = preset(num_train, from_scratch=from_scratch, hidden_size=width, image_size=image_size, on_cpu=on_cpu)
    assert chosen["max_steps"] == steps
    assert chosen["per_device_train_batch_size"] == batch_size
    assert chosen["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("facts", GRID, ids=str)
def test_values_are_in_range(facts):
    chosen = Preset(facts, {})
    assert isinstance(chosen["max_steps"], int) and chosen["max_steps"] >= 1000
    assert 16 <= chosen["per_device_train_batch_size"] <= 256
    assert 1e-4 <= chosen["learning_rate"] <= 1e-3
    assert 0.65 <= chosen["layer_decay"] <= 1
    assert 0 <= chosen["ema_decay"] < 1
    assert 0 < chosen["warmup_steps"] < 1 or chosen["warmup_steps"] <= 0.05 * chosen["max_steps"]
    assert 0 < chosen["crop_scale"][0] < chosen["crop_scale"][1] == 1
    # a million images are not seen a hundred times unasked
    assert chosen.num_epochs < 6 or facts.num_train < 100_000 or chosen["max_steps"] < 30_000


@pytest.mark.parametrize(("from_scratch", "on_cpu"), list(itertools.product((False, True), repeat=2)))
def test_more_images_are_more_work_and_fewer_epochs(from_scratch, on_cpu):
    chosen = [preset(number, from_scratch=from_scratch, on_cpu=on_cpu, image_size=32) for number in NUMBERS]
    seen = [each.num_steps * each.batch_size for each in chosen]
    # rounding of the steps alone
    assert all(less <= 1.01 * more for less, more in itertools.pairwise(seen))
    assert all(less <= 1.01 * more for more, less in itertools.pairwise([each.num_epochs for each in chosen]))
    sizes = [each.batch_size for each in chosen]
    assert sizes == sorted(sizes)


def test_scratch_takes_longer_and_larger_steps():
    for width in WIDTHS:
        scratch, pretrained = (preset(2000, from_scratch=start, hidden_size=width) for start in (True, False))
        assert scratch.num_steps > pretrained.num_steps
        assert scratch["learning_rate"] >= pretrained["learning_rate"]
        assert scratch["layer_decay"] == 1


@pytest.mark.parametrize("from_scratch", [False, True])
def test_wider_models_take_smaller_steps(from_scratch):
    rates = [preset(from_scratch=from_scratch, hidden_size=width)["learning_rate"] for width in WIDTHS]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


def test_layer_decay_is_for_deep_pretrained_models():
    decays = [preset(num_layers=layers)["layer_decay"] for layers in (2, 4, 6, 12, 24)]
    assert decays == [1, 1, 0.9, 0.75, 0.75]
    assert preset(num_layers=12, trains_backbone=False)["layer_decay"] == 1


def test_images_that_do_not_fill_a_batch_are_seen_once_a_step():
    assert preset(8, {"max_steps": 6, "per_device_train_batch_size": 16}).num_epochs == 6
    assert preset(64, {"max_steps": 6, "per_device_train_batch_size": 16}).num_epochs == 1.5


@pytest.mark.parametrize("num_train", [17, 100, 720])
def test_epochs_that_are_given_are_those_of_the_run(num_train):
    """The last batch of an epoch is smaller, and counts as a step."""
    assert preset(num_train, {"num_train_epochs": 50}).num_epochs == 50


@pytest.mark.parametrize(("num_train", "count"), [(720, 1), (50_000, 0)])
def test_says_what_has_no_effect_on_plain_images(num_train, count):
    given = {"num_train_epochs": 100, "color_jitter": 0.3, "randaugment_num_ops": 2, "randaugment_magnitude": 20}
    reason = preset(num_train, given).choices["augmentation"].reason
    assert [reason.count(name) for name in given] == [0, 0, 0, count]


def test_a_classifier_alone_takes_large_steps():
    assert preset(hidden_size=768, trains_backbone=False)["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("num_train", "given", "is_strong"),
    [
        (50_000, {"num_train_epochs": 100}, True),
        (50_000, {}, False),  # a few epochs
        (1000, {"num_train_epochs": 100}, False),  # too few images
        (3000, {"max_steps": 10_000, "per_device_train_batch_size": 32}, True),
        (50_000, {"num_train_epochs": 49}, False),
    ],
)
def test_strong_augmentation_is_for_long_runs(num_train, given, is_strong):
    chosen = preset(num_train, given)
    strong = ("randaugment", 0.8, 1.0) if is_strong else ("plain", 0, 0)
    assert (chosen["augmentation"], chosen["mixup_alpha"], chosen["cutmix_alpha"]) == strong


def test_average_of_a_long_run():
    assert preset(given={"max_steps": 4999})["ema_decay"] == 0
    decays = [preset(given={"max_steps": steps})["ema_decay"] for steps in (5_000, 20_000, 100_000, 10**7)]
    assert decays == [0.995, 0.99875, 0.99975, 0.9999]


def test_by_the_images():
    digits = preset(image_size=16, num_channels=1)
    assert (digits["horizontal_flip_probability"], digits["crop_scale"][0]) == (0, 0.5)
    objects = preset(image_size=32)
    assert (objects["horizontal_flip_probability"], objects["crop_scale"][0]) == (0.5, 0.5)
    scans = preset(image_size=224, num_channels=1)
    assert (scans["horizontal_flip_probability"], scans["crop_scale"][0]) == (0.5, 0.2)
    assert (preset()["label_smoothing_factor"], preset(multi_label=True)["label_smoothing_factor"]) == (0.1, 0)


def test_warm_up_has_a_limit():
    assert preset(given={"max_steps": 20_000})["warmup_steps"] == 0.05
    assert preset(given={"max_steps": 20_001})["warmup_steps"] == 1000


@pytest.mark.parametrize("num_batches", [1, 2, 8, 64])
def test_several_devices_share_the_batch(num_batches):
    alone, shared = preset(20_000), preset(20_000, num_batches=num_batches)
    assert shared.batch_size == alone.batch_size and shared.num_steps == alone.num_steps


@pytest.mark.parametrize(("num_train", "times"), [(4, "1,000"), (33, "333"), (20_000, "16"), (200_000, "6.3")])
def test_says_how_often_an_image_is_seen(num_train, times):
    """Of few images a batch has all, once."""
    assert f"is seen {times} times" in preset(num_train, on_cpu=num_train < 100).choices["max_steps"].reason


def test_says_how_long_a_run_is():
    choices = preset(16, {"max_steps": 2000}).choices
    assert choices["augmentation"].reason.startswith("2,000 epochs of 16 images are a short run")


def test_reasons_where_the_backbone_stays_as_it_is():
    choices = preset(5_000, {"num_train_epochs": 100.0}, trains_backbone=False).choices
    reasons = {choices[name].reason for name in ("layer_decay", "augmentation", "mixup_alpha", "cutmix_alpha")}
    assert reasons == {choices["learning_rate"].reason}


@pytest.mark.parametrize(("steps", "averaged"), [(5_000, "200 of 5,000"), (3_000_000, "10,000 of 3,000,000")])
def test_says_what_is_averaged(steps, averaged):
    assert averaged in preset(given={"max_steps": steps}).choices["ema_decay"].reason


def test_what_is_given_is_not_chosen():
    given = {name: object() for name in ("augmentation", "crop_scale", "layer_decay", "warmup_steps")}
    given |= {"num_train_epochs": 2.5, "per_device_train_batch_size": 100, "learning_rate": 7.0, "mixup_alpha": 0.0}
    chosen = preset(1000, given)
    assert not chosen.choices.keys() & {*given, "max_steps"}
    assert all(chosen[name] is value for name, value in given.items())
    assert (chosen.num_steps, chosen.batch_size) == (25, 100)
    assert chosen["cutmix_alpha"] == 0


def test_a_line_for_each_choice():
    chosen = preset(given={"layer_decay": 0.5})
    lines = chosen.lines()
    assert len(lines) == 1 + len(chosen.choices)
    for line, (name, choice) in zip(lines[1:], chosen.choices.items(), strict=True):
        assert line.split()[0] == name and str(choice.value) in line and line.endswith(choice.reason)
    assert not any("layer_decay" in line for line in lines)


class TestArguments:
    @pytest.fixture
    def training(self, tmp_path):
        return lambda **given: FinetuningTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)

    def test_are_filled_in(self, training):
        arguments = FinetuningArguments(dataset="d", model_name_or_path="m", layer_decay=0.5)
        training_arguments = training(learning_rate=0.0)
        chosen = settle_defaults(RunFacts(num_train=720, on_cpu=True), arguments, training_arguments)
        assert (arguments.layer_decay, training_arguments.learning_rate) == (0.5, 0)
        assert training_arguments.max_steps == chosen["max_steps"] > 0
        assert training_arguments.per_device_train_batch_size == 16
        settled = {**vars(arguments), **vars(training_arguments)}
        assert all(settled[name] == choice.value for name, choice in chosen.choices.items())

    def test_epochs_stay_epochs(self, training):
        training_arguments = training(num_train_epochs=3)
        settle_defaults(
            RunFacts(num_train=720), FinetuningArguments(dataset="d", model_name_or_path="m"), training_arguments
        )
        assert (training_arguments.max_steps, training_arguments.num_train_epochs) == (-1, 3)

    def test_facts(self, training):
        config = SimpleNamespace(hidden_size=96, num_hidden_layers=5, image_size=[32, 48], num_channels=1)
        arguments = FinetuningArguments(dataset="d", model_name_or_path="m", freeze_backbone=True)
        facts = read_facts(50, config, arguments, training(gradient_accumulation_steps=4))
        assert facts == RunFacts(
            num_train=50,
            trains_backbone=False,
            hidden_size=96,
            num_layers=5,
            image_size=48,
            num_channels=1,
            on_cpu=True,
            num_batches=4,
        )
        # a network that has no such sizes
        facts = read_facts(50, SimpleNamespace(), arguments, training())
        assert (facts.hidden_size, facts.num_layers) == (384, 12)
        assert read_facts(50, config, arguments, training(), 24).num_layers == 5
        # nor says how many blocks it has
        model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(24))})
        model.config = SimpleNamespace()
        task = SimpleNamespace(model=model, arguments=arguments)
        assert Task.facts(task, 50, training()).num_layers == 24
