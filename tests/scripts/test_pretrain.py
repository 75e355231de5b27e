"""scripts/pretrain.py from flags to a model repository: what it writes, how it goes on, and how it fails."""

import ast
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from accelerate.tracking import get_available_trackers
from huggingface_hub import ModelCard
from no_waiting import NoWaiting
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

import modeling_sit.losses
from modeling_sit import SiTForPreTraining, SiTImageProcessor, SiTModel, gmml
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sampling import ResumableBatchSampler
from modeling_sit.data.sources import load_images

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"

HEADS = {"decoder_hidden_size": 16, "projection_hidden_size": 16, "projection_size": 16}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **HEADS}


def flags_for(
    output_dir, *flags, dataset="digits", channels=1, steps=2, batch_size=8, previews=0, **overrides
) -> list[str]:
    """Flags of a run of a fraction of a second: a model of two narrow blocks on images of four patches."""
    fields = {**TINY, "num_channels": channels, **overrides}
    return [
        *("--dataset", str(dataset), "--output_dir", str(output_dir)),
        *("--image_size", "16", "--patch_size", "8"),
        *("--config_overrides", ",".join(f"{name}={value}" for name, value in fields.items())),
        *("--per_device_train_batch_size", str(batch_size), "--max_steps", str(steps)),
        *("--preview_steps", str(previews), "--monitor_steps", "0", "--logging_steps", "1"),
        *map(str, flags),
    ]


@pytest.fixture
def pretrain(run_program, tmp_path):
    """Pretrain in this process; gives the output folder."""

    def pretrain(*flags, name: str = "out", **settings) -> Path:
        assert run_program("pretrain", *flags_for(tmp_path / name, *flags, **settings)) == 0
        return tmp_path / name

    return pretrain


@pytest.fixture
def refused(one_line_error, tmp_path):
    """The one line that a run says which cannot go on for a user's mistake."""

    def refused(*flags, name: str = "refused", code: int = 1, **settings) -> str:
        return one_line_error("pretrain", *flags_for(tmp_path / name, *flags, **settings), code=code)

    return refused


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[tuple]:
    """What of the log does not depend on the machine's speed."""
    return [
        tuple(value for name, value in line.items() if name not in ("images_per_second", "data_wait"))
        for line in metrics_of(folder)
    ]


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def checkpoints_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path if path.suffix else path / "model.safetensors")


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], prefix: str = "") -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        if name.startswith(prefix):
            assert torch.equal(value, others[name]), name


def is_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return all(torch.equal(value, others[name]) for name, value in weights.items() if name.startswith(prefix))


class TestOutput:
    def test_folder_is_a_model_repository(self, pretrain, capsys):
        folder = pretrain("--checkpointing_steps", 2, steps=4, previews=2)
        names = {path.name for path in folder.iterdir()}
        assert {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "README.md",
            "metrics.jsonl",
            "previews",
            "checkpoints",
        } <= names
        assert {"configuration_sit.py", "modeling_sit.py", "image_processing_sit.py", "gmml.py", "losses.py"} <= names
        assert [path.name for path in sorted((folder / "previews").iterdir())] == [
            "step-00000002.png",
            "step-00000004.png",
        ]
        assert checkpoints_of(folder) == [2, 4]
        out = capsys.readouterr().out
        assert "digits: 1,437 images" in out and str(folder) in out

    def test_log(self, pretrain):
        lines = metrics_of(pretrain(steps=3, batch_size=16))
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
        folder = pretrain("--logging_steps", 3, steps=7)
        assert [line["step"] for line in metrics_of(folder)] == [3, 6, 7]

    def test_auto_classes_load_it(self, pretrain):
        folder = pretrain("--checkpointing_steps", 2, steps=2)
        weights = weights_in(folder)
        model, trouble = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, SiTModel)
        assert not trouble["missing_keys"] and not trouble["mismatched_keys"]
        assert_equal(
            dict(model.state_dict()),
            {name.removeprefix("vit."): value for name, value in weights.items() if name.startswith("vit.")},
        )
        pretrained = AutoModelForPreTraining.from_pretrained(folder)
        assert isinstance(pretrained, SiTForPreTraining)
        assert_equal(dict(pretrained.state_dict()), weights)
        _, trouble = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert {name.partition(".")[0] for name in trouble["missing_keys"]} == {"classifier"}
        processor = AutoImageProcessor.from_pretrained(folder)
        assert isinstance(processor, SiTImageProcessor)
        assert dict(processor.size) == {"height": 16, "width": 16}
        assert list(processor.image_mean) == [0.5]
        inputs = processor(PIL.Image.new("L", (20, 30)), return_tensors="pt")
        assert model(**inputs).last_hidden_state.shape == (1, 5, 16)

    def test_pipelines_load_it(self, pretrain):
        folder = pretrain(channels=3, steps=1)
        image = PIL.Image.new("RGB", (20, 30), "red")
        features = pipeline("image-feature-extraction", model=str(folder))(image)
        assert np.array(features).shape == (1, 5, 16)
        answers = pipeline("image-classification", model=str(folder))(image)
        assert all(0 <= answer["score"] <= 1 for answer in answers)

    def test_plain_vit_loads_it(self, pretrain):
        folder = pretrain(steps=1)
        vit, trouble = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
        assert not trouble["missing_keys"]
        inputs = torch.randn(2, 1, 16, 16)
        with torch.no_grad():
            expected = AutoModel.from_pretrained(folder)(inputs).last_hidden_state
            torch.testing.assert_close(vit.eval()(inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)

    def test_code_for_remote_loading_stands_alone(self, pretrain):
        allowed = {"torch", "torchvision", "numpy", "PIL", "transformers"}
        folder = pretrain(steps=1)
        for path in folder.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    roots = {alias.name.partition(".")[0] for alias in node.names}
                    assert roots <= allowed | set(sys.stdlib_module_names), path.name
                elif isinstance(node, ast.ImportFrom) and node.level:
                    assert (folder / f"{node.module}.py").exists(), path.name
                elif isinstance(node, ast.ImportFrom):
                    assert node.module.partition(".")[0] in allowed | set(sys.stdlib_module_names), path.name

    def test_model_card(self, pretrain, tmp_path):
        folder = pretrain("--seed", 7, name="my run", steps=2, previews=1)
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers"
        assert "1,437 images of `digits`" in card.text
        assert "- `--seed`: `7`" in card.text
        assert "--noise_ratio" not in card.text.partition("What was run")[2].partition("```\n\n")[2]
        assert "previews/step-00000002.png" in card.text
        command = card.text.partition("## What was run\n\n```\n")[2].partition("\n```")[0]
        words = shlex.split(command)  # as a shell reads it when it is pasted
        assert words[words.index("--dataset") :] == sys.argv[1:]

    def test_processor_keeps_the_corruption(self, pretrain):
        folder = pretrain("--corruption", "zeros", "--zeros_ratio", 0.2, 0.4, "--align_to_patches", steps=1)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert (settings["corruption"], settings["zeros_ratio"]) == ("zeros", [0.2, 0.4])
        assert (settings["align_to_patches"], settings["patch_size"]) == (True, 8)
        assert not settings.get("do_corrupt", False)

    def test_recipe_with_flags(self, run_program, tmp_path):
        flags = flags_for(tmp_path / "out", steps=2)
        recipe = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
        (tmp_path / "recipe.yaml").write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
        assert run_program("pretrain", tmp_path / "recipe.yaml", "--max_steps", 3) == 0
        assert len(metrics_of(tmp_path / "out")) == 3

    def test_help_names_every_flag(self, run_program, capsys):
        assert run_program("pretrain", "--help") == 0
        text = capsys.readouterr().out
        for flag in ("--dataset", "--corruption", "--blur_sigma", "--resume_from_checkpoint", "--model_size"):
            assert flag in text
        assert "default: 0.996" in re.sub(r"\s+", " ", text)


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
        "flags", [(), ("--dataloader_num_workers", 2), ("--streaming", "--dataloader_num_workers", 1)]
    )
    def test_are_skipped_counted_and_named_once(self, pretrain, pile, capsys, flags):
        folder = pretrain(*flags, dataset=pile, channels=3, batch_size=7, steps=9)
        assert len(metrics_of(folder)) == 9
        captured = capsys.readouterr()
        named = re.findall(r"skipped an unreadable image: (.*?):", captured.err)
        assert sorted(named) == sorted(str(pile / name) for name in ("empty.png", "page.jpg", "truncated.jpg"))
        assert "3 unreadable image(s) were skipped" in captured.out
        assert "21 images, 3 of them unreadable and skipped" in (folder / "README.md").read_text()

    def test_are_named_on_lines_of_their_own(self, pretrain, pile, capsys):
        """Not behind the progress bar, which stands on the line that it writes again and again."""
        pretrain(dataset=pile, channels=3, batch_size=7, steps=3)
        lines = [line for line in capsys.readouterr().err.splitlines() if "unreadable" in line]
        assert len(lines) == 3
        assert all(line.startswith("skipped an unreadable image: ") for line in lines), lines

    @pytest.mark.parametrize("flags", [(), ("--dataloader_num_workers", 1), ("--streaming",)])
    def test_can_be_an_error(self, refused, pile, flags):
        error = refused("--on_bad_image", "error", *flags, dataset=pile, channels=3, batch_size=7, steps=9)
        assert any(str(pile / name) in error for name in ("empty.png", "page.jpg", "truncated.jpg"))
        assert "--on_bad_image skip" in error

    @pytest.mark.parametrize("workers", [0, 1])
    def test_none_that_can_be_read(self, refused, tmp_path, workers):
        (tmp_path / "pile").mkdir()
        for number in range(10):
            (tmp_path / "pile" / f"{number}.png").write_bytes(b"")
        error = refused("--dataloader_num_workers", workers, dataset=tmp_path / "pile", channels=3)
        assert str(tmp_path / "pile") in error and "UnreadableImage" not in error

    def test_many_in_a_row_on_the_way(self, refused, tmp_path, save_images, monkeypatch):
        """The first images are read for the preview; here it is the loader that meets the bad ones."""
        monkeypatch.setattr("modeling_sit.data.crops.MAX_UNREADABLE_IN_A_ROW", 5)
        pile = save_images(tmp_path / "pile", 10)
        for number in range(10):
            (pile / f"bad{number}.png").write_bytes(b"")
        for workers in (0, 1):
            flags = ["--dataloader_num_workers", workers, "--overwrite_output_dir"]
            error = refused(*flags, dataset=pile, channels=3, steps=8)
            assert "bad" in error and "UnreadableImage" not in error


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with a C++ compiler")
def test_compiled(pretrain, run_program, tmp_path):
    """A compiled run learns what another one learns, goes on bit for bit, and leaves weights of the same names."""
    flags = ["--checkpointing_steps", 2, "--checkpoints_total_limit", 0]
    plain = pretrain(*flags, name="plain", steps=3)
    torch._dynamo.reset()
    compiled = pretrain(*flags, "--torch_compile", name="compiled", steps=3, previews=1)
    for line, other in zip(metrics_of(compiled), metrics_of(plain), strict=True):
        for name in ("loss", "reconstruction_loss", "contrastive_loss"):
            assert line[name] == pytest.approx(other[name], rel=1e-4)
    # From the checkpoint of step 2, in a folder of its own.
    going_on = ["--resume_from_checkpoint", checkpoint(compiled, 2)]
    resumed = pretrain(*flags, "--torch_compile", *going_on, name="resumed", steps=3)
    for name in ("model.safetensors", "teacher.safetensors"):
        assert_equal(weights_in(checkpoint(resumed, 3) / name), weights_in(checkpoint(compiled, 3) / name))
    assert weights_in(compiled).keys() == weights_in(plain).keys()


def test_without_a_compiler(refused, monkeypatch):
    def compile_nothing(function, **settings):
        def fail(*arguments):
            raise RuntimeError("No working C++ compiler found\n\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    error = refused("--torch_compile")
    assert "--torch_compile" in error and "No working C++ compiler found" in error and "leave the flag out" in error


class TestGoingOn:
    """A run that was stopped and goes on is the run that was not stopped, to the last bit."""

    @staticmethod
    def stop_after(monkeypatch, load_program, steps: int):
        """Ctrl-C when so many steps are done."""
        progress = load_program("pretrain").MetricLogger
        advance, count = progress.advance, iter(range(1, 1000))

        def counting(self):
            advance(self)
            if next(count) == steps:
                raise KeyboardInterrupt

        monkeypatch.setattr(progress, "advance", counting)

    @pytest.mark.parametrize(
        "flags",
        [
            (),
            ("--dataloader_num_workers", 2),
            ("--gradient_accumulation_steps", 2),
            ("--gradient_accumulation_steps", 2, "--dataloader_num_workers", 1, "--mixed_precision", "bf16"),
            ("--image_cache", "memory", "--dataloader_num_workers", 2),
            ("--image_cache", "device", "--dataloader_num_workers", 1),
        ],
    )
    def test_bit_for_bit(self, pretrain, run_program, load_program, monkeypatch, tmp_path, flags):
        flags = ["--checkpointing_steps", 3, "--checkpoints_total_limit", 0, "--base_learning_rate", 0.05, *flags]
        whole = pretrain(*flags, name="whole", steps=7)
        stopped = tmp_path / "stopped"
        with monkeypatch.context() as patch:
            self.stop_after(patch, load_program, 5)
            assert run_program("pretrain", *flags_for(stopped, *flags, steps=7)) == 130
        assert [line["step"] for line in metrics_of(stopped)] == [1, 2, 3, 4]
        assert checkpoints_of(stopped) == [3]
        pretrain("--resume_from_checkpoint", "auto", *flags, name="stopped", steps=7)

        assert checkpoints_of(stopped) == checkpoints_of(whole) == [3, 6, 7]
        for step in (6, 7):
            for name in ("model.safetensors", "teacher.safetensors"):
                assert_equal(weights_in(checkpoint(stopped, step) / name), weights_in(checkpoint(whole, step) / name))
        assert_equal(weights_in(stopped), weights_in(whole))
        assert losses_of(stopped) == losses_of(whole)
        commands = (stopped / "README.md").read_text().partition("## What was run\n\n```\n")[2].partition("```")[0]
        first, note, second, _ = commands.split("\n")
        assert first != second and "--resume_from_checkpoint auto" in second
        assert note == "# going on from step 3:"
        states = [
            torch.load(checkpoint(folder, 7) / "optimizer.bin", weights_only=True) for folder in (stopped, whole)
        ]
        for moments, others in zip(*(state["state"].values() for state in states), strict=True):
            assert all(torch.equal(moments[name], others[name]) for name in moments)

    @pytest.mark.parametrize("flags", [(), ("--streaming", "--shuffle_buffer_size", 40)])
    def test_skipped_images_are_not_decoded(self, pretrain, monkeypatch, flags):
        decoded = []

        def counting(*arguments, **settings):
            decoded.append(1)
            return decode_image(*arguments, **settings)

        for module in ("sources", "streaming"):
            monkeypatch.setattr(f"modeling_sit.data.{module}.decode_image", counting)
        folder = pretrain("--checkpointing_steps", 5, *flags, steps=6, batch_size=16)
        whole = len(decoded)
        shutil.rmtree(checkpoint(folder, 6))
        pretrain("--resume_from_checkpoint", "auto", *flags, steps=6, batch_size=16)
        previews = 8
        assert (whole, len(decoded) - whole) == (6 * 16 + previews, 1 * 16 + previews)

    def test_from_a_path_into_another_folder(self, pretrain):
        whole = pretrain("--checkpointing_steps", 2, "--checkpoints_total_limit", 0, name="whole", steps=5)
        other = pretrain("--resume_from_checkpoint", checkpoint(whole, 2), name="other", steps=5)
        assert_equal(weights_in(other), weights_in(whole))
        assert [line["step"] for line in metrics_of(other)] == [3, 4, 5]

    def test_auto_in_a_new_folder_starts(self, pretrain):
        folder = pretrain("--resume_from_checkpoint", "auto", name="new")
        assert_equal(weights_in(folder), weights_in(pretrain(name="plain")))

    def test_a_run_that_is_done_stays_as_it_is(self, pretrain):
        folder = pretrain(steps=3)
        before, log = weights_in(folder), metrics_of(folder)
        pretrain("--resume_from_checkpoint", "auto", steps=3)
        assert_equal(weights_in(folder), before)
        assert metrics_of(folder) == log

    def test_a_finished_run_into_another_folder_writes_the_model(self, pretrain):
        """What says that it is done leaves a model behind."""
        done = pretrain(name="done", steps=2)
        other = pretrain("--resume_from_checkpoint", checkpoint(done, 2), name="other", steps=2)
        assert_equal(weights_in(other), weights_in(done))

    def test_checkpoints_beyond_do_not_push_out_new_ones(self, pretrain):
        flags = ["--checkpointing_steps", 1]
        folder = pretrain(*flags, "--checkpoints_total_limit", 0, steps=4)
        flags += ["--resume_from_checkpoint", checkpoint(folder, 1), "--seed", 1]
        pretrain(*flags, "--checkpoints_total_limit", 1, "--allow_changed_settings", steps=2)
        assert checkpoints_of(folder) == [2]
        settings = json.loads((checkpoint(folder, 2) / "run_state.json").read_text())["settings"]
        assert settings["seed"] == 1

    def test_with_another_model_is_refused(self, pretrain, refused):
        folder = pretrain(steps=1)
        error = refused("--resume_from_checkpoint", checkpoint(folder, 1), hidden_size=32)
        assert str(checkpoint(folder, 1)) in error

    def test_checkpoint_without_the_teacher_is_refused(self, pretrain, refused):
        folder = pretrain(steps=1, use_teacher="false")
        error = refused("--resume_from_checkpoint", checkpoint(folder, 1))
        assert str(checkpoint(folder, 1)) in error


class TestRandomness:
    def test_streams_of_processes_and_batches_are_apart(self, load_program):
        """What is drawn in a step is a function of seed, batch and process."""

        class Drawn(Exception):
            pass

        def augment(crops):
            raise Drawn(torch.rand(()).item())

        def draw(seed: int, number: int, process: int) -> float:
            nothing = dict.fromkeys(field.name for field in dataclasses.fields(program.Pretraining))
            accelerator = SimpleNamespace(process_index=process, device="cpu")
            schedules = SimpleNamespace(batches_per_step=1, at=lambda step: {"learning_rate": 0, "weight_decay": 0})
            pretraining = program.Pretraining(
                **{
                    **nothing,
                    "flags": SimpleNamespace(run=SimpleNamespace(seed=seed)),
                    "accelerator": accelerator,
                    "augment": augment,
                    "schedules": schedules,
                    "optimizer": SimpleNamespace(param_groups=[]),
                }
            )
            with pytest.raises(Drawn) as drawn:
                pretraining.train_on(torch.zeros(1), number)
            return drawn.value.args[0]

        program = load_program("pretrain")
        draws = {draw(seed, number, process) for seed in (0, 1) for number in (0, 1, 2) for process in (0, 1)}
        assert len(draws) == 12
        torch.rand(7)
        assert draw(0, 2, 1) in draws

    def test_same_seed_same_run(self, pretrain):
        one, two = (pretrain(name=name, steps=3) for name in ("one", "two"))
        assert_equal(weights_in(one), weights_in(two))
        assert losses_of(one) == losses_of(two)

    def test_workers_change_nothing(self, pretrain):
        none = pretrain(name="none", steps=3)
        two = pretrain("--dataloader_num_workers", 2, name="two", steps=3)
        assert_equal(weights_in(none), weights_in(two))

    def test_previews_and_checkpoints_change_nothing(self, pretrain):
        plain = pretrain("--checkpointing_steps", "no", name="plain", steps=4)
        busy = pretrain("--checkpointing_steps", 1, "--logging_steps", 2, name="busy", steps=4, previews=1)
        assert_equal(weights_in(plain), weights_in(busy))

    def test_other_seed_other_run(self, pretrain):
        one = pretrain(name="one", steps=1)
        other = pretrain("--seed", 1, name="other", steps=1)
        assert not is_equal(weights_in(one), weights_in(other), "vit.encoder")
        assert losses_of(one) != losses_of(other)


class TestCheckpoints:
    def test_the_newest_stay(self, pretrain):
        folder = pretrain("--checkpointing_steps", 1, "--checkpoints_total_limit", 2, steps=5)
        assert checkpoints_of(folder) == [4, 5]

    def test_every_epoch(self, pretrain, save_images, tmp_path):
        pile = save_images(tmp_path / "pile", 17)
        flags = ["--checkpointing_steps", "epoch", "--checkpoints_total_limit", 0]
        folder = pretrain(*flags, dataset=pile, channels=3, batch_size=8, steps=5)
        assert checkpoints_of(folder) == [2, 4, 5]

    def test_none(self, pretrain):
        folder = pretrain("--checkpointing_steps", "no")
        assert not (folder / "checkpoints").exists()
        assert (folder / "model.safetensors").exists()

    def test_epochs_set_the_length(self, pretrain, save_images, tmp_path, run_program):
        pile = save_images(tmp_path / "pile", 17)
        flags = flags_for(tmp_path / "out", "--num_train_epochs", 3, dataset=pile, channels=3)
        place = flags.index("--max_steps")
        assert run_program("pretrain", *flags[:place], *flags[place + 2 :]) == 0
        assert [line["epoch"] for line in metrics_of(tmp_path / "out")] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]

    def test_previews_ten_in_the_run_by_default(self, run_program, tmp_path):
        flags = flags_for(tmp_path / "out", steps=20)
        place = flags.index("--preview_steps")
        assert run_program("pretrain", *flags[:place], *flags[place + 2 :]) == 0
        assert len(list((tmp_path / "out" / "previews").iterdir())) == 10


class TestMonitors:
    def test_are_logged_and_change_nothing(self, run_program, pretrain, tmp_path):
        plain = pretrain(name="plain", steps=3)
        flags = flags_for(tmp_path / "watched", "--monitor_images", 50, steps=3)
        flags[flags.index("--monitor_steps") + 1] = "2"
        assert run_program("pretrain", *flags) == 0
        assert_equal(weights_in(tmp_path / "watched"), weights_in(plain))
        lines = [json.loads(line) for line in (tmp_path / "watched" / "monitors.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [2, 3]
        names = {"rankme", "projection_rankme", "embedding_std", "teacher_agreement"}
        assert set(lines[0]) == {"step", "epoch", "knn_accuracy", "linear_accuracy", *names}

    def test_collapse_is_told(self, run_program, tmp_path, monkeypatch, load_program, capsys):
        program = load_program("pretrain")
        monkeypatch.setattr(program.OnlineMonitors, "run", lambda *networks: {"embedding_std": 0.001})
        flags = flags_for(tmp_path / "out", "--monitor_images", 50, steps=1)
        flags[flags.index("--monitor_steps") + 1] = "1"
        assert run_program("pretrain", *flags) == 0
        assert "collapse" in capsys.readouterr().err

    def test_images_of_a_test_split_are_left_alone(self, load_program, monkeypatch):
        program = load_program("pretrain")
        flags = program.Flags(**dict.fromkeys(field.name for field in dataclasses.fields(program.Flags)))
        flags.streaming = program.StreamingArguments()
        for asked, validation in ((None, None), ("test", "test")):
            flags.run = program.PretrainingArguments(dataset="digits", output_dir="out", validation_split=asked)
            images = program.load_training_images(flags)
            assert (images.validation and str(images.validation.split)) == validation


class TestDivergence:
    def test_stops_with_the_step_and_keeps_the_checkpoint(self, pretrain, refused):
        flags = ["--checkpointing_steps", 2, "--logging_steps", 1]
        folder = pretrain(*flags, name="run", steps=2)
        before = (folder / "model.safetensors").read_bytes()
        flags += ["--resume_from_checkpoint", "auto", "--allow_changed_settings"]
        flags += ["--base_learning_rate", "1e30", "--warmup_epochs", 0]
        error = refused(*flags, "--checkpointing_steps", 50, name="run", steps=100)
        step = int(re.search(r"at step (\d+)", error)[1])
        assert step == 4  # the update after step 3 is the first to be too big
        assert "not finite" in error and "--base_learning_rate" in error and str(folder) in error
        assert checkpoints_of(folder) == [2]
        assert (folder / "model.safetensors").read_bytes() == before
        assert [line["step"] for line in metrics_of(folder)] == [1, 2, 3]
        assert all(np.isfinite(line["loss"]) for line in metrics_of(folder))

    def test_names_the_step_also_between_two_lines_of_the_log(self, refused):
        error = refused("--base_learning_rate", "1e30", "--logging_steps", 10, steps=100)
        assert "at step 2;" in error

    def test_names_the_step_also_of_several_batches(self, refused):
        flags = ["--base_learning_rate", "1e30", "--logging_steps", 10, "--gradient_accumulation_steps", 3]
        assert "at step 2;" in refused(*flags, steps=100)

    def test_gradient_that_is_not_finite_does_not_reach_a_checkpoint(
        self, load_program, monkeypatch, run_program, tmp_path
    ):
        """A loss can be finite, and its gradient not: the weights that follow are no good checkpoint."""
        program = load_program("pretrain")
        create, count = program.create_student, iter(range(1, 1000))

        def create_breaking(*arguments):
            student = create(*arguments)
            student.vit.layernorm.bias.register_hook(lambda grad: grad * (torch.nan if next(count) == 3 else 1))
            return student

        monkeypatch.setattr(program, "create_student", create_breaking)
        flags = flags_for(tmp_path / "out", "--checkpointing_steps", 1, "--checkpoints_total_limit", 1, steps=6)
        assert run_program("pretrain", *flags) == 1
        assert checkpoints_of(tmp_path / "out") == [2]
        assert all(value.isfinite().all() for value in weights_in(tmp_path / "out").values())


class TestMistakes:
    def test_data_that_is_not_there(self, refused, tmp_path):
        assert str(tmp_path / "nowhere") in refused(dataset=tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "empty" in refused(dataset=tmp_path / "empty")

    def test_column_that_is_not_there(self, refused):
        assert "--image_column foo" in refused("--image_column", "foo")

    def test_several_splits_and_none_to_train_on(self, refused, tmp_path):
        split = datasets.Dataset.from_dict(
            {"image": [PIL.Image.new("L", (8, 8))] * 8}, features=datasets.Features({"image": datasets.Image()})
        )
        datasets.DatasetDict({"first": split, "test": split}).save_to_disk(tmp_path / "saved")
        assert "--train_split" in refused(dataset=tmp_path / "saved")

    @pytest.mark.parametrize("flags", [["--learning_rat", "1"], ["--learning_rat=1"], ["--learning_rat"]])
    def test_unknown_flag(self, refused, flags):
        assert "--learning_rat" in refused(*flags, code=2)

    def test_unknown_flag_like_another(self, refused):
        assert "did you mean --image_column?" in refused("--image_colum", "foo", code=2)

    def test_unknown_recipe_key(self, one_line_error, tmp_path):
        (tmp_path / "recipe.yaml").write_text("dataset: digits\nimage_sizes: 16\n")
        error = one_line_error("pretrain", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "out", code=2)
        assert "image_sizes" in error and "recipe.yaml" in error and "--image_size" in error

    def test_required_flags(self, one_line_error, tmp_path):
        assert "--dataset" in one_line_error("pretrain", "--output_dir", tmp_path / "out", code=2)
        assert "--output_dir" in one_line_error("pretrain", "--dataset", "digits", code=2)

    @pytest.mark.parametrize(
        ("flags", "overrides", "messages"),
        [
            (["--image_size", 20], {}, ["--image_size 20", "--patch_size 8"]),
            (["--patch_size", 0], {}, ["patch_size"]),
            (["--reconstruction_weight", 0, "--contrastive_weight", 0], {}, ["--reconstruction_weight"]),
            ([], {"hiden_size": 32}, ["--config_overrides", "hiden_size", "hidden_size"]),
            ([], {"num_attention_heads": 3}, ["num_attention_heads"]),
            (["--per_device_train_batch_size", 2000], {}, ["1437 images", "--per_device_train_batch_size"]),
            (["--image_mean", 0.5, 0.5], {}, ["--image_mean"]),
            (["--noise_ratio", 0.7, 0.5], {}, ["--noise_ratio"]),
            (["--block_size", 0, 0.5], {}, ["--block_size"]),
            (["--attn_implementation", "fast"], {}, ["--attn_implementation", "fast"]),
            (["--attn_implementation", "flash_attention_2"], {}, ["--attn_implementation"]),
            (["--report_to", "foo"], {}, ["--report_to", "foo"]),
            (["--blur_sigma", 0.1, 300], {}, ["--blur_sigma"]),
        ],
    )
    def test_settings_that_do_not_fit(self, refused, flags, overrides, messages):
        if "flash_attention_2" in flags and transformers.utils.is_flash_attn_2_available():
            pytest.skip("flash attention is there")
        error = refused(*flags, **overrides)
        assert all(message in error for message in messages), error

    @pytest.mark.parametrize(
        "flags",
        [
            ["--corruption", "blur"],
            ["--mixed_precision", "fp8"],
            ["--checkpointing_steps", "often"],
            ["--max_steps", "many"],
            ["--crop_scale", "0.5"],
            ["--num_train_epochs", "0"],
        ],
    )
    def test_values_that_no_flag_takes(self, refused, flags):
        assert flags[0] in refused(*flags, code=2)

    def test_output_folder_that_holds_a_run(self, pretrain, refused):
        folder = pretrain(name="run")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        error = refused(name="run")
        assert str(folder) in error and "--overwrite_output_dir" in error and "--resume_from_checkpoint auto" in error
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        pretrain("--overwrite_output_dir", name="run", steps=1)
        assert checkpoints_of(folder) == [1]
        assert len(metrics_of(folder)) == 1

    @pytest.mark.parametrize(
        "flags, mistake",
        [
            ([], {"dataset": "/no/such/folder"}),
            ([], {"hiden_size": 3}),
            ([], {"batch_size": 2000}),
            ([], {"num_attention_heads": 3}),
            (["--image_cache", "disk", "--image_cache_dir", "/dev/null/cache"], {}),
        ],
    )
    def test_overwriting_loses_nothing_before_the_new_run_can_start(self, pretrain, refused, flags, mistake):
        folder = pretrain(name="run")
        before = {path.name for path in folder.iterdir()}
        refused("--overwrite_output_dir", *flags, name="run", **mistake)
        assert {path.name for path in folder.iterdir()} == before
        assert checkpoints_of(folder) == [2]

    def test_output_folder_below_a_file(self, refused, tmp_path):
        (tmp_path / "file").write_text("in the way")
        assert f"--output_dir {tmp_path}/file/out" in refused(name="file/out")

    def test_checkpoint_that_is_none(self, refused, tmp_path):
        assert "--resume_from_checkpoint" in refused("--resume_from_checkpoint", tmp_path)


class TestSettings:
    @pytest.mark.parametrize("corruption", ["noise", "zeros", "replace", "zeros+replace", "noise+replace"])
    def test_corruptions(self, pretrain, corruption):
        folder = pretrain("--corruption", corruption, steps=1, previews=1)
        (line,) = metrics_of(folder)
        assert 0 < line["reconstruction_loss"] < 3
        processor = AutoImageProcessor.from_pretrained(folder)
        assert processor.corruption == corruption

    def test_plain_autoencoder(self, pretrain):
        """Without corruption the loss counts all pixels: there is no corrupted one to count."""
        flags = ["--contrastive_weight", 0, "--base_learning_rate", 0.3]
        folder = pretrain("--corruption", "none", *flags, steps=60)
        reconstruction_losses = [line["reconstruction_loss"] for line in metrics_of(folder)]
        assert reconstruction_losses[0] > 0.1
        assert reconstruction_losses[-1] < 0.9 * reconstruction_losses[0]
        all_pixels = pretrain("--corruption", "none", *flags, name="all", steps=60, reconstruction_region="all")
        assert losses_of(all_pixels) == losses_of(folder)

    def test_shares_of_none(self, pretrain):
        """A range of 0 to 0 corrupts nothing either."""
        flags = ["--corruption", "noise", "--noise_ratio", 0, 0, "--contrastive_weight", 0]
        (line,) = metrics_of(pretrain(*flags, steps=1))
        assert line["reconstruction_loss"] > 0.1

    def test_without_contrast(self, pretrain):
        flags = ["--contrastive_weight", 0, "--checkpointing_steps", 1, "--base_learning_rate", 0.05]
        folder = pretrain(*flags, steps=2)
        assert all(line["contrastive_loss"] == 0 < line["reconstruction_loss"] for line in metrics_of(folder))
        assert not list(folder.glob("checkpoints/*/teacher.safetensors"))
        first, second = (weights_in(checkpoint(folder, step)) for step in (1, 2))
        assert_equal(first, second, prefix="projection_head.")
        assert not is_equal(first, second, prefix="decoder.")
        assert_equal(weights_in(folder), second)

    def test_without_reconstruction(self, pretrain):
        flags = ["--reconstruction_weight", 0, "--checkpointing_steps", 1, "--base_learning_rate", 0.05]
        folder = pretrain(*flags, steps=2, previews=1)
        assert all(line["reconstruction_loss"] == 0 < line["contrastive_loss"] for line in metrics_of(folder))
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
        folder = pretrain(steps=2, use_teacher="false")
        assert [line["contrastive_loss"] for line in metrics_of(folder)] == pytest.approx(losses, abs=1e-4)
        assert not list(folder.glob("checkpoints/*/teacher.safetensors"))
        assert_equal(weights_in(folder), weights_in(checkpoint(folder, 2)))
        assert "| weights in this folder | student |" in (folder / "README.md").read_text()

    @pytest.mark.parametrize(("export", "file"), [("student", "model"), ("teacher", "teacher")])
    def test_export(self, pretrain, export, file):
        folder = pretrain("--export", export, "--base_learning_rate", 0.05, steps=3)
        assert_equal(weights_in(folder), weights_in(checkpoint(folder, 3) / f"{file}.safetensors"))
        student, teacher = (weights_in(checkpoint(folder, 3) / f"{name}.safetensors") for name in ("model", "teacher"))
        assert not is_equal(student, teacher, "vit.")
        assert f"| weights in this folder | {export} |" in (folder / "README.md").read_text()

    def test_teacher_is_the_average_of_the_students(self, pretrain):
        flags = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 0, "--teacher_momentum", 0.5]
        folder = pretrain(*flags, "--base_learning_rate", 0.05, steps=4)
        momenta = [line["teacher_momentum"] for line in metrics_of(folder)]
        teacher = weights_in(checkpoint(folder, 1) / "teacher.safetensors")
        for step, momentum in zip((2, 3, 4), momenta[1:], strict=True):
            student = weights_in(checkpoint(folder, step))
            after = weights_in(checkpoint(folder, step) / "teacher.safetensors")
            for name in after:
                if name.startswith("vit."):
                    expected = momentum * teacher[name] + (1 - momentum) * student[name]
                    torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)
            teacher = after

    def test_bf16(self, pretrain):
        half = pretrain("--mixed_precision", "bf16", name="half", steps=2, previews=1)
        full = pretrain(name="full", steps=2)
        assert {value.dtype for name, value in weights_in(half).items() if "num_batches" not in name} == {
            torch.float32
        }
        for line, other in zip(metrics_of(half), metrics_of(full), strict=True):
            assert line["loss"] != other["loss"]
            assert line["loss"] == pytest.approx(other["loss"], rel=0.05)

    @pytest.mark.parametrize("flags", [(), ("--gradient_accumulation_steps", 2), ("--rotation_weight", 1)])
    def test_an_accelerators_step_never_has_the_host_wait(self, pretrain, load_program, monkeypatch, flags):
        """With what is computed on an accelerator, on the CPU: batch, losses, gradients, averages, and their counting."""
        program = load_program("pretrain")
        augmentation = program.ViewAugmentation
        monkeypatch.setattr(augmentation, "augment_in_chunks", augmentation.augment_at_once)
        monkeypatch.setattr(gmml, "_mask_loop", gmml._mask_batched)
        monkeypatch.setattr(gmml, "_fill_loop", gmml._fill_batched)
        called = set()

        def watch(owner, name):
            method = getattr(owner, name)

            def watched(*arguments):
                with NoWaiting() as mode:
                    result = method(*arguments)
                called.update(mode.names)
                return result

            monkeypatch.setattr(owner, name, watched)

        watch(program.Pretraining, "train_on")
        watch(program.MetricLogger, "count")
        watch(program.MetricLogger, "count_gradient")
        pretrain(*flags)
        for part in ("convolution", "convolution_backward", "_foreach_lerp_.Scalar", "_fused_adamw_", "rand.default"):
            assert any(part in name for name in called), part

    def test_gradient_checkpointing_changes_nothing(self, pretrain, monkeypatch):
        calls = []
        checkpointed = transformers.modeling_utils.checkpoint
        monkeypatch.setattr(
            transformers.modeling_utils, "checkpoint", lambda *a, **k: calls.append(1) or checkpointed(*a, **k)
        )
        plain = pretrain(name="plain", steps=2)
        assert not calls
        saving = pretrain("--gradient_checkpointing", name="saving", steps=2)
        assert calls
        for name, value in weights_in(plain).items():
            torch.testing.assert_close(value, weights_in(saving)[name], rtol=1e-5, atol=1e-6)

    def test_accumulated_batches_count_alike(self, pretrain):
        """Gradients of batches are averaged, not summed: the first update of AdamW hides it, the clipping norm does not."""
        flags = ["--gradient_accumulation_steps", 4, "--max_grad_norm", 0]
        folder = pretrain(*flags, "--checkpointing_steps", 1, steps=1)
        accumulated = torch.load(checkpoint(folder, 1) / "optimizer.bin", weights_only=True)["state"]
        single = pretrain("--max_grad_norm", 0, "--checkpointing_steps", 1, name="single", steps=1)
        other = torch.load(checkpoint(single, 1) / "optimizer.bin", weights_only=True)["state"]
        ratio = np.median([accumulated[i]["exp_avg"].norm().item() / other[i]["exp_avg"].norm().item() for i in other])
        assert 0.3 < ratio < 1.3  # 4 if they were summed
        assert metrics_of(folder)[0]["learning_rate"] == pytest.approx(5e-4 * 32 / 256)

    @pytest.mark.parametrize("num_channels", [1, 3])
    def test_channels(self, pretrain, num_channels):
        folder = pretrain(channels=num_channels, steps=1, previews=1)
        shape = weights_in(folder)["vit.embeddings.patch_embeddings.projection.weight"].shape
        assert shape == (16, num_channels, 8, 8)

    def test_images_that_are_not_square(self, pretrain):
        folder = pretrain(steps=1, previews=1, image_size="[16,32]")
        assert json.loads((folder / "config.json").read_text())["image_size"] == [16, 32]

    def test_tracker_that_is_not_installed(self, refused):
        """Else the flag would be ignored, and the run's figures would be nowhere."""
        available = {str(tracker.value) for tracker in get_available_trackers()}
        missing = next(name for name in ("dvclive", "aim", "clearml", "comet_ml") if name not in available)
        error = refused("--report_to", missing)
        assert "--report_to" in error and missing in error

    def test_no_tracker(self, pretrain):
        """`none` is transformers' name for it, and scripts/finetune.py takes it."""
        pretrain("--report_to", "none", steps=1)


class TestStartingFromAModel:
    frozen = ("--base_learning_rate", 0, "--min_learning_rate", 0, "--export", "student")

    def start(self, run_program, model: Path, output_dir: Path, *flags, fields=None) -> Path:
        overrides = ["--config_overrides", ",".join(f"{name}={value}" for name, value in (fields or {}).items())]
        arguments = [
            *("--dataset", "digits", "--model_name_or_path", model, "--output_dir", output_dir),
            *("--per_device_train_batch_size", 8, "--max_steps", 1, "--preview_steps", 0),
            *(overrides if fields else ()),
            *self.frozen,
            *flags,
        ]
        assert run_program("pretrain", *arguments) == 0
        return output_dir

    def test_of_an_earlier_run(self, run_program, save_tiny_sit, tmp_path):
        model = save_tiny_sit(tmp_path / "model", seed=3, num_channels=1)
        before = weights_in(model)
        after = weights_in(self.start(run_program, model, tmp_path / "out"))
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert name.endswith(statistics) or torch.equal(value, after[name]), name
        assert_equal(weights_in(model), before)

    def test_of_a_plain_vit(self, run_program, tmp_path):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        vit = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1))
        vit.save_pretrained(tmp_path / "vit")
        after = weights_in(self.start(run_program, tmp_path / "vit", tmp_path / "out", fields=HEADS))
        backbone = {name: value for name, value in weights_in(tmp_path / "vit").items() if name.startswith("vit.")}
        assert len(backbone) > 30
        for name, value in backbone.items():
            assert torch.equal(after[name], value), name
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["model_type"], config["intermediate_size"]) == ("sit_gmml", 24)

    def test_normalizes_as_the_model_was_trained(self, run_program, save_tiny_sit, tmp_path):
        """Else the images that it sees are of other colors than those that its weights know."""
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        SiTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.2], image_std=[0.3]).save_pretrained(model)
        folder = self.start(run_program, model, tmp_path / "out")
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert (settings["image_mean"], settings["image_std"]) == ([0.2], [0.3])

    def test_of_half_a_folder(self, one_line_error, save_tiny_sit, tmp_path):
        flags = ["--dataset", "digits", "--output_dir", tmp_path / "out", "--per_device_train_batch_size", 8]
        flags += ["--max_steps", 1, "--model_name_or_path"]

        def error(folder: Path) -> str:
            line = one_line_error("pretrain", *flags, folder)
            assert f"--model_name_or_path: {folder}" in line
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            return line

        error(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "config.json" in error(tmp_path / "empty")
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        error(model)
        weights.unlink()
        error(model)

    def test_of_another_kind_is_no_silent_start_from_scratch(self, one_line_error, tmp_path):
        BertModel(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
        ).save_pretrained(tmp_path / "bert")
        flags = ["--dataset", "digits", "--output_dir", tmp_path / "out", "--per_device_train_batch_size", 8]
        sizes = ",".join(f"{name}={value}" for name, value in {**HEADS, "image_size": 16, "patch_size": 8}.items())
        flags += ["--max_steps", 1, "--preview_steps", 0, "--config_overrides", sizes]
        error = one_line_error("pretrain", *flags, "--model_name_or_path", tmp_path / "bert")
        assert str(tmp_path / "bert") in error

    def test_of_other_sizes(self, one_line_error, save_tiny_sit, tmp_path):
        model = save_tiny_sit(tmp_path / "model", num_channels=1)
        flags = flags_for(tmp_path / "out", "--model_name_or_path", model, hidden_size=32)
        assert "--model_name_or_path" in one_line_error("pretrain", *flags)


def test_loss_goes_down(run_program, tmp_path):
    fields = "num_channels=1,hidden_size=32,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=64"
    flags = [
        *("--dataset", "digits", "--output_dir", tmp_path / "out", "--image_size", 16, "--patch_size", 4),
        *("--config_overrides", f"{fields},projection_hidden_size=32,projection_size=16"),
        *("--per_device_train_batch_size", 32, "--max_steps", 80, "--base_learning_rate", 0.02),
        *("--preview_steps", 0, "--checkpointing_steps", "no", "--crop_scale", 0.5, 1),
        *("--blur_probability", 0, 0, "--solarize_probability", 0, 0, "--horizontal_flip_probability", 0),
    ]
    assert run_program("pretrain", *flags) == 0
    lines = metrics_of(tmp_path / "out")
    assert lines[-1]["reconstruction_loss"] < 0.75 * lines[0]["reconstruction_loss"]
    assert lines[-1]["contrastive_loss"] < lines[0]["contrastive_loss"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_launched_by_accelerate(tmp_path):
    flags = flags_for(tmp_path / "out", steps=2, previews=1)
    launcher = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher.split(), SCRIPT, *flags]
    finished = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    # Of a run that goes well, stderr has the lines of the log and nothing else, without a terminal.
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    assert [line.partition(",")[0] for line in lines] == ["step 1/2", "step 2/2"]


@pytest.mark.slow
def test_two_processes(tmp_path, save_images, run_program, capsys):
    """Two processes with half the batch each see what one with all of it sees."""
    batches = ResumableBatchSampler(16, 4, seed=42, stop=2, process_index=1, num_processes=2)
    of_second_process = [index for batch in batches for index, _ in batch]
    # One that is not in the preview, which the first process reads.
    bad = next(index for index in of_second_process if index >= 8)
    pile = save_images(tmp_path / "pile", 16)
    (pile / f"{bad:02}.png").write_bytes(b"")
    off = ["--horizontal_flip_probability", 0, "--color_jitter_probability", 0, "--grayscale_probability", 0]
    off += ["--blur_probability", 0, 0, "--solarize_probability", 0, 0, "--corruption", "none"]
    fields = {"dataset": pile, "channels": 3, "steps": 2, "drop_path_rate": 0, "reconstruction_region": "all"}
    assert run_program("pretrain", *flags_for(tmp_path / "one", *off, batch_size=8, **fields)) == 0
    capsys.readouterr()

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29517",
        SCRIPT,
    ]
    command += flags_for(tmp_path / "two", *off, batch_size=4, **fields)
    environ = {**environment(), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr

    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2]
    # The same images and weights at the first step; after it, each process's batch norm saw its own images.
    assert two[0]["reconstruction_loss"] == pytest.approx(one[0]["reconstruction_loss"], rel=1e-5)
    assert two[0]["learning_rate"] == one[0]["learning_rate"]
    # Contrast over the images of both: log(8) at random, not the log(4) of one process's images.
    assert two[0]["contrastive_loss"] > 0.8 * one[0]["contrastive_loss"]
    weights, others = (weights_in(tmp_path / name) for name in ("one", "two"))
    for name in weights:
        if name.startswith("vit."):
            torch.testing.assert_close(weights[name], others[name], rtol=0, atol=2e-3)
    assert finished.stderr.count(f"{bad:02}.png") == 1
    assert "1 unreadable image(s) were skipped" in finished.stdout
    assert "16 images, 1 of them unreadable and skipped" in (tmp_path / "two" / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_say_a_mistake_once(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29518",
        SCRIPT,
    ]
    command += flags_for(tmp_path / "out", dataset=tmp_path / "nowhere")
    environ = {**environment(), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert finished.returncode != 0
    # What the launcher says of its children comes after it.
    said = finished.stderr.partition("ChildFailedError")[0]
    assert len(re.findall(r"^error: ", said, re.MULTILINE)) == 1, finished.stderr
    assert 'pretrain.py", line' not in finished.stderr


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_any_kind_are_no_obstacle(pretrain, refused, tmp_path, streaming):
    """Two columns of labels, one of them of lists: which is meant, pretraining need not know."""
    label = datasets.ClassLabel(names=["a", "b"])
    features = {"image": datasets.Image(), "fine": label, "coarse": datasets.List(label)}
    digits = load_images("digits").train[:9]
    rows = {"image": digits["image"], "fine": [0, 1, 0] * 3, "coarse": [[0, 1], [], None] * 3}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    flags = ["--monitor_steps", 1, *(["--streaming", True] if streaming else [])]
    for column in ([], ["--label_column", "coarse"]):
        folder = pretrain(*flags, *column, "--overwrite_output_dir", dataset=tmp_path / "train.parquet")
        measured = json.loads((folder / "monitors.jsonl").read_text().splitlines()[-1])
        assert "rankme" in measured and "knn_accuracy" not in measured
    message = refused(*flags, "--monitors", "knn", dataset=tmp_path / "train.parquet")
    assert "--monitors knn: needs one label for each image" in message and "--label_column" in message
