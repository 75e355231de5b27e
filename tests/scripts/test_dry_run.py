"""`scripts/pretrain.py --dry_run`: nothing is written, and what it says of the real run is true of the real run."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MODEL = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,num_channels=1"
HEADS = "decoder_hidden_size=64,projection_hidden_size=256,projection_size=32"


def flags_for(output_dir, *flags) -> list[str]:
    return [
        *("--dataset", "digits", "--output_dir", str(output_dir), "--image_size", "16", "--patch_size", "8"),
        *("--config_overrides", f"{MODEL},{HEADS}", "--per_device_train_batch_size", "8", "--max_train_steps", "5"),
        *("--logging_steps", "2", "--preview_steps", "2", "--checkpointing_steps", "2"),
        *map(str, flags),
    ]


@pytest.fixture
def measure_steps(run_program, tmp_path, capsys):
    """Run with `--dry_run`; gives what it says."""

    def measure_steps(*flags, name: str = "out") -> str:
        capsys.readouterr()
        assert run_program("pretrain", *flags_for(tmp_path / name, "--dry_run", *flags)) == 0
        return capsys.readouterr().out

    return measure_steps


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size(text: str, pattern: str) -> float:
    """A size such as `1.5 KB` where the pattern's `SIZE` is, in bytes."""
    number, unit = re.search(pattern.replace("SIZE", r"([\d.,]+) (B|KB|MB|GB)"), text).groups()
    return float(number.replace(",", "")) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.mark.parametrize("flags", [(), ("--resume_from_checkpoint", "auto"), ("--overwrite_output_dir",)])
def test_nothing_is_written(measure_steps, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    assert "dry run: nothing was written" in measure_steps("--dataloader_num_workers", 1, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_there_stays_as_it_is(measure_steps, run_program, tmp_path):
    assert run_program("pretrain", *flags_for(tmp_path / "out")) == 0
    before = all_files(tmp_path)
    for flags in (("--overwrite_output_dir",), ("--resume_from_checkpoint", "auto")):
        assert "(which holds a run already)" in measure_steps(*flags)
    assert all_files(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "holds a run already"),
        (("--resume_from_checkpoint", "nowhere"), "--resume_from_checkpoint nowhere"),
        (("--resume_from_checkpoint", "auto", "--seed", 7), "seed: 7"),
    ],
)
def test_what_the_folder_forbids_is_said(run_program, one_line_error, tmp_path, flags, said):
    """As the real run would, and with nothing touched."""
    assert run_program("pretrain", *flags_for(tmp_path / "out")) == 0
    before = all_files(tmp_path)
    assert said in one_line_error("pretrain", *flags_for(tmp_path / "out", "--dry_run", *flags))
    assert all_files(tmp_path) == before


def test_folder_that_cannot_be_written(one_line_error, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        assert "cannot be written" in one_line_error("pretrain", *flags_for(folder, "--dry_run"))


def test_trackers_are_not_started(measure_steps, tmp_path):
    pytest.importorskip("tensorboard")
    measure_steps("--report_to", "tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_figures_are_those_of_the_real_run(measure_steps, run_program, tmp_path):
    plan = measure_steps()
    folder = tmp_path / "out"
    assert run_program("pretrain", *flags_for(folder)) == 0

    # Parameters, counted in the file: all but the running statistics of batch norm.
    weights = load_file(folder / "model.safetensors")
    counts = {}
    for name, value in weights.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            part = name.partition(".")[0].replace("_", " ")
            counts[part] = counts.get(part, 0) + value.numel()
    total = sum(counts.values())
    assert f"parameters: {total / 1e6:.2f} M" in plan
    for part, count in counts.items():
        assert f"{part} {count / 1e6:.2f} M" in plan

    # Sizes: what the file formats add to the numbers is a few kilobytes.
    model_bytes = (folder / "model.safetensors").stat().st_size
    assert size(plan, r"model\.safetensors \(SIZE\)") == pytest.approx(4 * total, rel=0.005)
    assert model_bytes == pytest.approx(4 * total, abs=12_000)
    checkpoint = folder / "checkpoints" / "step-00000005"
    checkpoint_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size(plan, r"and at the end, SIZE each") == pytest.approx(16 * total, rel=0.005)
    assert checkpoint_bytes == pytest.approx(16 * total, abs=100_000)
    moments = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].values()
    moments_bytes = sum(4 * state[name].numel() for state in moments for name in ("exp_avg", "exp_avg_sq"))
    assert size(plan, r"optimizer SIZE") == pytest.approx(moments_bytes, rel=0.005)

    # Files: as many lines, images and steps as it said, and nothing that it did not name.
    assert "steps: 5," in plan and len(list((folder / "checkpoints").iterdir())) == 2
    assert "the newest 2 kept" in plan
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert f"metrics.jsonl: {len(lines)} lines" in plan and [json.loads(line)["step"] for line in lines] == [2, 4, 5]
    assert f"previews/: {len(list((folder / 'previews').iterdir()))} images" in plan
    rounds = (folder / "monitors.jsonl").read_text().splitlines()
    assert f"monitors.jsonl: {len(rounds)} lines" in plan
    named = plan.partition("would write to")[2]
    assert all(path.name in named or path.suffix == ".py" for path in folder.iterdir())


def test_without_a_teacher(measure_steps):
    plan = measure_steps("--contrastive_weight", 0)
    assert "the teacher has as many" not in plan
    assert size(plan, r"networks SIZE") == pytest.approx(size(plan, r"model\.safetensors \(SIZE\)"))


def test_speed_is_told(measure_steps):
    plan = measure_steps("--gradient_accumulation_steps", 2)
    seconds, images = map(float, re.search(r"speed: (\S+) s a step, ([\d.]+) images/s", plan).groups())
    assert 0 < seconds < 60 and images == pytest.approx(2 * 8 / seconds, rel=0.02)
    assert 1e8 < size(plan, r"peak of this process SIZE") < 1e11


def test_mistakes_are_found(one_line_error, tmp_path):
    """What the real run would refuse before its first step, the dry run refuses."""
    assert "--per_device_train_batch_size" in one_line_error(
        "pretrain", *flags_for(tmp_path / "out", "--dry_run", "--per_device_train_batch_size", 2000)
    )
    assert list(tmp_path.iterdir()) == []
