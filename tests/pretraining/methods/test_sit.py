"""SiT: its teacher, what its student is given, and its losses, computed again, slowly."""

import math
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from pretraining_runs import (
    OFF,
    assert_equal,
    checkpoint,
    is_equal,
    lines_of,
    weights_in,
)
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import modeling_sit.losses
from modeling_sit import SiTForPreTraining
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.methods.sit import SiT


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class TestTeacher:
    def test_starts_as_a_copy(self, create_sit, tiny_config):
        method = create_sit(tiny_config(drop_path_rate=0.9))
        state = method.student.state_dict()
        assert method.teacher.model.state_dict().keys() == state.keys()
        for name, value in method.teacher.model.state_dict().items():
            assert torch.equal(value, state[name])
            assert value.data_ptr() != state[name].data_ptr()

    def test_no_stochastic_depth_in_the_teacher_only(self, create_sit, tiny_config):
        method = create_sit(tiny_config(drop_path_rate=0.9))
        assert torch.equal(method.teacher.project(images()), method.teacher.project(images()))
        assert not torch.equal(method.student.project(images()), method.student.project(images()))
        assert method.student.config.drop_path_rate == 0.9

    def test_no_dropout_in_the_teacher(self, create_sit, tiny_config):
        method = create_sit(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
        assert torch.equal(method.teacher.project(images()), method.teacher.project(images()))
        config = method.student.config
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.5, 0.5)

    def test_attention_is_the_students(self, create_sit, tiny_config):
        method = create_sit(tiny_config(), attn_implementation="eager")
        assert method.student.config._attn_implementation == "eager"
        assert method.teacher.model.config._attn_implementation == "eager"

    def test_there_is_none_without_contrast_or_where_it_is_not_asked_for(self, create_sit, tiny_config):
        for fields in ({"use_teacher": False}, {"contrastive_weight": 0.0}):
            method = create_sit(tiny_config(**fields))
            assert method.teacher is None and method.networks == [method.student]

    def test_momentum_rises_to_1_on_a_cosine(self, create_sit):
        method = create_sit(teacher_momentum=0.99)
        momenta = [method.schedules(step / 100)["teacher_momentum"] for step in range(101)]
        assert (momenta[0], momenta[50], momenta[100]) == (0.99, 0.995, 1.0)
        assert momenta == sorted(momenta)
        assert min(momenta) >= 0.99 and max(momenta) <= 1

    def test_follows_by_the_momentum_of_the_step(self, create_sit):
        method = create_sit()
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.add_(1.0)
        before = [parameter.clone() for parameter in method.teacher.model.parameters()]
        method.after_step({"teacher_momentum": 0.75})
        for old, parameter in zip(before, method.teacher.model.parameters(), strict=True):
            torch.testing.assert_close(parameter, old + 0.25, rtol=1e-4, atol=1e-5)


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


ONLY_RECONSTRUCTION = {"contrastive_weight": 0}
ONLY_CONTRAST = {"reconstruction_weight": 0}


class TestLosses:
    def test_no_teacher(self, recorded):
        run = recorded({}, use_teacher="false")
        assert all(batch.get("teacher_projections") is None for batch in run.batches)
        assert run.logged("contrastive_loss") == pytest.approx(list(map(slow_nt_xent_loss, run.batches)), abs=1e-4)
        assert not list(run.folder.glob("checkpoints/*/teacher.safetensors"))

    def test_no_teacher_and_no_reconstruction(self, recorded):
        run = recorded(ONLY_CONTRAST, use_teacher="false")
        assert run.logged("loss") == pytest.approx(list(map(slow_nt_xent_loss, run.batches)), abs=1e-4)

    def test_plain_autoencoder(self, recorded):
        """Nothing is corrupted, and the loss is the mean over all pixels."""
        run = recorded({"corruption": "none", **ONLY_RECONSTRUCTION})
        for batch in run.batches:
            assert torch.equal(batch["pixel_values"], batch["target_pixel_values"])
        expected = [slow_reconstruction_loss(batch, "l1", "all") for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        assert run.logged("loss") == pytest.approx([5 * loss for loss in expected], rel=1e-5)

    def test_reconstruction_alone(self, recorded):
        run = recorded(ONLY_RECONSTRUCTION)
        assert all(batch["projection"] is None for batch in run.batches)
        assert not any(run.logged("contrastive_loss"))
        expected = [slow_reconstruction_loss(batch, "l1", "corrupted") for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        assert run.logged("loss") == pytest.approx([5 * loss for loss in expected], rel=1e-5)

    def test_contrast_alone(self, recorded):
        run = recorded(ONLY_CONTRAST)
        assert all(batch["reconstruction"] is None for batch in run.batches)
        assert not any(run.logged("reconstruction_loss"))
        expected = list(map(slow_contrastive_loss, run.batches))
        assert run.logged("contrastive_loss") == pytest.approx(expected, abs=1e-4)
        assert run.logged("loss") == run.logged("contrastive_loss")
        for batch in run.batches:
            assert mask_of(batch).mean() > 0.2, "the student's views are corrupted all the same"

    @pytest.mark.parametrize(("use_teacher", "slow_loss"), [("true", "teacher"), ("false", "nt_xent")])
    def test_clean_views_to_the_contrast(self, recorded, use_teacher, slow_loss):
        """The student reconstructs corrupted views, and its projections are those of the clean ones."""
        settings = {"contrast_views": "clean", "base_learning_rate": 0, "min_learning_rate": 0}
        run = recorded(settings, use_teacher=use_teacher, drop_path_rate=0)
        student = SiTForPreTraining.from_pretrained(run.folder).train()  # batch norm takes a batch's own statistics
        for batch, line in zip(run.batches, run.log, strict=True):
            clean, corrupted = (batch[name] for name in ("target_pixel_values", "pixel_values"))
            assert not torch.equal(clean, corrupted)
            with torch.no_grad():
                torch.testing.assert_close(batch["projection"], student.project(clean), rtol=1e-4, atol=1e-4)
            contrast = {"teacher": slow_contrastive_loss, "nt_xent": slow_nt_xent_loss}[slow_loss](batch)
            reconstruction = slow_reconstruction_loss(batch, "l1", "corrupted")
            assert line["loss"] == pytest.approx(5 * reconstruction + contrast, abs=1e-4)
        settings = read_output_state(run.folder).determined_by
        passes = {"true": 3 + 3 + 1, "false": 3 + 3}[use_teacher]
        assert SiT.encoder_tokens(settings) == 2 * 5 * passes
        assert SiT.encoder_tokens({**settings, "contrast_views": None}) == 2 * 5 * (passes - 3)
        assert SiT.encoder_tokens({**settings, "contrastive_weight": 0.0}) == 2 * 5 * 3

    def test_rotation(self, recorded):
        """All views are rotated, clean and corrupted alike, and the loss is a third term."""
        arguments = {"rotation_weight": 0.5, "checkpointing_steps": 1, "base_learning_rate": 0.05}
        run = recorded(arguments)
        plain = recorded({**arguments, "rotation_weight": 0}, "plain")
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

    def test_rotation_alone_learns(self, recorded):
        arguments = {
            "rotation_weight": 1,
            "contrastive_weight": 0,
            "reconstruction_weight": 0,
            "base_learning_rate": 0.2,
        }
        run = recorded({**arguments, "per_device_train_batch_size": 32, **OFF, "corruption": "none"}, steps=25)
        assert run.logged("loss") == run.logged("rotation_loss")
        assert np.mean(run.logged("loss")[-5:]) < np.mean(run.logged("loss")[:5]) - 0.1

    def test_without_rotation_there_is_no_trace_of_it(self, recorded):
        run = recorded({})
        assert "rotation_loss" not in run.log[0]
        assert not [name for name in load_file(run.folder / "model.safetensors") if "rotation" in name]
        assert all(batch.get("rotation_labels") is None for batch in run.batches)

    def test_a_resumed_run_rotates_as_an_uninterrupted_one(self, recorded):
        arguments = {"rotation_weight": 0.5, "checkpointing_steps": 1, "checkpoints_total_limit": 0}
        whole = recorded(arguments, "whole", steps=3)
        shutil.rmtree(whole.folder / "checkpoints" / "step-00000003")
        resumed = recorded({**arguments, "resume_from_checkpoint": "auto"}, "whole", steps=3)
        assert resumed.logged("loss") == whole.logged("loss")
        assert len(resumed.batches) == 1
        assert torch.equal(resumed.batches[0]["rotation_labels"], whole.batches[2]["rotation_labels"])

    @pytest.mark.parametrize("norm", ["l1", "l2"])
    @pytest.mark.parametrize("region", ["corrupted", "all"])
    def test_reconstruction_of_which_pixels_by_which_norm(self, recorded, region, norm):
        run = recorded(ONLY_RECONSTRUCTION, reconstruction_region=region, reconstruction_norm=norm)
        expected = [slow_reconstruction_loss(batch, norm, region) for batch in run.batches]
        assert run.logged("reconstruction_loss") == pytest.approx(expected, rel=1e-5)
        other = [
            slow_reconstruction_loss(batch, norm, {"corrupted": "all"}.get(region, "corrupted"))
            for batch in run.batches
        ]
        assert run.logged("reconstruction_loss") != pytest.approx(other, rel=1e-3)

    def test_weights(self, recorded):
        run = recorded({"reconstruction_weight": 2, "contrastive_weight": 0.5})
        for batch, loss in zip(run.batches, run.logged("loss"), strict=True):
            expected = 2 * slow_reconstruction_loss(batch, "l1", "corrupted") + 0.5 * slow_contrastive_loss(batch)
            assert loss == pytest.approx(expected, abs=1e-4)

    def test_a_recipe_does_what_its_arguments_do(self, recorded):
        """Numbers, lists, words and fields of the configuration: the losses are equal only if none is left out."""
        settings = {"rotation_weight": 0.5, "reconstruction_weight": 2, "contrastive_weight": 0.5}
        settings |= {"corruption": "zeros", "crop_scale": [0.5, 1.0]}
        overrides = {"use_teacher": "false", "reconstruction_norm": "l2"}
        by_arguments = recorded(settings, "arguments", **overrides)
        by_recipe = recorded(settings, "recipe", by_recipe=True, **overrides)
        assert by_arguments.logged("loss") == by_recipe.logged("loss")


class TestSettings:
    @pytest.mark.parametrize("corruption", ["noise", "zeros", "replace", "zeros+replace", "noise+replace"])
    def test_corruptions(self, pretrain, corruption):
        folder = pretrain(corruption=corruption, max_steps=1, preview_steps=1)
        (line,) = lines_of(folder)
        assert 0 < line["reconstruction_loss"] < 3
        processor = AutoImageProcessor.from_pretrained(folder)
        assert processor.corruption == corruption

    def test_plain_autoencoder(self, pretrain):
        """It learns; that its loss counts all pixels is tested above."""
        folder = pretrain(corruption="none", contrastive_weight=0, base_learning_rate=0.3, max_steps=60)
        reconstruction_losses = [line["reconstruction_loss"] for line in lines_of(folder)]
        assert reconstruction_losses[0] > 0.1
        assert reconstruction_losses[-1] < 0.9 * reconstruction_losses[0]

    def test_fractions_of_none(self, pretrain):
        """A range of 0 to 0 corrupts nothing either."""
        arguments = {"corruption": "noise", "noise_ratio": [0, 0], "contrastive_weight": 0}
        (line,) = lines_of(pretrain(**arguments, max_steps=1))
        assert line["reconstruction_loss"] > 0.1

    def test_without_contrast(self, pretrain):
        arguments = {"contrastive_weight": 0, "checkpointing_steps": 1, "base_learning_rate": 0.05}
        folder = pretrain(**arguments, max_steps=2)
        assert all(line["contrastive_loss"] == 0 < line["reconstruction_loss"] for line in lines_of(folder))
        assert not list(folder.glob("checkpoints/*/teacher.safetensors"))
        first, second = (weights_in(checkpoint(folder, step)) for step in (1, 2))
        assert_equal(first, second, prefix="projection_head.")
        assert not is_equal(first, second, prefix="decoder.")
        assert_equal(weights_in(folder), second)

    def test_without_reconstruction(self, pretrain):
        arguments = {"reconstruction_weight": 0, "checkpointing_steps": 1, "base_learning_rate": 0.05}
        folder = pretrain(**arguments, max_steps=2, preview_steps=1)
        assert all(line["reconstruction_loss"] == 0 < line["contrastive_loss"] for line in lines_of(folder))
        assert not (folder / "previews").exists()
        first, second = (weights_in(checkpoint(folder, step)) for step in (1, 2))
        assert_equal(first, second, prefix="decoder.")
        assert not is_equal(first, second, prefix="projection_head.")
        ModelCard.load(folder / "README.md")

    def test_without_a_teacher(self, pretrain, monkeypatch):
        losses = []

        def slow_nt_xent(projections, temperature, *everyones):
            views = torch.nn.functional.normalize(projections, dim=-1)
            terms = []
            for one in range(len(views)):
                others = torch.stack([views[one] @ views[k] / temperature for k in range(len(views)) if k != one])
                same = views[one] @ views[(one + len(views) // 2) % len(views)] / temperature
                terms.append(others.logsumexp(0) - same)
            if projections.requires_grad:  # not those of a preview
                losses.append(torch.stack(terms).mean().item())
            return modeling_sit.losses.nt_xent_loss(projections, temperature, *everyones)

        monkeypatch.setattr("modeling_sit.modeling_sit.nt_xent_loss", slow_nt_xent)
        folder = pretrain(max_steps=2, overrides={"use_teacher": "false"})
        assert [line["contrastive_loss"] for line in lines_of(folder)] == pytest.approx(losses, abs=1e-4)
        assert not list(folder.glob("checkpoints/*/teacher.safetensors"))
        assert_equal(weights_in(folder), weights_in(checkpoint(folder, 2)))
        assert "| weights in this folder | student |" in (folder / "README.md").read_text()

    @pytest.mark.parametrize(("export", "file"), [("student", "model"), ("teacher", "teacher")])
    def test_export(self, pretrain, export, file):
        folder = pretrain(export=export, base_learning_rate=0.05, max_steps=3)
        assert_equal(weights_in(folder), weights_in(checkpoint(folder, 3) / f"{file}.safetensors"))
        student, teacher = (weights_in(checkpoint(folder, 3) / f"{name}.safetensors") for name in ("model", "teacher"))
        assert not is_equal(student, teacher, "vit.")
        assert f"| weights in this folder | {export} |" in (folder / "README.md").read_text()

    def test_teacher_is_the_average_of_the_students(self, pretrain):
        arguments = {"checkpointing_steps": 1, "checkpoints_total_limit": 0, "teacher_momentum": 0.5}
        folder = pretrain(**arguments, base_learning_rate=0.05, max_steps=4)
        momenta = [line["teacher_momentum"] for line in lines_of(folder)]
        teacher = weights_in(checkpoint(folder, 1) / "teacher.safetensors")
        for step, momentum in zip((2, 3, 4), momenta[1:], strict=True):
            student = weights_in(checkpoint(folder, step))
            after = weights_in(checkpoint(folder, step) / "teacher.safetensors")
            for name in after:
                if name.startswith("vit."):
                    expected = momentum * teacher[name] + (1 - momentum) * student[name]
                    torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)
            teacher = after
