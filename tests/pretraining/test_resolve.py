"""What a preset does to the arguments of a run: the user and recipes win, and a run that goes on keeps its choices."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from pretraining_runs import TINY, assert_equal, checkpoint, lines_of, weights_in

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.data.sources import load_images
from modeling_sit.pretraining import checkpoints
from modeling_sit.pretraining import resolve as resolving
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.model_setup import create_config, parse_config_overrides
from modeling_sit.pretraining.presets import MODEL_SIZES, PAPER, SMALL_DATASET
from modeling_sit.pretraining.resolve import default_precision, describe_choices, recall_choices, resolve, settled
from modeling_sit.pretraining.schedules import plan_schedules
from modeling_sit.runtime.arguments import FIELDS_OF, build_arguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import FOLDER

# What every argument that a preset now decides was before there were presets.
BEFORE = {
    "per_device_train_batch_size": 64,
    "num_train_epochs": 800,
    "base_learning_rate": 5e-4,
    "warmup_epochs": 10,
    "warmup_steps": None,
    "max_steps": None,
    "teacher_momentum": 0.996,
    "export": "teacher",
    "mixed_precision": None,
    "checkpointing_steps": "500",
    "model_size": None,
    "image_size": None,
    "patch_size": None,
    "config_overrides": None,
    "reconstruction_weight": None,
    "noise_ratio": [0.5, 0.7],
    "zeros_ratio": [0.5, 0.7],
    "replace_ratio": [0.3, 0.3],
    "crop_scale": [0.2, 1.0],
    "color_jitter": [0.4, 0.4, 0.2, 0.1],
    "grayscale_probability": 0.2,
    "blur_probability": [1.0, 0.1],
    "solarize_probability": [0.0, 0.2],
}
CPU = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")


def flags_by(recipe=None, **arguments) -> PretrainingFlags:
    keywords = {"dataset": "digits", "output_dir": "out", **arguments}
    return PretrainingFlags(*build_arguments(PretrainingFlags.classes(), keywords, recipe, "pretrain"))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.mark.parametrize("recipe", ["cifar10", "cifar10_cpu", "digits", "fashion_mnist", "flowers", "imagenet1k"])
def test_recipes_say_what_they_said_before_there_were_presets(recipe, digits):
    written = yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())
    if written.get("preset") != "paper":
        pytest.skip("it leaves its settings to a preset")
    resolved = resolve(flags_by(recipe), digits, CPU, {})
    settings = resolved.flags.settings()
    expected = {**BEFORE, **{name: value for name, value in written.items() if name != "dataset"}}
    assert {name: settings[name] for name in expected} == expected
    assert resolved.choices == []


def test_a_size_on_top_of_a_recipe_is_the_models(digits):
    assert all(set(size) == set(FIELDS_OF["model_size"]) for size in MODEL_SIZES.values())
    flags = resolve(flags_by("cifar10_cpu", model_size="micro", patch_size=8), digits, CPU, {}).flags
    config = create_config(flags.model, 8)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 4, 3)
    assert (config.patch_size, config.decoder_hidden_size, config.drop_path_rate) == (8, 256, 0)


def test_the_papers_setting(digits):
    flags = resolve(flags_by(preset="paper"), digits, CPU, {}).flags
    assert {name: flags.settings()[name] for name in BEFORE} == BEFORE
    config = create_config(flags.model, SMALL_DATASET)
    assert (config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size) == (384, 12, 224, 16)
    assert (config.projection_hidden_size, config.decoder_hidden_size, config.drop_path_rate) == (4096, 2048, 0.1)
    schedules = plan_schedules(flags.run, 64_000, 1)
    assert (schedules.num_steps, schedules.num_warmup_steps) == (800_000, 10_000)
    assert resolve(flags_by(preset="paper", warmup_steps=7), digits, CPU, {}).flags.run.warmup_epochs is None


def test_auto_leaves_nothing_open_and_gives_a_model(digits):
    resolved = resolve(flags_by(), digits, CPU, {})
    settings = resolved.flags.settings()
    open_ones = {name for name in PAPER if settings[name] is None}
    assert open_ones <= {"num_train_epochs", "warmup_epochs", "zeros_ratio"}
    config = create_config(resolved.flags.model, digits.num_train)
    assert (config.num_channels, config.image_size, config.patch_size, config.hidden_size) == (1, 16, 4, 96)
    assert (config.projection_hidden_size, config.drop_path_rate, config.reconstruction_weight) == (384, 0, 5)
    assert json.loads(json.dumps(resolved.chosen)) == resolved.chosen  # a checkpoint keeps it


def test_each_choice_is_an_argument_that_wins(digits):
    """Give each choice back with another value: it stays, and is not chosen."""
    choices = {choice.name: choice.value for choice in resolve(flags_by(), digits, CPU, {}).choices}
    other = {
        "image_size": 24, "patch_size": 8, "model_size": "tiny", "reconstruction_weight": 2.0, "max_steps": 10,
        "per_device_train_batch_size": 8, "base_learning_rate": 0.1, "warmup_steps": 3, "teacher_momentum": 0.5,
        "export": "teacher", "noise_ratio": [0.1, 0.1], "replace_ratio": [0.4, 0.4], "checkpointing_steps": "7",
        "crop_scale": [0.9, 1.0], "color_jitter": [0.0] * 4, "grayscale_probability": 0.9,
        "solarize_probability": [1.0, 1.0], "blur_probability": [0.7, 0.7],
    }  # fmt: skip
    fields = {"num_channels": 3, "drop_path_rate": 0.3, "decoder_hidden_size": 8, "projection_hidden_size": 9}
    fields |= {"projection_size": 10}
    assert choices.keys() == {*other, *fields}
    text = ",".join(f"{name}={value}" for name, value in fields.items())
    resolved = resolve(flags_by(**other, config_overrides=text), digits, CPU, {})
    assert resolved.choices == [] and resolved.chosen == {}
    assert {name: resolved.flags.settings()[name] for name in other} == other
    assert parse_config_overrides(resolved.flags.model.config_overrides) == fields


def test_overrides_of_the_user_come_last(digits):
    flags = resolve(flags_by(config_overrides="projection_size=7,use_teacher=false"), digits, CPU, {}).flags
    config = create_config(flags.model, 100)
    assert (config.projection_size, config.projection_hidden_size, config.use_teacher) == (7, 384, False)


def test_sizes_are_the_checkpoints(digits, tmp_path):
    SiTConfig(**TINY, image_size=32, patch_size=8, num_channels=1, reconstruction_weight=3).save_pretrained(tmp_path)
    resolved = resolve(flags_by(model_name_or_path=str(tmp_path)), digits, CPU, {})
    assert not {"image_size", "patch_size", "model_size", "num_channels", "projection_size"} & resolved.chosen.keys()
    config = create_config(resolved.flags.model, 100)
    assert (config.hidden_size, config.image_size, config.projection_size) == (16, 32, 16)
    assert (config.reconstruction_weight, config.drop_path_rate) == (3, 0)
    larger = resolve(flags_by(model_name_or_path=str(tmp_path), image_size=64), digits, CPU, {})
    assert create_config(larger.flags.model, 100).image_size == 64


@pytest.mark.parametrize("architecture", ["SiTModel", "SiTForImageClassification"])
def test_heads_are_new_where_the_checkpoint_has_none(digits, tmp_path, architecture):
    """Other methods export a backbone alone, whose configuration has SiT's defaults for the heads."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32, "patch_size": 8}
    config = SiTConfig(**sizes, num_channels=1, reconstruction_weight=3)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    chosen = resolve(flags_by(model_name_or_path=str(tmp_path)), digits, CPU, {}).chosen
    assert (chosen["decoder_hidden_size"], chosen["projection_hidden_size"], chosen["projection_size"]) == (32, 64, 64)
    assert chosen["reconstruction_weight"] == 5


@pytest.mark.parametrize("preset", ["auto", "paper"])
@pytest.mark.parametrize(
    ("method", "given", "pooling"),
    [("sit", None, "token"), ("ibot", None, "token"), ("mae", None, "mean"), ("dino", "pooling=mean", "mean")],
)
def test_features_are_of_what_the_method_trains(digits, tmp_path, preset, method, given, pooling):
    """Whatever those of the model are that it starts from, unless the user says so."""
    SiTConfig(**TINY, image_size=32, patch_size=8, num_channels=1, pooling="mean").save_pretrained(tmp_path)
    flags = flags_by(method=method, preset=preset, model_name_or_path=str(tmp_path), config_overrides=given)
    assert create_config(resolve(flags, digits, CPU, {}).flags.model, 100).pooling == pooling


class TestStreams:
    images = SimpleNamespace(num_train=None, train=None)

    @pytest.fixture(autouse=True)
    def facts(self, monkeypatch):
        monkeypatch.setattr(resolving, "read_image_facts", lambda images, **_: ImageFacts(None, 224, 224, 3))

    @pytest.mark.parametrize("preset", ["auto", "paper"])
    def test_of_unknown_length_need_one(self, preset):
        with pytest.raises(SiTError) as error:
            resolve(flags_by(preset=preset), self.images, CPU, {})
        assert error.value.argument == "dataset" and "max_steps" in error.value.remedy

    def test_count_as_many_images(self):
        values = resolve(flags_by(max_steps=500), self.images, CPU, {}).chosen
        assert (values["reconstruction_weight"], values["teacher_momentum"]) == (1, pytest.approx(1 - 1 / 12.5))

    @pytest.mark.parametrize("preset", ["auto", "paper"])
    @pytest.mark.parametrize("epochs", [None, 3])
    def test_time_is_a_length(self, preset, epochs):
        """Steps are measured with a run of some length, and then have a number."""
        flags = flags_by(preset=preset, time_budget="1h", num_train_epochs=epochs, per_device_train_batch_size=8)
        measured = resolve(flags, self.images, CPU, {})
        assert plan_schedules(measured.flags.run, None, 1, streaming=True).num_steps > 0
        assert resolve(flags, self.images, CPU, {"max_steps": 7}).flags.run.max_steps == 7


class TestSizesThatAreNone:
    @pytest.mark.parametrize("preset", ["auto", "paper"])
    @pytest.mark.parametrize("name", ["image_size", "patch_size"])
    def test_of_arguments(self, digits, preset, name):
        for size in (0, -4):
            with pytest.raises(SiTError) as error:
                resolve(flags_by(preset=preset, **{name: size}), digits, CPU, {})
            assert error.value.argument == name

    @pytest.mark.parametrize("text", ["hidden_size=abc", "image_size=abc", "image_size=[16,0]", "patch_size=0"])
    def test_of_fields(self, digits, text):
        with pytest.raises(SiTError) as error:
            resolve(flags_by(config_overrides=text), digits, CPU, {})
        assert error.value.argument == "config_overrides" and text.partition("=")[0] in error.value.problem

    def test_pairs_are_sizes(self, digits):
        flags = resolve(flags_by(config_overrides="image_size=[16,32]"), digits, CPU, {}).flags
        assert create_config(flags.model, 100).image_shape == (16, 32)


def test_epochs_of_less_than_a_batch_are_the_runs_error(digits):
    flags = resolve(flags_by(num_train_epochs=3, per_device_train_batch_size=2048), digits, CPU, {}).flags
    with pytest.raises(SiTError) as error:
        plan_schedules(flags.run, digits.num_train, 1)
    assert error.value.argument == "dataset"


def test_a_width_alone_gets_heads_that_divide_it(digits):
    resolved = resolve(flags_by(config_overrides="hidden_size=64"), digits, CPU, {})
    config = create_config(resolved.flags.model, 100)
    assert (config.hidden_size, config.num_attention_heads, resolved.flags.model.num_attention_heads) == (64, 2, None)
    assert "  model_size micro: width 64, 4 layers, 2 heads" in describe_choices(resolved.choices, "auto")


@pytest.mark.parametrize("recipe", ["digits", "fashion_mnist", "flowers"])
def test_a_time_overrides_the_steps_of_a_recipe(recipe, digits):
    flags = flags_by(recipe, time_budget="1h")
    assert resolve(flags, digits, CPU, {}).flags.run.max_steps is None  # of the epochs, until steps are measured
    assert resolve(flags, digits, CPU, {"max_steps": 7}).flags.run.max_steps == 7


def test_a_time_overrides_the_steps_of_the_user(digits):
    resolved = resolve(flags_by(time_budget="1h", max_steps=5), digits, CPU, {})
    assert resolved.flags.run.max_steps == resolved.chosen["max_steps"] > 5


def test_every_choice_is_told_in_a_line(digits):
    resolved = resolve(flags_by(), digits, CPU, {})
    lines = describe_choices(resolved.choices, "auto").splitlines()
    assert len(lines) == 1 + len(resolved.choices)
    assert "  patch_size 4: 16 tokens for views of 16 pixels" in lines
    assert describe_choices([], "auto") == ""
    assert "paper" in describe_choices(resolved.choices, "paper").splitlines()[0]


class TestPrecision:
    @pytest.fixture
    def gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def test_of_a_gpu(self, gpu):
        assert default_precision(flags_by(), {}) == "bf16"
        assert default_precision(flags_by(preset="paper"), {}) is None
        assert default_precision(flags_by(mixed_precision="no"), {}) == "no"
        assert default_precision(flags_by(mixed_precision="fp16"), {"mixed_precision": "bf16"}) == "fp16"

    def test_of_a_launch(self, gpu, monkeypatch):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert default_precision(flags_by(), {}) is None

    def test_of_a_run_that_goes_on(self, gpu):
        assert default_precision(flags_by(), {"mixed_precision": "bf16"}) == "bf16"
        assert default_precision(flags_by(), {"max_steps": 7}) is None  # it was begun on a CPU

    def test_of_a_cpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert default_precision(flags_by(), {}) is None


class TestGoingOn:
    """A run of `auto`, resumed."""

    arguments: ClassVar = {"preset": "auto", "teacher_momentum": None, "checkpointing_steps": 2, "max_steps": 4}

    @pytest.fixture
    def begun(self, pretrain):
        return pretrain(**self.arguments, checkpoints_total_limit=0)

    def state(self, folder, step):
        return json.loads((checkpoint(folder, step) / "run_state.json").read_text())

    def test_has_the_choices_of_its_start_though_the_facts_are_others(self, begun, pretrain, monkeypatch):
        chosen = self.state(begun, 2)["chosen"]
        assert chosen["noise_ratio"] == [0.2, 0.4] and "max_steps" not in chosen and "image_size" not in chosen
        monkeypatch.setattr(resolving, "read_image_facts", lambda images, **_: ImageFacts(10**7, 999, 999, 3))
        other = pretrain("other", **self.arguments, resume_from_checkpoint=checkpoint(begun, 2))
        assert_equal(weights_in(other), weights_in(begun))
        assert self.state(other, 4)["chosen"] == chosen
        assert lines_of(other)[-1]["step"] == 4

    def test_what_the_user_gives_now_counts(self, begun, refused):
        error = refused(
            "other", **{**self.arguments, "teacher_momentum": 0.7}, resume_from_checkpoint=checkpoint(begun, 2)
        )
        assert error.argument == "resume_from_checkpoint" and "teacher_momentum" in error.problem

    def test_that_began_from_a_model_without_heads_and_did_not_choose_them(self, begun, pretrain):
        """As earlier versions did; the heads are those of its configuration."""
        for path in (begun / "checkpoints").glob("*/run_state.json"):
            state = json.loads(path.read_text())
            state["chosen"] = {name: value for name, value in state["chosen"].items() if name not in resolving.HEADS}
            state["settings"]["model_name_or_path"] = "elsewhere"
            path.write_text(json.dumps(state))
        asked = {"resume_from_checkpoint": str(checkpoint(begun, 2)), "allow_changed_settings": True}
        flags = flags_by(**asked, preset="auto", output_dir=str(begun))
        _, chosen = resolving.recall_choices(flags)
        heads = self.state(begun, 2)["determined_by"]
        assert {name: chosen[name] for name in resolving.HEADS} == {name: heads[name] for name in resolving.HEADS}

    def test_another_preset(self, begun, refused):
        error = refused("other", **{**self.arguments, "preset": "paper"}, resume_from_checkpoint=checkpoint(begun, 2))
        assert error.argument == "preset"

    def test_a_time_now(self, begun, refused):
        arguments = {**self.arguments, "max_steps": None, "time_budget": "9m"}
        error = refused("other", **arguments, resume_from_checkpoint=checkpoint(begun, 2))
        assert error.argument == "time_budget"

    def test_a_checkpoint_of_before_there_were_presets(self, begun):
        path = checkpoint(begun, 2) / "run_state.json"
        state = json.loads(path.read_text())
        del state["settings"]["preset"], state["chosen"]
        path.write_text(json.dumps(state))
        flags, chosen = recall_choices(flags_by(resume_from_checkpoint=str(path.parent)))
        assert (flags.run.preset, chosen) == ("paper", {})

    def test_a_checkpoint_of_before_there_was_a_choice_of_first_weights(self, pretrain, refused):
        arguments = {"checkpointing_steps": 2, "max_steps": 4, "checkpoints_total_limit": 0}
        normal = {"overrides": {"initialization": "normal"}}
        begun = pretrain("begun", **arguments, **normal)
        path = checkpoint(begun, 2) / "run_state.json"
        state = json.loads(path.read_text())
        del state["settings"]["preset"], state["chosen"], state["determined_by"]["initialization"], state["digest"]
        path.write_text(json.dumps({**state, "digest": checkpoints._state_digest(state)}))
        other = pretrain("other", **arguments, resume_from_checkpoint=path.parent)
        assert_equal(weights_in(other), weights_in(begun))
        assert SiTForPreTraining.from_pretrained(other).config.initialization == "normal"
        assert self.state(other, 4)["chosen"] == {"initialization": "normal"}
        xavier = {"overrides": {"initialization": "xavier"}}
        error = refused("third", **arguments, **xavier, resume_from_checkpoint=path.parent)
        assert error.argument == "resume_from_checkpoint" and "initialization" in error.problem

    def test_a_run_from_the_start_recalls_nothing(self, tmp_path):
        flags = flags_by(resume_from_checkpoint="auto", output_dir=str(tmp_path))
        assert recall_choices(flags) == (flags, {})


class TestGivenAnew:
    """What a run that goes on has of its start, and what it has of the arguments."""

    chosen: ClassVar = {"max_steps": 90, "warmup_steps": 9, "teacher_momentum": 0.9}

    @pytest.fixture
    def recall(self, tmp_path):
        def recall(saved: dict, **arguments) -> tuple:
            begun = flags_by(**saved).settings()
            state = {"settings": begun, "determined_by": {}, "chosen": self.chosen}
            (tmp_path / "run_state.json").write_text(json.dumps(state))
            flags, chosen = recall_choices(flags_by(**arguments, resume_from_checkpoint=str(tmp_path)))
            assert chosen.items() <= self.chosen.items()
            return flags.run.time_budget, self.chosen.keys() - chosen.keys()

        return recall

    @pytest.mark.parametrize(
        ("saved", "given", "expected"),
        [
            # what was given at the start, and is given now -> the time budget, and what is no longer chosen
            ({}, {}, (None, set())),
            ({}, {"num_train_epochs": 3}, (None, {"max_steps"})),
            ({}, {"warmup_epochs": 3}, (None, {"warmup_steps"})),
            ({"warmup_epochs": 3}, {"warmup_epochs": 3}, (None, set())),
            ({"time_budget": "30m"}, {}, ("30m", set())),
            ({"time_budget": "30m"}, {"time_budget": "1800s"}, ("1800s", set())),
            ({"time_budget": "30m"}, {"max_steps": 5}, (None, set())),
            ({"time_budget": "30m"}, {"num_train_epochs": 3}, (None, {"max_steps"})),
            ({"time_budget": "30m", "num_train_epochs": 3}, {"num_train_epochs": 3}, ("30m", set())),
        ],
    )
    def test_counts(self, recall, saved, given, expected):
        assert recall(saved, **given) == recall(saved, **given, allow_changed_settings=True) == expected

    @pytest.mark.parametrize("saved", [{}, {"time_budget": "30m"}])
    def test_another_time_must_be_allowed(self, recall, saved):
        with pytest.raises(SiTError) as error:
            recall(saved, time_budget="1h")
        assert error.value.argument == "time_budget"
        assert recall(saved, time_budget="1h", allow_changed_settings=True) == ("1h", {"max_steps"})


def test_a_run_by_default_learns_and_tells_its_choices(pretrain, capsys):
    folder = pretrain(
        preset="auto",
        image_size=None,
        patch_size=None,
        per_device_train_batch_size=None,
        overrides={"drop_path_rate": 0},
    )
    told = capsys.readouterr().out
    assert "patch_size 4: 16 tokens for views of 16 pixels" in told and "per_device_train_batch_size 128" in told
    config = SiTForPreTraining.from_pretrained(folder).config
    assert (config.image_size, config.patch_size) == (16, 4)
    settings = json.loads((folder / "run_state.json").read_text())["settings"]
    assert settings["per_device_train_batch_size"] == 128 and settings["export"] == "student"
    assert "- `noise_ratio`: `[0.2, 0.4]`" in (folder / "README.md").read_text()


def test_settled_values(tmp_path):
    values = settled(flags_by(image_size=32, config_overrides="hidden_size=8,projection_size=4"))
    assert (values["image_size"], values["hidden_size"], values["projection_size"]) == (32, 8, 4)
    assert "patch_size" not in values
    assert "image_size" not in settled(flags_by())
