"""A program of `scripts/` in a process of its own, forked from one that has its libraries, so that it starts in a moment."""

import multiprocessing
import os
import resource
import runpy
import socket
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
# All that `scripts/pretrain.py` imports, at once or on its way.
LIBRARIES = (
    "modeling_sit.cli.parser",
    "modeling_sit.pretraining.run",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch.utils.tensorboard",
)

forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload([*LIBRARIES, __name__])


class ProgramProcess(forking.Process):
    """
    Runs a program; a process of the operating system like any other, to be killed and waited for.

    Args:
        name (`str`): The program's file without its ending.
        flags: Its flags.
        log (`Path`): File that gets what it says.
        max_file_size (`int`, *optional*): Bytes that it can write to a file; beyond, writing fails as on a full disk.
        environment (`dict`, *optional*): Variables of its environment.
    """

    def __init__(
        self,
        name: str,
        *flags,
        log: Path,
        max_file_size: int | None = None,
        environment: dict[str, str] | None = None,
    ):
        arguments = (name, [str(flag) for flag in flags], str(log), max_file_size, environment or {})
        # No daemon: it has dataloader workers of its own.
        super().__init__(target=run, args=arguments, daemon=False)
        self.log = log

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; minus a signal's number where the signal ended it."""
        self.join(seconds)
        if self.is_alive():
            self.kill()
            raise TimeoutError(self.log.read_text())
        return self.exitcode

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to all of its group: its dataloader workers too."""
        (os.killpg if group else os.kill)(self.pid, number)


def start_together(name: str, *flags, log: Path, count: int = 2) -> list[ProgramProcess]:
    """Start a program in several processes of one run on the CPU, as `torchrun` does; process 0 is the main one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "ACCELERATE_USE_CPU": "true",
        }
        environment = {variable: str(value) for variable, value in environment.items()}
        processes.append(ProgramProcess(name, *flags, log=log, environment=environment))
        processes[-1].start()
    return processes


def run(name: str, flags: list[str], log: str, max_file_size: int | None, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    # Its dataloader workers start as those of a program do that was called from a shell.
    multiprocessing.set_start_method(None, force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    script = SCRIPTS / f"{name}.py"
    sys.argv = [str(script), *flags]
    sys.path.insert(0, str(SCRIPTS))  # as Python does for a program
    runpy.run_path(str(script), run_name="__main__")
