"""scripts/pretrain.py and scripts/finetune.py with --push_to_hub: what gets to the Hub, and that the run is the same run."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from loopback_hub import TOKEN, environment_for, wait_for_pushes
from safetensors.torch import load_file

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor
from modeling_sit.hub import pushing

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_channels": 1}
HEADS = {"decoder_hidden_size": 16, "projection_hidden_size": 16, "projection_size": 16}
OVERRIDES = ",".join(f"{name}={value}" for name, value in {**SIZES, **HEADS}.items())


def pretraining_flags(output_dir: Path, *flags) -> list:
    return [
        *("--dataset", "digits", "--output_dir", output_dir, "--image_size", 16, "--patch_size", 8),
        *("--config_overrides", OVERRIDES, "--per_device_train_batch_size", 16, "--max_steps", 6),
        *("--checkpointing_steps", 2, "--logging_steps", 2, "--preview_steps", 3, *flags),
    ]


def finetuning_flags(model: Path, dataset: Path, output_dir: Path, *flags) -> list:
    return [
        *("--model_name_or_path", model, "--dataset", dataset, "--output_dir", output_dir, "--num_train_epochs", 4),
        *("--per_device_train_batch_size", 4, "--use_cpu", "--report_to", "none", "--disable_tqdm", "True", *flags),
    ]


@pytest.fixture
def classes(save_images, tmp_path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        save_images(tmp_path / "classes" / "train" / name, 4, seed=number)
        save_images(tmp_path / "classes" / "validation" / name, 2, seed=2 + number)
    return tmp_path / "classes"


def download_as_documented(repository: str, folder: Path) -> None:
    """Run the command of docs/sharing.md that downloads what a run resumes from."""
    page = Path(__file__).parents[2] / "docs" / "sharing.md"
    (command,) = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("hf download")]
    named = {"ME/VIT": repository, "outputs/mine": str(folder)}
    flags = [named.get(word, word) for word in shlex.split(command)[1:]]
    program = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *flags]
    subprocess.run(program, check=True, capture_output=True)


def assert_equal_weights(file: Path, expected: Path) -> None:
    weights, expected = load_file(file), load_file(expected)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


def assert_token_nowhere(folder: Path, said: str) -> None:
    assert TOKEN not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]


class TestPretraining:
    def test_finished_model(self, run_program, logged_in, tmp_path, capfd):
        folder = tmp_path / "digits-vit"
        flags = pretraining_flags(folder, "--push_to_hub", "--hub_private_repo", "--report_to", "tensorboard")
        assert run_program("pretrain", *flags) == 0
        repository = logged_in.repositories["ada/digits-vit"]
        assert repository.private
        assert len(repository.commits) == 1
        pushed = set(repository.files)
        assert {
            "model.safetensors",
            "config.json",
            "preprocessor_config.json",
            "README.md",
            "modeling_sit.py",
        } < pushed
        assert not [
            name for name in pushed if "checkpoint" in name or "logs" in name or name.endswith((".bin", ".pkl"))
        ]
        # Of the previews, the one that the card shows.
        previews = [name for name in pushed if name.startswith("previews/")]
        assert previews == ["previews/step-00000006.png"]
        assert repository.files["README.md"].decode() == (folder / "README.md").read_text()
        captured = capfd.readouterr()
        assert f"pushed to {logged_in.url}/ada/digits-vit" in captured.err
        assert not list(folder.glob(".unfinished-*"))
        assert_token_nowhere(folder, captured.out + captured.err)
        # Done before, and made sure to be there.
        logged_in.repositories.clear()
        assert run_program("pretrain", *flags, "--resume_from_checkpoint", "auto") == 0
        assert set(logged_in.repositories["ada/digits-vit"].files) == pushed

    def test_another_machine_goes_on_from_the_pushed_checkpoint(self, run_program, logged_in, tmp_path, capfd):
        """To the last bit as a run that neither was cut off nor pushed anything."""
        whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
        assert run_program("pretrain", *pretraining_flags(whole)) == 0
        push = ("--push_to_hub", "--hub_model_id", "vit", "--hub_strategy", "checkpoint")

        original = pushing.HubPusher.push_checkpoint

        def push_checkpoint(pusher, step, with_model):
            """The machine is taken away as soon as its second checkpoint is there."""
            original(pusher, step, with_model)
            pusher._wait(None)
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pushing.HubPusher, "push_checkpoint", push_checkpoint)
            assert run_program("pretrain", *pretraining_flags(first, *push)) == 128 + signal.SIGTERM
        shutil.rmtree(first)
        repository = logged_in.repositories["ada/vit"]
        assert {"model.safetensors", "metrics.jsonl", "last-checkpoint/run_state.json"} < set(repository.files)
        assert "README.md" not in repository.files

        download_as_documented("ada/vit", second)
        resume = ("--resume_from_checkpoint", second / "last-checkpoint")
        assert run_program("pretrain", *pretraining_flags(second, *push, *resume)) == 0
        assert_equal_weights(second / "model.safetensors", whole / "model.safetensors")
        last = "checkpoints/step-00000006/teacher.safetensors"
        assert_equal_weights(second / last, whole / last)
        logs = [
            [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (whole, second)
        ]
        assert [(line["step"], line["loss"]) for line in logs[0]] == [(line["step"], line["loss"]) for line in logs[1]]
        state = json.loads(repository.files["last-checkpoint/run_state.json"])
        assert state["step"] == 6
        assert TOKEN not in json.dumps(state)
        assert "README.md" in repository.files

    def test_hub_that_goes_down(self, run_program, logged_in, tmp_path, capfd, monkeypatch):
        """The run ends as if nothing were, and the command that it names pushes all."""
        folder = tmp_path / "vit"
        logged_in.fail("/commit/", None)
        flags = pretraining_flags(folder, "--push_to_hub", "--hub_strategy", "checkpoint")
        assert run_program("pretrain", *flags) == 0
        lines = [line for line in capfd.readouterr().err.splitlines() if "not pushed" in line]
        assert lines and "Traceback" not in "".join(lines)
        assert (folder / "README.md").exists()
        logged_in.troubles.clear()
        command, name, *words = shlex.split(lines[-1].partition("push it later with: ")[2])
        assert (command, name) == ("modeling-sit", "push")
        assert run_program("push_to_hub", *words) == 0
        assert {"README.md", "last-checkpoint/run_state.json"} < set(logged_in.repositories["ada/vit"].files)

    def test_sigterm_while_the_hub_hangs(self, run_program, logged_in, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr(pushing, "SECONDS_TO_LEAVE", 0.1)
        answers = threading.Event()

        def hang() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            answers.wait(20)

        logged_in.fail("/preupload/", 503, times=1, before=hang)
        flags = pretraining_flags(tmp_path / "vit", "--push_to_hub", "--hub_strategy", "checkpoint")
        flags += ["--max_steps", 100_000]
        assert run_program("pretrain", *flags) == 128 + signal.SIGTERM
        answers.set()
        wait_for_pushes()
        assert "not all was pushed to ada/vit; push it with: modeling-sit push" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (("--hub_model_id", "bell/vit"), "may not write to bell/vit"),
            (("--hub_model_id", "a b"), "no name for a repository"),
            (("--hub_strategy", "checkpoint", "--checkpointing_steps", "no"), "--checkpointing_steps no"),
        ],
    )
    def test_mistakes_before_anything_is_written(self, one_line_error, logged_in, tmp_path, flags, expected):
        message = one_line_error("pretrain", *pretraining_flags(tmp_path / "vit", "--push_to_hub", *flags))
        assert expected in message
        assert not (tmp_path / "vit").exists()

    def test_dry_run_pushes_nothing_but_tells_of_a_wrong_login(
        self, run_program, one_line_error, hub, connect, tmp_path
    ):
        flags = pretraining_flags(tmp_path / "vit", "--push_to_hub", "--dry_run")
        connect(hub.url)
        assert run_program("pretrain", *flags) == 0
        assert {method for method, _ in hub.requests} == {"GET"}
        connect(hub.url, token=None)
        assert "hf auth login" in one_line_error("pretrain", *flags)


class TestFinetuning:
    def test_finished_classifier_with_its_card(self, run_program, logged_in, save_tiny_sit, classes, tmp_path, capfd):
        model, folder = save_tiny_sit(tmp_path / "sit"), tmp_path / "cats-and-dogs"
        flags = finetuning_flags(model, classes, folder, "--push_to_hub", "--num_train_epochs", 1)
        assert run_program("finetune", *flags) == 0
        repository = logged_in.repositories["ada/cats-and-dogs"]
        assert len(repository.commits) == 1
        card = ModelCard(repository.files["README.md"].decode())
        assert card.data.pipeline_tag == "image-classification"
        assert repository.files["README.md"].decode() == (folder / "README.md").read_text()
        assert {"model.safetensors", "eval_results.json", "modeling_sit.py"} < set(repository.files)
        assert not [
            name for name in repository.files if "checkpoint" in name or name.endswith((".bin", ".pt", ".pth"))
        ]
        captured = capfd.readouterr()
        assert_token_nowhere(folder, captured.out + captured.err)
        loaded = SiTForImageClassification.from_pretrained("ada/cats-and-dogs")
        assert loaded.config.id2label == {0: "cat", 1: "dog"}
        assert SiTImageProcessor.from_pretrained("ada/cats-and-dogs").size["height"] == 16
        with torch.no_grad():
            assert loaded(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)

    def test_another_machine_goes_on_from_the_pushed_checkpoint(
        self, run_program, logged_in, save_tiny_sit, classes, tmp_path
    ):
        """And chooses the best of both machines' checkpoints, as the run does that was not cut off."""
        model = save_tiny_sit(tmp_path / "sit")
        whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
        assert run_program("finetune", *finetuning_flags(model, classes, whole)) == 0
        push = ("--push_to_hub", "--hub_model_id", "vit", "--hub_strategy", "checkpoint")
        original = pushing.HubPusher.push_checkpoint

        def push_checkpoint(pusher, step, with_model):
            original(pusher, step, with_model)
            pusher._wait(None)
            if step == 4:
                raise SystemExit(9)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pushing.HubPusher, "push_checkpoint", push_checkpoint)
            assert run_program("finetune", *finetuning_flags(model, classes, first, *push)) == 9
        shutil.rmtree(first)
        repository = logged_in.repositories["ada/vit"]
        assert {name.partition("/")[0] for name in repository.files} >= {"last-checkpoint"}
        assert not [name for name in repository.files if name.endswith("training_args.bin")]

        downloaded = snapshot_download("ada/vit", local_dir=tmp_path / "downloaded")
        resume = ("--resume_from_checkpoint", Path(downloaded) / "last-checkpoint")
        assert run_program("finetune", *finetuning_flags(model, classes, second, *push, *resume)) == 0
        assert_equal_weights(second / "model.safetensors", whole / "model.safetensors")
        results = [json.loads((folder / "eval_results.json").read_text()) for folder in (whole, second)]
        assert results[0] == results[1]
        assert "README.md" in repository.files

    def test_mistakes_before_the_training(self, one_line_error, logged_in, save_tiny_sit, classes, tmp_path):
        model = save_tiny_sit(tmp_path / "sit")
        flags = finetuning_flags(model, classes, tmp_path / "out", "--push_to_hub", "--hub_model_id", "bell/vit")
        assert "may not write to bell/vit" in one_line_error("finetune", *flags)
        flags = finetuning_flags(model, classes, tmp_path / "out", "--push_to_hub", "--hub_strategy", "checkpoint")
        assert "--save_strategy no" in one_line_error(
            "finetune", *flags, "--save_strategy", "no", "--eval_strategy", "no"
        )


def test_pretrained_model_of_the_hub_is_fine_tuned(run_program, logged_in, save_tiny_sit, classes, tmp_path):
    SiTForPreTraining.from_pretrained(save_tiny_sit(tmp_path / "sit")).push_to_hub("ada/sit")
    SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8).push_to_hub("ada/sit")
    flags = finetuning_flags("ada/sit", classes, tmp_path / "out", "--num_train_epochs", 1)
    assert run_program("finetune", *flags) == 0


@pytest.mark.slow
class TestSeveralProcesses:
    """Two processes of one run, on the CPU, as `torchrun` starts them: one of them speaks to the Hub."""

    @pytest.fixture
    def run_two(self, logged_in, tmp_path):
        def run_two(*flags) -> subprocess.CompletedProcess:
            script = Path(__file__).parents[2] / "scripts" / "pretrain.py"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            environment = environment_for(logged_in.url, tmp_path / "home")
            environment |= {"OMP_NUM_THREADS": "1"}
            command = [*launcher, script, *pretraining_flags(tmp_path / "vit", "--push_to_hub", *flags)]
            return subprocess.run(
                list(map(str, command)), env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
            )

        return run_two

    def test_one_commit_for_each_push(self, run_two, logged_in, tmp_path):
        finished = run_two("--max_steps", 2)
        assert finished.returncode == 0, finished.stderr
        repository = logged_in.repositories["ada/vit"]
        assert len(repository.commits) == 1
        assert repository.files["README.md"].decode() == (tmp_path / "vit" / "README.md").read_text()
        assert finished.stderr.count(f"pushed to {logged_in.url}/ada/vit") == 1

    def test_both_end_where_the_hub_lets_nobody_in(self, run_two, logged_in, tmp_path):
        logged_in.fail("whoami", 401)
        finished = run_two()
        assert finished.returncode != 0
        assert finished.stderr.count("error: ") == 1 and "log in with `hf auth login`" in finished.stderr
        assert not (tmp_path / "vit").exists()
