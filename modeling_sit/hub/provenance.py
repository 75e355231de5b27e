"""How a model was made, for its card: commands, hardware, versions and names, without secrets and private paths."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modeling_sit.runtime.private_paths import without_private_paths
from modeling_sit.runtime.words import counted

PACKAGES = ("modeling-sit", "torch", "transformers", "accelerate", "datasets")
# By the name of the program, or of the module that `python -m` runs.
LAUNCHERS = {
    "accelerate": ["accelerate"],
    "accelerate.commands.launch": ["accelerate", "launch"],
    "torchrun": ["torchrun"],
    "torch.distributed.run": ["torchrun"],
}
# The command that the package installs.
COMMAND = "modeling-sit"
SECRET_NAME = re.compile(r"[\w-]*(token|password|secret|api[_-]?key)", re.IGNORECASE)
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
URL_LOGIN = re.compile(r"(\b\w+://)[^/\s@]+@")


@dataclass
class Start:
    """
    One of a run's starts: the first, or one that resumed from a checkpoint.

    Args:
        step (`int`): Steps that the run had done before.
        command (`str`): The command line, as [`typed_command`] gives it, or the call, as [`describe_call`] gives it.
        hardware (`str`): As [`describe_hardware`] gives it.
    """

    step: int
    command: str
    hardware: str


def describe_start(step: int, device: torch.device, num_processes: int, command: str | None = None) -> dict[str, Any]:
    """This [`Start`], as JSON knows it.

    Args:
        step (`int`): Steps that the run had done before.
        device (`torch.device`): What it computes on.
        num_processes (`int`): Processes that share the work.
        command (`str`, *optional*): What started the run. Default: this program's command line. A run that was started
            from Python gives [`describe_call`], because the command line is that of a notebook or of another program.
    """
    command = typed_command() if command is None else command
    return {"step": step, "command": command, "hardware": describe_hardware(device, num_processes)}


def describe_call(function: str, keywords: Mapping[str, Any]) -> str:
    """A call of this package's Python API, as Python reads it, without secrets and private paths.

    Args:
        function (`str`): Such as `"pretrain"`.
        keywords (mapping from `str`): Its arguments by name. Of an object other than text, numbers and lists of these,
            such as a dataset in memory, the type is shown.
    """

    def shown(value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(shown, value))}]"
        if isinstance(value, str | Path):
            return repr(without_private_paths(without_tokens(str(value))))
        return repr(value) if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"

    arguments = [f"{name}={shown(value)}" for name, value in keywords.items() if not SECRET_NAME.fullmatch(name)]
    return f"modeling_sit.{function}({', '.join(arguments)})"


def typed_command() -> str:
    """The command that started this program, with its launcher, as a shell reads it. Tokens and passwords are left
    out, and the home folder is `~`."""
    return " ".join(map(_quoted, _without_secrets(_command_line())))


def _command_line() -> list[str]:
    program, arguments = Path(sys.argv[0]), sys.argv[1:]
    forms = [sys.argv]
    if program.name == "__main__.py":  # started by `-m PACKAGE`; Python gives its path
        forms = [[flag, program.parent.name, *arguments] for flag in ("-m", "--module")]
    elif program.name == COMMAND:
        forms = [sys.argv, [COMMAND, *arguments]]
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        words = []
    for form in forms:
        before = words[: -len(form)]
        if words[len(before) :] == form:
            for number, word in enumerate(before):
                if Path(word).name in LAUNCHERS:
                    return [*LAUNCHERS[Path(word).name], *before[number + 1 :], *form]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return ["accelerate", "launch", *forms[0]]
    return [COMMAND, *arguments] if program.name == COMMAND else ["python", *forms[0]]


def _without_secrets(words: list[str]) -> list[str]:
    kept: list[str] = []
    is_secret = False
    for word in words:
        if is_secret and not word.startswith("--"):
            is_secret = False
            continue
        flag, equals, value = word.partition("=")
        is_named_secret = flag.startswith("--") and SECRET_NAME.fullmatch(flag[2:]) is not None
        is_secret = is_named_secret and not equals
        if is_named_secret:
            continue
        value = without_private_paths(without_tokens(value))
        if equals and flag.startswith("--") and value.startswith("~"):
            kept += [flag, value]  # as two words, because a shell expands ~ at the start of a word only
        else:
            kept.append(without_private_paths(without_tokens(word)))
    return kept


def _quoted(word: str) -> str:
    if word == "~" or word.startswith("~/"):
        return "~/" + shlex.quote(word[2:]) if word[2:] else "~"
    return shlex.quote(word)


def stored_token() -> str | None:
    """The user's access token of the Hub; `None` if there is none, or its file is not for this user to read."""
    try:
        return get_token()
    except OSError:
        return None


def without_tokens(text: str) -> str:
    """Text without access tokens of the Hub and logins of URLs."""
    token = stored_token()
    if token:
        text = text.replace(token, "***")
    return URL_LOGIN.sub(r"\1", ACCESS_TOKEN.sub("***", text))


def describe_hardware(device: torch.device, num_processes: int) -> str:
    """The device, the number of processes, and the threads of each."""
    threads = counted(torch.get_num_threads(), "CPU thread")
    if device.type == "cpu":
        cores = counted(os.cpu_count() or 1, "core")
        each = " each" if num_processes > 1 else ""
        return f"{counted(num_processes, 'process', 'processes')} with {threads}{each} on {_cpu_name()} ({cores})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{num_processes} x {name}, a process with {threads} for each"


def _cpu_name() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
    except OSError:  # only Linux has it
        found = None
    machine = platform.machine()
    return f"{found[1].strip()}, {machine}" if found else platform.processor() or machine


def describe_versions() -> str:
    """Versions of Python and of the packages that a run depends on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from its folder, without an installation
            continue
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def describe_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 60:
        return counted(round(seconds), "second")
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:,.1f} hours"


def public_name(path_or_id: str) -> str:
    """The public name of a dataset or a model: its id on the Hub, or the last part of a path on this machine."""
    path = Path(os.path.expanduser(path_or_id))
    return path.resolve().name if path.exists() else without_tokens(path_or_id)


def hub_id(path_or_id: str) -> str | None:
    """The id on the Hub of a dataset or a model; `None` if it is on this machine, or built in."""
    if path_or_id == "digits" or os.path.exists(os.path.expanduser(path_or_id)):
        return None
    try:
        validate_repo_id(path_or_id)
    except HFValidationError:
        return None
    return path_or_id


def datasets_of(path_or_id: str) -> list[str] | None:
    """The dataset for a card's metadata, if it is on the Hub. A name without its owner may be that of a dataset in memory."""
    found = hub_id(path_or_id)
    return [found] if found is not None and "/" in found else None
