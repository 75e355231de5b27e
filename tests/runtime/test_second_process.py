"""The second process: it works in turn, prints into its log, hands errors over, and does not outlive its block."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.runtime.second_process import say, second_process


@pytest.fixture
def cores(monkeypatch):
    """How many cores this process may use: an item to set."""
    number = [2]
    monkeypatch.setattr(joblib, "cpu_count", lambda: number[0])
    return number


def test_works_in_turn(cores, tmp_path, capfd):
    log, path = tmp_path / "log", tmp_path / "file"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    cores[0] = 4
    with second_process(log) as second:
        assert torch.get_num_threads() == 2
        second.begin(write_facts, path)
        second.begin(os.replace, path, tmp_path / "renamed")
        second.begin(print, "for the log")
        second.begin(say, "for the terminal")
        second.wait()
        assert second.is_done()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(num_threads)

    process, its_threads = map(int, (tmp_path / "renamed").read_text().split())
    assert process != os.getpid() and its_threads == 2
    assert not is_running(process)
    assert "for the log" in log.read_text() and "for the terminal" not in log.read_text()
    out = capfd.readouterr().out
    assert "for the terminal" in out and "for the log" not in out


def test_hands_errors_over(cores, tmp_path):
    with second_process(tmp_path / "log") as second:
        second.begin(read_recipe, tmp_path / "missing.yaml")
        with pytest.raises(SiTError) as raised:
            second.wait()
        with pytest.raises(SiTError):  # it is not forgotten
            second.begin(print)
    with pytest.raises(SiTError) as here:
        read_recipe(tmp_path / "missing.yaml")
    assert str(raised.value) == str(here.value) and raised.value.argument == here.value.argument


def test_a_process_that_died_is_one_error(cores, tmp_path):
    with second_process(tmp_path / "log") as second:
        second.begin(os._exit, 1)
        with pytest.raises(SiTError, match="log"):
            second.wait()
        with pytest.raises(SiTError, match="log"):
            second.begin(print)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_ends_with_a_first_process_that_is_killed_at_once(tmp_path):
    """It notices when it has imported what it needs."""
    program = f"""
import os, signal, joblib
from pathlib import Path
from modeling_sit.runtime.second_process import second_process
joblib.cpu_count = lambda: 2
with second_process(Path({str(tmp_path / "log")!r})) as second:
    print(*second._executor._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    first = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL
    second, started = int(first.stdout), time.monotonic()
    while is_running(second):
        assert time.monotonic() - started < 60
        time.sleep(0.1)


def test_does_not_outlive_its_block(cores, tmp_path):
    path = tmp_path / "file"
    started = time.monotonic()
    with pytest.raises(KeyError), second_process(tmp_path / "log") as second:
        second.begin(write_facts, path)
        second.begin(time.sleep, 600)
        second.begin(Path.touch, tmp_path / "never")
        while not path.is_file() or len(path.read_text().split()) < 2:
            time.sleep(0.05)
        raise KeyError
    assert time.monotonic() - started < 60
    assert not is_running(int(path.read_text().split()[0]))
    assert not (tmp_path / "never").exists()


def test_one_core_has_none(cores, tmp_path):
    cores[0], num_threads = 1, torch.get_num_threads()
    with second_process(tmp_path / "log") as second:
        assert second is None and torch.get_num_threads() == num_threads
    assert not (tmp_path / "log").exists()


def write_facts(path: Path) -> None:
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
