"""What scripts/pretrain.py trains on by its flags: which losses, on which views. What the model sees is recorded, and its
losses are computed again, slowly."""

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_sit import SiTForPreTraining
from modeling_sit.data.views import ViewArguments

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "projection_hidden_size": 16,
    "projection_size": 16,
}


def flags_for(output_dir: Path, dataset="digits", channels: int = 1, steps: int = 2, **overrides) -> dict:
    """Flags of a run of a fraction of a second: two narrow blocks, four patches, batches of four images."""
    config = {**TINY, "num_channels": channels, **overrides}
    return {
        "dataset": str(dataset),
        "output_dir": str(output_dir),
        "image_size": 16,
        "patch_size": 8,
        "config_overrides": ",".join(f"{name}={value}" for name, value in config.items()),
        "per_device_train_batch_size": 4,
        "max_steps": steps,
        "preview_steps": 0,
        "logging_steps": 1,
    }


def as_flags(settings: dict) -> list[str]:
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


class Run:
    """What a run wrote, and, batch by batch, what its model was given and gave."""

    def __init__(self, folder: Path, batches: list[dict]):
        self.folder = folder
        self.batches = batches
        self.log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def logged(self, name: str) -> list[float]:
        return [line[name] for line in self.log]


@pytest.fixture
def pretrain(run_program, tmp_path, monkeypatch):
    """Pretrain in this process by flags, or by a recipe of the same settings."""
    forward = SiTForPreTraining.forward
    batches = []

    def recording(model, pixel_values, **inputs):
        output = forward(model, pixel_values, **inputs)
        if model.training:  # a preview is no batch
            given = {"pixel_values": pixel_values, **inputs, "projection": output.projection}
            given["reconstruction"] = output.reconstruction
            batches.append(
                {name: value.detach().clone() if torch.is_tensor(value) else value for name, value in given.items()}
            )
        return output

    monkeypatch.setattr(SiTForPreTraining, "forward", recording)

    def pretrain(settings: dict, name: str = "out", by_recipe: bool = False, **sizes) -> Run:
        batches.clear()
        settings = {**flags_for(tmp_path / name, **sizes), **settings}
        if by_recipe:
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
            assert run_program("pretrain", tmp_path / "recipe.yaml") == 0
        else:
            assert run_program("pretrain", *as_flags(settings)) == 0
        return Run(tmp_path / name, list(batches))

    return pretrain


# Slow, obvious versions.


def slow_reconstruction_loss(batch: dict, norm: str, region: str) -> float:
    error = (batch["reconstruction"] - batch["target_pixel_values"]).double().numpy()
    distance = np.abs(error) if norm == "l1" else error**2
    if region == "corrupted":
        return np.mean([distance[tuple(place)] for place in np.argwhere(mask_of(batch))])
    return distance.mean()


def mask_of(batch: dict) -> np.ndarray:
    return np.broadcast_to(batch["corruption_mask"].numpy(), batch["pixel_values"].shape)


def cosines(one: torch.Tensor, other: torch.Tensor) -> list[list[float]]:
    return [[float(a @ b / a.norm() / b.norm()) for b in other.double()] for a in one.double()]


def cross_entropy(logits: list[float], right: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[right]


def slow_contrastive_loss(batch: dict, temperature: float = 0.2) -> float:
    """Student's view 1 against the teacher's view 2, and the reverse."""
    loss = 0.0
    for views in (slice(0, 4), slice(4, 8)):
        others = slice(4, 8) if views.start == 0 else slice(0, 4)
        for image, row in enumerate(cosines(batch["projection"][views], batch["teacher_projections"][others])):
            loss += 2 * temperature * cross_entropy([value / temperature for value in row], image) / 4
    return loss


def slow_nt_xent_loss(batch: dict, temperature: float = 0.2) -> float:
    loss = 0.0
    for view, row in enumerate(cosines(batch["projection"], batch["projection"])):
        others = [other for other in range(8) if other != view]
        loss += cross_entropy([row[other] / temperature for other in others], others.index((view + 4) % 8)) / 8
    return loss


# Which losses.

ONLY_RECONSTRUCTION = {"contrastive_weight": 0}
ONLY_CONTRAST = {"reconstruction_weight": 0}


class TestLosses:
    def test_no_teacher(self, pretrain):
        run = pretrain({}, use_teacher="false")
        assert all(batch.get("teacher_projections") is None for batch in run.batches)
        assert run.logged("contrastive_loss") == pytest.approx(list(map(slow_nt_xent_loss, run.batches)), abs=1e-4)
        assert not list(run.folder.glob("checkpoints/*/teacher.safetensors"))

    def test_no_teacher_and_no_reconstruction(self, pretrain):
        run = pretrain(ONLY_CONTRAST, use_teacher="false")
        assert run.logged("loss") == pytest.approx(list(map(slow_nt_xent_loss, run.batches)), abs=1e-4)

    def test_plain_autoencoder(self, pretrain):
        """Nothing is corrupted, and the loss is the mean over all pixels."""
        run = pretrain({"corruption": "none", **ONLY_RECONSTRUCTION})
        for batch in run.batches:
            assert torch.equal(batch["pixel_values"], batch["target_pixel_values"])
        expected = [slow_reconstruction_loss(batch, "l1", "all") for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        assert run.logged("loss") == pytest.approx([5 * loss for loss in expected], rel=1e-5)

    def test_reconstruction_alone(self, pretrain):
        run = pretrain(ONLY_RECONSTRUCTION)
        assert all(batch["projection"] is None for batch in run.batches)
        assert not any(run.logged("contrastive_loss"))
        expected = [slow_reconstruction_loss(batch, "l1", "corrupted") for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        assert run.logged("loss") == pytest.approx([5 * loss for loss in expected], rel=1e-5)

    def test_contrast_alone(self, pretrain):
        run = pretrain(ONLY_CONTRAST)
        assert all(batch["reconstruction"] is None for batch in run.batches)
        assert not any(run.logged("reconstruction_loss"))
        expected = list(map(slow_contrastive_loss, run.batches))
        assert run.logged("contrastive_loss") == pytest.approx(expected, abs=1e-4)
        assert run.logged("loss") == run.logged("contrastive_loss")
        for batch in run.batches:
            assert mask_of(batch).mean() > 0.2, "the student's views are corrupted all the same"

    def test_rotation(self, pretrain):
        """All views are rotated, clean and corrupted alike, and the loss is a third term."""
        flags = {"rotation_weight": 0.5, "checkpointing_steps": 1, "base_learning_rate": 0.05}
        run = pretrain(flags)
        plain = pretrain({**flags, "rotation_weight": 0}, "plain")
        for batch, straight in zip(run.batches, plain.batches, strict=True):
            turned = zip(
                batch["target_pixel_values"], straight["target_pixel_values"], batch["rotation_labels"], strict=True
            )
            for view, unturned, label in turned:
                assert np.array_equal(view.numpy(), np.rot90(unturned.numpy(), int(label), axes=(1, 2)))
            untouched = ~batch["corruption_mask"].expand_as(batch["pixel_values"])
            assert torch.equal(batch["pixel_values"][untouched], batch["target_pixel_values"][untouched])
        assert {int(label) for batch in run.batches for label in batch["rotation_labels"]} == {0, 1, 2, 3}
        for batch, line in zip(run.batches, run.log, strict=True):
            assert line["rotation_loss"] == pytest.approx(math.log(4), abs=0.2)
            expected = 5 * slow_reconstruction_loss(batch, "l1", "corrupted") + slow_contrastive_loss(batch)
            assert line["loss"] == pytest.approx(expected + 0.5 * line["rotation_loss"], abs=1e-4)
        first, second = (load_file(path) for path in sorted(run.folder.glob("checkpoints/*/model.safetensors")))
        assert not torch.equal(first["rotation_head.weight"], second["rotation_head.weight"])

    def test_rotation_alone_learns(self, pretrain):
        flags = {"rotation_weight": 1, "contrastive_weight": 0, "reconstruction_weight": 0, "base_learning_rate": 0.2}
        run = pretrain({**flags, "per_device_train_batch_size": 32, **OFF, "corruption": "none"}, steps=25)
        assert run.logged("loss") == run.logged("rotation_loss")
        assert np.mean(run.logged("loss")[-5:]) < np.mean(run.logged("loss")[:5]) - 0.1

    def test_without_rotation_nothing_is_told_of_it(self, pretrain):
        run = pretrain({})
        assert "rotation_loss" not in run.log[0]
        assert not [name for name in load_file(run.folder / "model.safetensors") if "rotation" in name]
        assert all(batch.get("rotation_labels") is None for batch in run.batches)

    def test_a_resumed_run_rotates_as_an_uninterrupted_one(self, pretrain):
        flags = {"rotation_weight": 0.5, "checkpointing_steps": 1, "checkpoints_total_limit": 0}
        whole = pretrain(flags, "whole", steps=3)
        shutil.rmtree(whole.folder / "checkpoints" / "step-00000003")
        resumed = pretrain({**flags, "resume_from_checkpoint": "auto"}, "whole", steps=3)
        assert resumed.logged("loss") == whole.logged("loss")
        assert len(resumed.batches) == 1
        assert torch.equal(resumed.batches[0]["rotation_labels"], whole.batches[2]["rotation_labels"])

    @pytest.mark.parametrize("norm", ["l1", "l2"])
    @pytest.mark.parametrize("region", ["corrupted", "all"])
    def test_reconstruction_of_which_pixels_by_which_norm(self, pretrain, region, norm):
        run = pretrain(ONLY_RECONSTRUCTION, reconstruction_region=region, reconstruction_norm=norm)
        expected = [slow_reconstruction_loss(batch, norm, region) for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        other = [
            slow_reconstruction_loss(batch, norm, {"corrupted": "all"}.get(region, "corrupted"))
            for batch in run.batches
        ]
        assert run.logged("reconstruction_loss") != pytest.approx(other, rel=1e-3)

    def test_weights(self, pretrain):
        run = pretrain({"reconstruction_weight": 2, "contrastive_weight": 0.5})
        for batch, loss in zip(run.batches, run.logged("loss"), strict=True):
            expected = 2 * slow_reconstruction_loss(batch, "l1", "corrupted") + 0.5 * slow_contrastive_loss(batch)
            assert loss == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(
        ("settings", "overrides"),
        [
            ({"rotation_weight": 0.5}, {}),
            ({}, {"use_teacher": "false"}),
            ({"corruption": "none", "contrastive_weight": 0}, {"reconstruction_norm": "l2"}),
            ({"reconstruction_weight": 0, "crop_scale": [0.5, 1.0]}, {}),
        ],
    )
    def test_a_recipe_does_what_its_flags_do(self, pretrain, settings, overrides):
        by_flags = pretrain(settings, "flags", **overrides)
        by_recipe = pretrain(settings, "recipe", by_recipe=True, **overrides)
        assert by_flags.logged("loss") == by_recipe.logged("loss")


# Which views.

# Nothing but the whole image, scaled; each test switches on the one flag that it is about.
OFF = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.2, 1.2],
    "horizontal_flip_probability": 0,
    "vertical_flip_probability": 0,
    "color_jitter": [0, 0, 0, 0],
    "color_jitter_probability": 0,
    "grayscale_probability": 0,
    "blur_probability": [0, 0],
    "blur_sigma": [14.0, 14.0],  # one pixel of these views
    "solarize_probability": [0, 0],
    "solarize_threshold": 0.5,
}


@pytest.fixture
def ramps(tmp_path) -> Path:
    """Four images of 24 x 20 pixels, the whole of which has the ratio 1.2: red tells the column, green the row."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:20, :24]
    for number in range(4):
        blue = generator.integers(0, 256, (20, 24))
        pixels = np.stack([10 * column, 12 * row, blue], axis=-1).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def views_of(pretrain, ramps):
    """The clean views of a run's first batch, in [0, 1]: with mean 0 and standard deviation 1 nothing is normalized."""

    def views_of(settings: dict, name: str, by_recipe: bool = False) -> torch.Tensor:
        settings = {**OFF, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], **settings}
        run = pretrain(settings, name, by_recipe, dataset=ramps, channels=3, steps=1)
        return run.batches[0]["target_pixel_values"]

    return views_of


def crop_sizes(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Widths and heights of the crops in pixels, by the slopes of red and green."""
    width = (views[:, 0, :, 11] - views[:, 0, :, 4]).mean(dim=1) * 255 / 10 / 7 * 16
    height = (views[:, 1, 11] - views[:, 1, 4]).mean(dim=1) * 255 / 12 / 7 * 16
    return width, height


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-3)


def has_area(share):
    def check(views, clean):
        width, height = crop_sizes(views)
        return ((width * height / 480 - share).abs() < 0.1 * share).all()

    return check


def has_ratio(ratio):
    def check(views, clean):
        width, height = crop_sizes(views)
        return ((width / height - ratio).abs() < 0.1 * ratio).all()

    return check


def is_brighter_or_darker(views, clean):
    """By one factor from 0.6 to 1.4 in each view, of its own draw."""
    factors = views[:, :, 4:8, 4:8].mean(dim=(1, 2, 3)) / clean[:, :, 4:8, 4:8].mean(dim=(1, 2, 3))
    return 0.55 < factors.min() < factors.max() < 1.45 and factors.std() > 0.02


def is_grey(views, clean):
    return is_close(views[:, :1].expand_as(views), views) and not is_close(views, clean)


def is_blurred(views, clean):
    return views[:, 2].var() < 0.5 * clean[:, 2].var()


def is_solarized(threshold):
    return lambda views, clean: is_close(views, torch.where(clean < threshold, clean, 1 - clean))


def of_view_1(check):
    return lambda views, clean: check(views[:4], clean[:4]) and is_close(views[4:], clean[4:])


def of_view_2(check):
    return lambda views, clean: check(views[4:], clean[4:]) and is_close(views[:4], clean[:4])


JITTER = {"color_jitter": [0.4, 0, 0, 0], "color_jitter_probability": 1}
# A flag, settings in which it acts, and what the views are then, beside those without augmentation.
EFFECTS = [
    ("crop_scale", {"crop_scale": [0.25, 0.25]}, has_area(0.25)),
    ("crop_scale", {"crop_scale": [0.5, 0.5]}, has_area(0.5)),
    ("crop_ratio", {"crop_ratio": [0.8, 0.8], "crop_scale": [0.5, 0.5]}, has_ratio(0.8)),
    ("crop_ratio", {"crop_ratio": [1.5, 1.5], "crop_scale": [0.5, 0.5]}, has_ratio(1.5)),
    ("horizontal_flip_probability", {"horizontal_flip_probability": 1}, lambda v, c: is_close(v, c.flip(-1))),
    ("vertical_flip_probability", {"vertical_flip_probability": 1}, lambda v, c: is_close(v, c.flip(-2))),
    ("color_jitter", JITTER, is_brighter_or_darker),
    ("color_jitter", {**JITTER, "color_jitter": [0, 0, 0, 0]}, is_close),
    ("color_jitter_probability", {**JITTER, "color_jitter_probability": 0}, is_close),
    ("grayscale_probability", {"grayscale_probability": 1}, is_grey),
    ("blur_probability", {"blur_probability": [1, 0]}, of_view_1(is_blurred)),
    ("blur_probability", {"blur_probability": [0, 1]}, of_view_2(is_blurred)),
    ("blur_sigma", {"blur_probability": [1, 1], "blur_sigma": [0.1, 0.2]}, is_close),
    ("solarize_probability", {"solarize_probability": [1, 0]}, of_view_1(is_solarized(0.5))),
    ("solarize_probability", {"solarize_probability": [0, 1]}, of_view_2(is_solarized(0.5))),
    ("solarize_threshold", {"solarize_probability": [1, 1], "solarize_threshold": 0.8}, is_solarized(0.8)),
]


class TestViews:
    @pytest.mark.parametrize(("flag", "settings", "is_as_asked"), EFFECTS, ids=[str(effect[1]) for effect in EFFECTS])
    def test_every_augmentation_by_its_flag(self, views_of, flag, settings, is_as_asked):
        clean = views_of({}, "clean")
        width, height = crop_sizes(clean)
        torch.testing.assert_close(
            torch.stack([width, height], dim=1), torch.tensor([[24.0, 20.0]] * 8), rtol=0, atol=1
        )
        assert is_as_asked(views_of(settings, "asked"), clean)

    def test_no_flag_is_left_out(self):
        assert {flag for flag, _, _ in EFFECTS} == {field.name for field in fields(ViewArguments)} == set(OFF)

    def test_from_a_recipe(self, views_of):
        """Every flag of the views at once, at other values than their defaults."""
        settings = {
            "crop_scale": [0.3, 0.6],
            "crop_ratio": [0.9, 1.1],
            "horizontal_flip_probability": 0.6,
            "vertical_flip_probability": 0.4,
            "color_jitter": [0.3, 0.2, 0.1, 0.05],
            "color_jitter_probability": 0.7,
            "grayscale_probability": 0.3,
            "blur_probability": [0.9, 0.2],
            "blur_sigma": [5.0, 20.0],
            "solarize_probability": [0.7, 0.9],
            "solarize_threshold": 0.6,
        }
        assert settings.keys() == OFF.keys()
        by_flags, by_recipe = views_of(settings, "flags"), views_of(settings, "recipe", by_recipe=True)
        assert torch.equal(by_flags, by_recipe)
        assert not torch.equal(by_flags, views_of({**settings, "solarize_threshold": 0.1}, "other"))
