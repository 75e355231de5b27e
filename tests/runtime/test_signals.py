"""Signals: noted for the end of a step, agreed on by all processes, and left to the loop by its workers."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_sit.runtime import signals
from modeling_sit.runtime.signals import StopSignal, ignore_signals_in_worker


@pytest.fixture(autouse=True)
def handlers():
    """What a test installs does not outlive it; and SIGTERM to the tests' process does not end it."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under `nohup`
    saved = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
    }
    yield saved
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in saved.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGHUP, hangup)


@pytest.fixture
def clock(monkeypatch):
    """The time that `signals` sees, in seconds: an item to set."""
    now = [1000.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(monkeypatch, tmp_path):
    """What is written past Python's buffers to stderr."""
    with open(tmp_path / "stderr", "w+b", buffering=0) as file:
        monkeypatch.setattr(sys, "__stderr__", file)
        yield lambda: (tmp_path / "stderr").read_text()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
class TestSignal:
    def test_is_noted_and_the_step_goes_on(self, number, said):
        with StopSignal(Accelerator(cpu=True)) as request:
            assert request.any_rank() is None
            send(number)
            assert request.any_rank() is number
            assert request.any_rank() is number
        assert said().strip().startswith("stopping after this step, with a checkpoint")

    def test_is_as_before_after_the_block(self, number, said, handlers):
        for error in (None, KeyError):
            try:
                with StopSignal(Accelerator(cpu=True)):
                    assert signal.getsignal(number) != handlers[number]
                    if error:
                        raise error
            except KeyError:
                pass
            assert signal.getsignal(number) == handlers[number]

    def test_is_noted_without_anyone_to_tell(self, number, monkeypatch, tmp_path):
        """Ctrl-C ends the `tee` too that shows what a run says, and a terminal may be closed."""
        reader, writer = os.pipe()
        os.close(reader)
        with open(tmp_path / "file", "wb") as closed:
            pass
        with open(writer, "wb", buffering=0) as pipe:
            for stderr in (pipe, closed, None):
                with monkeypatch.context() as patch, StopSignal(Accelerator(cpu=True)) as request:
                    patch.setattr(sys, "__stderr__", stderr)
                    send(number)
                    assert request.any_rank() is number

    def test_is_told_by_the_main_process_only(self, number, said, monkeypatch):
        accelerator = Accelerator(cpu=True)
        monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
        with StopSignal(accelerator) as request:
            send(number)
            assert request.any_rank() is number
        assert said() == ""


class TestHangup:
    """A terminal that is closed sends it; `nohup` has it ignored."""

    def test_ignored_before_stays_ignored(self, said):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal(Accelerator(cpu=True)) as request:
            send(signal.SIGHUP)
            assert request.any_rank() is None
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert said() == ""

    def test_a_second_one_changes_nothing(self, said, clock):
        with StopSignal(Accelerator(cpu=True)) as request:
            for _ in range(3):
                send(signal.SIGHUP)
                clock[0] += 10
            assert request.any_rank() is signal.SIGHUP
        assert said().count("stopping") == 1


class TestNotebook:
    """A cell may run in a thread, where Python lets nobody install handlers."""

    def test_another_thread_notes_nothing_and_changes_nothing(self, handlers):
        def run():
            with StopSignal(Accelerator(cpu=True)) as request:
                return request.any_rank(), {number: signal.getsignal(number) for number in handlers}

        with ThreadPoolExecutor(1) as pool:
            received, installed = pool.submit(run).result(20)
        assert received is None
        assert installed == handlers

    def test_handlers_that_python_did_not_install(self, monkeypatch):
        """Python cannot name them, nor put them back: the system's own takes their place."""
        installed = []
        monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append(handler))
        with StopSignal(Accelerator(cpu=True)):
            pass
        assert installed[3:] == [signal.SIG_DFL] * 3
        monkeypatch.undo()


class TestSecondSignal:
    def test_ctrl_c_twice_leaves_at_once(self, said, clock):
        with pytest.raises(KeyboardInterrupt), StopSignal(Accelerator(cpu=True)):
            send(signal.SIGINT)
            clock[0] += 2
            send(signal.SIGINT)

    def test_that_a_launcher_passes_on_is_the_same_request(self, said, clock):
        with StopSignal(Accelerator(cpu=True)) as request:
            for _ in range(3):
                send(signal.SIGINT)
                clock[0] += 0.6
            assert request.any_rank() is signal.SIGINT
        assert said().count("stopping") == 1

    def test_sigterm_changes_nothing(self, said, clock):
        """What sends it ends by SIGKILL itself; until then there is time for the checkpoint."""
        with StopSignal(Accelerator(cpu=True)) as request:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                send(number)
                clock[0] += 10
            assert request.any_rank() is signal.SIGINT


@pytest.mark.parametrize("other", [0, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("own", [0, signal.SIGINT, signal.SIGTERM])
def test_processes_agree_on_the_highest(monkeypatch, said, own, other):
    """Two processes, the other one faked: neither may go on to a step that the other leaves before."""
    accelerator, groups, asked = Accelerator(cpu=True), [], []
    monkeypatch.setattr(type(accelerator), "num_processes", property(lambda self: 2))
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: groups.append(backend) or "group")

    def all_reduce(tensor, operation, group):
        assert (operation, group) == (torch.distributed.ReduceOp.MAX, "group")
        asked.append(int(tensor))
        tensor.fill_(max(int(tensor), other))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with StopSignal(accelerator) as request:
        if own:
            send(own)
        assert request.any_rank() == (max(own, other) or None)
    assert groups == ["gloo"]  # on the host, whatever the accelerators do
    assert asked == [own]


class TestWorkers:
    def test_go_on_at_these_signals(self):
        """A terminal sends Ctrl-C, or SIGHUP when it is closed, and a scheduler SIGTERM, to all processes of a run."""
        loader = DataLoader(
            torch.arange(12), batch_size=2, num_workers=1, worker_init_fn=ignore_signals_in_worker, prefetch_factor=1
        )
        batches = iter(loader)
        received = [next(batches)]
        (worker,) = batches._workers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, number)
            received.append(next(batches))
        received += list(batches)
        assert torch.equal(torch.cat(received), torch.arange(12))

    def test_end_by_themselves_a_minute_after_sigterm(self, monkeypatch):
        timers = []
        monkeypatch.setattr(signal, "setitimer", lambda which, seconds: timers.append(seconds))
        ignore_signals_in_worker(0)
        send(signal.SIGINT)
        assert timers == []
        send(signal.SIGTERM)
        assert timers == [60]

    def test_that_end_by_themselves_leave_the_loop_alone(self, monkeypatch):
        """It may be writing its checkpoint still, in which PyTorch would raise what it finds wrong with a worker."""
        monkeypatch.setattr(signals, "SECONDS_OF_A_WORKER_WITHOUT_ITS_LOOP", 0.05)
        loader = DataLoader(
            torch.arange(100), num_workers=1, worker_init_fn=ignore_signals_in_worker, prefetch_factor=1
        )
        batches = iter(loader)
        next(batches)
        (worker,) = batches._workers
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(10)
        assert worker.exitcode == 0
