"""A lock that another process holds, and one that cannot be had, are two things."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from modeling_sit.runtime.locks import LockHeld, take_lock, taken, warn_without_lock

NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


@pytest.fixture(autouse=True)
def forget_warnings():
    warn_without_lock.cache_clear()
    yield
    warn_without_lock.cache_clear()


def failing(number: int):
    def lock(*arguments):
        raise OSError(number, os.strerror(number))

    return lock


def test_held_by_another(tmp_path, capsys):
    with open(tmp_path / "lock", "w") as mine, open(tmp_path / "lock", "w") as other:
        assert take_lock(mine, NOW, "trouble") is True
        with pytest.raises(LockHeld):
            take_lock(other, NOW, "trouble")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_each_way_to_say_that_it_is_held(tmp_path, number):
    with open(tmp_path / "lock", "w") as file, pytest.raises(LockHeld):
        take_lock(file, NOW, "trouble", failing(number))


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EIO, errno.EPERM]
)
def test_there_are_none_is_said_once(tmp_path, capsys, number):
    with open(tmp_path / "lock", "w") as file:
        for _ in range(3):
            assert take_lock(file, NOW, "a second run would not be noticed", failing(number)) is False
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in line and "a second run would not be noticed" in line


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_work_that_another_process_does_is_not_ours_until_it_is_gone(tmp_path):
    path = tmp_path / "locks" / "work.lock"
    with taken(path, "trouble") as is_ours:
        assert is_ours
    other = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout.readline() == b"held\n"
        with taken(path, "trouble") as is_ours:
            assert not is_ours
        other.kill()
    with taken(path, "trouble") as is_ours:
        assert is_ours


def test_work_is_ours_where_there_are_no_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "lockf", failing(errno.ENOLCK))
    with taken(tmp_path / "lock", "two may do the same") as is_ours:
        assert is_ours
    assert "two may do the same" in capsys.readouterr().err
