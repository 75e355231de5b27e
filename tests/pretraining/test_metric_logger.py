"""What a run tells: means since the last line, and losses that are not finite."""

import io
import json
import math
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from modeling_sit import SiTForPreTrainingOutput
from modeling_sit.pretraining.metric_logger import LOSSES, MetricLogger, NonFiniteLoss, logged_losses
from modeling_sit.runtime.errors import SiTError

SCHEDULE = {"learning_rate": 1e-4, "weight_decay": 0.05, "teacher_momentum": 0.996}


@pytest.fixture
def progress(tmp_path):
    progress = MetricLogger(Accelerator(cpu=True), tmp_path, first_step=0, num_steps=10)
    yield progress
    progress.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def output(reconstruction: float | None = 1.0, contrast: float | None = 2.0) -> SiTForPreTrainingOutput:
    losses = [None if loss is None else torch.tensor(loss, requires_grad=True) for loss in (reconstruction, contrast)]
    return SiTForPreTrainingOutput(
        loss=sum(loss for loss in losses if loss is not None),
        reconstruction_loss=losses[0],
        contrastive_loss=losses[1],
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tell(progress, steps: int = 1, epoch: float = 0.5) -> None:
    """Tell, so many steps after the last telling."""
    for _ in range(steps):
        progress.advance()
    progress.tell(epoch, SCHEDULE)


def test_a_line_holds_what_the_design_says(progress, tmp_path):
    progress.count(output(), 64)
    tell(progress, steps=10)
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
    tell(progress, steps=3)
    progress.count(output(5.0, 1.0), 4)
    tell(progress)
    first, second = lines(tmp_path)
    assert (first["step"], second["step"]) == (3, 4)
    assert (first["loss"], first["reconstruction_loss"], first["contrastive_loss"]) == (5.0, 3.0, 2.0)
    assert (second["loss"], second["reconstruction_loss"], second["contrastive_loss"]) == (6.0, 5.0, 1.0)


def test_a_loss_that_was_not_computed_counts_as_0(progress, tmp_path):
    progress.count(output(contrast=None), 4)
    progress.check(1)
    tell(progress)
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
    tell(progress, steps=2)
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
    progress.check(1)
    progress.count(output(reconstruction=value), 4)
    progress.count(output(), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss not finite") as error:
        progress.check(1)
    assert error.value.batches_ago == 1
    assert error.value.terms == ["reconstruction_loss"]


def test_all_terms_are_named_and_the_first_batch_counts(progress):
    progress.count(output(math.nan, math.inf), 4)
    progress.count(output(math.nan), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss and contrastive_loss") as error:
        progress.check(1)
    assert error.value.batches_ago == 1


def test_sum_is_named_where_no_term_is_to_blame(progress):
    given = output()
    given.loss = torch.tensor(math.inf)
    progress.count(given, 4)
    with pytest.raises(NonFiniteLoss, match=r"^loss not finite"):
        progress.check(1)


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    progress = MetricLogger(accelerator, tmp_path, 0, 10)
    progress.count(output(), 4)
    tell(progress)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_that_goes_on_drops_lines_beyond(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    with redirect_stderr(Terminal()), MetricLogger(Accelerator(cpu=True), tmp_path, 2, num_steps=10) as progress:
        assert progress.bar.n == 2
        progress.advance()
        assert progress.bar.n == 3
    assert lines(tmp_path) == [{"step": 2}]


class TestWindow:
    """What was counted since the last line travels in the checkpoint, so that the next line is the same."""

    RECONSTRUCTION = (0.1, 1 / 3, 7e-5, 2.7, 1e4)

    def lines_of_a_run_that_goes_on(self, folder, stopped_after: int) -> list[dict]:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        steps = list(enumerate(self.RECONSTRUCTION, start=1))
        window = None
        for part in (steps[:stopped_after], steps[stopped_after:]):
            first_step = part[0][0] - 1
            with MetricLogger(Accelerator(cpu=True), folder, first_step, num_steps=5, window=window) as progress:
                for step, loss in part:
                    progress.count(output(loss), 4)
                    progress.advance()
                    if step % 4 == 0 or step == 5:
                        progress.tell(0.1 * step, SCHEDULE)
                window = json.loads(json.dumps(progress.state_dict()))
        return [{name: line[name] for name in ("step", "epoch", *LOSSES)} for line in lines(folder)]

    def test_lines_are_the_same_wherever_it_was_stopped(self, tmp_path):
        whole, *others = (self.lines_of_a_run_that_goes_on(tmp_path, stop) for stop in (4, 1, 2, 3))
        assert [line["step"] for line in whole] == [4, 5]
        means = torch.tensor(self.RECONSTRUCTION[:4], dtype=torch.float64).mean().item()
        assert whole[0]["reconstruction_loss"] == pytest.approx(means, rel=1e-6)
        assert others == [whole] * 3

    def test_speed_goes_on_too(self, tmp_path, monkeypatch):
        now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: now)
        with MetricLogger(Accelerator(cpu=True), tmp_path, 0, 2) as progress:
            progress.count(output(), 10)
            progress.advance()
            progress._waited, now = 1.0, 104.0
            window = progress.state_dict()
        now = 1000.0  # down for a quarter of an hour
        with MetricLogger(Accelerator(cpu=True), tmp_path, 1, 2, window=window) as progress:
            progress.count(output(), 10)
            now += 4
            tell(progress)
        (line,) = lines(tmp_path)
        assert (line["images_per_second"], line["data_wait"]) == (20 / 8, 1 / 8)

    def test_empty(self, tmp_path):
        with MetricLogger(Accelerator(cpu=True), tmp_path, 0, 2) as progress:
            window = progress.state_dict()
        assert (window["losses"], window["num_images"], window["waited"]) == ([], 0, 0.0)
        with MetricLogger(Accelerator(cpu=True), tmp_path, 1, 2, window=window) as progress:
            progress.check(1)
            progress.count(output(3.0), 10)
            tell(progress)
        assert lines(tmp_path)[0]["reconstruction_loss"] == 3

    @pytest.mark.parametrize("num_processes", [1, 2, 3])
    def test_each_process_has_its_own_again(self, tmp_path, num_processes):
        """Two processes counted 1 and 2, and 5 and 8; where there are not two any more, each has the means."""

        def accelerator_of(process_index, num_processes):
            return SimpleNamespace(
                is_main_process=True,  # so that each of them writes its line
                device=torch.device("cpu"),
                num_processes=num_processes,
                process_index=process_index,
                gather=lambda own: torch.cat([own, own + torch.tensor([[4.0], [6.0]])]),
                reduce=lambda own, reduction: own,
                log=lambda values, step: None,
            )

        with MetricLogger(accelerator_of(0, 2), tmp_path, 0, 4) as progress:
            for loss in (1.0, 2.0):
                progress.count(output(loss), 8)
                progress.advance()
            window = json.loads(json.dumps(progress.state_dict()))
        expected = (1.5, 6.5) if num_processes == 2 else (4.0,) * num_processes
        for process_index in range(num_processes):
            accelerator = accelerator_of(process_index, num_processes)
            with MetricLogger(accelerator, tmp_path / "resumed", 2, 4, window=window) as progress:
                tell(progress)
            assert lines(tmp_path / "resumed")[-1]["reconstruction_loss"] == expected[process_index]

    def test_taking_it_changes_nothing(self, progress, tmp_path):
        progress.count(output(1.0), 4)
        progress.state_dict()
        progress.count(output(3.0), 4)
        tell(progress)
        assert lines(tmp_path)[0]["reconstruction_loss"] == 2


class TestGradient:
    def test_that_is_not_finite_is_named_with_how_long_ago(self, progress):
        """The loss before it was finite; without this the weights after it would go into a checkpoint."""
        for norm in (1.0, math.nan, 3.0):
            for _ in range(2):
                progress.count(output(), 4)
            progress.count_gradient(torch.tensor(norm))
        with pytest.raises(NonFiniteLoss, match="gradient not finite") as error:
            progress.check(2)
        assert (error.value.batches_ago, error.value.terms) == (2, ["gradient"])

    def test_of_the_scaler_does_no_harm(self, progress, monkeypatch):
        monkeypatch.setattr(type(progress.accelerator), "mixed_precision", property(lambda self: "fp16"))
        progress.count(output(), 4)
        progress.count_gradient(torch.tensor(math.inf))
        progress.check(1)
        progress.count(output(math.inf), 4)
        with pytest.raises(NonFiniteLoss, match="reconstruction_loss"):
            progress.check(1)

    def test_of_a_window_that_was_told_is_forgotten(self, progress):
        progress.count(output(), 4)
        progress.count_gradient(torch.tensor(1.0))
        tell(progress)
        assert progress._gradient_norms == []
        progress.check(1)


class TestTelling:
    def test_lines_without_a_terminal(self, progress, capsys):
        for _ in range(2):
            progress.count(output(1.25, 2.0), 4)
            tell(progress, steps=2)
        captured = capsys.readouterr()
        first, second = captured.err.splitlines()
        assert first.startswith("step 2/10, epoch 0.5: loss 3.250, reconstruction 1.250, contrastive 2.000, ")
        assert "images/s" in first and "data wait" in first and first.endswith(" left")
        assert second.startswith("step 4/10")
        assert "\r" not in captured.err and captured.out == ""

    def test_time_left(self, tmp_path, capsys, monkeypatch):
        now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: now)
        with MetricLogger(Accelerator(cpu=True), tmp_path, first_step=10, num_steps=20) as progress:
            progress.count(output(), 4)
            now += 60
            tell(progress, steps=2)
        assert capsys.readouterr().err.splitlines()[0].endswith("04:00 left")  # 8 steps at 30 seconds

    def test_bar_on_a_terminal(self, tmp_path):
        with (
            redirect_stderr(Terminal()) as terminal,
            MetricLogger(Accelerator(cpu=True), tmp_path, first_step=3, num_steps=10) as progress,
        ):
            progress.count(output(), 4)
            tell(progress)
        said = terminal.getvalue()
        assert "4/10" in said and "loss 3, recon 1, contr 2" in said
        assert "step 4/10, epoch" not in said  # no line beside it

    def test_nobody_listens_any_more(self, progress, monkeypatch, tmp_path):
        """Ctrl-C ends a `| tee` at once, before the last line and the checkpoint are written."""

        class Broken(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, "Broken pipe")

        progress.count(output(), 4)
        monkeypatch.setattr(sys, "stderr", Broken())
        tell(progress)
        progress.log_monitors(0.1, {"rank": 3.0})
        assert len(lines(tmp_path)) == 1

    def test_monitors(self, tmp_path, capsys):
        (tmp_path / "monitors.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
        with MetricLogger(Accelerator(cpu=True), tmp_path, 2, 10, monitored=True) as progress:
            progress.advance()
            progress.log_monitors(0.25, {"rank": 3.5, "knn_accuracy": 0.75}, "look at that")
        written = [json.loads(line) for line in (tmp_path / "monitors.jsonl").read_text().splitlines()]
        assert written == [{"step": 2}, {"step": 3, "epoch": 0.25, "rank": 3.5, "knn_accuracy": 0.75}]
        said = capsys.readouterr().err
        assert "step 3: rank 3.5, knn_accuracy 0.75\nstep 3: look at that\n" in said

    def test_no_monitors_no_file(self, progress, tmp_path):
        progress.log_monitors(0.25, {"rank": 3.5})
        assert not (tmp_path / "monitors.jsonl").exists()

    def test_trackers(self, progress, monkeypatch):
        told = []
        monkeypatch.setattr(progress.accelerator, "log", lambda values, step: told.append((step, values)))
        progress.count(output(), 4)
        tell(progress, steps=2)
        progress.log_monitors(0.5, {"rank": 3.5})
        (step, metrics), monitors = told
        assert step == 2 and metrics["loss"] == 3 and metrics["learning_rate"] == 1e-4
        assert monitors == (2, {"monitors/rank": 3.5})

    def test_rotation_where_it_is_a_task(self, tiny_config, tmp_path, capsys):
        losses = logged_losses(tiny_config(rotation_weight=1.0))
        assert losses == (*LOSSES, "rotation_loss") and logged_losses(tiny_config()) == LOSSES
        with MetricLogger(Accelerator(cpu=True), tmp_path, 0, 10, losses=losses) as progress:
            given = output()
            given.rotation_loss = torch.tensor(0.5)
            progress.count(given, 4)
            tell(progress)
        assert lines(tmp_path)[0]["rotation_loss"] == 0.5
        assert "rotation 0.500" in capsys.readouterr().err


def test_sync_has_both_logs_on_the_disk(tmp_path, monkeypatch):
    flushed = []
    with MetricLogger(Accelerator(cpu=True), tmp_path, 0, 10, monitored=True) as progress:
        monkeypatch.setattr("modeling_sit.runtime.trackers.fsync", lambda path: flushed.append(path.name))
        progress.sync_logs()
    assert flushed == ["metrics.jsonl", "monitors.jsonl"]


def test_log_that_cannot_be_written_is_an_error_in_one_line(progress, tmp_path):
    progress.count(output(), 4)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SiTError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        tell(progress)
