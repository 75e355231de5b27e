"""The training loop: what it logs, that a step depends on seed, batch and process alone, and how it ends in trouble."""

import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from no_waiting import NoWaiting
from pretraining_runs import (
    assert_equal,
    checkpoint,
    checkpoints_of,
    is_equal,
    lines_of,
    losses_of,
    weights_in,
)

from modeling_sit import gmml
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.pretraining import loop
from modeling_sit.pretraining.loop import Run, training_step
from modeling_sit.pretraining.methods import sit
from modeling_sit.pretraining.metric_logger import MetricLogger
from modeling_sit.pretraining.monitors import OnlineMonitors


class TestLog:
    def test_log(self, pretrain):
        lines = lines_of(pretrain(max_steps=3, per_device_train_batch_size=16))
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert list(lines[0]) == [
            "step",
            "epoch",
            "loss",
            "reconstruction_loss",
            "contrastive_loss",
            "learning_rate",
            "weight_decay",
            "teacher_momentum",
            "images_per_second",
            "data_wait",
        ]
        for line in lines:
            assert line["loss"] == pytest.approx(5 * line["reconstruction_loss"] + line["contrastive_loss"], rel=1e-5)
            assert 0 < line["reconstruction_loss"] < 3
            assert 0.5 < line["contrastive_loss"] < 5
            assert line["epoch"] == pytest.approx(line["step"] / (1437 // 16), abs=1e-4)
            assert line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1
        assert lines[0]["learning_rate"] == pytest.approx(5e-4 * 16 / 256)
        assert lines[-1]["learning_rate"] == pytest.approx(1e-6)
        assert (lines[0]["teacher_momentum"], lines[-1]["teacher_momentum"]) == pytest.approx((0.996, 1.0))

    def test_logging_steps_and_the_last_step(self, pretrain):
        folder = pretrain(logging_steps=3, max_steps=7)
        assert [line["step"] for line in lines_of(folder)] == [3, 6, 7]


class TestBadImages:
    @pytest.fixture
    def pile(self, tmp_path, save_images) -> Path:
        """A flat folder: 10 good images, 8 odd but readable ones, 3 that cannot be read."""
        folder = save_images(tmp_path / "pile", 10)
        image = PIL.Image.open(folder / "00.png")
        image.convert("L").save(folder / "grey.png")
        image.convert("RGBA").save(folder / "rgba.png")
        image.convert("CMYK").save(folder / "cmyk.jpg")
        image.convert("P").save(folder / "palette.gif")
        image.convert("1").save(folder / "one_bit.png")
        PIL.Image.new("RGB", (1, 1), "red").save(folder / "one_pixel.png")
        PIL.Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(folder / "deep.png")
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        image.save(folder / "turned.jpg", exif=exif)
        buffer = io.BytesIO()
        image.resize((200, 200)).save(buffer, "JPEG")
        (folder / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        (folder / "empty.png").write_bytes(b"")
        (folder / "page.jpg").write_text("<html><body>404</body></html>")
        return folder

    @pytest.mark.parametrize(
        "arguments", [{}, {"dataloader_num_workers": 2}, {"streaming": True, "dataloader_num_workers": 1}]
    )
    def test_are_skipped_counted_and_named_once(self, pretrain, pile, capsys, arguments):
        folder = pretrain(**arguments, dataset=pile, channels=3, per_device_train_batch_size=7, max_steps=9)
        assert len(lines_of(folder)) == 9
        captured = capsys.readouterr()
        named = re.findall(r"skipped an unreadable image: (.*?):", captured.err)
        assert sorted(named) == sorted(str(pile / name) for name in ("empty.png", "page.jpg", "truncated.jpg"))
        assert "3 unreadable image(s) were skipped" in captured.out
        assert "21 images, 3 of them unreadable and skipped" in (folder / "README.md").read_text()

    def test_are_named_on_lines_of_their_own(self, pretrain, pile, capsys):
        """Not behind the progress bar, which stands on the line that it writes again and again."""
        pretrain(dataset=pile, channels=3, per_device_train_batch_size=7, max_steps=3)
        lines = [line for line in capsys.readouterr().err.splitlines() if "unreadable" in line]
        assert len(lines) == 3
        assert all(line.startswith("skipped an unreadable image: ") for line in lines), lines

    @pytest.mark.parametrize("arguments", [{}, {"dataloader_num_workers": 1}, {"streaming": True}])
    def test_can_be_an_error(self, refused, pile, arguments):
        error = refused(
            on_bad_image="error", **arguments, dataset=pile, channels=3, per_device_train_batch_size=7, max_steps=9
        )
        assert any(str(pile / name) in str(error) for name in ("empty.png", "page.jpg", "truncated.jpg"))
        assert '`on_bad_image="skip"`' in str(error) or "on_bad_image skip" in str(error)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_none_that_can_be_read(self, refused, tmp_path, workers):
        (tmp_path / "pile").mkdir()
        for number in range(10):
            (tmp_path / "pile" / f"{number}.png").write_bytes(b"")
        error = refused(dataloader_num_workers=workers, dataset=tmp_path / "pile", channels=3)
        assert str(tmp_path / "pile") in str(error) and "UnreadableImage" not in str(error)

    def test_many_in_a_row_on_the_way(self, refused, tmp_path, save_images, monkeypatch):
        """By the preview or by the loader, whichever meets them first."""
        monkeypatch.setattr("modeling_sit.data.crops.MAX_UNREADABLE_IN_A_ROW", 5)
        pile = save_images(tmp_path / "pile", 10)
        for number in range(10):
            (pile / f"bad{number}.png").write_bytes(b"")
        for workers in (0, 1):
            arguments = {"dataloader_num_workers": workers, "overwrite_output_dir": True}
            error = refused(**arguments, dataset=pile, channels=3, max_steps=8)
            assert "bad" in str(error) and "UnreadableImage" not in str(error)


class TestRandomness:
    def test_streams_of_processes_and_batches_are_apart(self):
        """What is drawn in a step is a function of seed, batch and process."""

        class Drawn(Exception):
            pass

        def augment(crops):
            raise Drawn(torch.rand(()).item())

        def draw(seed: int, number: int, process: int) -> float:
            nothing = dict.fromkeys(field.name for field in dataclasses.fields(Run))
            parts = {
                "flags": SimpleNamespace(run=SimpleNamespace(seed=seed)),
                "accelerator": SimpleNamespace(process_index=process, device="cpu"),
                "augment": [augment],
                "schedules": SimpleNamespace(
                    batches_per_step=1,
                    at=lambda step: {"learning_rate": 0, "weight_decay": 0},
                    progress=lambda step: 0.0,
                ),
                "method": SimpleNamespace(schedules=lambda progress: {}),
                "optimizer": SimpleNamespace(param_groups=[]),
            }
            with pytest.raises(Drawn) as drawn:
                training_step(Run(**{**nothing, **parts}), (torch.zeros(1),), number)
            return drawn.value.args[0]

        draws = {draw(seed, number, process) for seed in (0, 1) for number in (0, 1, 2) for process in (0, 1)}
        assert len(draws) == 12
        torch.rand(7)
        assert draw(0, 2, 1) in draws

    def test_same_seed_same_run(self, pretrain):
        one, two = (pretrain(name=name, max_steps=3) for name in ("one", "two"))
        assert_equal(weights_in(one), weights_in(two))
        assert losses_of(one) == losses_of(two)

    def test_workers_change_nothing(self, pretrain):
        none = pretrain(name="none", max_steps=3)
        two = pretrain(name="two", dataloader_num_workers=2, max_steps=3)
        assert_equal(weights_in(none), weights_in(two))

    def test_previews_and_checkpoints_change_nothing(self, pretrain):
        plain = pretrain(name="plain", checkpointing_steps="no", max_steps=4)
        busy = pretrain(name="busy", checkpointing_steps=1, logging_steps=2, max_steps=4, preview_steps=1)
        assert_equal(weights_in(plain), weights_in(busy))

    def test_other_seed_other_run(self, pretrain):
        one = pretrain(name="one", max_steps=1)
        other = pretrain(name="other", seed=1, max_steps=1)
        assert not is_equal(weights_in(one), weights_in(other), "vit.encoder")
        assert losses_of(one) != losses_of(other)


class TestMonitors:
    def test_are_logged_and_change_nothing(self, pretrain):
        plain = pretrain(name="plain", max_steps=3)
        watched = pretrain(name="watched", monitor_images=50, monitor_steps=2, max_steps=3)
        assert_equal(weights_in(watched), weights_in(plain))
        lines = lines_of(watched, "monitors.jsonl")
        assert [line["step"] for line in lines] == [2, 3]
        names = {"rankme", "projection_rankme", "embedding_std", "teacher_agreement"}
        assert set(lines[0]) == {"step", "epoch", "knn_accuracy", "linear_accuracy", *names}

    def test_a_collapse_is_logged(self, pretrain, monkeypatch, capsys):
        monkeypatch.setattr(OnlineMonitors, "run", lambda *networks: {"embedding_std": 0.001})
        pretrain(monitor_images=50, monitor_steps=1, max_steps=1)
        assert "collapse" in (err := capsys.readouterr().err) and "intensity_range" not in err

    def test_a_collapse_of_images_that_look_black_names_their_range(self, pretrain, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(OnlineMonitors, "run", lambda *networks: {"embedding_std": 0.001})
        folder = tmp_path / "dark"
        folder.mkdir()
        for number in range(40):
            PIL.Image.fromarray(np.full((16, 16), 4095 - number, np.uint16)).save(folder / f"{number}.png")
        arguments = {"dataset": folder, "monitor_images": 20, "monitor_steps": 1, "max_steps": 1}
        pretrain(**arguments)
        assert "First give `intensity_range` 0 4095:" in capsys.readouterr().err
        pretrain(**arguments, name="with_range", intensity_range=[0, 4095])
        assert "First give" not in capsys.readouterr().err


class TestDivergence:
    def test_stops_with_the_step_and_keeps_the_checkpoint(self, pretrain, refused):
        arguments = {"checkpointing_steps": 2, "logging_steps": 1}
        folder = pretrain(name="run", **arguments, max_steps=2)
        before = (folder / "model.safetensors").read_bytes()
        arguments |= {"resume_from_checkpoint": "auto", "allow_changed_settings": True}
        arguments |= {"base_learning_rate": "1e30", "warmup_epochs": 0}
        error = str(refused("run", **{**arguments, "checkpointing_steps": 50}, max_steps=100))
        step = int(re.search(r"at step (\d+)", error)[1])
        assert step == 4  # the update after step 3 is the first to be too big
        assert "not finite" in error and "`base_learning_rate`" in error and str(folder) in error
        assert "`warmup_steps`" in error  # they count, whatever the preset chose; epochs of warm-up do not
        assert checkpoints_of(folder) == [2]
        assert (folder / "model.safetensors").read_bytes() == before
        assert [line["step"] for line in lines_of(folder)] == [1, 2, 3]
        assert all(np.isfinite(line["loss"]) for line in lines_of(folder))

    def test_names_the_step_also_between_two_lines_of_the_log(self, refused):
        error = refused(base_learning_rate="1e30", logging_steps=10, max_steps=100)
        assert "at step 2," in str(error)

    def test_names_the_step_also_of_several_batches(self, refused):
        arguments = {"base_learning_rate": "1e30", "logging_steps": 10, "gradient_accumulation_steps": 3}
        assert "at step 2," in str(refused(**arguments, max_steps=100))

    def test_gradient_that_is_not_finite_does_not_reach_a_checkpoint(self, monkeypatch, refused, tmp_path):
        """A loss can be finite, and its gradient not: the weights that follow are no good checkpoint."""
        create, count = sit.create_student, iter(range(1, 1000))

        def create_breaking(*arguments):
            student = create(*arguments)
            student.vit.layernorm.bias.register_hook(lambda grad: grad * (torch.nan if next(count) == 3 else 1))
            return student

        monkeypatch.setattr(sit, "create_student", create_breaking)
        refused("out", checkpointing_steps=1, checkpoints_total_limit=1, max_steps=6)
        assert checkpoints_of(tmp_path / "out") == [2]
        assert all(value.isfinite().all() for value in weights_in(tmp_path / "out").values())


class TestStep:
    def test_bf16(self, pretrain):
        half = pretrain(name="half", mixed_precision="bf16", max_steps=2, preview_steps=1)
        full = pretrain(name="full", max_steps=2)
        assert {value.dtype for name, value in weights_in(half).items() if "num_batches" not in name} == {
            torch.float32
        }
        for line, other in zip(lines_of(half), lines_of(full), strict=True):
            assert line["loss"] != other["loss"]
            assert line["loss"] == pytest.approx(other["loss"], rel=0.05)

    @pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}, {"rotation_weight": 1}])
    def test_an_accelerators_step_never_has_the_host_wait(self, pretrain, monkeypatch, arguments):
        """With what is computed on an accelerator, on the CPU: batch, losses, gradients, averages, and their counting."""
        monkeypatch.setattr(ViewAugmentation, "_augment_cpu", ViewAugmentation.augment_at_once)
        monkeypatch.setattr(gmml, "_mask_loop", gmml._mask_batched)
        monkeypatch.setattr(gmml, "_fill_loop", gmml._fill_batched)
        called = set()

        def watch(owner, name):
            function = getattr(owner, name)

            def watched(*arguments):
                with NoWaiting() as mode:
                    result = function(*arguments)
                called.update(mode.names)
                return result

            monkeypatch.setattr(owner, name, watched)

        watch(loop, "training_step")
        watch(MetricLogger, "update")
        watch(MetricLogger, "update_gradient")
        pretrain(**arguments)
        for part in ("convolution", "convolution_backward", "_foreach_lerp_.Scalar", "_fused_adamw_", "rand.default"):
            assert any(part in name for name in called), part

    def test_gradient_checkpointing_changes_nothing(self, pretrain, monkeypatch):
        calls = []
        checkpointed = transformers.modeling_utils.checkpoint
        monkeypatch.setattr(
            transformers.modeling_utils, "checkpoint", lambda *a, **k: calls.append(1) or checkpointed(*a, **k)
        )
        plain = pretrain(name="plain", max_steps=2)
        assert not calls
        saving = pretrain(name="saving", gradient_checkpointing=True, max_steps=2)
        assert calls
        for name, value in weights_in(plain).items():
            torch.testing.assert_close(value, weights_in(saving)[name], rtol=1e-5, atol=1e-6)

    def test_accumulated_batches_count_alike(self, pretrain):
        """Gradients of batches are averaged, not summed: the first update of AdamW hides it, the clipping norm does not."""
        arguments = {"gradient_accumulation_steps": 4, "max_grad_norm": 0}
        folder = pretrain(**arguments, checkpointing_steps=1, max_steps=1)
        accumulated = torch.load(checkpoint(folder, 1) / "optimizer.bin", weights_only=True)["state"]
        single = pretrain(name="single", max_grad_norm=0, checkpointing_steps=1, max_steps=1)
        other = torch.load(checkpoint(single, 1) / "optimizer.bin", weights_only=True)["state"]
        ratio = np.median([accumulated[i]["exp_avg"].norm().item() / other[i]["exp_avg"].norm().item() for i in other])
        assert 0.3 < ratio < 1.3  # 4 if they were summed
        assert lines_of(folder)[0]["learning_rate"] == pytest.approx(5e-4 * 32 / 256)


def test_loss_goes_down(pretrain):
    fields = {"hidden_size": 32, "decoder_hidden_size": 64, "projection_hidden_size": 32, "projection_size": 16}
    folder = pretrain(
        overrides=fields,
        patch_size=4,
        per_device_train_batch_size=32,
        max_steps=80,
        base_learning_rate=0.02,
        checkpointing_steps="no",
        logging_steps=10,
        crop_scale=[0.5, 1],
        blur_probability=[0, 0],
        solarize_probability=[0, 0],
        horizontal_flip_probability=0,
    )
    lines = lines_of(folder)
    assert lines[-1]["reconstruction_loss"] < 0.75 * lines[0]["reconstruction_loss"]
    assert lines[-1]["contrastive_loss"] < lines[0]["contrastive_loss"]


def test_rate_is_that_of_the_step_in_all_its_batches(pretrain, monkeypatch):
    rates, set_hyperparameters = [], loop.set_hyperparameters
    monkeypatch.setattr(loop, "set_hyperparameters", lambda *args: rates.append(args[1]) or set_hyperparameters(*args))
    folder = pretrain(gradient_accumulation_steps=2, max_steps=3, logging_steps=1)
    assert rates[::2] == rates[1::2] == [line["learning_rate"] for line in lines_of(folder)]
    assert len(set(rates)) == 3
