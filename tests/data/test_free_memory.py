"""Free memory is what the machine, the container and the job all leave. Files that can be read again count as free."""

from types import SimpleNamespace

import psutil
import pytest

from modeling_sit.data import free_memory as module
from modeling_sit.data.free_memory import free_memory

MACHINE = 10_000


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Write what the kernel says of a control group; the process is in `job/step` of both versions, and in others."""
    (tmp_path / "cgroup").write_text("12:cpu,cpuacct:/\n4:memory:/job/step\n1:name=systemd:/a:b\n0::/job/step\n")
    monkeypatch.setattr(module, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))

    def group(name: str, limit, used: int, files: int = 0) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        first = name.partition("/")[0] == "memory"
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
        # Of the first version, only the line that counts the groups inside, too, is that of `used`.
        lines = [f"inactive_file {1 if first else files}", f"total_inactive_file {files}", "anon 5"]
        (folder / "memory.stat").write_text("\n".join(lines) + "\n")

    return group


def test_without_groups_is_the_machines(group):
    assert free_memory() == MACHINE


@pytest.mark.parametrize("root", ["", "memory/"])
@pytest.mark.parametrize("name", ["job/step", "job", "."])
def test_any_group_around_the_process_limits_it(group, root, name):
    group(f"{root}{name}", 4000, 1500)
    assert free_memory() == 2500


@pytest.mark.parametrize("root", ["", "memory/"])
def test_files_that_can_be_read_again_are_free(group, root):
    group(f"{root}job", 4000, 3900, files=3000)
    assert free_memory() == 3100


def test_the_least_counts(group):
    group("job/step", "max", 900)
    group("job", 8000, 3000)
    group("memory/job/step", 9223372036854771712, 900)
    group("memory/job", 6000, 4000)
    assert free_memory() == 2000


def test_groups_of_others_do_not_count(group):
    group("other", 100, 0)
    group("job/step/inside", 100, 0)
    assert free_memory() == MACHINE


def test_a_full_group_leaves_nothing(group):
    group("job", 4000, 4100)
    assert free_memory() == 0


def test_where_there_are_no_control_groups(group, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "none")
    assert free_memory() == MACHINE


def test_here():
    assert 0 < free_memory() <= psutil.virtual_memory().total
