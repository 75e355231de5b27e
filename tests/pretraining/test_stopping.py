"""A signal ends a run soon, also while no batch comes, and leaves what it has learnt."""

import os
import signal
import threading
import time

import pytest
from pretraining_runs import assert_equal, checkpoints_of, weights_in

from modeling_sit.data import training_data
from modeling_sit.runtime import waiting
from modeling_sit.runtime.errors import TrainingInterrupted


@pytest.fixture
def third_batch_hangs(monkeypatch):
    """And meanwhile a SIGTERM comes."""
    monkeypatch.setattr(waiting, "SECONDS_AFTER_A_SIGNAL", 0.5)
    collate, collated, run = training_data.collate_crops, [], os.getpid()

    def hang(items):
        collated.append(items)
        if len(collated) == 3:
            threading.Timer(0.5, os.kill, (run, signal.SIGTERM)).start()
            time.sleep(1000)
        return collate(items)

    monkeypatch.setattr(training_data, "collate_crops", hang)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_checkpoint_of_the_last_step(pretrain, third_batch_hangs, tmp_path, monkeypatch, num_workers):
    arguments = {"max_steps": 4, "dataloader_num_workers": num_workers}
    started = time.monotonic()
    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 2: its checkpoint is written") as stop:
        pretrain(**arguments)
    assert time.monotonic() - started < 30
    assert stop.value.signal == signal.SIGTERM
    assert checkpoints_of(tmp_path / "out") == [2]
    monkeypatch.undo()
    resumed = pretrain(**arguments, resume_from_checkpoint="auto")
    assert_equal(weights_in(resumed), weights_in(pretrain("whole", **arguments)))


def test_amid_a_step(pretrain, third_batch_hangs, tmp_path):
    """Batches of the step have gone into the statistics of batch norms: such a checkpoint would be of no step."""
    with pytest.raises(TrainingInterrupted, match="after step 1: there is no checkpoint yet"):
        pretrain(max_steps=4, gradient_accumulation_steps=2)
    assert not (tmp_path / "out" / "checkpoints").exists() or checkpoints_of(tmp_path / "out") == []


def test_without_checkpoints(pretrain, third_batch_hangs, tmp_path):
    with pytest.raises(TrainingInterrupted, match="no checkpoint was written"):
        pretrain(max_steps=4, checkpointing_steps="no")
