"""What a run logs: means since the last line, and losses that are not finite."""

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
from modeling_sit.pretraining import metric_logger
from modeling_sit.pretraining.metric_logger import MetricLogger, NonFiniteLoss
from modeling_sit.runtime import progress
from modeling_sit.runtime.errors import SiTError

LOSSES = ("loss", "reconstruction_loss", "contrastive_loss")
SCHEDULE = {"learning_rate": 1e-4, "weight_decay": 0.05, "teacher_momentum": 0.996}


def create_logger(
    folder, first_step: int = 0, num_steps: int = 10, accelerator=None, losses=LOSSES, **settings
) -> MetricLogger:
    return MetricLogger(accelerator or Accelerator(cpu=True), folder, first_step, num_steps, losses, **settings)


@pytest.fixture
def logger(tmp_path):
    with create_logger(tmp_path) as logger:
        yield logger


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


def log(logger, steps: int = 1, epoch: float = 0.5) -> None:
    """Log, so many steps after the last line."""
    for _ in range(steps):
        logger.count_step()
    logger.log(epoch, SCHEDULE)


def test_a_line_holds_what_the_design_says(logger, tmp_path):
    logger.update(output(), 64)
    log(logger, steps=10)
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


def test_means_since_the_last_line(logger, tmp_path):
    for reconstruction in (1.0, 2.0, 6.0):
        logger.update(output(reconstruction, 2.0), 4)
    log(logger, steps=3)
    logger.update(output(5.0, 1.0), 4)
    log(logger)
    first, second = lines(tmp_path)
    assert (first["step"], second["step"]) == (3, 4)
    assert (first["loss"], first["reconstruction_loss"], first["contrastive_loss"]) == (5.0, 3.0, 2.0)
    assert (second["loss"], second["reconstruction_loss"], second["contrastive_loss"]) == (6.0, 5.0, 1.0)


def test_a_loss_that_was_not_computed_counts_as_0(logger, tmp_path):
    logger.update(output(contrast=None), 4)
    logger.check(1)
    log(logger)
    assert lines(tmp_path)[0]["contrastive_loss"] == 0


def test_speed_and_waiting(logger, tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def batches():
        nonlocal now
        for _ in range(2):
            now += 1.0
            yield "batch"

    logger._start_window()
    for batch in logger.timed(batches()):
        assert batch == "batch"
        now += 3.0
        logger.update(output(), 20)
    log(logger, steps=2)
    (line,) = lines(tmp_path)
    assert line["images_per_second"] == pytest.approx(40 / 8)
    assert line["data_wait"] == pytest.approx(2 / 8)


def test_graph_is_not_kept(logger):
    given = output()
    logger.update(given, 4)
    assert given.loss.requires_grad
    assert not any(losses.requires_grad for losses in logger._losses)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_named_with_how_long_ago(logger, value):
    logger.update(output(), 4)
    logger.check(1)
    logger.update(output(reconstruction=value), 4)
    logger.update(output(), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss not finite") as error:
        logger.check(1)
    assert error.value.batches_ago == 1
    assert error.value.terms == ["reconstruction_loss"]


def test_all_terms_are_named_and_the_first_batch_counts(logger):
    logger.update(output(math.nan, math.inf), 4)
    logger.update(output(math.nan), 4)
    with pytest.raises(NonFiniteLoss, match="reconstruction_loss and contrastive_loss") as error:
        logger.check(1)
    assert error.value.batches_ago == 1


def test_sum_is_named_where_no_term_is_to_blame(logger):
    given = output()
    given.loss = torch.tensor(math.inf)
    logger.update(given, 4)
    with pytest.raises(NonFiniteLoss, match=r"^loss not finite"):
        logger.check(1)


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    logger = create_logger(tmp_path, 0, 10, accelerator)
    logger.update(output(), 4)
    log(logger)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_that_goes_on_drops_lines_beyond(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    with redirect_stderr(Terminal()), create_logger(tmp_path, 2, num_steps=10) as logger:
        assert logger.bar.n == 2
        logger.count_step()
        assert logger.bar.n == 3
    assert lines(tmp_path) == [{"step": 2}]


def test_a_notebook_has_a_bar_and_no_line_for_each_log(tmp_path, monkeypatch, capsys):
    """Without ipywidgets, too: then tqdm writes the bar as on a terminal."""
    monkeypatch.setattr(progress, "is_in_notebook", lambda: True)
    with create_logger(tmp_path, monitored=True) as logger:
        logger.update(output(), 4)
        log(logger)
        logger.log_monitors(0.5, {"rankme": 7.0})
    captured = capsys.readouterr()
    assert "1/10" in captured.err and "epoch" not in captured.err
    assert captured.out == "step 1: rankme 7\n"


class TestWindow:
    """What was counted since the last line travels in the checkpoint, so that the next line is the same."""

    RECONSTRUCTION = (0.1, 1 / 3, 7e-5, 2.7, 1e4)

    def lines_of_a_run_that_goes_on(self, folder, stopped_after: int) -> list[dict]:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        steps = list(enumerate(self.RECONSTRUCTION, start=1))
        window = None
        for part in (steps[:stopped_after], steps[stopped_after:]):
            first_step = part[0][0] - 1
            with create_logger(folder, first_step, num_steps=5, window=window) as logger:
                for step, loss in part:
                    logger.update(output(loss), 4)
                    logger.count_step()
                    if step % 4 == 0 or step == 5:
                        logger.log(0.1 * step, SCHEDULE)
                window = json.loads(json.dumps(logger.state_dict()))
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
        with create_logger(tmp_path, 0, 2) as logger:
            logger.update(output(), 10)
            logger.count_step()
            logger._waited, now = 1.0, 104.0
            window = logger.state_dict()
        now = 1000.0  # down for a quarter of an hour
        with create_logger(tmp_path, 1, 2, window=window) as logger:
            logger.update(output(), 10)
            now += 4
            log(logger)
        (line,) = lines(tmp_path)
        assert (line["images_per_second"], line["data_wait"]) == (20 / 8, 1 / 8)

    def test_empty(self, tmp_path):
        with create_logger(tmp_path, 0, 2) as logger:
            window = logger.state_dict()
        assert (window["losses"], window["num_images"], window["waited"]) == ([], 0, 0.0)
        with create_logger(tmp_path, 1, 2, window=window) as logger:
            logger.check(1)
            logger.update(output(3.0), 10)
            log(logger)
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

        with create_logger(tmp_path, 0, 4, accelerator_of(0, 2)) as logger:
            for loss in (1.0, 2.0):
                logger.update(output(loss), 8)
                logger.count_step()
            window = json.loads(json.dumps(logger.state_dict()))
        expected = (1.5, 6.5) if num_processes == 2 else (4.0,) * num_processes
        for process_index in range(num_processes):
            accelerator = accelerator_of(process_index, num_processes)
            with create_logger(tmp_path / "resumed", 2, 4, accelerator, window=window) as logger:
                log(logger)
            assert lines(tmp_path / "resumed")[-1]["reconstruction_loss"] == expected[process_index]

    def test_taking_it_changes_nothing(self, logger, tmp_path):
        logger.update(output(1.0), 4)
        logger.state_dict()
        logger.update(output(3.0), 4)
        log(logger)
        assert lines(tmp_path)[0]["reconstruction_loss"] == 2


class TestGradient:
    def test_that_is_not_finite_is_named_with_how_long_ago(self, logger):
        """The loss before it was finite; without this the weights after it would go into a checkpoint."""
        for norm in (1.0, math.nan, 3.0):
            for _ in range(2):
                logger.update(output(), 4)
            logger.update_gradient(torch.tensor(norm))
        with pytest.raises(NonFiniteLoss, match="gradient not finite") as error:
            logger.check(2)
        assert (error.value.batches_ago, error.value.terms) == (2, ["gradient"])

    def test_of_the_scaler_does_no_harm(self, logger, monkeypatch):
        monkeypatch.setattr(type(logger.accelerator), "mixed_precision", property(lambda self: "fp16"))
        logger.update(output(), 4)
        logger.update_gradient(torch.tensor(math.inf))
        logger.check(1)
        logger.update(output(math.inf), 4)
        with pytest.raises(NonFiniteLoss, match="reconstruction_loss"):
            logger.check(1)

    def test_of_a_window_that_was_logged_is_forgotten(self, logger):
        logger.update(output(), 4)
        logger.update_gradient(torch.tensor(1.0))
        log(logger)
        assert logger._gradient_norms == []
        logger.check(1)


class TestLogging:
    def test_lines_without_a_terminal(self, logger, capsys):
        for _ in range(2):
            logger.update(output(1.25, 2.0), 4)
            log(logger, steps=2)
        captured = capsys.readouterr()
        first, second = captured.err.splitlines()
        assert first.startswith("step 2/10, epoch 0.5: loss 3.250, reconstruction 1.250, contrastive 2.000, ")
        assert "images/s" in first and "data wait" in first and first.endswith(" left")
        assert second.startswith("step 4/10")
        assert "\r" not in captured.err and captured.out == ""

    def test_time_left(self, tmp_path, capsys, monkeypatch):
        now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: now)
        with create_logger(tmp_path, first_step=10, num_steps=20) as logger:
            logger.update(output(), 4)
            now += 60
            log(logger, steps=2)
        assert capsys.readouterr().err.splitlines()[0].endswith("04:00 left")  # 8 steps at 30 seconds

    def test_bar_on_a_terminal(self, tmp_path):
        with (
            redirect_stderr(Terminal()) as terminal,
            create_logger(tmp_path, first_step=3) as logger,
        ):
            logger.update(output(), 4)
            log(logger)
        said = terminal.getvalue()
        assert "4/10" in said and "loss 3, recon 1, contr 2" in said
        assert "step 4/10, epoch" not in said  # no line beside it

    def test_nobody_listens_any_more(self, logger, monkeypatch, tmp_path):
        """Ctrl-C ends a `| tee` at once, before the last line and the checkpoint are written."""

        class Broken(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, "Broken pipe")

        logger.update(output(), 4)
        monkeypatch.setattr(sys, "stderr", Broken())
        log(logger)
        logger.log_monitors(0.1, {"rank": 3.0})
        assert len(lines(tmp_path)) == 1

    def test_monitors(self, tmp_path, capsys):
        (tmp_path / "monitors.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
        with create_logger(tmp_path, 2, 10, monitored=True) as logger:
            logger.count_step()
            logger.log_monitors(0.25, {"rank": 3.5, "knn_accuracy": 0.75}, "look at that")
        written = [json.loads(line) for line in (tmp_path / "monitors.jsonl").read_text().splitlines()]
        assert written == [{"step": 2}, {"step": 3, "epoch": 0.25, "rank": 3.5, "knn_accuracy": 0.75}]
        said = capsys.readouterr().err
        assert "step 3: rank 3.5, knn_accuracy 0.75\nstep 3: look at that\n" in said

    def test_no_monitors_no_file(self, logger, tmp_path):
        logger.log_monitors(0.25, {"rank": 3.5})
        assert not (tmp_path / "monitors.jsonl").exists()

    def test_trackers(self, logger, monkeypatch):
        logged = []
        monkeypatch.setattr(logger.accelerator, "log", lambda values, step: logged.append((step, values)))
        logger.update(output(), 4)
        log(logger, steps=2)
        logger.log_monitors(0.5, {"rank": 3.5})
        (step, metrics), monitors = logged
        assert step == 2 and metrics["loss"] == 3 and metrics["learning_rate"] == 1e-4
        assert monitors == (2, {"monitors/rank": 3.5})

    def test_other_losses(self, tmp_path, capsys):
        with create_logger(tmp_path, losses=(*LOSSES, "rotation_loss")) as logger:
            given = output()
            given.rotation_loss = torch.tensor(0.5)
            logger.update(given, 4)
            log(logger)
        assert lines(tmp_path)[0]["rotation_loss"] == 0.5
        assert "rotation 0.500" in capsys.readouterr().err


def test_sync_has_both_logs_on_the_disk(tmp_path, monkeypatch):
    flushed = []
    with MetricLogger(Accelerator(cpu=True), tmp_path, 0, 10, ("loss",), monitored=True) as progress:
        monkeypatch.setattr("modeling_sit.runtime.trackers.fsync", lambda path: flushed.append(path.name))
        progress.sync_logs()
    assert flushed == ["metrics.jsonl", "monitors.jsonl"]


def test_log_that_cannot_be_written_is_an_error_in_one_line(logger, tmp_path):
    logger.update(output(), 4)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SiTError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        log(logger)


class TestExpectedTime:
    """Said once, after the first steps, by the pace of those that follow the warm-up."""

    def lines_after(self, tmp_path, monkeypatch, capsys, step_seconds, pauses=0.0, num_steps=100) -> list[str]:
        now = 100.0
        monkeypatch.setattr(metric_logger.time, "perf_counter", lambda: now)
        with create_logger(tmp_path, num_steps=num_steps) as logger:
            for step in range(min(30, num_steps)):
                now += 50 if step < metric_logger.WARMUP_STEPS else step_seconds
                logger.count_step()
                with logger.paused():
                    now += pauses
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected")]

    def test_of_quick_steps(self, tmp_path, monkeypatch, capsys):
        (line,) = self.lines_after(tmp_path, monkeypatch, capsys, 0.1, num_steps=1000)
        assert "0.1 s a step" in line and "998" not in line

    def test_of_slow_steps_after_the_first_that_counts(self, tmp_path, monkeypatch, capsys):
        (line,) = self.lines_after(tmp_path, monkeypatch, capsys, 60.0)
        assert "about 97.0 minutes for the other 97 steps" in line

    def test_leaves_out_pauses(self, tmp_path, monkeypatch, capsys):
        (line,) = self.lines_after(tmp_path, monkeypatch, capsys, 60.0, pauses=500.0)
        assert "60 s a step" in line

    def test_of_a_run_that_is_over_before(self, tmp_path, monkeypatch, capsys):
        assert self.lines_after(tmp_path, monkeypatch, capsys, 60.0, num_steps=3) == []
