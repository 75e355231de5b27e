"""The arguments of pretraining: what they configure, and how they are refused."""

import math

import pytest
from transformers import ViTConfig

from modeling_sit import SiTConfig
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.pretraining.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    default_num_workers,
    parse_time,
)
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.model_setup import create_config, create_processor, parse_config_overrides
from modeling_sit.pretraining.presets import SMALL_DATASET
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.trackers import choose_trackers


def config(num_images: int = 5000, **settings) -> SiTConfig:
    return create_config(ModelArguments(**settings), num_images)


class TestRun:
    def test_defaults_that_no_preset_changes_are_the_papers(self):
        arguments = PretrainingArguments(dataset="some", output_dir="out")
        assert SiT.defaults == {"weight_decay": 0.05, "adam_beta2": 0.999, "max_grad_norm": 3.0}
        assert (arguments.adam_beta1, arguments.weight_decay_end) == (0.9, None)
        assert (arguments.min_learning_rate, arguments.logging_steps) == (1e-6, 10)

    @pytest.mark.parametrize("word", ["no", "off", "No"])
    @pytest.mark.parametrize("in_python", [False, True])
    def test_a_bare_no_of_a_recipe(self, tmp_path, word, in_python):
        recipe = tmp_path / "mine.yaml"
        names = ("mixed_precision", "checkpointing_steps", "tf32", "image_column", "report_to")
        recipe.write_text("".join(f"{name}: {word}\n" for name in names))
        given = {"dataset": "d", "output_dir": "out"}
        if in_python:
            (arguments,) = build_arguments((PretrainingArguments,), given, recipe, "pretrain")
        else:
            flags = [f"--{name}={value}" for name, value in given.items()]
            (arguments,) = RecipeArgumentParser((PretrainingArguments,)).parse([str(recipe), *flags])
        assert (arguments.mixed_precision, arguments.checkpointing_steps, arguments.tf32) == ("no", "no", False)
        assert arguments.image_column == word and choose_trackers(arguments.report_to) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("per_device_train_batch_size", 0),
            ("gradient_accumulation_steps", 0),
            ("logging_steps", 0),
            ("max_steps", 0),
            ("num_train_epochs", 0),
            ("num_train_epochs", math.nan),
            ("seed", -1),
            ("seed", 2**64),
            ("teacher_momentum", 1.1),
            ("teacher_momentum", math.nan),
            ("checkpointing_steps", "0"),
            ("checkpointing_steps", "-5"),
            ("checkpointing_steps", "epochs"),
            ("base_learning_rate", -1.0),
            ("base_learning_rate", math.nan),
            ("min_learning_rate", -1.0),
            ("num_train_epochs", math.inf),
            ("warmup_epochs", -1.0),
            ("warmup_steps", -1),
            ("time_budget", "soon"),
            ("time_budget", "30"),
            ("time_budget", "0m"),
            ("time_budget", "-5m"),
            ("time_budget", "30m2h"),
            ("weight_decay", -0.1),
            ("weight_decay_end", -0.1),
            ("adam_beta1", 1.5),
            ("adam_beta2", 1.0),
            ("max_grad_norm", -1.0),
            ("dataloader_num_workers", -1),
            ("dataloader_timeout", 0),
            ("preview_steps", -1),
            ("checkpoints_total_limit", -1),
        ],
    )
    def test_out_of_range(self, name, value):
        with pytest.raises(SiTError) as error:
            PretrainingArguments(dataset="some", output_dir="out", **{name: value})
        assert error.value.argument == name

    @pytest.mark.parametrize("value", ["1", "500", "epoch", "no"])
    def test_checkpointing_steps(self, value):
        arguments = PretrainingArguments(dataset="some", output_dir="out", checkpointing_steps=value)
        assert arguments.checkpointing_steps == value

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h 30m 5s", 5405), ("1.5H", 5400), ("0h1s", 1)],
    )
    def test_time(self, text, seconds):
        assert parse_time(text) == seconds


class TestConfig:
    @pytest.mark.parametrize(
        ("size", "shape"), [("tiny", (192, 12, 3)), ("small", (384, 12, 6)), ("base", (768, 12, 12))]
    )
    def test_sizes(self, size, shape):
        made = config(model_size=size)
        assert (made.hidden_size, made.num_hidden_layers, made.num_attention_heads) == shape
        assert made.intermediate_size == 4 * made.hidden_size
        assert (made.image_size, made.patch_size) == (224, 16)

    def test_reconstruction_weighs_more_in_small_sets(self):
        assert config(SMALL_DATASET - 1).reconstruction_weight == 5
        assert config(SMALL_DATASET).reconstruction_weight == 1
        assert config(10, reconstruction_weight=0.5).reconstruction_weight == 0.5
        assert config(10, config_overrides="reconstruction_weight=2").reconstruction_weight == 2

    def test_reconstruction_weighs_more_in_small_sets_also_from_a_plain_vit(self, tmp_path):
        ViTConfig().save_pretrained(tmp_path)
        assert config(10, model_name_or_path=str(tmp_path)).reconstruction_weight == 5

    def test_overrides_win_over_arguments(self):
        made = config(
            model_size="tiny", image_size=64, config_overrides="hidden_size=96, image_size=32,use_teacher=no"
        )
        assert (made.hidden_size, made.intermediate_size, made.image_size) == (96, 384, 32)
        assert made.use_teacher is False

    def test_of_a_checkpoint(self, tmp_path, tiny_config):
        tiny_config(reconstruction_weight=3.0, temperature=0.1).save_pretrained(tmp_path)
        made = config(model_name_or_path=str(tmp_path))
        assert (made.hidden_size, made.image_size) == (16, 16)
        assert (made.reconstruction_weight, made.temperature) == (3.0, 0.1)
        made = config(model_name_or_path=str(tmp_path), contrastive_weight=0.0, config_overrides="temperature=0.5")
        assert (made.reconstruction_weight, made.contrastive_weight, made.temperature) == (3.0, 0.0, 0.5)

    def test_of_a_plain_vit(self, tmp_path):
        vit = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=4)
        vit.save_pretrained(tmp_path)
        made = config(model_name_or_path=str(tmp_path))
        assert (made.model_type, made.hidden_size, made.num_hidden_layers) == ("sit_gmml", 32, 3)
        assert (made.image_size, made.patch_size, made.layer_norm_eps) == (32, 4, vit.layer_norm_eps)
        assert made.intermediate_size == vit.intermediate_size

    @pytest.mark.parametrize(("image_size", "fits"), [(100, 96), (5, 16)])
    def test_patch_that_does_not_divide_names_both_arguments_and_a_size(self, image_size, fits):
        with pytest.raises(SiTError, match=rf"{image_size} .* 16; .*`patch_size`, such as {fits}$") as error:
            config(image_size=image_size)
        assert error.value.argument == "image_size"

    def test_patch_that_does_not_divide_by_an_override_names_the_sizes_that_are_wrong(self):
        with pytest.raises(SiTError) as error:
            config(config_overrides="image_size=100")
        assert "100" in str(error.value)
        assert "224" not in str(error.value)

    @pytest.mark.parametrize(("patch_size", "fitting"), [(8, 32), ([8, 4], 32), ([4, 8], 32), ([4, 6], 24)])
    def test_a_size_that_fits_is_named(self, patch_size, fitting):
        with pytest.raises(SiTError) as error:
            config(image_size=29, config_overrides=f"patch_size={patch_size}")
        assert error.value.argument == "image_size" and error.value.remedy.endswith(f"such as {fitting}")

    @pytest.mark.parametrize("settings", [{"patch_size": 0}, {"image_size": 0}, {"image_size": -16}])
    def test_size_that_is_none(self, settings):
        (name,) = settings
        with pytest.raises(SiTError, match=name):
            config(**settings)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ("hiden_size=3", "did you mean hidden_size"),
            ("hidden_size", "field=value"),
            ("hidden_size=15", "hidden_size=15"),
            ("hidden_size=abc", "hidden_size"),
            ("pooling=sum", "pooling"),
            ("temperature=-1", "temperature"),
            ("drop_path_rate=1.5", "drop_path_rate"),
            ("reconstruction_weight=-1", "reconstruction_weight"),
            ("hidden_act=[", "hidden_act"),
            ("hidden_act=glue", "hidden_act"),
            ("projection_size=-1", "projection_size"),
        ],
    )
    def test_override_that_does_not_fit(self, overrides, message):
        with pytest.raises(SiTError, match=message):
            config(config_overrides=overrides)

    def test_override_that_does_not_fit_a_checkpoint(self, tmp_path, tiny_config):
        tiny_config().save_pretrained(tmp_path)
        with pytest.raises(SiTError, match="temperature"):
            config(model_name_or_path=str(tmp_path), config_overrides="temperature=-1")

    def test_sizes_beside_a_checkpoint_are_not_ignored(self, tmp_path, tiny_config):
        """No argument is silently ignored: one that disagrees with the checkpoint is an error, or it is followed."""
        tiny_config().save_pretrained(tmp_path)
        try:
            made = config(model_name_or_path=str(tmp_path), image_size=32)
        except SiTError as error:
            assert error.argument == "image_size"
        else:
            assert made.image_size == 32

    def test_nothing_to_learn(self):
        for rotation_weight in (None, 0.0):
            with pytest.raises(SiTError, match=r"`contrastive_weight` or `rotation_weight`") as error:
                config(reconstruction_weight=0.0, contrastive_weight=0.0, rotation_weight=rotation_weight)
            assert error.value.argument == "reconstruction_weight"

    def test_each_loss_alone_is_something_to_learn(self):
        off = {"reconstruction_weight": 0.0, "contrastive_weight": 0.0, "rotation_weight": 0.0}
        for name in off:
            assert getattr(config(**{**off, name: 0.5}), name) == 0.5

    def test_rotation(self, tmp_path, tiny_config):
        assert config().rotation_weight == 0
        assert config(rotation_weight=0.5).rotation_weight == 0.5
        assert config(rotation_weight=0.5, config_overrides="rotation_weight=2").rotation_weight == 0.5
        assert config(config_overrides="rotation_weight=2").rotation_weight == 2
        tiny_config(rotation_weight=0.3).save_pretrained(tmp_path)
        assert config(model_name_or_path=str(tmp_path)).rotation_weight == 0.3
        assert config(model_name_or_path=str(tmp_path), rotation_weight=0.0).rotation_weight == 0

    def test_rotation_of_images_that_are_not_square(self):
        with pytest.raises(SiTError, match=r"rotation_weight.*square"):
            config(rotation_weight=1.0, config_overrides="image_size=[32,64]")

    def test_no_such_checkpoint(self, tmp_path):
        for name in (str(tmp_path / "nowhere"), "someone/no-such-model"):
            with pytest.raises(SiTError, match=name) as error:
                config(model_name_or_path=name)
            assert error.value.argument == "model_name_or_path"

    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(SiTError, match=r"no config\.json") as error:
            config(model_name_or_path=str(tmp_path))
        assert error.value.argument == "model_name_or_path"


class TestOverrides:
    def test_values_as_yaml_reads_them(self):
        text = "hidden_size=64,qkv_bias=false, temperature=0.5 ,pooling=mean,intermediate_size=null,"
        expected = {
            "hidden_size": 64,
            "qkv_bias": False,
            "temperature": 0.5,
            "pooling": "mean",
            "intermediate_size": None,
        }
        assert parse_config_overrides(text) == expected
        assert parse_config_overrides(None) == parse_config_overrides("") == {}

    def test_small_numbers_are_numbers(self):
        """YAML 1.1 takes 1e-6 for a word, for want of a dot; the defaults are written like that."""
        assert config(config_overrides="layer_norm_eps=1e-6").layer_norm_eps == 1e-6

    def test_pairs(self):
        assert config(config_overrides="image_size=[32,64]").image_shape == (32, 64)


class TestProcessor:
    def test_normalization(self, tiny_config):
        color = create_processor(tiny_config(), ModelArguments(), CorruptionArguments())
        assert (list(color.image_mean), list(color.image_std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        grey = create_processor(tiny_config(num_channels=1), ModelArguments(), CorruptionArguments())
        assert (list(grey.image_mean), list(grey.image_std)) == ([0.5], [0.5])
        own = ModelArguments(image_mean=[0.1], image_std=[0.2])
        made = create_processor(tiny_config(num_channels=1), own, CorruptionArguments())
        assert (list(made.image_mean), list(made.image_std)) == ([0.1], [0.2])

    def test_sizes_and_corruption(self, tiny_config):
        corruption = CorruptionArguments(
            corruption="zeros", zeros_ratio=[0.1, 0.2], block_size=[0.2, 0.3], align_to_patches=True
        )
        processor = create_processor(tiny_config(image_size=(32, 16)), ModelArguments(), corruption)
        assert dict(processor.size) == {"height": 32, "width": 16}
        assert processor.corruption == "zeros"
        assert (list(processor.zeros_ratio), list(processor.block_size)) == ([0.1, 0.2], [0.2, 0.3])
        assert (processor.align_to_patches, processor.patch_size) == (True, 8)

    @pytest.mark.parametrize(
        ("model", "corruption", "fact"),
        [
            ({"image_mean": [0.5]}, {}, "one number for each of 3 channels"),
            ({"image_std": [0.5, 0.5]}, {}, "3 channels, got 2"),
            ({"image_std": [0.5, 0.0, 0.5]}, {}, "above 0"),
            ({}, {"noise_ratio": [0.7, 0.5]}, "0.7"),
            ({}, {"zeros_ratio": [0.5]}, "0.5"),
            ({}, {"replace_ratio": [0.5, 1.0]}, "1.0"),
            ({}, {"block_size": [0.0, 0.5]}, "0.0"),
        ],
    )
    def test_errors_name_the_argument(self, tiny_config, model, corruption, fact):
        (name,) = {**model, **corruption}
        with pytest.raises(SiTError, match=fact) as error:
            create_processor(tiny_config(), ModelArguments(**model), CorruptionArguments(**corruption))
        assert error.value.argument == name

    def test_channels_that_images_do_not_have(self, tiny_config):
        with pytest.raises(SiTError, match="num_channels=17"):
            create_processor(tiny_config(num_channels=17), ModelArguments(), CorruptionArguments())


def test_workers(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 12)
    assert default_num_workers(None, "cpu", 1) == 0
    assert default_num_workers(None, "cuda", 1) == 8
    assert default_num_workers(None, "cuda", 4) == 3
    assert default_num_workers(3, "cpu", 1) == 3
    assert default_num_workers(0, "cuda", 1) == 0
