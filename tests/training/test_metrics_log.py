"""`metrics.jsonl`: what is kept when a run goes on, and what a crash leaves."""

import json

from modeling_sit.training.metrics_log import MetricsLog, read_metrics


def write_lines(path, steps) -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps))


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
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30]
    assert read_metrics(path)[-1]["loss"] == 7


def test_the_step_of_the_checkpoint_itself_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20, 30])
    MetricsLog(path, resume_step=20)
    assert [line["step"] for line in read_metrics(path)] == [10, 20]


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
        assert [line["step"] for line in read_metrics(path)] == [10]
    MetricsLog(path, resume_step=20).write({"step": 20})
    assert [line["step"] for line in read_metrics(path)] == [10, 20]


def test_last_line_without_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    path.write_text(path.read_text().rstrip("\n"))
    MetricsLog(path, resume_step=20).write({"step": 30})
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30]
