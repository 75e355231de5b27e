"""Programs that run one after the other, each within a time of its own, whatever becomes of the others."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL_LINES = 25
# Between SIGINT, after which a program writes what it knows, and SIGKILL.
GRACE_SECONDS = 8.0


@dataclass(frozen=True)
class Part:
    """
    A program.

    Args:
        name (`str`): What the report calls it.
        command (callable): From the seconds that it has to the command line.
        weight (`float`): Its part of the time that is left when it starts, among the weights of the parts from here on.
        max_seconds (`float`): What it gets at most.
        read (callable): Results from the files that it wrote, and a problem or `None`. Called whatever its exit code. Results
            with a true `finished` are complete, also where the program had to be stopped after it wrote them.
        missing (`str`, *optional*): Why it cannot run at all.
    """

    name: str
    command: Callable[[float], list[str]]
    weight: float
    max_seconds: float
    read: Callable[[], tuple[dict[str, Any], str | None]]
    missing: str | None = None


@dataclass
class PartResult:
    """
    What became of a part.

    Args:
        name (`str`): The part's.
        status (`str`): `"running"`, `"done"`, `"failed"`, `"out of time"` or `"left out"`.
        reason (`str`, *optional*): Why it is not done.
        limit, seconds (`float`): What it had and what it took.
        command (`list[str]`): The command line.
        results (`dict`): What it measured.
        tail (`list[str]`): The end of what it said, where it is not done.
    """

    name: str
    status: str = "running"
    reason: str | None = None
    limit: float = 0.0
    seconds: float = 0.0
    command: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)


def limit_of(part: Part, parts: list[Part], seconds_left: float) -> float:
    """Seconds of a part, of those that are left for it and the parts behind it."""
    behind = [other for other in parts[parts.index(part) :] if other.missing is None]
    return min(part.max_seconds, seconds_left * part.weight / sum(other.weight for other in behind))


def run_part(part: Part, limit: float, log: Path, settings: dict[str, Any]) -> PartResult:
    """Run a part to its end or its limit.

    Args:
        part ([`Part`]): What to run.
        limit (`float`): Seconds. Then it is asked to stop, and killed a little later; both within the limit.
        log (`Path`): File for what it says.
        settings (`dict`): `cwd` and `env` of the process.
    """
    grace = min(GRACE_SECONDS, limit / 4)
    command = part.command(limit - grace)
    result = PartResult(part.name, limit=round(limit, 1), command=command)
    started = time.monotonic()
    code, was_stopped = run_within(command, limit, grace, log, settings)
    result.seconds = round(time.monotonic() - started, 1)
    try:
        result.results, problem = part.read()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as broken:
        problem = f"its results cannot be read: {type(broken).__name__}: {broken}"
    if was_stopped and not result.results.get("finished"):
        result.status, result.reason = "out of time", f"stopped after {result.seconds:.0f} s"
    elif code != 0 and not was_stopped:
        result.status, result.reason = "failed", f"exit code {code}" + (f"; {problem}" if problem else "")
    elif problem is not None:
        result.status, result.reason = "failed", problem
    else:
        result.status = "done"
    if result.status != "done":
        result.tail = tail_of(log)
    return result


def run_within(
    command: list[str], limit: float, grace: float, log: Path, settings: dict[str, Any]
) -> tuple[int, bool]:
    """Exit code of a command, and whether it had to be stopped. The command's own processes end with it."""
    started = time.monotonic()
    with log.open("wb") as file:
        # A session of its own, so that its workers can be ended with it.
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # A session in a shell's background ignores SIGINT, and its parts would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **settings,
        )
        was_stopped = False
        try:
            try:
                process.wait(timeout=max(0.0, limit - grace))
            except subprocess.TimeoutExpired:
                was_stopped = True
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.0, started + limit - time.monotonic()))
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    return code, was_stopped


def tail_of(log: Path) -> list[str]:
    """The last lines of a log. Of a line that a progress bar wrote over and over, the last state."""
    with suppress(OSError):
        lines = log.read_text(errors="replace", encoding="utf-8").splitlines()
        return [line.rsplit("\r", 1)[-1][:300] for line in lines if line.strip()][-TAIL_LINES:]
    return []
