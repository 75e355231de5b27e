"""What runs on a GPU: the same numbers as on the CPU, whole runs in every precision, and a host that never waits.

`make test-gpu` runs these tests, in about two minutes. Each holds the GPU's result against the CPU's, or a run against the
same run that was interrupted.
"""

import gc
import math
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from pretraining_runs import arguments_of, checkpoint, lines_of, weights_in

import modeling_sit
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.caching import ImageCacheArguments
from modeling_sit.data.crops import CropGroup
from modeling_sit.data.sampling import LoadingSettings
from modeling_sit.data.sources import load_images
from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.training_data import TrainingData
from modeling_sit.data.views import ViewArguments
from modeling_sit.gmml import CORRUPTIONS, corrupt
from modeling_sit.pretraining.dry_run import measure_steps
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.loop import Run, training_step
from modeling_sit.pretraining.prepare import prepare
from modeling_sit.runtime.accelerator import clip_gradients, create_accelerator
from modeling_sit.runtime.arguments import build_arguments

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LOSSES = ("loss", "reconstruction_loss", "contrastive_loss")
# Of the recipe for digits, without what is not measured here.
DIGITS = {"monitor_steps": 0, "preview_steps": 0, "logging_steps": 1, "max_steps": 4}


@pytest.fixture
def use(monkeypatch, forget_accelerators):
    """Have what comes next in this process run on a device."""

    def use(device: str) -> None:
        forget_accelerators()
        monkeypatch.setenv("ACCELERATE_USE_CPU", str(device == "cpu").lower())

    return use


@pytest.fixture
def pretrain(use, tmp_path):
    """Pretrain by the recipe for digits; gives the output folder."""

    def pretrain(name: str, device: str = DEVICE, **arguments) -> Path:
        use(device)
        return modeling_sit.pretrain("digits", tmp_path / name, recipe="digits", **DIGITS | arguments).output_dir

    return pretrain


@pytest.fixture
def resume(pretrain, tmp_path):
    """Run the second half of a run of four steps again, from its checkpoint of step 2; gives the folder."""

    def resume(folder: Path, **arguments) -> Path:
        name = f"{folder.name} resumed"
        shutil.copytree(folder, tmp_path / name)
        shutil.rmtree(checkpoint(tmp_path / name, 4))
        (tmp_path / name / "model.safetensors").unlink()
        return pretrain(name, resume_from_checkpoint="auto", **arguments)

    return resume


@pytest.fixture
def prepare_on(use, tmp_path):
    """Everything of a run before its first batch: of the recipe for digits, or of other arguments."""

    def prepare_on(device: str, recipe: str | None = "digits", **arguments) -> Run:
        use(device)
        keywords = {"dataset": "digits", "output_dir": tmp_path / "none", **DIGITS, **arguments}
        flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), keywords, recipe, "pretrain"))
        return prepare(flags, create_accelerator(mixed_precision=flags.run.mixed_precision))

    return prepare_on


@pytest.fixture
def deterministic(monkeypatch):
    """Have PyTorch sum in the same order each time. Else AdamW takes a step of full length where a gradient is 0 but for its
    rounding, in any direction. Of attention only the eager form does so always."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def seeded(device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def assert_near(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(
            value, others[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


class TestViews:
    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    @pytest.mark.parametrize("generator_device", ["cpu", DEVICE])
    def test_corruption(self, corruption, generator_device):
        """The loop's on the CPU, for the same draws; only noise is drawn in another order."""
        images = torch.randn(8, 3, 40, 60, generator=seeded())
        corrupted, mask = corrupt(images.to(DEVICE), corruption, generator=seeded(generator_device))
        assert corrupted.device.type == mask.device.type == torch.device(DEVICE).type
        outside = ~mask.cpu().expand_as(images)
        assert torch.equal(corrupted.cpu()[outside], images[outside])
        if generator_device != "cpu":
            return
        expected, expected_mask = corrupt(images, corruption, generator=seeded())
        assert torch.equal(mask.cpu(), expected_mask)
        if "noise" not in corruption:
            assert torch.equal(corrupted.cpu(), expected)
        elif corruption == "noise":
            noise = corrupted.cpu()[~outside]
            assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05

    @pytest.mark.parametrize("channels", [1, 3])
    def test_augmentation(self, channels):
        arguments = ViewArguments(
            vertical_flip_probability=0.5,
            color_jitter=[0.4, 0.5, 0.6, 0.3],
            grayscale_probability=0.3,
            blur_probability=[0.5, 0.5],
            blur_sigma=[4.0, 20.0],
            solarize_probability=[0.3, 0.3],
            crop_scale=[0.2, 1.0],
        )
        augment = ViewAugmentation(arguments, (24, 32), [0.5] * channels, [0.25] * channels)
        # Smooth, as photographs are: where two channels are equal, rounding decides on a hue.
        small = torch.rand(64, channels, 4, 4, generator=seeded())
        crops = torch.nn.functional.interpolate(small, (24, 32), mode="bicubic").mul(255).clamp(0, 255).byte()
        torch.manual_seed(0)
        draws = augment.draw(32, crops.device)
        expected = augment.augment_in_chunks(crops, draws)
        for values in (draws.chosen, draws.number):
            values.update({name: value.to(DEVICE) for name, value in values.items()})
        draws.order = draws.order.to(DEVICE)
        views = augment.to(DEVICE).augment_at_once(crops.to(DEVICE), draws).cpu()
        # Solarization inverts what is at its threshold or above: rounding decides on a pixel that is just there.
        is_near = (views - expected).abs() < 1e-3
        assert is_near.float().mean() > 0.9999
        assert expected.std() > 0.5

    def test_crops(self, use, tmp_path):
        """Cut on the device, within 2 of 255 of those that are cut where images are decoded."""
        use(DEVICE)
        accelerator = Accelerator()
        generator = np.random.default_rng(0)
        for number in range(30):
            pixels = generator.integers(0, 256, (20 + 3 * number, 90 - 2 * number, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        batches = {}
        for kind in ("none", "device"):
            data = TrainingData(
                load_images(str(tmp_path)),
                [CropGroup(2, (16, 24), (0.2, 1.0))],
                LoadingSettings(8, 0, num_workers=1, device=accelerator.device),
                StreamingArguments(),
                ImageCacheArguments(image_cache=kind),
            )
            data.cache(accelerator, num_epochs=100)
            assert data.crops_on_device == (kind == "device")
            with closing(data.batches(0, 6)) as read:
                batches[kind] = [batch["crops"][0] for batch in read]
        assert batches["device"][0].device.type == torch.device(DEVICE).type
        for crops, expected in zip(batches["device"], batches["none"], strict=True):
            assert crops.shape == (2, 8, 3, 16, 24)
            assert (crops.cpu().int() - expected.int()).abs().max() <= 2


class TestStep:
    @pytest.mark.parametrize(("mixed_precision", "tolerance"), [("no", 2e-3), ("bf16", 5e-2)])
    def test_losses_and_gradient_are_the_cpus(self, prepare_on, mixed_precision, tolerance):
        """For the same weights and the same inputs. Convolutions of float32 round to TF32 by PyTorch's default."""

        def learn(run: Run, inputs: dict) -> dict[str, float]:
            device = run.accelerator.device
            inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
            with run.accelerator.autocast():
                output = run.wrapped_student(**inputs)
            run.accelerator.backward(output.loss)
            norm = clip_gradients(run.accelerator, run.wrapped_student, math.inf)
            return {**{name: output[name].item() for name in LOSSES}, "gradient": norm.item()}

        run = prepare_on("cpu")
        with closing(run.data.batches(0, 1)) as batches:
            (crops,) = (batch["crops"] for batch in batches)
        torch.manual_seed(0)
        clean = run.augment[0](crops[0])
        inputs = run.method.inputs([clean], run.accelerator, run.schedule(0))
        expected = learn(run, inputs)

        run = prepare_on(DEVICE, mixed_precision=mixed_precision)
        assert next(run.method.student.parameters()).device.type == torch.device(DEVICE).type
        with run.accelerator.autocast():
            projections = run.method.teacher.project(clean.to(DEVICE)).float().cpu()
        similarity = torch.nn.functional.cosine_similarity(projections, inputs["teacher_projections"])
        assert similarity.min() > 1 - tolerance
        assert learn(run, inputs) == pytest.approx(expected, rel=tolerance)

    @pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
    def test_the_host_never_waits(self, prepare_on, mixed_precision, tmp_path):
        """All augmentations and both corruptions. At the first steps memory and the optimizer's state are made."""
        arguments = arguments_of(tmp_path / "none", channels=3, mixed_precision=mixed_precision, max_steps=6)
        run = prepare_on(DEVICE, recipe=None, **arguments)
        with closing(run.data.batches(0, 6)) as batches:
            crops = [batch["crops"] for batch in batches]
        for number in range(3):
            training_step(run, crops[number], number)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            outputs = [training_step(run, crops[number], number)[0] for number in range(3, 6)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(output.loss.isfinite() for output in outputs)


class TestPretraining:
    def test_is_near_the_cpus(self, pretrain):
        """The draws are others, so the losses are alike only as those of two batches are."""
        lines, others = (lines_of(pretrain(device, device)) for device in (DEVICE, "cpu"))
        for line, other in zip(lines, others, strict=True):
            assert line["learning_rate"] == other["learning_rate"]
            for name in LOSSES:
                assert line[name] == pytest.approx(other[name], rel=0.1)

    @pytest.mark.parametrize("arguments", [{}, {"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}], ids=str)
    def test_resumed_is_the_uninterrupted_run(self, pretrain, resume, deterministic, arguments):
        arguments = {"checkpointing_steps": 2, "export": "teacher", "attn_implementation": "eager", **arguments}
        folder = pretrain("whole", **arguments)
        assert_near(weights_in(resume(folder, **arguments)), weights_in(folder))

    @pytest.mark.parametrize(
        "arguments", [{"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}, {"tf32": True}], ids=str
    )
    def test_precisions(self, pretrain, arguments):
        """The first losses are those of float32, which has the same weights and draws. Later ones need not be: with fp16
        the first steps are left out until the scale of the gradient fits."""
        lines, (first, *_) = lines_of(pretrain("rounded", **arguments)), lines_of(pretrain("float32"))
        assert [lines[0][name] for name in LOSSES] == pytest.approx([first[name] for name in LOSSES], rel=0.05)
        assert len(lines) == 4 and all(math.isfinite(line[name]) for line in lines for name in LOSSES)

    def test_images_on_the_device(self, pretrain, resume, deterministic, capsys):
        arguments = {"checkpointing_steps": 2, "attn_implementation": "eager", "image_cache": "device"}
        folder = pretrain("whole", **arguments)
        assert f"for {DEVICE}" in capsys.readouterr().err
        assert_near(weights_in(resume(folder, **arguments)), weights_in(folder))

    def test_monitors_and_previews(self, pretrain):
        folder = pretrain("watched", monitor_steps=2, preview_steps=2, monitor_images=100)
        lines, others = (lines_of(path) for path in (folder, pretrain("plain")))
        for line, other in zip(lines, others, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert [line["step"] for line in lines_of(folder, "monitors.jsonl")] == [2, 4]
        assert len(list((folder / "previews").iterdir())) == 2

    def test_compiled(self, pretrain):
        """The losses of the run that is not compiled, which has the same draws."""
        pytest.importorskip("triton")
        torch._dynamo.reset()
        lines = lines_of(pretrain("compiled", torch_compile=True))
        for line, other in zip(lines, lines_of(pretrain("plain")), strict=True):
            for name in LOSSES:
                assert line[name] == pytest.approx(other[name], rel=1e-2)

    def test_leaves_no_memory_behind(self, pretrain):
        """A second run in the same process needs what the first one needed; libraries keep their workspaces."""

        def allocated() -> int:
            gc.collect()
            return torch.cuda.memory_allocated()

        pretrain("first", image_cache="device")
        before = allocated()
        pretrain("second", image_cache="device")
        assert allocated() <= before + 2**16

    def test_a_dry_run_measures_its_own_memory(self, prepare_on):
        num_bytes = 2**28
        torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE)  # let go at once
        run = prepare_on(DEVICE)
        with closing(run.data.batches(0, 4)) as batches:
            measured = measure_steps(batches, partial(training_step, run), run.schedules, run.accelerator)
        assert torch.cuda.memory_allocated() < measured.peak_memory < num_bytes


class TestTransfer:
    def test_evaluate(self, pretrain, use):
        folder = pretrain("pretrained")
        results = {}
        for device in (DEVICE, "cpu"):
            use(device)
            results[device] = modeling_sit.evaluate(folder, "digits", protocols=["knn", "linear"], device=device)
        for protocol, expected in results["cpu"].items():
            # Of 360 images one or two may lie between two classes.
            assert results[DEVICE][protocol]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.006)

    def test_finetune(self, pretrain, use, tmp_path):
        """Images are augmented on the host, so both devices have the same draws."""
        folder = pretrain("pretrained")
        accuracies = {}
        for device in (DEVICE, "cpu"):
            use(device)
            output_dir = tmp_path / f"classifier on {device}"
            result = modeling_sit.finetune(
                folder, "digits", output_dir, recipe="digits_finetune", max_steps=20, use_cpu=device == "cpu"
            )
            accuracies[device] = result.metrics["accuracy"]
        assert accuracies[DEVICE] == pytest.approx(accuracies["cpu"], abs=0.05)
