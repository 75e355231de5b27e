"""What a run tells: means since the last line, and losses that are not finite."""

import json
import math

import pytest
import torch
from accelerate import Accelerator

from modeling_sit import SiTForPreTrainingOutput
from modeling_sit.training.progress import NonFiniteLoss, RunProgress

SCHEDULE = {"learning_rate": 1e-4, "weight_decay": 0.05, "teacher_momentum": 0.996}


@pytest.fixture
def progress(tmp_path):
    progress = RunProgress(Accelerator(cpu=True), tmp_path, first_step=0, num_steps=10)
    yield progress
    progress.close()


def output(reconstruction: float | None = 1.0, contrast: float | None = 2.0) -> SiTForPreTrainingOutput:
    losses = [None if loss is None else torch.tensor(loss, requires_grad=True) for loss in (reconstruction, contrast)]
    return SiTForPreTrainingOutput(
        loss=sum(loss for loss in losses if loss is not None),
        reconstruction_loss=losses[0],
        contrastive_loss=losses[1],
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_what_the_design_says(progress, tmp_path):
    progress.count(output(), 64)
    progress.tell(10, 0.5, SCHEDULE)
    (line,) = lines(tmp_path)
    assert list(line) == [
        "step",
        "epoch",
        "loss",
        "reconstruction_loss",
        "contrastive_loss",
        "learning_rate",
        "weight_decay",
        "teacher_momentum",
        "images_per_second",
        "data_wait",
    ]
    assert (line["step"], line["epoch"]) == (10, 0.5)
    assert {name: line[name] for name in SCHEDULE} == SCHEDULE


def test_means_since_the_last_line(progress, tmp_path):
    for reconstruction in (1.0, 2.0, 6.0):
        progress.count(output(reconstruction, 2.0), 4)
    progress.tell(3, 0.1, SCHEDULE)
    progress.count(output(5.0, 1.0), 4)
    progress.tell(4, 0.2, SCHEDULE)
    first, second = lines(tmp_path)
    assert (first["loss"], first["reconstruction_loss"], first["contrastive_loss"]) == (5.0, 3.0, 2.0)
    assert (second["loss"], second["reconstruction_loss"], second["contrastive_loss"]) == (6.0, 5.0, 1.0)


def test_a_loss_that_was_not_computed_counts_as_0(progress, tmp_path):
    progress.count(output(contrast=None), 4)
    progress.check_losses()
    progress.tell(1, 0.1, SCHEDULE)
    assert lines(tmp_path)[0]["contrastive_loss"] == 0


def test_speed_and_waiting(progress, tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def batches():
        nonlocal now
        for _ in range(2):
            now += 1.0
            yield "batch"

    progress._start_window()
    for batch in progress.wait_for(batches()):
        assert batch == "batch"
        now += 3.0
        progress.count(output(), 20)
    progress.tell(2, 0.1, SCHEDULE)
    (line,) = lines(tmp_path)
    assert line["images_per_second"] == pytest.approx(40 / 8)
    assert line["data_wait"] == pytest.approx(2 / 8)


def test_graph_is_not_kept(progress):
    given = output()
    progress.count(given, 4)
    assert given.loss.requires_grad
    assert not any(losses.requires_grad for losses in progress._losses)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_named_with_how_long_ago(progress, value):
    progress.count(output(), 4)
    progress.check_losses()
    progress.count(output(reconstruction=value), 4)
    progress.count(output(), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss not finite") as error:
        progress.check_losses()
    assert error.value.batches_ago == 1
    assert error.value.terms == ["reconstruction_loss"]


def test_all_terms_are_named_and_the_first_batch_counts(progress):
    progress.count(output(math.nan, math.inf), 4)
    progress.count(output(math.nan), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss and contrastive_loss") as error:
        progress.check_losses()
    assert error.value.batches_ago == 1


def test_sum_is_named_where_no_term_is_to_blame(progress):
    given = output()
    given.loss = torch.tensor(math.inf)
    progress.count(given, 4)
    with pytest.raises(NonFiniteLoss, match=r"^loss not finite"):
        progress.check_losses()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    progress = RunProgress(accelerator, tmp_path, 0, 10)
    progress.count(output(), 4)
    progress.tell(1, 0.1, SCHEDULE)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_that_goes_on_drops_lines_beyond(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    progress = RunProgress(Accelerator(cpu=True), tmp_path, first_step=2, num_steps=10)
    assert progress.bar.n == 2
    progress.advance()
    assert progress.bar.n == 3
    progress.close()
    assert lines(tmp_path) == [{"step": 2}]
