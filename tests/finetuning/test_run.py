"""From a pretrained folder to a classifier: what it learns from, measures, writes, and refuses."""

import csv
import io
import json
import multiprocessing
import os
import stat
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from finetuning_runs import (
    CHECKPOINTS,
    COLORS,
    EVERYTHING_RANDOM,
    accuracy_by_hand,
    assert_equal,
    assert_same,
    backbone_in,
    results_of,
    weights_in,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from transformers import AutoImageProcessor, AutoModelForImageClassification, BertConfig, BertModel, pipeline

from modeling_sit import SiTForImageClassification
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.labeled import LabeledImageDataset
from modeling_sit.data.sources import load_images
from modeling_sit.finetuning import classification, run
from modeling_sit.finetuning.trainer import ReproducibleTrainer


class TestOutputFolder:
    MINE = ("notes.txt", "checkpoint-1/notes.txt", "checkpoint-best/a.txt", "runs/a.txt", "logs/a.out")

    def test_what_a_user_has_in_it_stays_and_the_umask_holds(self, finetune, sit, colors, tmp_path):
        """Old checkpoints are deleted, by the limit and at the end for the best one."""
        before = os.umask(0o027)
        try:
            for name in self.MINE:
                (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "out" / name).write_text("mine")
            arguments = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "report_to": "tensorboard"}
            arguments |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "ema_decay": 0.9}
            folder = finetune(sit, colors, **arguments, steps=4)
        finally:
            os.umask(before)
        assert all((folder / name).read_text() == "mine" for name in self.MINE)
        checkpoints = [path for path in folder.glob("checkpoint-*") if (path / "model.safetensors").exists()]
        assert len(checkpoints) == 1
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
        assert not {path: f"{mode:o}" for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)}

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "predictions.csv", "tuning.json"])
    def test_a_model_of_something_else_is_not_replaced(self, finetune, refused, sit, colors, tmp_path, name):
        (tmp_path / "refused").mkdir()
        (tmp_path / "refused" / name).write_text("pretrained for days")
        error = refused(sit, colors)
        assert error.argument == "output_dir" and name in error.problem
        assert (tmp_path / "refused" / name).read_text() == "pretrained for days"

    def test_a_full_disk(self, refused, sit, colors, tmp_path, monkeypatch):
        """The first file of a checkpoint that PyTorch itself writes, and the finished model."""

        def full(*args, **kwargs):
            raise RuntimeError("basic_ios::clear: iostream error")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            error = refused(sit, colors, save_strategy="steps", save_steps=1)
        assert str(tmp_path / "refused") in error.problem and "disk is full" in error.problem
        assert "`resume_from_checkpoint" in error.remedy
        monkeypatch.setattr(ReproducibleTrainer, "finished_model", full)
        assert "disk is full" in refused(sit, colors, name="other").problem


class TestResults:
    def test_of_a_sit_folder(self, finetune, save_tiny_sit, tmp_path, capsys):
        sit = save_tiny_sit(tmp_path / "sit", num_channels=1)
        folder = finetune(sit, "digits", learning_rate=0.01, seed=3, steps=10)
        results = results_of(folder)
        assert results["accuracy"] == pytest.approx(accuracy_by_hand(folder, "digits"), abs=1e-6)
        assert (results["num_train"], results["num_validation"]) == (1437, 360)
        assert (results["dataset"], results["split"], results["seed"]) == ("digits", "test", 3)
        assert (results["label_fraction"], results["from_scratch"]) == (1.0, False)
        assert results["model_name_or_path"] == str(sit)
        out = capsys.readouterr().out
        assert f"accuracy {results['accuracy']:.4f} on 360 images of test" in out
        assert str(folder / "eval_results.json") in out

    def test_of_a_plain_vit_folder(self, finetune, vit, colors):
        folder = finetune(vit, colors, learning_rate=0.01, steps=20)
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == "vit"
        assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}

    def test_learns(self, finetune, sit, colors):
        folder = finetune(sit, colors, learning_rate=0.01, weight_decay=0, steps=40)
        assert results_of(folder)["accuracy"] == 1.0

    def test_pipeline_names_the_labels(self, finetune, sit, colors):
        folder = finetune(sit, colors, learning_rate=0.01, steps=40)
        classify = pipeline("image-classification", model=str(folder))
        for name, color in COLORS.items():
            answers = classify(PIL.Image.new("RGB", (20, 30), color))
            assert {answer["label"] for answer in answers} == set(COLORS)
            assert answers[0]["label"] == name

    def test_folder_is_a_model_repository(self, finetune, sit, colors):
        folder = finetune(sit, colors)
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "eval_results.json"} <= names
        assert {"README.md", "configuration_sit.py", "modeling_sit.py"} <= names
        card = ModelCard.load(folder / "README.md")
        assert card.data.pipeline_tag == "image-classification"
        assert "blue, green, red" in card.text and "40 labeled images" in card.text
        model, trouble = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, SiTForImageClassification)
        assert not trouble["missing_keys"] and not trouble["unexpected_keys"]
        assert model.config.num_labels == 3

    def test_results_of_other_protocols_stay(self, finetune, sit, colors, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "eval_results.json").write_text('{"knn": {"accuracy": 0.5}}')
        folder = finetune(sit, colors)
        results = json.loads((folder / "eval_results.json").read_text())
        assert results["knn"] == {"accuracy": 0.5} and "finetune" in results

    def test_a_recipe_gives_defaults(self, sit, colors, tmp_path):
        (tmp_path / "recipe.yaml").write_text(
            "max_steps: 9\nlabel_fraction: 0.5\nuse_cpu: true\nseed: 3\neval_strategy: no\n"
            "per_device_train_batch_size: 32\n"
        )
        recipe = tmp_path / "recipe.yaml"
        results = run.finetune(sit, colors, tmp_path / "out", recipe=recipe, max_train_steps=1, seed=5).metrics
        assert (results["num_train"], results["seed"], results["label_fraction"]) == (20, 5, 0.5)
        assert results["epochs"] == 1

    def test_epochs_are_those_that_were_run(self, finetune, sit, colors):
        assert results_of(finetune(sit, colors, steps=6))["epochs"] == pytest.approx(2)  # three batches of 16

    def test_is_a_function_of_the_seed(self, finetune, sit, colors):
        one, same, other = (
            weights_in(finetune(sit, colors, seed=seed, name=name)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
        )
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


class TestStart:
    def test_pretrained_weights_are_there(self, finetune, sit, colors):
        assert_same(backbone_in(finetune(sit, colors, learning_rate=0)), backbone_in(sit))

    def test_pretrained_weights_of_a_plain_vit_are_there(self, finetune, vit, colors):
        assert_same(backbone_in(finetune(vit, colors, learning_rate=0)), backbone_in(vit))

    def test_from_scratch_they_are_not(self, finetune, sit, colors):
        before = backbone_in(sit)
        for seed in (1, 2):
            after = backbone_in(finetune(sit, colors, learning_rate=0, from_scratch=True, seed=seed, name=str(seed)))
            assert after.keys() == before.keys()
            for name, value in after.items():
                if value.std() > 0:  # norms and biases start from constants
                    assert not torch.equal(value, before[name]), name
            before = after
        assert results_of(Path(sit.parent / "2"))["from_scratch"] is True

    def test_classifier_of_other_labels_is_made_anew(self, finetune, vit, colors):
        folder = finetune(vit, colors, learning_rate=0)
        assert weights_in(folder)["classifier.weight"].shape == (3, 16)

    @pytest.mark.parametrize(("pooling", "width"), [("token", 16), ("mean", 16), ("token_mean", 32)])
    def test_pooling(self, finetune, sit, colors, pooling, width):
        folder = finetune(sit, colors, pooling=pooling)
        assert weights_in(folder)["classifier.weight"].shape == (3, width)
        assert AutoModelForImageClassification.from_pretrained(folder).config.pooling == pooling
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)

    def test_drop_path_rate(self, finetune, sit, colors):
        folder = finetune(sit, colors, drop_path_rate=0.3)
        assert json.loads((folder / "config.json").read_text())["drop_path_rate"] == 0.3

    def test_processor_that_sizes_by_the_shortest_edge(self, finetune, vit, colors):
        """DINOv2's does, for one."""
        settings = json.loads((vit / "preprocessor_config.json").read_text())
        settings.update(size={"shortest_edge": 16}, do_center_crop=True, crop_size={"height": 16, "width": 16})
        settings["image_processor_type"] = "CLIPImageProcessor"
        (vit / "preprocessor_config.json").write_text(json.dumps(settings))
        folder = finetune(vit, colors)
        assert AutoImageProcessor.from_pretrained(folder).crop_size == {"height": 16, "width": 16}
        assert accuracy_by_hand(folder, colors) == results_of(folder)["accuracy"]


class TestLabelFraction:
    def test_share_of_each_class(self, finetune, sit, colors, monkeypatch):
        seen = []

        class Spy(LabeledImageDataset):
            def __init__(self, split, *arguments):
                super().__init__(split, *arguments)
                seen.append((str(split.split), split["label"][:]))

        monkeypatch.setattr(classification, "LabeledImageDataset", Spy)
        folder = finetune(sit, colors, label_fraction=0.2, steps=1, batch_size=4)
        (split, labels), (test_split, test_labels) = seen
        assert (split, np.bincount(labels).tolist()) == ("train", [4, 2, 2])
        assert (test_split, np.bincount(test_labels).tolist()) == ("test", [4, 4, 4])
        results = results_of(folder)
        assert (results["num_train"], results["num_validation"], results["label_fraction"]) == (8, 12, 0.2)


class TestUnreadable:
    @pytest.fixture
    def damaged(self, colors, tmp_path) -> Path:
        """As `colors`, with an image of each split cut off; the one of the test split comes last, in class `zero`."""
        folder = tmp_path / "damaged"
        for path in colors.rglob("*.png"):
            target = folder / path.relative_to(colors)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        (folder / "train" / "red" / "99.png").write_bytes(b"broken")
        (folder / "test" / "red" / "99.png").write_bytes(b"")
        return folder

    def test_is_left_out_of_loss_and_metric_and_named(self, finetune, sit, colors, damaged, capsys):
        arguments = {"learning_rate": 0, "label_smoothing_factor": 0}
        whole = results_of(finetune(sit, colors, **arguments, name="whole"))
        capsys.readouterr()
        folder = finetune(sit, damaged, **arguments, name="some", batch_size=41)
        results = results_of(folder)
        assert results["num_validation"] == whole["num_validation"] == 12
        assert "num_validation: 12" in (folder / "README.md").read_text()
        assert results["accuracy"] == pytest.approx(whole["accuracy"])
        assert results["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        err = capsys.readouterr().err
        assert str(damaged / "train" / "red" / "99.png") in err
        assert str(damaged / "test" / "red" / "99.png") in err

    def test_has_no_line_among_the_predictions(self, finetune, sit, damaged):
        """Each line is what the written model says of the image in this row of the test split."""
        folder = finetune(sit, damaged, learning_rate=0, steps=1, seed=2)
        with (folder / "predictions.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        images = load_images(str(damaged), validation_split="test", labels="required").validation
        names = images.features["label"].names
        readable = [row for row, image in enumerate(images["image"]) if not image["path"].endswith("99.png")]
        assert [int(line["image"]) for line in lines] == readable and len(readable) == 12
        classify = pipeline("image-classification", model=str(folder), image_processor=str(folder))
        for line in lines:
            image = images[int(line["image"])]
            assert line["label"] == names[image["label"]] and line["path"] == image["image"]["path"]
            assert line["predicted"] == classify(decode_image(image["image"], 3))[0]["label"]
        hits = [line["predicted"] == line["label"] for line in lines]
        assert np.mean(hits) == results_of(folder)["accuracy"]

    @pytest.mark.parametrize("smoothing", [0, 0.1])
    def test_alone_in_its_batch(self, finetune, sit, damaged, smoothing):
        """The mean over no image is not a number: it may spoil neither the weights nor the figures."""
        arguments = {"label_smoothing_factor": smoothing, "per_device_eval_batch_size": 1}
        folder = finetune(sit, damaged, **arguments, batch_size=1, steps=41)
        assert all(value.isfinite().all() for value in weights_in(folder).values())
        assert np.isfinite(results_of(folder)["loss"])


class TestWeights:
    def test_the_moving_average_is_measured_and_saved(self, finetune, sit, colors):
        arguments = {"learning_rate": 0.01, "save_strategy": "steps", "save_steps": 10}
        folder = finetune(sit, colors, **arguments, ema_decay=0.99, steps=10)
        live = load_file(folder / "checkpoint-10" / "training_weights.safetensors")
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)
        for name, value in weights_in(folder).items():
            assert torch.equal(value, live[f"average.{name}"])
            assert not torch.equal(value, live[f"model.{name}"]), name

    def test_frozen_backbone(self, finetune, sit, colors):
        folder = finetune(sit, colors, freeze_backbone=True, learning_rate=0.01, drop_path_rate=0.5, steps=5)
        assert_same(backbone_in(folder), backbone_in(sit))
        assert weights_in(folder)["classifier.bias"].abs().min() > 0

    def test_frozen_backbone_gives_features_without_stochastic_depth(self, finetune, sit, colors):
        arguments = {"freeze_backbone": True, "learning_rate": 0.01}
        one, other = (
            weights_in(finetune(sit, colors, **arguments, drop_path_rate=rate, name=str(rate))) for rate in (0, 0.9)
        )
        assert_equal(one, other)

    def test_adapters_are_merged(self, finetune, sit, colors):
        pytest.importorskip("peft")
        arguments = {"lora_rank": 4, "lora_target_modules": ["query", "value"], "learning_rate": 0.05}
        folder = finetune(sit, colors, **arguments, steps=20)
        before, after = backbone_in(sit), backbone_in(folder)
        assert after.keys() == before.keys()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed and all(name.endswith(("query.weight", "value.weight")) for name in changed)
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)
        answers = pipeline("image-classification", model=str(folder))(PIL.Image.new("RGB", (20, 30), COLORS["red"]))
        assert {answer["label"] for answer in answers} == set(COLORS)

    @pytest.mark.parametrize("scratch", [{}, {"from_scratch": True}])
    def test_other_image_size(self, finetune, sit, colors, scratch):
        folder = finetune(sit, colors, image_size=32, learning_rate=0, **scratch)
        assert weights_in(folder)["vit.embeddings.position_embeddings"].shape == (1, 17, 16)
        assert json.loads((folder / "config.json").read_text())["image_size"] == 32
        assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)

    def test_other_image_size_of_a_plain_vit(self, finetune, vit, colors):
        folder = finetune(vit, colors, image_size=32)
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)

    def test_layer_decay(self, finetune, sit, colors):
        """At a factor of nearly 0 the embeddings stay, and the classifier does not."""
        folder = finetune(sit, colors, layer_decay=1e-09, warmup_steps=0)
        before, after = backbone_in(sit), weights_in(folder)
        moved = {name: (after[name] - value).abs().max() for name, value in before.items()}
        assert moved["vit.embeddings.cls_token"] < 1e-8 < 1e-5 < moved["vit.layernorm.weight"]

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [({}, 0.5), ({"class_weights": "balanced"}, 1 / 3), ({"balanced_sampling": True}, 1 / 3)],
    )
    def test_class_imbalance(self, finetune, sit, colors, tmp_path, arguments, expected):
        """Where images do not tell classes apart, a classifier learns how frequent they are, or that they count alike."""
        for path in colors.rglob("*.png"):
            grey = tmp_path / "grey" / path.relative_to(colors)
            grey.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (16, 16), "grey").save(grey)
        arguments = {**arguments, "freeze_backbone": True, "learning_rate": 0.02, "weight_decay": 0}
        arguments |= {"label_smoothing_factor": 0, "crop_scale": [1, 1]}
        folder = finetune(sit, tmp_path / "grey", **arguments, steps=40, batch_size=40)
        answers = pipeline("image-classification", model=str(folder))(PIL.Image.new("RGB", (16, 16), "grey"))
        likely = {answer["label"]: answer["score"] for answer in answers}
        assert likely["blue"] == pytest.approx(expected, abs=0.06)


class TestSeveralLabels:
    @pytest.fixture
    def tiles(self, tmp_path) -> Path:
        """Images of up to two colors side by side; every seventh of none."""
        generator = np.random.default_rng(0)
        names = list(COLORS)
        features = datasets.Features(
            {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=names))}
        )
        for split, count in (("train", 42), ("test", 21)):
            rows = {"image": [], "labels": []}
            for number in range(count):
                labels = sorted(set(generator.integers(0, 3, 2).tolist())) if number % 7 else []
                pixels = generator.normal(128, 10, (16, 16, 3))
                for place, label in enumerate(labels):
                    pixels[:, 8 * place : 8 * place + 8] = COLORS[names[label]]
                buffer = io.BytesIO()
                PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                rows["image"].append({"bytes": buffer.getvalue(), "path": None})
                rows["labels"].append(labels)
            (tmp_path / "tiles").mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "tiles" / f"{split}.parquet")
        return tmp_path / "tiles"

    @pytest.mark.parametrize("loss", ["binary_cross_entropy", "asymmetric"])
    def test_learns_and_is_measured(self, finetune, sit, tiles, loss):
        arguments = {"multi_label_loss": loss, "learning_rate": 0.01, "crop_scale": [1, 1]}
        folder = finetune(sit, tiles, **arguments, steps=60)
        results = results_of(folder)
        assert results["mean_average_precision"] > 0.9 and "accuracy" not in results
        images = load_images(str(tiles))
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert model.config.problem_type == "multi_label_classification"
        read = [decode_image(image, 3) for image in images.validation["image"]]
        with torch.no_grad():
            logits = model(**AutoImageProcessor.from_pretrained(folder)(read, return_tensors="pt")).logits
        truths = np.array([[label in labels for label in range(3)] for labels in images.validation["label"]])
        expected = average_precision_score(truths, logits, average="macro")
        assert results["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
        card = ModelCard.load(folder / "README.md")
        assert card.data.eval_results[0].metric_type == "mean_average_precision"
        assert "may have several" in card.text

    def test_pipeline_names_all_of_them(self, finetune, sit, tiles):
        folder = finetune(sit, tiles, learning_rate=0.01, crop_scale=[1, 1], steps=60)
        two = PIL.Image.new("RGB", (16, 16), COLORS["red"])
        two.paste(PIL.Image.new("RGB", (8, 16), COLORS["green"]))
        scores = {answer["label"]: answer["score"] for answer in pipeline("image-classification", str(folder))(two)}
        assert min(scores["red"], scores["green"]) > 0.5 > scores["blue"]

    def test_everything_together(self, finetune, sit, tiles):
        arguments = {
            **EVERYTHING_RANDOM,
            "label_smoothing_factor": 0.1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
        }
        results = results_of(finetune(sit, tiles, **arguments, validation_fraction=0.3))
        assert results["chosen_by"] == "mean_average_precision on 30 % of train, held back"

    def test_loss_of_several_labels_for_one(self, refused, sit, colors):
        assert refused(sit, colors, multi_label_loss="asymmetric").argument == "multi_label_loss"


class TestMistakes:
    def test_data_that_is_not_there(self, refused, sit, tmp_path):
        assert str(tmp_path / "nowhere") in str(refused(sit, tmp_path / "nowhere"))

    def test_no_labels(self, refused, sit, tmp_path, save_images):
        for split in ("train", "test"):
            save_images(tmp_path / "pile" / split, 3)
        assert "label_column" in str(refused(sit, tmp_path / "pile"))

    def test_validation_on_the_training_images(self, refused, sit, colors):
        assert "validation_split" in str(refused(sit, colors, validation_split="train"))

    def test_no_model(self, refused, sit, colors, tmp_path):
        assert f"{tmp_path}/nowhere" in str(refused(tmp_path / "nowhere", colors))
        assert "someone/some-vit" in str(refused("someone/some-vit", colors))
        (tmp_path / "empty").mkdir()
        assert "config.json" in str(refused(tmp_path / "empty", colors))

    @pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
    def test_half_a_model(self, refused, sit, colors, name):
        (sit / name).unlink()
        error = str(refused(sit, colors))
        assert "model_name_or_path" in error and str(sit) in error

    @pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
    def test_damaged_model(self, refused, sit, colors, name):
        (sit / name).write_bytes((sit / name).read_bytes()[:200])
        error = str(refused(sit, colors))
        assert "model_name_or_path" in error and str(sit) in error

    def test_model_without_its_backbone(self, refused, sit, colors):
        """What is called pretrained is not silently random."""
        BertModel(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
        ).save_pretrained(sit.parent / "bert")
        weights = (sit.parent / "bert" / "model.safetensors").read_bytes()
        (sit / "model.safetensors").write_bytes(weights)
        error = str(refused(sit, colors))
        assert "model_name_or_path" in error and str(sit) in error

    def test_flags_that_do_not_suit_the_model(self, refused, vit, colors):
        assert "pooling" in str(refused(vit, colors, pooling="mean"))
        assert "drop_path_rate" in str(refused(vit, colors, drop_path_rate=0.1))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"label_fraction": 0},
            {"label_fraction": 1.5},
            {"crop_scale": 0.5},
            {"crop_scale": [0.5, 1.5]},
            {"horizontal_flip_probability": 2},
            {"vertical_flip_probability": -1},
            {"pooling": "sum"},
            {"validation_fraction": 1},
            {"ema_decay": 1},
            {"layer_decay": 0},
            {"mixup_alpha": -1},
            {"random_erasing_probability": 2},
            {"randaugment_magnitude": 31},
            {"early_stopping_patience": 0},
            {"lora_dropout": 0.5},
            {"label_smoothing_factor": 1},
            {"augmentation": "auto"},
            {"eval_strategy": "sometimes"},
        ],
    )
    def test_values_that_no_argument_takes(self, refused, sit, colors, arguments):
        error = refused(sit, colors, **arguments)
        ((name, value),) = arguments.items()
        assert error.argument == name or (error.argument is None and str(value) in error.problem)

    def test_drop_path_rate_out_of_range(self, refused, sit, colors):
        assert refused(sit, colors, drop_path_rate=2).argument == "drop_path_rate"

    def test_arguments_that_exclude_each_other(self, refused, sit, colors):
        assert "`lora_rank`" in str(refused(sit, colors, freeze_backbone=True, lora_rank=2))
        assert "`from_scratch`" in str(refused(sit, colors, freeze_backbone=True, from_scratch=True))

    def test_image_size_of_no_whole_patches(self, refused, sit, colors):
        assert "image_size" in str(refused(sit, colors, image_size=30))

    def test_unknown_argument(self, finetune, sit, colors):
        with pytest.raises(TypeError, match=r"learning_rat.*did you mean learning_rate"):
            finetune(sit, colors, learning_rat=1)

    def test_output_folder_below_a_file(self, refused, sit, colors, tmp_path):
        (tmp_path / "file").write_text("in the way")
        error = refused(sit, colors, name="file/out")
        assert error.argument == "output_dir" and f"{tmp_path}/file" in error.problem

    def test_output_folder_is_not_the_pretrained_model(self, refused, sit, colors):
        """Its weights would be replaced by a classifier's: nothing is to be lost."""
        before = (sit / "model.safetensors").read_bytes()
        error = refused(sit, colors, name="sit")
        assert error.argument == "output_dir"
        assert (sit / "model.safetensors").read_bytes() == before

    def test_loss_that_is_not_finite_stops_the_run(self, refused, sit, colors, tmp_path):
        error = refused(sit, colors, learning_rate=1e30, warmup_steps=0, steps=20)
        assert "not finite at step" in error.problem and "`learning_rate`" in error.remedy
        assert not (tmp_path / "refused" / "eval_results.json").exists()


class TestWorkers:
    def test_that_cannot_hand_over_a_batch(self, refused, sit, colors, long_temporary_folder):
        error = refused(sit, colors, dataloader_num_workers=2)
        assert error.argument == "dataloader_num_workers" and "TMPDIR" in error.remedy

    @pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}, {"learning_rate": "auto"}])
    def test_that_hang(self, refused, sit, colors, hanging_workers, arguments):
        error = refused(sit, colors, **arguments, dataloader_num_workers=2, dataloader_timeout=1)
        assert error.argument == "dataloader_timeout"

    def test_that_hang_where_a_run_goes_on(self, finetune, refused, sit, colors, hanging_workers):
        """Amid an epoch Accelerate makes a loader of its own."""
        finetune(sit, colors, **CHECKPOINTS, steps=2, batch_size=10)
        arguments = {"resume_from_checkpoint": "auto", "dataloader_num_workers": 2, "dataloader_timeout": 1}
        error = refused(sit, colors, **CHECKPOINTS, **arguments, name="out", steps=3, batch_size=10)
        assert error.argument == "dataloader_timeout"
        for worker in multiprocessing.active_children():
            worker.join(10)
            assert not worker.is_alive()

    def test_that_hang_at_an_evaluation(self, refused, sit, colors, hanging_workers, monkeypatch):
        monkeypatch.setattr(ReproducibleTrainer, "train", lambda *_: None)
        assert refused(sit, colors, dataloader_num_workers=2, dataloader_timeout=1).argument == "dataloader_timeout"

    def test_with_too_little_time(self, refused, sit, colors):
        assert refused(sit, colors, dataloader_timeout=0).argument == "dataloader_timeout"
