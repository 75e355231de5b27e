"""What a card tells of how a model came about, and what it must not tell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_sit.hub import provenance
from modeling_sit.hub.provenance import (
    describe_call,
    describe_duration,
    describe_hardware,
    describe_start,
    describe_versions,
    hub_id,
    public_name,
    typed_command,
    without_tokens,
)
from modeling_sit.runtime.private_paths import without_private_paths

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command as a card has it, of a program that was started with these words in a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py", *map(str, words)])
        return typed_command()

    return run


def read_by_a_shell(command: str, home: Path) -> list[str]:
    print_words = (
        f"{shlex.quote(sys.executable)} -c 'import sys; print(*sys.argv[1:], sep=chr(0), end=\"\")' {command}"
    )
    output = subprocess.run(
        ["bash", "-c", print_words], env={"HOME": str(home)}, capture_output=True, text=True, check=True
    ).stdout
    return output.split("\0")


def test_a_shell_reads_what_was_typed(command, tmp_path):
    words = ["recipe.yaml", "--dataset", "my images/it's", "--config_overrides=a=1,b=$x", "--seed", "7", "~", "*"]
    words = [*words, "--a", tmp_path / "with space", f"--b={tmp_path}/c", f"{tmp_path}"]
    typed = command(*words)
    assert str(tmp_path) not in typed
    read = read_by_a_shell(typed, tmp_path)
    assert read[:2] == ["python", "scripts/pretrain.py"]
    home = str(tmp_path)
    # `~` as a word of its own was expanded by the shell that it was typed into: here it came from quotes.
    expected = [*map(str, words[:6]), home, "*", "--a", f"{home}/with space", "--b", f"{home}/c", home]
    assert read[2:] == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "secret words"],
        ["--hub_token=secret"],
        ["--hub-token", "secret"],
        ["--push_to_hub_token", "secret"],
        ["--my_API_key", "secret"],
        ["--password", "secret"],
    ],
)
def test_secrets_are_left_out(command, words):
    assert command("--seed", 7, *words, "--dataset", "d") == "python scripts/pretrain.py --seed 7 --dataset d"


def test_what_only_looks_like_a_secret_stays(command):
    assert command("--pooling", "token", "--tokens_file", "a").endswith("--pooling token --tokens_file a")
    assert command("--hub_token", "--dataset", "d").endswith("pretrain.py --dataset d")


def test_tokens_anywhere(command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    typed = command("--dataset", f"https://me:{TOKEN}@host/a", "--x", TOKEN, "--y", "z/a-token-of-another-form/")
    assert typed.endswith("--dataset https://host/a --x '***' --y 'z/***/'")
    assert without_tokens(f"text with {TOKEN}.") == "text with ***."
    assert without_tokens("hf://datasets/a/b@main/c user@host") == "hf://datasets/a/b@main/c user@host"


@pytest.mark.parametrize(
    "problem", [PermissionError(13, "Permission denied"), NotADirectoryError(20, "Not a directory")]
)
def test_a_stored_token_that_cannot_be_read(command, monkeypatch, problem):
    """HF_HOME is another user's, or a file."""

    def fail():
        raise problem

    monkeypatch.setattr(provenance, "get_token", fail)
    assert command("--x", TOKEN, "--y", "z") == "python scripts/pretrain.py --x '***' --y z"


@pytest.fixture
def no_home(monkeypatch):
    """As in a container that is run with a bare number for its user."""

    def fail(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", fail)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(RuntimeError):
        Path.home()


def test_no_home(no_home, monkeypatch, tmp_path):
    assert without_private_paths("/home/al/x ~/x") == "/home/al/x ~/x"
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py", "--dataset", str(tmp_path), "--output_dir", "~/x"])
    start = describe_start(0, torch.device("cpu"), 1, None)
    assert str(tmp_path) in start["command"] and "~/x" in start["command"]
    assert public_name("~/x") == "~/x" and hub_id("user/x") == "user/x" and hub_id("~/x") is None


def test_a_home_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    assert without_private_paths("/nonexistent/x /x") == "~/x /x"


def test_home_is_a_folder_and_no_prefix(monkeypatch):
    monkeypatch.setenv("HOME", "/home/al")
    assert (
        without_private_paths("/home/al/x,/home/al /home/alice /mnt/home/al/x") == "~/x,~ /home/alice /mnt/home/al/x"
    )
    monkeypatch.setenv("HOME", "/")
    assert without_private_paths("/data/x") == "/data/x"


class Parent:
    def __init__(self, words):
        self.words = words

    def cmdline(self):
        return [*self.words, *sys.argv]


@pytest.mark.parametrize(
    ("parent", "launcher"),
    [
        (["/opt/bin/python3.11", "/opt/bin/accelerate", "launch", "--cpu"], "accelerate launch --cpu"),
        (
            ["python", "-m", "accelerate.commands.launch", "--config_file", "a b.yaml"],
            "accelerate launch --config_file 'a b.yaml'",
        ),
        (["python", "/opt/bin/torchrun", "--nproc_per_node", "2"], "torchrun --nproc_per_node 2"),
        (["timeout", "60", "python"], "python"),
    ],
)
def test_the_launchers_own_flags(command, monkeypatch, parent, launcher):
    monkeypatch.setattr(provenance.psutil, "Process", lambda _: Parent(parent))
    assert command("--seed", "7") == f"{launcher} scripts/pretrain.py --seed 7"


def test_a_launcher_that_is_gone(command, monkeypatch):
    def gone(_):
        raise provenance.psutil.NoSuchProcess(1)

    monkeypatch.setattr(provenance.psutil, "Process", gone)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command("--seed", "7") == "accelerate launch scripts/pretrain.py --seed 7"


def test_another_program_as_the_parent(command, monkeypatch):
    monkeypatch.setattr(provenance.psutil.Process, "cmdline", lambda _: ["python", "accelerate", "other.py"])
    assert command() == "python scripts/pretrain.py"


def test_words_of_a_real_process(command, monkeypatch):
    """By the operating system's own account of a launcher."""
    words = ["-c", "input()", "torchrun", "--nproc_per_node", "2", "scripts/pretrain.py", "--seed", "7"]
    words[1] = "print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *words], **pipes) as launcher:
        launcher.stdout.readline()  # until it runs, its words are those of the process that it was forked from
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        typed = command("--seed", "7")
        launcher.stdin.close()
    assert typed == "torchrun --nproc_per_node 2 scripts/pretrain.py --seed 7"


class TestPackageAsAProgram:
    """`modeling-sit COMMAND` and `-m modeling_sit COMMAND`: Python gives the program's path for either."""

    @pytest.mark.parametrize(
        ("program", "parent", "typed"),
        [
            ("/opt/bin/modeling-sit", ["bash"], "modeling-sit pretrain --seed 7"),
            ("/opt/modeling_sit/__main__.py", ["bash"], "python -m modeling_sit pretrain --seed 7"),
            (
                "/opt/modeling_sit/__main__.py",
                ["python", "/opt/bin/accelerate", "launch", "--cpu", "-m", "modeling_sit", "pretrain", "--seed", "7"],
                "accelerate launch --cpu -m modeling_sit pretrain --seed 7",
            ),
            (
                "/opt/modeling_sit/__main__.py",
                ["python", "/opt/bin/accelerate", "launch", "--module", "modeling_sit", "pretrain", "--seed", "7"],
                "accelerate launch --module modeling_sit pretrain --seed 7",
            ),
            (
                "/opt/modeling_sit/__main__.py",
                ["torchrun", "--nproc_per_node", "2", "-m", "modeling_sit", "pretrain", "--seed", "7"],
                "torchrun --nproc_per_node 2 -m modeling_sit pretrain --seed 7",
            ),
            # The words end alike, but are those of another program.
            (
                "/opt/modeling_sit/__main__.py",
                ["torchrun", "-m", "other", "pretrain", "--seed", "7"],
                "python -m modeling_sit pretrain --seed 7",
            ),
        ],
    )
    def test_command(self, command, monkeypatch, program, parent, typed):
        monkeypatch.setattr(provenance.psutil.Process, "cmdline", lambda _: parent)
        command()
        monkeypatch.setattr(sys, "argv", [program, "pretrain", "--seed", "7"])
        assert typed_command() == typed

    def test_launcher_that_is_gone(self, command, monkeypatch):
        monkeypatch.setattr(provenance.psutil.Process, "cmdline", lambda _: ["init"])
        command()
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        monkeypatch.setattr(sys, "argv", ["/opt/modeling_sit/__main__.py", "pretrain"])
        assert typed_command() == "accelerate launch -m modeling_sit pretrain"

    def test_real_launch(self, tmp_path):
        """`accelerate launch -m`, by what the operating system and Python say of it."""
        package = tmp_path / "packages" / "modeling_sit_like"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        # The package without its face, which takes seconds to import.
        folder = Path(provenance.__file__).parents[1]
        (package / "__main__.py").write_text(
            "import sys, types\n"
            "face = sys.modules['modeling_sit'] = types.ModuleType('modeling_sit')\n"
            f"face.__path__ = [{str(folder)!r}]\n"
            "from modeling_sit.hub.provenance import typed_command\n"
            "print(typed_command())\n"
        )
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "modeling_sit_like"]
        paths = [str(package.parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        launched = subprocess.run(
            [*launcher, "pretrain", "--seed", "7"], env=environment, capture_output=True, text=True
        )
        assert launched.returncode == 0, launched.stderr
        assert launched.stdout.splitlines()[-1] == "accelerate launch --cpu -m modeling_sit_like pretrain --seed 7"


class TestCall:
    """A run that Python starts has no command line of its own."""

    def test_python_reads_it(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/al")
        keywords = {
            "dataset": "/home/al/my images",
            "output_dir": Path("out"),
            "crop_scale": (0.2, 1.0),
            "protocols": ["knn", "it's"],
            "max_steps": 10,
            "flip": False,
            "recipe": None,
            "note": f"x {TOKEN}",
        }
        assert describe_call("pretrain", keywords) == (
            "modeling_sit.pretrain(dataset='~/my images', output_dir='out', crop_scale=[0.2, 1.0], "
            "protocols=['knn', \"it's\"], max_steps=10, flip=False, recipe=None, note='x ***')"
        )

    def test_objects_and_secrets(self):
        assert (
            describe_call("embed", {"dataset": object(), "hub_token": "x"}) == "modeling_sit.embed(dataset=<object>)"
        )

    def test_is_the_starts_command(self, command):
        device = torch.device("cpu")
        assert describe_start(3, device, 1, describe_call("pretrain", {}))["command"] == "modeling_sit.pretrain()"
        typed = command("--seed", 7)
        assert describe_start(3, device, 1) == {
            "step": 3,
            "command": typed,
            "hardware": describe_hardware(device, 1),
        }


def test_hardware(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    threads = torch.get_num_threads()
    assert describe_hardware(torch.device("cpu"), 1).startswith(f"1 process with {threads} CPU thread")
    assert " each on " in describe_hardware(torch.device("cpu"), 3)
    assert "(2 cores)" in describe_hardware(torch.device("cpu"), 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert describe_hardware(torch.device("cuda:0"), 4) == "4 x GPU 0, a process with 1 CPU thread for each"


def test_versions():
    told = dict(item.split(" ") for item in describe_versions().split(", "))
    assert list(told) == ["python", "modeling-sit", "torch", "transformers", "accelerate", "datasets"]
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["torch"] == torch.__version__.partition("+")[0] or told["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 seconds"),
        (59, "59 seconds"),
        (1.2, "1 second"),
        (90, "1.5 minutes"),
        (7100, "118.3 minutes"),
        (360_000, "100.0 hours"),
    ],
)
def test_duration(seconds, told):
    assert describe_duration(seconds) == told


def test_names(tmp_path):
    (tmp_path / "my cells").mkdir()
    (tmp_path / "train.parquet").touch()
    assert public_name(str(tmp_path / "my cells")) == "my cells" == public_name(f"{tmp_path}/my cells/")
    assert public_name(str(tmp_path / "train.parquet")) == "train.parquet"
    assert public_name("user/flowers") == "user/flowers" == hub_id("user/flowers")
    assert hub_id("cifar10") == "cifar10"
    assert hub_id("digits") is None
    assert hub_id(str(tmp_path / "my cells")) is None
    assert hub_id("a/b/c") is None and hub_id("https://host/a") is None
