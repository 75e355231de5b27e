"""scripts/finetune.py: flags, exit codes, several processes, and signals from a scheduler."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuning_runs import write_colors
from forked_python import run_forked
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"


@pytest.fixture
def sit(save_tiny_sit, tmp_path) -> Path:
    return save_tiny_sit(tmp_path / "sit")


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    """A folder of noisy images of one color each: 20, 10 and 10 to train, 4 a class to validate."""
    return write_colors(tmp_path_factory.mktemp("colors"))


def flags_for(model, dataset, output_dir, *flags, steps: int = 2, batch_size: int = 16) -> list[str]:
    arguments = {
        "--model_name_or_path": model,
        "--dataset": dataset,
        "--output_dir": output_dir,
        "--max_steps": steps,
        "--per_device_train_batch_size": batch_size,
        "--per_device_eval_batch_size": 64,
        "--use_cpu": True,
        "--report_to": "none",
        "--eval_strategy": "no",
        "--save_strategy": "no",
    }
    return [str(word) for pair in arguments.items() for word in pair] + [str(flag) for flag in flags]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "eval_results.json").read_text())["finetune"]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


EVERYTHING_RANDOM = (
    *("--augmentation", "randaugment", "--random_erasing_probability", 0.5, "--mixup_alpha", 0.8, "--cutmix_alpha", 1),
    *("--drop_path_rate", 0.3, "--ema_decay", 0.9, "--balanced_sampling", "--layer_decay", 0.75),
    *("--class_weights", "balanced"),
)


def test_mistakes_are_one_line(one_line_error, sit, colors, tmp_path):
    def refused(*flags, code: int = 1) -> str:
        return one_line_error("finetune", *flags_for(sit, colors, tmp_path / "out", *flags), code=code)

    assert "--layer_decay" in refused("--layer_decay", 0, code=2)
    assert "--learning_rat" in refused("--learning_rat=1", code=2)
    assert "--early_stopping_patience" in refused("--early_stopping_patience", 2)
    flags = flags_for(sit, colors, tmp_path / "out")
    index = flags.index("--output_dir")
    assert "--output_dir" in one_line_error("finetune", *flags[:index], *flags[index + 2 :], code=2)


@pytest.mark.slow
def test_sigterm_to_the_workers_too(sit, tmp_path):
    """A scheduler sends it to all processes of a run."""
    flags = flags_for(sit, "digits", tmp_path / "out", "--dataloader_num_workers", 2, steps=10_000, batch_size=8)
    process = subprocess.Popen(
        [sys.executable, "-u", SCRIPT, *flags, "--logging_steps", "1", "--disable_tqdm", "True"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "loss" in line:
            os.killpg(process.pid, signal.SIGTERM)
            break
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert "--resume_from_checkpoint auto goes on" in rest
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists()


ONE_IS_NOT_FINITE = """
import os, sys

from modeling_sit.cli.main import main
from modeling_sit.finetuning.trainer import ReproducibleTrainer

compute_loss = ReproducibleTrainer.compute_loss


def spoiled(self, model, *args, **kwargs):
    loss = compute_loss(self, model, *args, **kwargs)
    is_spoiled = os.environ["RANK"] == "1" and self.args.learning_rate == 0.001 and model.training
    return loss * float("nan") if is_spoiled else loss


ReproducibleTrainer.compute_loss = spoiled
sys.exit(main(["finetune", *sys.argv[1:]]))
"""


@pytest.mark.slow
class TestTwoProcesses:
    def launch(self, *flags, processes: int = 2, script: Path = SCRIPT) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            processes,
            script,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = list(map(str, [*command, *flags]))
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def test_equal_to_one(self, run_program, sit, colors, tmp_path):
        """Half the batch each, and nothing random within a step: the same images, the same weights up to rounding."""
        flags = ["--drop_path_rate", 0, "--augmentation", "3-augment", "--weight_decay", 0, "--ema_decay", 0.9]
        alone = tmp_path / "alone"
        assert run_program("finetune", *flags_for(sit, colors, alone, *flags, steps=4, batch_size=10)) == 0
        flags = flags_for(sit, colors, tmp_path / "two", *flags, steps=4, batch_size=5)
        finished = self.launch(*flags)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("written to") == 1
        for name, value in weights_in(alone).items():
            torch.testing.assert_close(weights_in(tmp_path / "two")[name], value, rtol=1e-3, atol=1e-4)
        assert results_of(tmp_path / "two")["accuracy"] == results_of(alone)["accuracy"]

    def test_goes_on_amid_an_epoch(self, sit, colors, tmp_path):
        flags = [*EVERYTHING_RANDOM, "--lr_scheduler_type", "constant", "--warmup_steps", 0]
        flags += ["--save_strategy", "steps", "--save_steps", 3]
        runs = (("whole", 7, []), ("stopped", 3, []), ("stopped", 7, ["--resume_from_checkpoint", "auto"]))
        for name, steps, more in runs:
            command = flags_for(sit, colors, tmp_path / name, *flags, *more, steps=steps, batch_size=10)
            finished = self.launch(*command)
            assert finished.returncode == 0, finished.stderr
        whole, stopped = weights_in(tmp_path / "whole"), weights_in(tmp_path / "stopped")
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(value, stopped[name]) for name, value in whole.items())

    def test_a_loss_of_one_process_ends_the_trial_of_both(self, sit, colors, tmp_path):
        script = tmp_path / "one_is_not_finite.py"
        script.write_text(ONE_IS_NOT_FINITE)
        flags = ["--learning_rate", "auto", "--tuning_learning_rates", 0.001, 0.01, "--validation_fraction", 0.3]
        finished = self.launch(*flags_for(sit, colors, tmp_path / "out", *flags, steps=3), script=script)
        assert finished.returncode == 0, finished.stderr
        trials = json.loads((tmp_path / "out" / "tuning.json").read_text())["trials"]
        metrics = {(each["learning_rate"], each["draw"]): each["metric"] for each in trials}
        assert metrics[0.001, 0] is None and metrics[0.01, 0] is not None

    def test_mistakes_are_told_once(self, sit, tmp_path):
        finished = self.launch(*flags_for(sit, tmp_path / "nowhere", tmp_path / "out"))
        assert finished.returncode != 0
        assert finished.stderr.count("error: --dataset") == 1


def test_from_any_folder_beside_the_other_programs(save_tiny_sit, tmp_path):
    """scripts/ comes first on the path then, and its `evaluate.py` must not stand in for the library `evaluate`."""
    sit = save_tiny_sit(tmp_path / "sit", num_channels=1)
    flags = flags_for(sit, "digits", "out", "--eval_strategy", "epoch", steps=2)
    # Where it is not imported yet.
    assert run_forked(["-c", "import sys; sys.exit('evaluate' in sys.modules)"], tmp_path / "before").exitcode == 0
    ended = run_forked([SCRIPT, *flags], tmp_path / "log", folder=tmp_path)
    assert ended.exitcode == 0, ended.said
    assert results_of(tmp_path / "out")["num_validation"] == 360
