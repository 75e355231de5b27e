"""scripts/pretrain.py: flags in, exit codes and lines out, alone and under launchers. What a run does is tested with the
package's pretraining."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretraining_runs import TINY, checkpoints_of, lines_of, weights_in

from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler
from modeling_sit.pretraining.metric_logger import MetricLogger

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"


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
def refused(one_line_error, tmp_path):
    """The one line that a run says which cannot go on for a user's mistake."""

    def refused(*flags, name: str = "refused", code: int = 1, **settings) -> str:
        return one_line_error("pretrain", *flags_for(tmp_path / name, *flags, **settings), code=code)

    return refused


def test_a_run_and_its_resumption(run_program, monkeypatch, tmp_path, capsys):
    """Ctrl-C at once ends it with the code by which shells know it; the card has the commands as a shell reads them."""
    folder = tmp_path / "my run"
    flags = flags_for(folder, "--checkpointing_steps", 3, "--seed", 7, steps=7)
    count_step, count = MetricLogger.count_step, iter(range(1, 1000))

    def counting(self):
        count_step(self)
        if next(count) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricLogger, "count_step", counting)
        assert run_program("pretrain", *flags) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [line["step"] for line in lines_of(folder)] == [1, 2, 3, 4]
    first_flags = sys.argv[1:]
    assert run_program("pretrain", *flags, "--resume_from_checkpoint", "auto") == 0
    assert checkpoints_of(folder) == [6, 7]
    commands = (folder / "README.md").read_text().partition("## What was run\n\n```\n")[2].partition("```")[0]
    first, note, second, _ = commands.split("\n")
    assert note == "# going on from step 3:"
    for command, expected in ((first, first_flags), (second, sys.argv[1:])):
        words = shlex.split(command)  # as a shell reads it when it is pasted
        assert words[words.index("--dataset") :] == expected


def test_dry_run(run_program, tmp_path, capsys):
    assert run_program("pretrain", *flags_for(tmp_path / "out", "--dry_run")) == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_column", "foo"], "--image_column: "),
        (["--resume_from_checkpoint", "nowhere"], "--resume_from_checkpoint: nowhere"),
        (["--image_size", 20], "--patch_size"),
        (["--monitors", "knn", "--monitor_steps", 1, "--label_column", "foo"], "--label_column"),
    ],
)
def test_errors_name_flags(refused, flags, message):
    assert message in refused(*flags)


def test_output_folder_that_holds_a_run(run_program, refused, tmp_path):
    assert run_program("pretrain", *flags_for(tmp_path / "run")) == 0
    error = refused(name="run")
    assert "--overwrite_output_dir" in error and "--resume_from_checkpoint auto" in error


class TestFlags:
    def test_recipe_with_flags(self, run_program, tmp_path):
        flags = flags_for(tmp_path / "out", steps=2)
        recipe = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
        (tmp_path / "recipe.yaml").write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
        assert run_program("pretrain", tmp_path / "recipe.yaml", "--max_steps", 3) == 0
        assert len(lines_of(tmp_path / "out")) == 3

    def test_help_names_every_flag(self, run_program, capsys):
        assert run_program("pretrain", "--help") == 0
        text = capsys.readouterr().out
        for flag in ("--dataset", "--corruption", "--blur_sigma", "--resume_from_checkpoint", "--model_size"):
            assert flag in text
        assert "default: 0.8" in re.sub(r"\s+", " ", text)

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
    loading = LoadingSettings(batch_size=4, seed=42, process_index=1, num_processes=2)
    batches = ResumableBatchSampler(16, loading, start=0, stop=2)
    of_second_process = [index for batch in batches for index, _ in batch]
    # One that is not in the preview, which the first process reads: every second of the 16 images is.
    bad = next(index for index in of_second_process if index % 2 == 1)
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

    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2]
    # The same images and weights at the first step; after it, each process's batch norm saw its own images.
    assert two[0]["reconstruction_loss"] == pytest.approx(one[0]["reconstruction_loss"], rel=1e-5)
    assert two[0]["learning_rate"] == one[0]["learning_rate"]
    # Contrast over the images of both: log(8) at random, not the log(4) of one process's images.
    assert two[0]["contrastive_loss"] > 0.8 * one[0]["contrastive_loss"]
    # Adam's first step moves each weight by the learning rate, against the sign of its gradient: the other sign is twice that
    # away. The second step is next to nothing.
    rate = two[0]["learning_rate"]
    assert two[1]["learning_rate"] < rate / 100
    weights, others = (weights_in(tmp_path / name) for name in ("one", "two"))
    for name in weights:
        if name.startswith("vit."):
            torch.testing.assert_close(weights[name], others[name], rtol=0, atol=rate)
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
