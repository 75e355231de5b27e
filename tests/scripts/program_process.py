"""A program of `scripts/` in a process of its own, forked from one that has its libraries, so that it starts in a moment."""

import itertools
import multiprocessing
import os
import pkgutil
import resource
import signal
import socket
import time
from pathlib import Path

import psutil
from forked_python import ForkedProcess, run_as_program, write_to

from modeling_sit.data import dataset_forms

SCRIPTS = Path(__file__).parents[2] / "scripts"


class ProgramProcess(ForkedProcess):
    """
    Runs a program; a process of the operating system like any other, to be killed and waited for.

    Args:
        name (`str`): The program's file without its ending.
        flags: Its flags.
        log (`Path`): File that gets what it says.
        at (`tuple`, *optional*): A signal that it sends to all of its group, itself too, at a place where a signal from
            outside would come by chance: the module and the function as the module names it, the number of the call
            before which it does, from 1, and the signal.
        max_file_size (`int`, *optional*): Bytes that it can write to a file; beyond, writing fails as on a full disk.
        environment (`dict`, *optional*): Variables of its environment.
        num_digits (`int`, *optional*): How many images `digits` has to train on. Default: all 1,437.
    """

    def __init__(
        self,
        name: str,
        *flags,
        log: Path,
        at: tuple[str, str, int, int] | None = None,
        max_file_size: int | None = None,
        environment: dict[str, str] | None = None,
        num_digits: int | None = None,
    ):
        arguments = (name, [str(flag) for flag in flags], str(log), at, max_file_size, environment or {}, num_digits)
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

    def wait_until_stopped(self, seconds: float = 120) -> None:
        """Until SIGSTOP has stopped it."""
        started = time.monotonic()
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
            assert self.is_alive() and time.monotonic() - started < seconds, self.log.read_text()
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """Send a signal to all of its group: its dataloader workers too."""
        os.killpg(self.pid, number)


def start_together(
    name: str,
    *flags,
    log: Path,
    count: int = 2,
    at: dict[int, tuple] | None = None,
    num_digits: int | None = None,
) -> list[ProgramProcess]:
    """Start a program in several processes of one run on the CPU, as `torchrun` does; process 0 is the main one.

    Args:
        name (`str`): As [`ProgramProcess`] has it, like `flags` and `log`.
        flags: Of all of them.
        log (`Path`): Of all of them.
        count (`int`, *optional*, defaults to 2): How many.
        at (`dict`, *optional*): The `at` of some processes, by their numbers.
        num_digits (`int`, *optional*): As [`ProgramProcess`] has it.
    """
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
        chances = {"at": (at or {}).get(rank), "environment": environment, "num_digits": num_digits}
        processes.append(ProgramProcess(name, *flags, log=log, **chances))
        processes[-1].start()
    return processes


def send_before_call(module: str, function: str, call: int, number: signal.Signals) -> None:
    """Have a function of a module, or a method of a class in it, send a signal before one of its calls."""
    *path, name = function.split(".")
    owner, calls = pkgutil.resolve_name(f"{module}:{'.'.join(path)}"), itertools.count(1)
    called = getattr(owner, name)

    def sending(*args, **kwargs):
        if next(calls) == call:
            os.killpg(0, number)
        return called(*args, **kwargs)

    setattr(owner, name, sending)


def run(
    name: str,
    flags: list[str],
    log: str,
    at: tuple[str, str, int, int] | None,
    max_file_size: int | None,
    environment: dict[str, str],
    num_digits: int | None,
) -> None:
    os.setsid()
    os.environ.update(environment)
    # Where the tests run under `nohup`, it is ignored here, and the program would go on.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Its dataloader workers start as those of a program do that was called from a shell.
    multiprocessing.set_start_method(None, force=True)
    write_to(log, log)
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    if num_digits is not None:
        digits = dataset_forms._load_digits()
        digits["train"] = digits["train"].select(range(num_digits))
        dataset_forms._load_digits = lambda: dict(digits)
    if at is not None:
        send_before_call(*at)
    run_as_program([str(SCRIPTS / f"{name}.py"), *flags])
