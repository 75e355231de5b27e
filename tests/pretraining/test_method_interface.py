"""A method of a few lines is all that a new method needs: the loop, checkpoints, monitors, card and dry run take it as it is."""

import json
import math

import pytest
import torch
from huggingface_hub import ModelCard
from pretraining_runs import arguments_of, assert_equal, checkpoint, checkpoints_of, lines_of, losses_of, weights_in
from torch import nn
from transformers import AutoModel
from transformers.utils import ModelOutput

from modeling_sit import SiTModel
from modeling_sit.data.training_data import CropGroup
from modeling_sit.pretraining.method import Method, ViewGroup
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.metric_logger import MetricLogger
from modeling_sit.pretraining.run import run_pretraining
from modeling_sit.runtime.errors import SiTError

NUM_STEPS = 6


class ToyNetwork(nn.Module):
    """Features that lie around a center that moves: a loss of one line."""

    def __init__(self, config):
        super().__init__()
        self.config, self.vit = config, SiTModel(config)

    def forward(self, pixel_values, center):
        features = self.vit(pixel_values).last_hidden_state[:, 0]
        pull_loss = (features - center).square().mean()
        spread_loss = -features.std(dim=0).clamp_max(1).mean()
        self.features = features.detach()
        return ModelOutput(loss=pull_loss + 2 * spread_loss, pull_loss=pull_loss, spread_loss=spread_loss)


class Toy(Method):
    losses = ("loss", "pull_loss", "spread_loss")
    title, citation, tags = "Toy (a test)", "@misc{toy}", ("toy",)
    fixed = frozenset({"hidden_size", "num_hidden_layers"})
    num_views = 2

    def __init__(self, config, processor, flags):
        super().__init__(config, processor, flags)
        torch.manual_seed(flags.run.seed)
        self.student = ToyNetwork(config)
        self.register_buffer("center", torch.zeros(config.hidden_size))

    def view_groups(self, arguments):
        (group,) = super().view_groups(arguments)
        group.crops = CropGroup(self.num_views, group.crops.image_shape, group.crops.scale)
        return [group]

    def schedules(self, progress):
        return {"center_momentum": 0.5 + 0.4 * progress}

    def inputs(self, views, accelerator, schedule):
        return {"pixel_values": views[0], "center": self.center.clone()}

    def after_step(self, schedule):
        self.center.lerp_(self.student.features.mean(dim=0), 1 - schedule["center_momentum"])


@pytest.fixture
def run(forget_accelerators, flags_of, monkeypatch, tmp_path):
    """Train the toy; gives its folder."""
    monkeypatch.setitem(METHODS, "toy", Toy)

    def run(name: str = "out", **arguments):
        forget_accelerators()
        settings = {"max_steps": NUM_STEPS, "checkpointing_steps": 2, "checkpoints_total_limit": 0, **arguments}
        settings = {"monitor_steps": 3, "monitor_images": 40, "base_learning_rate": 0.05, **settings}
        settings = {"method": "toy", **settings}
        return run_pretraining(flags_of(**arguments_of(tmp_path / name, **settings))).output_dir

    return run


def stop_after(monkeypatch, steps: int) -> None:
    """Ctrl-C, at once, when so many steps are done."""
    count = MetricLogger.count_step

    def counting(logger):
        count(logger)
        if logger.step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricLogger, "count_step", counting)


def test_goes_on_bit_for_bit(run, monkeypatch):
    whole = run("whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    stopped = whole.with_name("stopped")
    assert checkpoints_of(stopped) == [2, 4]
    run("stopped", resume_from_checkpoint="auto")
    assert losses_of(stopped) == losses_of(whole)
    assert lines_of(stopped, "monitors.jsonl") == lines_of(whole, "monitors.jsonl")
    for name in ("model.safetensors", "method.safetensors"):
        assert_equal(weights_in(checkpoint(stopped, 6) / name), weights_in(checkpoint(whole, 6) / name))
    assert_equal(weights_in(stopped), weights_in(whole))


def test_its_own_buffer_is_in_the_checkpoint_and_moves(run):
    folder = run()
    centers = [weights_in(checkpoint(folder, step) / "method.safetensors") for step in (2, 4, 6)]
    assert all(center.keys() == {"center"} for center in centers)
    assert not torch.equal(centers[0]["center"], centers[2]["center"])
    assert not list(folder.glob("checkpoints/*/teacher.safetensors"))


def test_logs_its_losses_and_schedules(run):
    lines = lines_of(run())
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    for line in lines:
        names = ["step", "epoch", *Toy.losses, "learning_rate", "weight_decay", "center_momentum"]
        assert list(line) == [*names, "images_per_second", "data_wait"]
        assert math.isclose(line["loss"], line["pull_loss"] + 2 * line["spread_loss"], abs_tol=1e-5)
        assert math.isclose(line["center_momentum"], 0.5 + 0.4 * (line["step"] - 1) / 5)


def test_is_monitored(run):
    rounds = lines_of(run(), "monitors.jsonl")
    assert [line["step"] for line in rounds] == [3, 6]
    # Of projections and teachers it has none.
    assert set(rounds[0]) == {"step", "epoch", "rankme", "embedding_std", "knn_accuracy", "linear_accuracy"}
    assert 1 < rounds[0]["rankme"] <= 16


def test_exports_a_model_repository(run):
    folder = run()
    model, trouble = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, SiTModel) and not trouble["missing_keys"] and not trouble["unexpected_keys"]
    student = weights_in(checkpoint(folder, NUM_STEPS))
    assert_equal(
        dict(model.state_dict()),
        {name.removeprefix("vit."): value for name, value in student.items() if name.startswith("vit.")},
    )
    assert json.loads((folder / "run_state.json").read_text())["exported"] == "student"


def test_has_its_card(run):
    card = ModelCard.load(run(preview_steps=1) / "README.md")
    assert "Toy (a test)" in card.text and "@misc{toy}" in card.text and "previews/" not in card.text
    assert {"toy", "vit"} <= set(card.data.tags) and "masked-image-modeling" not in card.data.tags
    assert "| weights in this folder | student |" in card.text and "| losses | pull + spread |" in card.text
    assert "- `method`: `toy`" in card.text


def test_has_its_dry_run(run, tmp_path, capsys):
    run(dry_run=True)
    said = capsys.readouterr().out
    assert "losses pull + spread" in said and "the teacher has as many" not in said
    assert "previews/: none" in said and "monitors.jsonl: 2 lines" in said
    assert list(tmp_path.iterdir()) == []


class Scaled(nn.Module):
    """Crops as numbers from -1 to 1, without augmentation."""

    def forward(self, crops):
        return crops.flatten(0, 1).float() / 127.5 - 1


def with_groups(*numbers_and_sizes):
    """Views in these numbers and sizes, without augmentation."""

    def view_groups(self, arguments):
        return [
            ViewGroup(CropGroup(number, (size, size), tuple(arguments.crop_scale)), Scaled())
            for number, size in numbers_and_sizes
        ]

    return view_groups


LARGE_AND_SMALL = [(2, 16), (3, 8)]


@pytest.mark.parametrize(
    ("groups", "arguments"),
    [
        ([(1, 16)], {}),
        *((LARGE_AND_SMALL, arguments) for arguments in ({}, {"streaming": True}, {"image_cache": "device"})),
    ],
)
def test_views_of_any_number_and_size(run, monkeypatch, groups, arguments):
    """One view, or large and small ones: the method gets what it asks for, and goes on bit for bit."""
    seen, inputs = [], Toy.inputs

    def seeing(self, views, accelerator, schedule):
        seen.append([tuple(group.shape) for group in views])
        return inputs(self, views, accelerator, schedule)

    monkeypatch.setattr(Toy, "view_groups", with_groups(*groups))
    monkeypatch.setattr(Toy, "inputs", seeing)
    arguments = {"monitor_steps": 0, **arguments}
    whole = run("whole", **arguments)
    assert seen == [[(number * 8, 1, size, size) for number, size in groups]] * NUM_STEPS
    other = run("other", resume_from_checkpoint=str(checkpoint(whole, 4)), **arguments)
    for name in ("model.safetensors", "method.safetensors"):
        assert_equal(weights_in(checkpoint(other, 6) / name), weights_in(checkpoint(whole, 6) / name))


@pytest.mark.parametrize("arguments", [{"gradient_accumulation_steps": 2}, {"streaming": True}])
def test_trains_in_other_ways(run, arguments):
    assert len(lines_of(run(**arguments))) == NUM_STEPS


def test_a_checkpoint_of_another_method_is_refused(run):
    folder = run()
    with pytest.raises(SiTError, match=r"method: sit \(the checkpoint: toy\)") as error:
        run("other", method="sit", resume_from_checkpoint=str(checkpoint(folder, 2)), allow_changed_settings=True)
    assert error.value.argument == "resume_from_checkpoint"


def test_an_unknown_method(run):
    with pytest.raises(SiTError, match=r"'tooy'.*sit, .*, toy; did you mean toy") as error:
        run(method="tooy")
    assert error.value.argument == "method"
