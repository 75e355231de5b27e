"""A loader gives its batches, or an error within its limit: whatever its workers do, nothing waits for ever."""

import multiprocessing
import os
import resource
import signal
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing import process, resource_sharer

import pytest
import torch
from torch.utils.data import DataLoader

from modeling_sit.data import hand_over, loaders
from modeling_sit.data.loaders import BatchLoader
from modeling_sit.runtime import waiting
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import StopSignal

BIG = 200_000


@pytest.fixture(autouse=True)
def time_limit(monkeypatch, tmp_path):
    """Each test here takes seconds, or it fails; and no worker is left."""
    monkeypatch.setattr(loaders, "LEAVING_SECONDS", 1.0)
    folder = tmp_path / ("scratch_job_" * 10)
    folder.mkdir()
    monkeypatch.setenv("LONG_FOLDER", str(folder))
    others = set(multiprocessing.active_children())
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 60
    left = set(multiprocessing.active_children()) - others
    for worker in left:  # killed, but maybe not gone yet
        process.BaseProcess.join(worker, 10)
    assert not [worker for worker in left if worker.is_alive()]


class Items(torch.utils.data.Dataset):
    """Tensors of the numbers 0, 1, 2 and so on; before one of them, the worker does something."""

    def __init__(self, act=None, at: int = 2, count: int = 6):
        self.act, self.at, self.count = act, at, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at and self.act is not None:
            self.act()
        return torch.full((BIG,), index)


def values(batches) -> list[list[int]]:
    return [batch[:, 0].tolist() for batch in batches]


def error_of(act, limit: float = 30, num_workers: int = 1, at: int = 2, **settings) -> SiTError:
    with pytest.raises(SiTError) as error:
        values(BatchLoader(Items(act, at), batch_size=2, limit=limit, num_workers=num_workers, **settings))
    return error.value


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(1000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def serve_nothing() -> None:
    """The worker sends its batch, but whoever asks for the memory of it gets no answer."""
    resource_sharer._resource_sharer._serve = hang


def use_long_folder() -> None:
    tempfile.tempdir = os.environ["LONG_FOLDER"]
    multiprocessing.current_process()._config.pop("tempdir", None)


def use_missing_folder() -> None:
    tempfile.tempdir = "/proc/nowhere"
    multiprocessing.current_process()._config.pop("tempdir", None)


def allow_no_files() -> None:
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


def allow_small_files() -> None:
    """As a small /dev/shm does, where it cannot be made small."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def assert_closed_soon(batches):
    others = set(multiprocessing.active_children())
    next(batches)
    assert set(multiprocessing.active_children()) > others
    started = time.monotonic()
    batches.close()
    assert set(multiprocessing.active_children()) <= others and time.monotonic() - started < 30


class TestBatches:
    @pytest.mark.parametrize("num_workers", [0, 1, 2])
    def test_equal_those_of_pytorch(self, num_workers):
        expected = values(DataLoader(Items(), batch_size=2))
        loader = BatchLoader(Items(), batch_size=2, num_workers=num_workers)
        assert values(loader) == values(loader) == expected

    def test_of_workers_that_stay(self):
        loader = BatchLoader(Items(), batch_size=2, num_workers=1, persistent_workers=True)
        assert len({*values_of_workers(loader), *values_of_workers(loader)}) == 1
        loader._iterator._shutdown_workers()

    def test_that_are_left_half_way(self):
        assert_closed_soon(iter(BatchLoader(Items(count=100), batch_size=2, num_workers=2)))

    def test_errors_of_a_worker_stay_what_they_are(self):
        def fail():
            raise FileNotFoundError("a.png")

        with pytest.raises(FileNotFoundError, match="png"):
            values(BatchLoader(Items(fail), batch_size=2, num_workers=1))


def values_of_workers(loader) -> set[int]:
    """The process ids of the workers that give the batches."""
    batches = iter(loader)
    assert next(batches)[:, 0].tolist() == [0, 1]
    assert values(batches) == [[2, 3], [4, 5]]
    return {worker.pid for worker in loader._iterator._workers}


class TestLostBatches:
    """The worker goes on, but its batch does not arrive."""

    @pytest.mark.parametrize("num_workers", [1, 2])
    @pytest.mark.parametrize("act", [use_long_folder, use_missing_folder, allow_no_files, allow_small_files])
    def test_are_an_error_at_once(self, act, num_workers):
        started = time.monotonic()
        error = error_of(act, limit=600, num_workers=num_workers, at=0)
        assert time.monotonic() - started < 30
        assert error.argument == "dataloader_num_workers"
        assert "`dataloader_num_workers=0`" in error.remedy

    @pytest.mark.parametrize(
        ("act", "word"),
        [(use_long_folder, "TMPDIR"), (use_missing_folder, "TMPDIR"), (allow_no_files, "ulimit -n")],
    )
    def test_name_the_remedy(self, act, word):
        assert word in error_of(act, at=0).remedy

    def test_whose_memory_is_not_given(self):
        assert error_of(serve_nothing, limit=2, at=0).argument == "dataloader_timeout"


class TestWorkers:
    @pytest.mark.parametrize(
        "act", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0), lambda: os._exit(3)]
    )
    def test_that_die(self, act):
        error = error_of(act, limit=600)
        assert error.argument == "dataloader_num_workers" and "died" in error.problem

    @pytest.mark.parametrize("num_workers", [1, 2])
    @pytest.mark.parametrize("act", [hang, stop])
    def test_that_hang(self, act, num_workers):
        assert error_of(act, limit=1, num_workers=num_workers).argument == "dataloader_timeout"

    def test_that_hang_are_left_half_way(self):
        assert_closed_soon(iter(BatchLoader(Items(hang), batch_size=2, num_workers=1)))

    def test_that_hang_and_stay(self):
        assert error_of(hang, limit=1, persistent_workers=True).argument == "dataloader_timeout"

    def test_that_die_between_two_batches(self):
        """PyTorch says so in the midst of whatever the loop does."""
        loader = BatchLoader(Items(lambda: os.kill(os.getpid(), signal.SIGKILL)), batch_size=2, num_workers=1)
        with pytest.raises(SiTError) as error, loaders.worker_deaths():
            for _ in loader:
                time.sleep(20)
        assert "died" in error.value.problem

    def test_do_not_keep_a_program_that_ends(self):
        worker = hand_over.reporting_context("fork").Process(target=hang, daemon=True)
        worker.start()
        worker.join()  # as Python does at the end
        worker.join(10)
        assert not worker.is_alive()

    def test_are_all_killed_whatever_is_raised_of_their_deaths(self):
        """PyTorch raises in the main thread wherever that is, so also where Python takes note of an end."""

        def tell(*_):
            raise RuntimeError("a worker has died")

        for _ in range(5):
            workers = [hand_over.reporting_context("fork").Process(target=hang, daemon=True) for _ in range(4)]
            for worker in workers:
                worker.start()
            before = signal.signal(signal.SIGCHLD, tell)
            try:
                hand_over.kill_workers(workers)
            finally:
                assert signal.signal(signal.SIGCHLD, before) is tell
            assert not any(worker.is_alive() for worker in workers)

    def test_in_another_thread(self):
        errors = []
        thread = threading.Thread(target=lambda: errors.append(error_of(hang, limit=1)))
        thread.start()
        thread.join(30)
        assert errors[0].argument == "dataloader_timeout"


class TestNoWorkers:
    def test_a_read_that_hangs(self):
        assert error_of(lambda: time.sleep(1000), limit=1, num_workers=0).argument == "dataloader_timeout"

    def test_a_batch_may_take_its_time(self):
        """The limit is of one batch, not of all."""
        loader = BatchLoader(Items(lambda: time.sleep(0.7), at=1), batch_size=2, limit=1)
        assert len(values(loader) + values(loader)) == 6


class TestSignals:
    def test_end_a_wait_soon(self, monkeypatch):
        monkeypatch.setattr(waiting, "SECONDS_AFTER_A_SIGNAL", 0.5)
        alone = type("Alone", (), {"num_processes": 1, "is_main_process": True})
        with StopSignal(alone), pytest.raises(waiting.WaitStopped):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            values(BatchLoader(Items(hang), batch_size=2, limit=600, num_workers=1))


class TestSharedMemory:
    def test_without_room_for_what_is_made_ahead(self, monkeypatch):
        monkeypatch.setattr(loaders, "free_shared_memory", lambda: 8 * 2 * BIG * 4)
        assert values(BatchLoader(Items(), batch_size=2, num_workers=1)) == [[0, 1], [2, 3], [4, 5]]
        error = error_of(None, num_workers=2)
        assert error.argument == "dataloader_num_workers"
        assert "--shm-size" in error.remedy and "`dataloader_num_workers=1`" in error.remedy

    def test_without_workers_is_not_needed(self, monkeypatch):
        monkeypatch.setattr(loaders, "free_shared_memory", lambda: 0)
        assert len(values(BatchLoader(Items(), batch_size=2))) == 3


class TestGuard:
    def test_a_loader_of_someone_else(self):
        loader = DataLoader(Items(hang), batch_size=2, num_workers=1)
        BatchLoader.guard(loader, 1)
        with pytest.raises(SiTError) as error:
            values(loader)
        assert error.value.argument == "dataloader_timeout"

    def test_keeps_how_it_starts_its_workers(self):
        loader = DataLoader(Items(), num_workers=1, multiprocessing_context="spawn")
        BatchLoader.guard(loader, 1)
        assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert isinstance(loader.multiprocessing_context.Queue(), hand_over.ReportingQueue)
