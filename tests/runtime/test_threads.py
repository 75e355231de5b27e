"""modeling_sit/runtime/threads.py: as many threads as the process has cores, by what commands say of themselves."""

import os
import re
import subprocess
import sys

import joblib
import pytest
import torch

from modeling_sit.runtime.threads import use_allowed_cores

THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture
def four_threads(monkeypatch):
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (3, 3), (4, 4), (64, 4)])
def test_no_more_threads_than_cores(four_threads, monkeypatch, num_cores, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: num_cores)
    use_allowed_cores()
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize("name", THREADS)
def test_what_the_user_gave_stays(four_threads, monkeypatch, name):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    monkeypatch.setenv(name, "4")
    use_allowed_cores()
    assert torch.get_num_threads() == 4


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is one thread anyway")
def test_a_command(tmp_path):
    """`LOKY_MAX_CPU_COUNT` says the same as a container's limit."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    result = subprocess.run(
        [sys.executable, "-m", "modeling_sit", "doctor"],
        env={**environment, "LOKY_MAX_CPU_COUNT": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"with 1 CPU thread\b", result.stdout)
