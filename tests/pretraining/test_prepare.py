"""What a run is prepared from: images, models to go on from, and settings, each refused by name where it does not fit."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import PIL.Image
import pytest
import torch
import transformers
from accelerate.tracking import get_available_trackers
from pretraining_runs import (
    HEADS,
    assert_equal,
    weights_in,
)
from transformers import (
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_sit import SiTImageProcessor
from modeling_sit.data import hand_over
from modeling_sit.data.crops import CropGroup
from modeling_sit.data.sources import load_images
from modeling_sit.pretraining import prepare
from modeling_sit.pretraining.prepare import choose_workers, load_training_images
from modeling_sit.pretraining.run import pretrain as pretrain_images
from modeling_sit.runtime.errors import SiTError


class TestImages:
    def test_data_that_is_not_there(self, refused, tmp_path):
        error = refused(dataset=tmp_path / "nowhere")
        assert error.argument == "dataset" and str(tmp_path / "nowhere") in str(error)
        (tmp_path / "empty").mkdir()
        assert "empty" in str(refused(dataset=tmp_path / "empty"))

    def test_a_method_that_does_not_exist_is_found_before_the_images(self, refused, tmp_path):
        error = refused(method="sitt", dataset=tmp_path / "nowhere")
        assert error.argument == "method" and "did you mean" in str(error)

    def test_column_that_is_not_there(self, refused):
        error = refused(image_column="foo")
        assert error.argument == "image_column" and "foo" in str(error)

    def test_several_splits_and_none_to_train_on(self, refused, tmp_path):
        split = datasets.Dataset.from_dict(
            {"image": [PIL.Image.new("L", (8, 8))] * 8}, features=datasets.Features({"image": datasets.Image()})
        )
        datasets.DatasetDict({"first": split, "test": split}).save_to_disk(tmp_path / "saved")
        error = refused(dataset=tmp_path / "saved")
        assert error.argument == "dataset" and "first, test by `train_split`" in str(error)

    def test_images_of_a_test_split_are_left_alone(self, flags_of):
        for asked, validation in ((None, None), ("test", "test")):
            images = load_training_images(flags_of(validation_split=asked))
            assert (images.validation and str(images.validation.split)) == validation


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_any_kind_are_no_obstacle(pretrain, refused, tmp_path, streaming):
    """Two columns of labels, one of them of lists: which is meant, pretraining need not know."""
    label = datasets.ClassLabel(names=["a", "b"])
    features = {"image": datasets.Image(), "fine": label, "coarse": datasets.List(label)}
    digits = load_images("digits").train[:9]
    rows = {"image": digits["image"], "fine": [0, 1, 0] * 3, "coarse": [[0, 1], [], None] * 3}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    arguments = {"monitor_steps": 1, **({"streaming": True} if streaming else {})}
    for column in ({}, {"label_column": "coarse"}):
        folder = pretrain(**arguments, **column, overwrite_output_dir=True, dataset=tmp_path / "train.parquet")
        measured = json.loads((folder / "monitors.jsonl").read_text().splitlines()[-1])
        assert "rankme" in measured and "knn_accuracy" not in measured
    message = refused(**arguments, monitors="knn", dataset=tmp_path / "train.parquet")
    assert message.argument == "monitors" and "knn needs one label for each image" in str(message)
    assert "`label_column`" in str(message)


class TestStartingFromAModel:
    @pytest.fixture
    def start(self, forget_accelerators, tmp_path):
        """A step with learning rate 0 from a model; gives the output folder."""

        def start(model: Path, output_dir: Path = tmp_path / "out", fields: dict | None = None, **arguments) -> Path:
            forget_accelerators()
            overrides = ",".join(f"{name}={value}" for name, value in (fields or {}).items())
            settings = {"per_device_train_batch_size": 8, "max_steps": 1, "preview_steps": 0, "monitor_steps": 0}
            settings |= {"base_learning_rate": 0, "min_learning_rate": 0, "export": "student", **arguments}
            return pretrain_images(
                "digits", output_dir, model_name_or_path=str(model), config_overrides=overrides or None, **settings
            ).output_dir

        return start

    def test_of_an_earlier_run(self, start, save_tiny_sit, tmp_path):
        model = save_tiny_sit(tmp_path / "model", seed=3, num_channels=1)
        before = weights_in(model)
        after = weights_in(start(model))
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert name.endswith(statistics) or torch.equal(value, after[name]), name
        assert_equal(weights_in(model), before)

    @pytest.mark.parametrize(
        ("fields", "argument", "parts"),
        [
            ({}, "dataset", ["(`num_channels` 1), and not 13", "model is for 13 channels"]),
            ({"num_channels": 1}, "config_overrides", ["num_channels=1", "made for images of 13 channels"]),
        ],
    )
    def test_of_images_with_other_channels(self, start, save_tiny_sit, tmp_path, fields, argument, parts):
        model = save_tiny_sit(tmp_path / "model", num_channels=13)
        with pytest.raises(SiTError) as error:
            start(model, fields=fields, image_mean=[0.5] * 13, image_std=[0.5] * 13)
        assert error.value.argument == argument and all(part in str(error.value) for part in parts)
        assert "give such images, or another model" in error.value.remedy
        assert "choose the channels" not in str(error.value)

    def test_of_a_plain_vit(self, start, tmp_path):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        vit = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1))
        vit.save_pretrained(tmp_path / "vit")
        after = weights_in(start(tmp_path / "vit", fields=HEADS))
        backbone = {name: value for name, value in weights_in(tmp_path / "vit").items() if name.startswith("vit.")}
        assert len(backbone) > 30
        for name, value in backbone.items():
            assert torch.equal(after[name], value), name
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["model_type"], config["intermediate_size"]) == ("sit_gmml", 24)

    def test_normalizes_as_the_model_was_trained(self, start, save_tiny_sit, tmp_path):
        """Else the images that it sees are of other colors than those that its weights know."""
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        SiTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.2], image_std=[0.3]).save_pretrained(model)
        folder = start(model)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert (settings["image_mean"], settings["image_std"]) == ([0.2], [0.3])

    def test_of_half_a_folder(self, start, save_tiny_sit, tmp_path):
        def refused(folder: Path) -> str:
            with pytest.raises(SiTError, match=str(folder)) as error:
                start(folder)
            assert error.value.argument == "model_name_or_path"
            assert not (tmp_path / "out").exists()
            return str(error.value)

        refused(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "config.json" in refused(tmp_path / "empty")
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        refused(model)
        weights.unlink()
        refused(model)

    def test_of_another_kind_is_no_silent_start_from_scratch(self, start, tmp_path):
        BertModel(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
        ).save_pretrained(tmp_path / "bert")
        with pytest.raises(SiTError, match=str(tmp_path / "bert")):
            start(tmp_path / "bert", fields={**HEADS, "image_size": 16, "patch_size": 8})

    def test_of_other_sizes(self, refused, save_tiny_sit, tmp_path):
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        assert refused(model_name_or_path=str(model), overrides={"hidden_size": 32}).argument == "model_name_or_path"


class TestSettings:
    @pytest.mark.parametrize(
        ("arguments", "argument", "facts"),
        [
            ({"image_size": 20}, "image_size", ["20", "`patch_size`"]),
            ({"patch_size": 0}, "patch_size", []),
            ({"reconstruction_weight": 0, "contrastive_weight": 0}, "reconstruction_weight", []),
            ({"overrides": {"hiden_size": 32}}, "config_overrides", ["hiden_size", "hidden_size"]),
            ({"overrides": {"num_attention_heads": 3}}, None, ["num_attention_heads"]),
            ({"per_device_train_batch_size": 2000}, "dataset", ["1437 images", "`per_device_train_batch_size`"]),
            ({"image_mean": [0.5, 0.5]}, "image_mean", []),
            ({"noise_ratio": [0.7, 0.5]}, "noise_ratio", []),
            ({"block_size": [0, 0.5]}, "block_size", []),
            ({"attn_implementation": "fast"}, "attn_implementation", ["fast"]),
            ({"attn_implementation": "flash_attention_2"}, "attn_implementation", []),
            ({"attn_implementation": "flex_attention"}, "attn_implementation", []),
            ({"overrides": {"hidden_dropout_prob": 2}}, None, ["hidden_dropout_prob"]),
            ({"report_to": "foo"}, "report_to", ["foo"]),
            ({"blur_sigma": [0.1, 300]}, "blur_sigma", []),
        ],
    )
    def test_that_do_not_fit(self, refused, arguments, argument, facts):
        if "flash_attention_2" in arguments.values() and transformers.utils.is_flash_attn_2_available():
            pytest.skip("flash attention is there")
        error = refused(**arguments)
        assert error.argument == argument
        assert all(fact in str(error) for fact in facts), error

    @pytest.mark.parametrize("num_channels", [1, 3])
    def test_channels(self, pretrain, num_channels):
        folder = pretrain(channels=num_channels, max_steps=1, preview_steps=1)
        shape = weights_in(folder)["vit.embeddings.patch_embeddings.projection.weight"].shape
        assert shape == (16, num_channels, 8, 8)

    def test_images_that_are_not_square(self, pretrain):
        folder = pretrain(max_steps=1, preview_steps=1, overrides={"image_size": "[16,32]"})
        assert json.loads((folder / "config.json").read_text())["image_size"] == [16, 32]

    def test_tracker_that_is_not_installed(self, refused):
        """Else the argument would be ignored, and the run's figures would be nowhere."""
        available = {str(tracker.value) for tracker in get_available_trackers()}
        missing = next(name for name in ("dvclive", "aim", "clearml", "comet_ml") if name not in available)
        error = refused(report_to=missing)
        assert error.argument == "report_to" and missing in str(error)

    def test_no_tracker(self, pretrain):
        """`none` is transformers' name for it, and fine-tuning takes it."""
        pretrain(report_to="none", max_steps=1)


def test_without_a_compiler(refused, monkeypatch):
    def compile_nothing(function, **settings):
        def fail(*arguments):
            raise RuntimeError("No working C++ compiler found\n\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    error = refused(torch_compile=True)
    assert error.argument == "torch_compile" and "No working C++ compiler found" in str(error)
    assert "leave the argument out" in str(error) and "more" not in str(error)


class TestWorkers:
    @pytest.mark.parametrize("arguments", [{}, {"dry_run": True}, {"streaming": True}, {"image_cache": "memory"}])
    def test_that_cannot_hand_over_a_batch(self, refused, long_temporary_folder, arguments):
        error = refused(**arguments, dataloader_num_workers=2)
        assert error.argument == "dataloader_num_workers"
        assert str(long_temporary_folder) in error.problem and "TMPDIR" in error.remedy

    def test_are_told_before_anything_is_written(self, refused, long_temporary_folder, tmp_path):
        refused(dataloader_num_workers=2)
        assert not (tmp_path / "refused").exists()

    def test_in_a_small_shared_memory(self, refused, monkeypatch):
        batch = 8 * 2 * 16 * 16  # digits have one channel
        monkeypatch.setattr(hand_over, "free_shared_memory", lambda: 5 * batch)
        error = refused(dataloader_num_workers=4)
        assert error.argument == "dataloader_num_workers"
        assert "--shm-size" in error.remedy and "`dataloader_num_workers=2`" in error.remedy
        monkeypatch.setattr(hand_over, "free_shared_memory", lambda: batch)
        assert "`dataloader_num_workers=0`" in refused(dataloader_num_workers=4).remedy

    def test_that_nobody_asked_for_are_as_many_as_fit(self, flags_of, monkeypatch, capsys):
        groups, batch = [CropGroup(2, (16, 16), (0.2, 1))], 8 * 2 * 16 * 16 * 3
        accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
        flags = flags_of(per_device_train_batch_size=8, image_cache="none")
        monkeypatch.setattr("joblib.cpu_count", lambda: 64)
        for room, workers in ((1000 * batch, (8, 8)), (13 * batch, (8, 0)), (4 * batch, (3, 0))):
            monkeypatch.setattr(hand_over, "free_shared_memory", lambda room=room: room)
            monkeypatch.setattr(prepare, "free_shared_memory", lambda room=room: room)
            assert choose_workers(flags, accelerator, groups, num_channels=3) == workers
            assert ("3 dataloader workers, not 8" in capsys.readouterr().err) == (workers[0] == 3)
        monkeypatch.setattr(hand_over, "free_shared_memory", lambda: batch)
        with pytest.raises(SiTError) as error:
            choose_workers(flags, accelerator, groups, num_channels=3)
        assert error.value.argument == "dataloader_num_workers"

    def test_are_those_of_one_machine(self, flags_of, monkeypatch):
        """Of 4 machines with 8 processes each, 8 share the cores and the memory."""
        groups = [CropGroup(2, (16, 16), (0.2, 1))]
        accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=32)
        flags = flags_of(per_device_train_batch_size=8, image_cache="none")
        monkeypatch.setattr("joblib.cpu_count", lambda: 96)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        assert choose_workers(flags, accelerator, groups, num_channels=3).training == 8
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
        assert choose_workers(flags, accelerator, groups, num_channels=3).training == 3

    @pytest.mark.parametrize("arguments", [{}, {"streaming": True}])
    def test_that_hang(self, refused, save_images, tmp_path, hanging_workers, arguments):
        images = save_images(tmp_path / "images", 10)
        arguments |= {"dataset": images, "channels": 3, "dataloader_num_workers": 2}
        assert refused(**arguments, dataloader_timeout=1).argument == "dataloader_timeout"

    def test_that_hang_at_a_monitor(self, refused, save_images, tmp_path, hanging_workers):
        """Training takes its images from a cache."""
        arguments = {"dataset": save_images(tmp_path / "images", 10), "channels": 3, "image_cache": "memory"}
        arguments |= {"monitor_steps": 1, "dataloader_num_workers": 1, "dataloader_timeout": 1}
        assert refused(**arguments).argument == "dataloader_timeout"


def test_a_pipe_among_the_images_is_no_image(pretrain, save_images, tmp_path, capsys):
    """To open one is to wait for its writer."""
    images = save_images(tmp_path / "images", 10)
    os.mkfifo(images / "pipe.png")
    for number, arguments in enumerate(({}, {"dataloader_num_workers": 1}, {"image_cache": "memory"})):
        pretrain(f"out{number}", dataset=images, channels=3, per_device_train_batch_size=11, **arguments)
        assert f"skipped an unreadable image: {images / 'pipe.png'}" in capsys.readouterr().err
