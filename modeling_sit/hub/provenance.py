"""How a model came about, as a card tells it: commands, hardware, versions and names, without secrets and private paths."""

import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

PACKAGES = ("modeling-sit", "torch", "transformers", "accelerate", "datasets")
# By the name of the program, or of the module that `python -m` runs.
LAUNCHERS = {
    "accelerate": ["accelerate"],
    "accelerate.commands.launch": ["accelerate", "launch"],
    "torchrun": ["torchrun"],
    "torch.distributed.run": ["torchrun"],
}
SECRET_FLAG = re.compile(r"--[\w-]*(token|password|secret|api[_-]?key)", re.IGNORECASE)
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
URL_LOGIN = re.compile(r"(\b\w+://)[^/\s@]+@")


@dataclass
class Start:
    """
    One of a run's starts: the first, or one that went on from a checkpoint.

    Args:
        step (`int`): Steps that the run had done before.
        command (`str`): What was typed, as [`typed_command`] gives it.
        hardware (`str`): As [`describe_hardware`] gives it.
    """

    step: int
    command: str
    hardware: str


def describe_start(step: int, device: torch.device, num_processes: int) -> dict[str, Any]:
    """This [`Start`], as JSON knows it."""
    return {"step": step, "command": typed_command(), "hardware": describe_hardware(device, num_processes)}


def typed_command() -> str:
    """The command that started this program, with its launcher, as a shell reads it: tokens and passwords are left out, and
    the home folder is `~`."""
    return " ".join(map(_quoted, _without_secrets([*_launcher(), *sys.argv])))


def _launcher() -> list[str]:
    """The words in front of the program's name."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        words = []
    if words[-len(sys.argv) :] == sys.argv:
        for number, word in enumerate(words[: -len(sys.argv)]):
            if Path(word).name in LAUNCHERS:
                return [*LAUNCHERS[Path(word).name], *words[number + 1 : -len(sys.argv)]]
    return ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]


def _without_secrets(words: list[str]) -> list[str]:
    kept: list[str] = []
    is_secret = False
    for word in words:
        if is_secret and not word.startswith("--"):
            is_secret = False
            continue
        flag, equals, value = word.partition("=")
        is_secret = SECRET_FLAG.fullmatch(flag) is not None and not equals
        if SECRET_FLAG.fullmatch(flag):
            continue
        value = without_private_paths(without_tokens(value))
        if equals and flag.startswith("--") and value.startswith("~"):
            kept += [flag, value]  # apart, where a shell knows what ~ is
        else:
            kept.append(without_private_paths(without_tokens(word)))
    return kept


def _quoted(word: str) -> str:
    if word == "~" or word.startswith("~/"):
        return "~/" + shlex.quote(word[2:]) if word[2:] else "~"
    return shlex.quote(word)


def without_tokens(text: str) -> str:
    """Text without access tokens of the Hub and logins of URLs."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return URL_LOGIN.sub(r"\1", ACCESS_TOKEN.sub("***", text))


def without_private_paths(text: str) -> str:
    """Text with `~` for the home folder, which tells who its user is."""
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        text = re.sub(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def describe_hardware(device: torch.device, num_processes: int) -> str:
    """Device, number of processes, threads of each."""
    threads = counted(torch.get_num_threads(), "CPU thread")
    if device.type == "cpu":
        cores = counted(os.cpu_count() or 1, "core")
        each = " each" if num_processes > 1 else ""
        return f"{counted(num_processes, 'process', 'processes')} with {threads}{each} on {_cpu_name()} ({cores})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{num_processes} x {name}, a process with {threads} for each"


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # only Linux has it
        found = None
    machine = platform.machine()
    return f"{found[1].strip()}, {machine}" if found else platform.processor() or machine


def describe_versions() -> str:
    """Of Python and of the packages that decide what a run does."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from its folder, without an installation
            continue
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def describe_duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:,.1f} hours"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def public_name(path_or_id: str) -> str:
    """What to call a dataset or a model: its id on the Hub; of a path, which says where it lies on this machine, the last
    part."""
    path = Path(path_or_id).expanduser()
    return path.resolve().name if path.exists() else without_tokens(path_or_id)


def hub_id(path_or_id: str) -> str | None:
    """The id on the Hub of a dataset or a model; `None` of one that lies on this machine, or is built in."""
    if path_or_id == "digits" or Path(path_or_id).expanduser().exists():
        return None
    try:
        validate_repo_id(path_or_id)
    except HFValidationError:
        return None
    return path_or_id
