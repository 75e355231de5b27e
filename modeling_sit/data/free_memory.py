"""How much memory this process may still take, also where its job or container has less than the machine."""

from collections.abc import Iterator
from pathlib import Path

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that this process may still take, of the machine and of each control group that it is in.

    A container and a SLURM job are control groups. psutil knows the memory of the machine alone. Memory that holds
    files which can be read again counts as free.
    """
    free = psutil.virtual_memory().available
    for folder, limit, used, files in _memory_groups():
        try:
            limited_to = int((folder / limit).read_text(encoding="utf-8"))
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
            held = int((folder / used).read_text(encoding="utf-8")) - int(statistics[files])
        except (OSError, ValueError, KeyError):  # not visible from here, or without a limit
            continue
        free = min(free, limited_to - held)
    return max(0, free)


def _memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """The folders of the process's control groups and of their parents. With each come the names of its files with the
    limit and the use, and of the line with the part of files. Both versions of control groups are known."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = CONTROL_GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = CONTROL_GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        while True:
            yield folder, *names
            if folder == root:
                break
            folder = folder.parent
