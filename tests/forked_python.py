"""`python ARGUMENTS` as a process of its own, forked from one that has the libraries, so that it starts in a moment.

Python takes seconds to import PyTorch, transformers and what else a program needs. One process of a worker of pytest does it,
and all that are started here are forked from it, after `forked_start.py`. They have an environment, a command line, a group of processes, a log and an
exit code of their own. What they do not show is what an import brings and what it costs; a test of that starts Python anew.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from disk import check_descriptor

# All that `scripts/pretrain.py`, the checks of two processes and launchers import, at once or on their way.
LIBRARIES = (
    "accelerate.commands.launch",
    "modeling_sit.cli.evaluate",
    "modeling_sit.cli.finetune",
    "modeling_sit.cli.pretrain",
    "modeling_sit.finetuning.prepare",
    "pycocotools.coco",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.tensorboard",
)

forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload([*LIBRARIES, "forked_start"])


class ForkedProcess(forking.Process):
    """A process forked from one that has the libraries, and has done what `forked_start.py` does."""

    def start(self) -> None:
        # The process that others are forked from has this folder on its path by this variable alone.
        paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
            forkserver.ensure_running()
        super().start()


class Python:
    """A process that does what `python ARGUMENTS` does, and is waited for like a `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence,
        log: Path,
        errors: Path | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ):
        self.arguments, self.log = [str(word) for word in arguments], Path(log)
        files = str(log), str(errors or log)
        environment = dict(os.environ if environment is None else environment)
        # No daemon: it may start others.
        super().__init__(
            target=run, args=(self.arguments, files, environment, str(folder or Path.cwd())), daemon=False
        )

    def poll(self) -> int | None:
        """Its exit code, `None` while it runs."""
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has one."""
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self.exitcode

    @property
    def said(self) -> str:
        """All that is in its log."""
        return self.log.read_text()


class ForkedPython(Python, ForkedProcess):
    """
    A process that does what `python ARGUMENTS` does.

    Args:
        arguments (sequence): `-c PROGRAM`, `-m MODULE` or the path of a program, and what comes after.
        log (`Path`): File that gets what it says on stdout and stderr.
        errors (`Path`, *optional*): File that gets what it says on stderr, in place of `log`.
        environment (mapping, *optional*): All variables of its environment. Default: those of this process.
        folder (`Path`, *optional*): Where it starts. Default: where this process is.
    """


class LaunchedPython(Python, multiprocessing.get_context("fork").Process):
    """The same, forked from the launcher: a forked process cannot reach the one that it was forked from."""


def run_forked(arguments: Sequence, log: Path, timeout: float = 120, **where) -> ForkedPython:
    """Run `python ARGUMENTS` to its end; `where` has `errors`, `environment` and `folder` of [`ForkedPython`]."""
    process = ForkedPython(arguments, log, **where)
    process.start()
    try:
        process.wait(timeout)
    finally:
        process.kill()
    return process


def run(arguments: list[str], files: tuple[str, str], environment: dict[str, str], folder: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    write_to(*files)
    if "OMP_NUM_THREADS" in environment:  # which PyTorch has read before
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # which a launcher handles
        signal.signal(number, signal.SIG_DFL)
    # Its dataloader workers start as those of a program do that was called from a shell.
    multiprocessing.set_start_method(None, force=True)
    fork_what_is_launched(*files)
    run_as_program(arguments)


def write_to(log: str, errors: str) -> None:
    """Let stdout and stderr of this process be the ends of two files, or of one."""
    for stream, file in ((sys.stdout, log), (sys.stderr, errors)):
        stream.flush()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def run_as_program(arguments: list[str]) -> None:
    """Run `-c PROGRAM`, `-m MODULE` or a file as `__main__`; its folder comes first on the path, as Python has it."""
    os.fsync = check_descriptor
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first, *rest = arguments
    sys.argv = [first, *rest[1:]] if first in ("-c", "-m") else arguments
    sys.path.insert(0, str(Path(first).parent) if first not in ("-c", "-m") else "")
    if first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


def fork_what_is_launched(log: str, errors: str) -> None:
    """Have `torchrun`, and `accelerate launch` which calls it, fork their processes, with the environment that they give them."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def start(handler, command, environment) -> LaunchedPython:
        python, *arguments = command
        assert python == sys.executable, command
        arguments = [word for word in arguments if word != "-u"]
        process = LaunchedPython(arguments, Path(log), Path(errors), environment)
        process.start()
        return process

    SubprocessHandler._popen = start
