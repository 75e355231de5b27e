"""Detection and segmentation from a pretrained folder to a measured model: what is written, resuming, and what is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from dense_sets import write_halves, write_squares
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageSegmentation, AutoModelForObjectDetection

from modeling_sit import (
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
)
from modeling_sit.evaluation.run import evaluate
from modeling_sit.finetuning import run
from modeling_sit.finetuning.detection import Detection
from modeling_sit.finetuning.layer_decay import depth_of
from modeling_sit.hub.repository_files import find_model_files
from modeling_sit.runtime.errors import SiTError

MODELS = {
    "detection": SiTForObjectDetection,
    "instance_segmentation": SiTForInstanceSegmentation,
    "semantic_segmentation": SiTForSemanticSegmentation,
}
FIRST = {"detection": "map", "instance_segmentation": "mask_map", "semantic_segmentation": "mean_iou"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    """A dataset for each task, of 4 images to train on and 3 to test."""
    folder = tmp_path_factory.mktemp("dense")
    squares, halves = (
        write_squares(folder / "squares", train=4, test=3),
        write_halves(folder / "halves", train=4, test=3),
    )
    return {task: halves if task == "semantic_segmentation" else squares for task in MODELS}


@pytest.fixture
def sit(save_tiny_sit, tmp_path) -> Path:
    return save_tiny_sit(tmp_path / "sit", image_size=32)


@pytest.fixture
def finetune(sit, datasets, tmp_path):
    """Fine-tune for a task in this process."""

    def finetune(task: str, name: str = "out", steps: int = 2, **arguments) -> run.FinetuningResult:
        given = {
            "task": task,
            "max_steps": steps,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "image_size": 64,
            "use_cpu": True,
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
        }
        given = {**given, **arguments}
        return run.finetune(
            given.pop("model", sit), given.pop("dataset", datasets.get(task)), tmp_path / name, **given
        )

    return finetune


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("task", MODELS)
def test_writes_a_measured_model(finetune, task, page):
    """With checkpoints, of which the best by the task's metric is taken, on images that are held back."""
    result = finetune(task, eval_strategy="steps", eval_steps=1, save_strategy="steps", validation_fraction=0.25)
    folder, metrics = result.output_dir, result.metrics
    assert type(result.model) is MODELS[task] and metrics["task"] == task
    assert metrics == json.loads((folder / "eval_results.json").read_text())["finetune"]
    assert metrics["chosen_by"].startswith(f"{FIRST[task]} on 25 % of train")
    assert (metrics["num_train"], metrics["num_validation"], metrics["validation"]["num_validation"]) == (3, 3, 1)
    assert 0 <= metrics[FIRST[task]] <= 1 and math.isfinite(metrics["loss"])
    of_a_class = {"detection": "map_blue", "instance_segmentation": "mask_map_red", "semantic_segmentation": "iou_red"}
    assert of_a_class[task] in metrics
    log = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert any(f"eval_{FIRST[task]}" in line for line in log)
    assert not any(name.endswith(("_red", "_blue")) for line in log for name in line)
    auto = AutoModelForObjectDetection if task == "detection" else AutoModelForImageSegmentation
    loaded = auto.from_pretrained(folder)
    assert type(loaded) is MODELS[task] and loaded.config.label2id == {"blue": 0, "red": 1}
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in result.model.state_dict().items())
    processor = SiTImageProcessor.from_pretrained(folder)
    assert processor.size.longest_edge == 64 and processor.do_pad
    shown = page(folder)
    assert list(shown.images) == ["examples.png", "loss_curve.png"] and "Some of the 3 measured images" in shown.text
    assert ("chosen at random from those with objects." in shown.text) is (task != "semantic_segmentation")
    assert "examples.png" in find_model_files(folder)
    figures = {row[2] for row in shown.tables[0][1:]}
    assert f"finetune {FIRST[task]}" in figures and not any("red" in figure for figure in figures)
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == (
        "object-detection" if task == "detection" else "image-segmentation"
    )


RANDOM = {"scale_jitter": [0.5, 2.0], "vertical_flip_probability": 0.5, "photometric_distortion": True}


@pytest.mark.parametrize("task", ["instance_segmentation", "semantic_segmentation"])
def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_does(finetune, task):
    """To the last bit, though anchors and regions are sampled, and evaluations lie between. It stops amid an epoch."""
    arguments = {**RANDOM, "save_strategy": "steps", "save_steps": 3, "drop_path_rate": 0.2}
    arguments |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "gradient_accumulation_steps": 2}
    arguments |= {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": False}
    arguments |= {"per_device_train_batch_size": 1, "validation_fraction": 0.25}
    if task != "semantic_segmentation":
        arguments["detections_per_image"] = 5  # each has its mask, which takes a while
    whole = finetune(task, "whole", 4, **arguments)
    finetune(task, "stopped", 3, **arguments)
    stopped = finetune(task, "stopped", 4, **arguments, resume_from_checkpoint="auto")
    first, second = weights_in(whole.output_dir), weights_in(stopped.output_dir)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    assert whole.metrics == stopped.metrics


def test_heads_learn_at_the_full_rate(finetune):
    model = finetune("instance_segmentation", layer_decay=0.5).model
    for name, _ in model.named_parameters():
        assert (depth_of(name, [(0, 0), (0, 1)]) == 0) is (not name.startswith(("vit.encoder.", "vit.embeddings."))), (
            name
        )


def test_evaluation_reads_masks_as_the_model_learned_them(finetune, tmp_path):
    """Where 0 is no class, 2 would be beyond the two classes."""
    folder = write_halves(tmp_path / "halves", train=2, test=2)
    for path in folder.glob("*/masks/*.png"):
        mask = np.array(PIL.Image.open(path))
        PIL.Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(path)
    result = finetune("semantic_segmentation", dataset=folder, do_reduce_labels=True)
    (measured,) = evaluate(result.output_dir, folder, protocols="segmentation", device="cpu").values()
    assert measured["mean_iou"] == pytest.approx(result.metrics["mean_iou"])
    assert measured["classes"]["red"]["iou"] == pytest.approx(result.metrics["iou_red"])


def test_a_class_that_is_called_as_a_size_of_objects():
    arguments, training = SimpleNamespace(task="detection", image_size=64), SimpleNamespace(label_smoothing_factor=0)
    training.seed = 0
    task = Detection(arguments, training, SimpleNamespace(label_names=["small", "cell"]))
    assert set(task.class_metric_names) == {
        *("map_class_small", "mar_100_class_small", "map_cell", "mar_100_cell"),
    }
    assert "map_small" in task.metric_names


def test_frozen_backbone(finetune, sit):
    before = weights_in(sit)
    after = weights_in(finetune("semantic_segmentation", freeze_backbone=True, segmentation_head="linear").output_dir)
    of_backbone = [name for name in after if name.startswith("vit.")]
    assert of_backbone and all(torch.equal(after[name], before[name]) for name in of_backbone)
    assert not any(name.startswith("pyramid.") for name in after)


def test_frozen_random_backbone_is_the_measure_of_an_untrained_one(finetune, sit):
    settings = {"freeze_backbone": True, "segmentation_head": "linear", "from_scratch": True}
    first, second = (
        weights_in(finetune("semantic_segmentation", name, learning_rate=rate, **settings).output_dir)
        for name, rate in (("first", 0.0), ("second", 0.1))
    )
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and not any(name.startswith("vit.") for name in changed)
    assert not torch.equal(
        first["vit.embeddings.patch_embeddings.projection.weight"],
        weights_in(sit)["vit.embeddings.patch_embeddings.projection.weight"],
    )


def test_adapters(finetune, sit):
    pytest.importorskip("peft")
    before, after = weights_in(sit), weights_in(finetune("detection", lora_rank=2, learning_rate=0.01).output_dir)
    moved = {name for name in after if name.startswith("vit.") and not torch.equal(after[name], before[name])}
    assert moved and all("encoder" in name and name.endswith("weight") for name in moved)


def test_a_model_of_the_task_goes_on_with_its_heads(finetune):
    first = finetune("detection", "first", head_size="tiny", anchor_sizes=[8, 16, 24, 32, 48]).output_dir
    config = finetune("detection", "second", model=first, learning_rate=0.0, weight_decay=0.0).model.config
    assert config.anchor_sizes == [8, 16, 24, 32, 48] and config.pyramid_size == 64
    before, after = weights_in(first), weights_in(first.parent / "second")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class TestRefusals:
    @pytest.mark.parametrize(
        ("task", "argument", "value"),
        [
            ("detection", "mixup_alpha", 0.8),
            ("semantic_segmentation", "anchor_sizes", [4, 8, 16, 32, 64]),
            ("instance_segmentation", "segmentation_head", "linear"),
            ("detection", "label_smoothing_factor", 0.1),
            ("classification", "scale_jitter", [0.5, 2]),
        ],
    )
    def test_an_argument_of_another_task(self, finetune, datasets, task, argument, value):
        with pytest.raises(SiTError) as error:
            finetune(task, dataset=datasets["detection"], **{argument: value})
        assert error.value.argument == argument and f"the task is {task}" in error.value.problem

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("scale_jitter", [2, 0.5]),
            ("anchor_sizes", [4]),
            ("anchor_sizes", [4, 8, 16, 32, 0]),
            ("detections_per_image", 0),
        ],
    )
    def test_values_out_of_range(self, finetune, argument, value):
        with pytest.raises(SiTError) as error:
            finetune("detection", **{argument: value})
        assert error.value.argument == argument

    def test_a_figure_of_the_user_is_not_replaced(self, finetune, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "examples.png").write_text("mine")
        with pytest.raises(SiTError, match=r"examples.png of something else") as error:
            finetune("detection")
        assert error.value.argument == "output_dir"

    def test_a_metric_that_is_not_measured(self, finetune):
        with pytest.raises(SiTError, match="accuracy is not measured, only map,"):
            finetune("detection", metric_for_best_model="accuracy", validation_fraction=0.25)

    def test_a_split_that_is_not_there(self, finetune):
        with pytest.raises(SiTError) as error:
            finetune("detection", test_split="nowhere")
        assert error.value.argument == "test_split"


def test_a_learning_rate_that_the_run_chooses(finetune, monkeypatch):
    """Measured by the task's first metric, on images that are held out; among equals the loss decides."""
    monkeypatch.setattr("modeling_sit.finetuning.tuning.MAX_EXTENSIONS", 0)
    monkeypatch.setattr("modeling_sit.finetuning.splits.MAX_DRAWS", 1)
    given = {"learning_rate": "auto", "tuning_learning_rates": [1e-9, 1e-3], "validation_fraction": 0.5}
    result = finetune("semantic_segmentation", **given)
    tuning = json.loads((result.output_dir / "tuning.json").read_text())
    assert tuning["metric"] == "mean_iou" and len(tuning["trials"]) == 2
    assert [(trial["num_train"], trial["num_held_out"]) for trial in tuning["trials"]] == [(2, 2)] * 2
    assert result.metrics["learning_rate"] == 1e-3 and result.metrics["num_train"] == 4
    assert result.metrics["tuned_by"] == "mean_iou on 50 % of train, 2 images"


def test_no_learning_rate_is_chosen_by_images_without_objects(finetune, tmp_path):
    folder = write_squares(tmp_path / "squares", train=4, test=1, val=3)
    content = json.loads((folder / "val.json").read_text())
    (folder / "val.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(SiTError, match="val, 3 images have no objects"):
        finetune("detection", dataset=folder, learning_rate="auto")


def test_an_image_that_cannot_be_read_is_left_out(finetune, tmp_path, capsys):
    folder = write_halves(tmp_path / "halves", train=3, test=3)
    (folder / "test" / "images" / "2.png").write_bytes((folder / "test" / "images" / "2.png").read_bytes()[:60])
    metrics = finetune("semantic_segmentation", dataset=folder).metrics
    assert "skipped an unreadable image" in capsys.readouterr().err and 0 <= metrics["mean_iou"] <= 1
    assert metrics["num_validation"] == 2
