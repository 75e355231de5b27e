"""The history of a run, and its log."""

import sys
import time
from types import SimpleNamespace

import pytest

from modeling_sit.finetuning.callbacks import RunHistory

START = {"step": 0, "command": "a", "hardware": "b"}


def saved(history, folder, is_main_process=True):
    (folder / "checkpoint-7").mkdir(exist_ok=True)
    state = SimpleNamespace(global_step=7, is_world_process_zero=is_main_process)
    history.on_save(SimpleNamespace(output_dir=str(folder)), state, None)
    return str(folder / "checkpoint-7")


def test_starts_and_time_go_on(tmp_path):
    first = RunHistory(time.time() - 100, [START])
    again = RunHistory.read(saved(first, tmp_path), started=time.time() - 20)
    assert again.starts == [START]
    assert again.seconds == pytest.approx(120, abs=5)
    third = RunHistory.read(saved(again, tmp_path), started=time.time())
    assert third.seconds == pytest.approx(120, abs=5)


def test_the_main_process_alone_writes(tmp_path):
    saved(RunHistory(time.time()), tmp_path, is_main_process=False)
    assert not list((tmp_path / "checkpoint-7").iterdir())


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"starts": []}'])
def test_a_checkpoint_that_tells_of_none(tmp_path, content):
    if content is not None:
        (tmp_path / "run_history.json").write_text(content)
    history = RunHistory.read(str(tmp_path), started=time.time())
    assert history.starts == [] and history.seconds < 60


def test_a_run_from_the_start():
    assert RunHistory.read(None, started=time.time()).starts == []


def test_a_file_has_each_log_at_once(finetune, sit, colors, tmp_path, monkeypatch):
    """Not only when the program ends, or a buffer is full."""
    read = []
    monkeypatch.setattr(RunHistory, "on_train_end", lambda *args, **_: read.append((tmp_path / "log").read_text()))
    with (tmp_path / "log").open("w") as log, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", log)
        finetune(sit, colors, logging_strategy="steps", logging_steps=1, disable_tqdm=True)
    assert read[0].count("'loss'") == 2
