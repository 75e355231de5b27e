"""`metrics.jsonl`: what is kept when a run goes on, what a crash leaves, and a full disk."""

import json
import os

import pytest

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.metrics_log import MetricsLog, read_metrics


def write_lines(path, steps) -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps))


def steps_in(path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def refuse(*arguments, **settings):
    raise OSError(28, "No space left on device")


def test_one_object_a_line_at_once(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    log = MetricsLog(path)
    assert path.read_text() == ""
    log.write({"step": 1, "loss": 0.5})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}
    log.write({"step": 2, "loss": 0.25})
    assert path.read_text().count("\n") == 2
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_run_that_goes_on_drops_what_it_writes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20, 30, 40])
    MetricsLog(path, resume_step=25).write({"step": 30, "loss": 7})
    assert steps_in(path) == [10, 20, 30]
    assert read_metrics(path)[-1]["loss"] == 7


def test_the_step_of_the_checkpoint_itself_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20, 30])
    MetricsLog(path, resume_step=20)
    assert steps_in(path) == [10, 20]


def test_what_is_kept_is_kept_to_the_last_digit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 1e-300}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = path.read_text()
    MetricsLog(path, resume_step=2)
    assert path.read_text() == before


def test_a_run_from_the_start_drops_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    MetricsLog(path)
    assert read_metrics(path) == []


def test_last_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    whole = path.read_text()
    for length in range(len(whole) // 2 + 1, len(whole) - 1):
        path.write_text(whole[:length])
        assert steps_in(path) == [10]
    MetricsLog(path, resume_step=20).write({"step": 20})
    assert steps_in(path) == [10, 20]


def test_last_line_without_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    path.write_text(path.read_text().rstrip("\n"))
    MetricsLog(path, resume_step=20).write({"step": 30})
    assert steps_in(path) == [10, 20, 30]


@pytest.mark.parametrize("rest", [b"\0" * 50, b"\xff\xfe\x80", b'{"step": 30, "lo\xc3'])
def test_what_a_loss_of_power_leaves_at_the_end(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    path.write_bytes(path.read_bytes() + rest)
    assert steps_in(path) == [10, 20]
    MetricsLog(path, resume_step=20).write({"step": 30})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]


class TestTrouble:
    @pytest.fixture
    def log(self, tmp_path):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.write({"step": 1})
        return log

    def test_starting_leaves_what_was_there(self, log, monkeypatch):
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device; .*make room"):
            MetricsLog(log.path, resume_step=0)
        assert steps_in(log.path) == [1]

    def test_writing(self, log, monkeypatch):
        monkeypatch.setattr(type(log.path), "open", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device"):
            log.write({"step": 2})

    def test_flushing(self, log, monkeypatch):
        """Some file systems find only now that there is no room."""
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device"):
            log.sync()


def test_sync_flushes_the_file(tmp_path, monkeypatch):
    log, flushed = MetricsLog(tmp_path / "metrics.jsonl"), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    log.sync()
    assert flushed == [log.path.stat().st_ino]
