"""Pretraining survives: real processes, killed and stopped, end in the weights of one that was left alone."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from program_process import SCRIPTS, ProgramProcess, start_together
from safetensors.torch import load_file

import modeling_sit
from modeling_sit.pretraining.checkpoints import DELETED, STATE_FILE, checkpoint_path, list_checkpoints

NUM_STEPS = 16
# An epoch ends before the run does: after 14 of its steps, of two processes after 7.
NUM_DIGITS, BATCH_SIZE = 287, 20
SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_channels": 1,
    "decoder_hidden_size": 16,
    "projection_hidden_size": 16,
    "projection_size": 16,
}


OVERRIDES = ",".join(f"{name}={value}" for name, value in SETTINGS.items())


def flags_for(output_dir: Path, *flags) -> list:
    """A run of a second or two: an odd number of logging steps, so that checkpoints fall between the lines of the log."""
    return [
        *("--dataset", "digits", "--output_dir", output_dir, "--image_size", 16, "--patch_size", 8),
        *("--config_overrides", OVERRIDES),
        *("--per_device_train_batch_size", BATCH_SIZE, "--max_steps", NUM_STEPS, "--base_learning_rate", 0.05),
        *("--checkpointing_steps", 2, "--logging_steps", 5, "--preview_steps", 6),
        *("--monitor_steps", 7, "--monitor_images", 64),
        *flags,
    ]


def before_export(call: int, number: signal.Signals) -> tuple:
    """A signal when a checkpoint is written, and the one that it makes superfluous is deleted."""
    return "modeling_sit.pretraining.loop", "export", call, number


def before_monitors(call: int, number: signal.Signals) -> tuple:
    """A signal at the end of a step, after the question whether to stop: the next step is the last. See `flags_for`."""
    return "modeling_sit.pretraining.monitors", "OnlineMonitors.run", call, number


@pytest.fixture
def start(tmp_path):
    """Start `scripts/pretrain.py`."""

    def start(output_dir: Path, *flags, **chances) -> ProgramProcess:
        return start_alone(*flags_for(output_dir, *flags), log=tmp_path / "log", **chances)

    return start


def start_alone(*flags, **chances) -> ProgramProcess:
    process = ProgramProcess("pretrain", *flags, **{"num_digits": NUM_DIGITS, **chances})
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    process = start_alone(*flags_for(folder / "out"), log=folder / "log")
    assert process.wait() == 0, process.log.read_text()
    return folder / "out"


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("images_per_second", "data_wait")} for line in lines]


def newest_step(folder: Path) -> int:
    return max((int(path.name[-8:]) for path in (folder / "checkpoints").glob("step-*")), default=0)


def assert_same_run(folder: Path, whole: Path) -> None:
    """Weights, optimizer and log equal to the last bit, and nothing else lies about."""
    last = f"checkpoints/step-{NUM_STEPS:08d}"
    for name in ("model.safetensors", f"{last}/model.safetensors", f"{last}/teacher.safetensors"):
        weights, expected = load_file(folder / name), load_file(whole / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in weights.items()), name
    states, expected = (
        torch.load(run / last / "optimizer.bin", weights_only=True)["state"] for run in (folder, whole)
    )
    for number, moments in states.items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(expected[number][key]))
            for key, value in moments.items()
        )
    for name in ("metrics.jsonl", "monitors.jsonl"):
        assert lines_of(folder, name) == lines_of(whole, name)
    names, expected_names = (
        sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) for run in (folder, whole)
    )
    assert names == expected_names


class TestKilled:
    def kill_and_go_on(self, start, folder: Path, whole: Path, draws: random.Random, num_kills: int) -> None:
        """Kill a run so many times at random moments, each time starting it again, then let it end."""
        longest, kills = 3.0, 0
        while kills < num_kills:
            workers = draws.choice((0, 0, 1, 2))
            process = start(folder, "--resume_from_checkpoint", "auto", "--dataloader_num_workers", workers)
            process.join(draws.uniform(0, longest))
            process.kill()
            code = process.wait()
            if code == 0:  # it was done before: another one, and sooner
                assert_same_run(folder, whole)
                shutil.rmtree(folder)
                longest *= 0.7
            else:
                assert code == -signal.SIGKILL, process.log.read_text()
                kills += 1
        process = start(folder, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0, process.log.read_text()
        assert_same_run(folder, whole)

    @pytest.mark.parametrize("seed", range(2))
    def test_at_random_moments(self, start, whole, tmp_path, seed):
        self.kill_and_go_on(start, tmp_path / "out", whole, random.Random(seed), 3)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(100, 112))
    def test_at_many_random_moments(self, start, whole, tmp_path, seed):
        self.kill_and_go_on(start, tmp_path / "out", whole, random.Random(seed), 5)

    @pytest.mark.parametrize("step", [2, 14])
    def test_while_a_checkpoint_is_written(self, start, whole, tmp_path, step):
        """When nothing but the last of its files and its name is missing."""
        folder = tmp_path / "out"
        place = ("modeling_sit.pretraining.checkpoints", "_state_digest")
        process = start(folder, at=(*place, step // 2 + 1, signal.SIGKILL))
        assert process.wait() == -signal.SIGKILL, process.log.read_text()
        assert newest_step(folder) == step
        assert [path.name for path in (folder / "checkpoints").glob(".*")] == [f".unfinished-step-{step + 2:08d}"]
        process = start(folder, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0, process.log.read_text()
        assert_same_run(folder, whole)


class TestStopped:
    @pytest.mark.parametrize(
        ("number", "code", "workers"),
        [
            *((signal.SIGTERM, 143, 0), (signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 0), (signal.SIGINT, 130, 2)),
            (signal.SIGHUP, 129, 2),
        ],
    )
    def test_leaves_with_a_checkpoint_and_goes_on(self, start, whole, tmp_path, number, code, workers):
        folder = tmp_path / "out"
        flags = ["--checkpointing_steps", 1000, "--dataloader_num_workers", workers]
        process = start(folder, *flags, at=before_monitors(1, number))
        assert process.wait() == code, process.log.read_text()
        assert newest_step(folder) == 8
        said = process.log.read_text()
        assert f"stopped by {signal.Signals(number).name} after step 8" in said
        assert "Traceback" not in said and "--resume_from_checkpoint auto" in said
        assert (folder / "model.safetensors").exists()
        process = start(folder, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0, process.log.read_text()
        assert_same_run(folder, whole)

    def test_while_monitors_have_workers_of_their_own(self, start, tmp_path):
        folder = tmp_path / "out"
        flags = ["--monitor_steps", 1, "--monitor_images", 1000, "--dataloader_num_workers", 2]
        flags += ["--checkpointing_steps", 1000]
        process = start(folder, *flags, at=before_monitors(2, signal.SIGTERM), num_digits=None)
        assert process.wait() == 143, process.log.read_text()
        said = process.log.read_text()
        assert newest_step(folder) == 3 and "Traceback" not in said
        assert said.count("stopping after this step") == 1

    def test_without_checkpoints_says_so(self, start, tmp_path):
        folder = tmp_path / "out"
        process = start(folder, "--checkpointing_steps", "no", at=before_monitors(1, signal.SIGTERM))
        assert process.wait() == 143, process.log.read_text()
        assert "no checkpoint was written" in process.log.read_text()
        assert not (folder / "checkpoints").exists()


class TestTwoRuns:
    def test_a_second_one_in_the_same_folder_is_refused(self, start, whole, tmp_path):
        folder = tmp_path / "out"
        first = start(folder, at=before_export(1, signal.SIGSTOP))
        first.wait_until_stopped()
        second = start_alone(*flags_for(folder, "--resume_from_checkpoint", "auto"), log=tmp_path / "second")
        assert second.wait() == 1
        assert "another process is running in" in second.log.read_text()
        first.signal(signal.SIGCONT)
        assert first.wait() == 0, first.log.read_text()
        assert_same_run(folder, whole)

    def test_a_finished_one_is_left_as_it_is(self, start, whole):
        with (whole / "README.md").open("a") as card:
            card.write("my own notes\n")
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
        process = start(whole, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0
        assert "done before" in process.log.read_text()
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


class TestLauncher:
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's death")
    def test_run_stops_with_it(self, tmp_path):
        """`accelerate launch` does not pass SIGTERM on; the program notices that it is gone."""
        folder = tmp_path / "out"
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        program = [SCRIPTS / "pretrain.py", *flags_for(folder, "--max_steps", 100_000)]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                list(map(str, [*launcher, *program])), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        said = (tmp_path / "log").read_text
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
            assert process.poll() is None, said()
            time.sleep(0.05)
        process.terminate()
        process.wait(60)
        started = time.monotonic()
        while "stopped by SIGTERM after step" not in said():
            assert time.monotonic() - started < 60, said()
            time.sleep(0.05)
        step = int(re.search(r"after step (\d+)", said())[1])
        assert newest_step(folder) == step


class TestDamaged:
    @pytest.fixture
    def stopped(self, start, tmp_path) -> Path:
        """A run that was killed after some checkpoints."""
        folder = tmp_path / "out"
        process = start(folder, at=before_export(3, signal.SIGKILL))
        assert process.wait() == -signal.SIGKILL, process.log.read_text()
        return folder

    def test_newest_is_passed_over(self, start, whole, stopped):
        *_, older, newest = sorted((stopped / "checkpoints").glob("step-*"))
        name = "optimizer.bin"
        content = bytearray((newest / name).read_bytes())
        content[len(content) // 2] ^= 1
        (newest / name).write_bytes(content)
        process = start(stopped, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0
        said = process.log.read_text()
        assert f"passed over {newest}: {name}" in said and f"going on from {older}" in said
        assert_same_run(stopped, whole)

    def test_all_are_an_error_that_deletes_nothing(self, start, stopped):
        for path in (stopped / "checkpoints").glob("step-*"):
            (path / "model.safetensors").write_bytes(b"")
        before = sorted(path for path in stopped.rglob("*"))
        process = start(stopped, "--resume_from_checkpoint", "auto")
        assert process.wait() == 1
        assert "without an undamaged checkpoint" in process.log.read_text()
        assert sorted(path for path in stopped.rglob("*")) == before


class TestFullDisk:
    def test_is_an_error_and_what_was_there_stays(self, start, whole, tmp_path):
        folder = tmp_path / "out"
        process = start(folder, at=("modeling_sit.pretraining.loop", "delete_old_checkpoints", 3, signal.SIGKILL))
        assert process.wait() == -signal.SIGKILL, process.log.read_text()
        model = (folder / "model.safetensors").read_bytes()
        superfluous, *newest = list_checkpoints(folder)
        # As where the kill comes amid its deletion; the next run goes on with that.
        (superfluous / STATE_FILE).rename(superfluous / DELETED)
        good = {path: path.read_bytes() for folder in newest for path in folder.rglob("*") if path.is_file()}

        process = start(folder, "--resume_from_checkpoint", "auto", max_file_size=20_000)
        assert process.wait() == 1
        said = process.log.read_text().splitlines()
        (error,) = [line for line in said if line.startswith("error:")]
        assert "cannot be written" in error and str(folder) in error and "make room" in error
        assert not [line for line in said if "Traceback" in line]
        assert (
            sorted((folder / "checkpoints").iterdir()) == newest == [checkpoint_path(folder, step) for step in (4, 6)]
        )
        assert {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()} == good
        assert (folder / "model.safetensors").read_bytes() == model

        process = start(folder, "--resume_from_checkpoint", "auto")
        assert process.wait() == 0
        assert_same_run(folder, whole)


STREAMING = ("--streaming", "--shuffle_buffer_size", 60)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    process = start_alone(*flags_for(folder / "out", *STREAMING), log=folder / "log")
    assert process.wait() == 0, process.log.read_text()
    return folder / "out"


class TestStreamed:
    """Streams, too, go on at the very image."""

    def test_killed_and_stopped_on_the_way(self, start, streamed, tmp_path):
        folder = tmp_path / "out"
        kill, stop = (signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)
        for workers, (number, code) in ((0, kill), (2, stop), (1, kill)):
            flags = ["--resume_from_checkpoint", "auto", "--dataloader_num_workers", workers, *STREAMING]
            process = start(folder, *flags, at=before_export(2, number))
            assert process.wait() == code, process.log.read_text()
        assert newest_step(folder) == 12
        process = start(folder, "--resume_from_checkpoint", "auto", *STREAMING)
        assert process.wait() == 0, process.log.read_text()
        assert_same_run(folder, streamed)

    def test_place_of_another_stream_is_refused(self, start, streamed):
        flags = [*STREAMING[:-1], 18, "--resume_from_checkpoint", "auto", "--allow_changed_settings"]
        process = start(streamed, *flags)
        assert process.wait() == 1
        assert "shuffle_buffer_size: 18 (the checkpoint: 60)" in process.log.read_text()


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    processes = start_together("pretrain", *flags_for(folder / "out"), log=folder / "log", num_digits=NUM_DIGITS)
    assert [process.wait() for process in processes] == [0, 0], (folder / "log").read_text()
    said = (folder / "log").read_text()
    assert said.count("step 5/16") == said.count("done:") == 1
    return folder / "out"


class TestSeveralProcesses:
    """Two processes of one run, on the CPU."""

    @pytest.fixture
    def start_two(self, tmp_path):
        def start_two(output_dir: Path, *flags, **chances) -> list[ProgramProcess]:
            flags = flags_for(output_dir, *flags)
            return start_together("pretrain", *flags, log=tmp_path / "log", num_digits=NUM_DIGITS, **chances)

        return start_two

    def kill_together(self, stopped: list[ProgramProcess]) -> None:
        """Kill processes that stop themselves; one that still ran would fail of another's end."""
        for process in stopped:
            process.wait_until_stopped()
        for process in stopped:
            process.kill()
        assert [process.wait() for process in stopped] == [-signal.SIGKILL] * len(stopped)

    def test_killed_and_stopped_on_the_way(self, start_two, whole_of_two, tmp_path):
        folder = tmp_path / "out"
        self.kill_together(start_two(folder, at=dict.fromkeys(range(2), before_export(2, signal.SIGSTOP))))
        # A scheduler may stop one of them alone: they leave together.
        flags = ["--resume_from_checkpoint", "auto", "--checkpointing_steps", 1000]
        processes = start_two(folder, *flags, at={1: before_monitors(1, signal.SIGTERM)})
        assert [process.wait() for process in processes] == [143, 143], processes[0].log.read_text()
        assert newest_step(folder) == 8
        processes = start_two(folder, "--resume_from_checkpoint", "auto")
        assert [process.wait() for process in processes] == [0, 0], processes[0].log.read_text()
        assert_same_run(folder, whole_of_two)

    def test_another_number_of_processes(self, start, whole_of_two, tmp_path):
        checkpoint = whole_of_two / f"checkpoints/step-{NUM_STEPS - 2:08d}"
        process = start(tmp_path / "one", "--resume_from_checkpoint", checkpoint)
        assert process.wait() == 1
        assert "num_processes: 1 (the checkpoint: 2)" in process.log.read_text()
        process = start(tmp_path / "one", "--resume_from_checkpoint", checkpoint, "--allow_changed_settings")
        assert process.wait() == 0, process.log.read_text()
        assert "changed since the checkpoint: num_processes: 1" in process.log.read_text()
        assert [line["step"] for line in lines_of(tmp_path / "one")] == [15, 16]

    @pytest.mark.parametrize(
        "flags", [["--train_split", "nowhere"], ["--image_mean", 0.5, 0.5], ["--report_to", "nobody"]]
    )
    def test_mistake_ends_both_and_is_told_once(self, start_two, tmp_path, flags):
        processes = start_two(tmp_path / "out", *flags)
        assert [process.wait() for process in processes] == [1, 1]
        said = processes[0].log.read_text()
        assert said.count("error:") == 1 and flags[0] in said and "Traceback" not in said

    def test_unreadable_image_of_one_ends_both(self, tmp_path, save_images):
        """Only one of them meets it in its first batch."""
        pile = save_images(tmp_path / "pile", 20)
        (pile / "99.png").write_bytes(b"")
        flags = [*flags_for(tmp_path / "out", "--on_bad_image", "error"), "--per_device_train_batch_size", 10]
        flags[flags.index("digits")] = pile
        flags[flags.index("--config_overrides") + 1] = "num_channels=3,hidden_size=16,num_attention_heads=2"
        processes = start_together("pretrain", *flags, log=tmp_path / "log")
        assert [process.wait() for process in processes] == [1, 1]
        said = (tmp_path / "log").read_text()
        assert said.count("error:") == 1 and f"error: --on_bad_image: {pile / '99.png'}" in said

    def test_streamed_and_killed(self, start_two, tmp_path):
        """Each process goes on in its own part of the stream."""
        whole, folder = tmp_path / "whole", tmp_path / "out"
        processes = start_two(whole, *STREAMING)
        assert [process.wait() for process in processes] == [0, 0], processes[0].log.read_text()
        self.kill_together(start_two(folder, *STREAMING, at=dict.fromkeys(range(2), before_export(3, signal.SIGSTOP))))
        processes = start_two(folder, *STREAMING, "--resume_from_checkpoint", "auto")
        assert [process.wait() for process in processes] == [0, 0], processes[0].log.read_text()
        assert_same_run(folder, whole)


@pytest.mark.slow
def test_sharded(tmp_path):
    """FSDP2 as the ready configuration launches it: stopped and resumed it ends where an uninterrupted run does, and its
    model is the data-parallel one's up to rounding."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def launch(configuration: str, output_dir: Path, *flags) -> int:
        program = [
            SCRIPTS / "pretrain.py",
            *flags_for(output_dir, "--config_overrides", f"{OVERRIDES},drop_path_rate=0"),
        ]
        if configuration == "fsdp2":
            program = [Path(__file__).parents[1] / "runtime" / "fsdp2_on_cpu.py", *program]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command += [SCRIPTS / "accelerate_configs" / f"{configuration}.yaml", "--num_processes", 2]
        command += ["--mixed_precision", "no", *program, "--base_learning_rate", 1e-4, *flags]
        finished = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    whole, folder, plain = tmp_path / "whole", tmp_path / "out", tmp_path / "plain"
    launch("fsdp2", whole)
    shutil.copytree(whole, folder)
    for path in sorted((folder / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(path)
    said = launch("fsdp2", folder, "--resume_from_checkpoint", "auto")
    assert f"going on from {folder}" in said
    assert lines_of(folder) == lines_of(whole)
    weights, expected = load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert sorted(path.name for path in folder.glob("*.py")) == sorted(
        path.name for path in Path(modeling_sit.__file__).parent.glob("[!_]*.py")
    )
    launch("multi_gpu", plain)
    others = load_file(plain / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4, msg=name)
