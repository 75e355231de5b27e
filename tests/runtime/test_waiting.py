"""Waits end: by their limit, or soon after a signal; and leave the process's alarm clock as they found it."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from modeling_sit.runtime import waiting
from modeling_sit.runtime.signals import StopSignal
from modeling_sit.runtime.waiting import WaitStopped, WaitTooLong, can_limit, limited_wait

ALONE = SimpleNamespace(num_processes=1, is_main_process=True)


@pytest.fixture(autouse=True)
def clock_is_left_alone():
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


class TestLimit:
    @pytest.mark.parametrize("wait", [time.sleep, lambda seconds: threading.Event().wait(seconds)])
    def test_ends_a_wait(self, wait):
        started = time.monotonic()
        with pytest.raises(WaitTooLong) as error, limited_wait(0.2):
            wait(30)
        assert error.value.seconds == 0.2
        assert 0.15 < time.monotonic() - started < 5

    def test_ends_a_read(self):
        reader, writer = os.pipe()
        with pytest.raises(WaitTooLong), limited_wait(0.2):
            os.read(reader, 1)
        os.close(reader)
        os.close(writer)

    def test_cannot_be_taken_for_a_damaged_image(self):
        def read():
            try:
                time.sleep(30)
            except Exception:
                return "damaged"

        with pytest.raises(WaitTooLong), limited_wait(0.2):
            read()

    def test_rings_again_where_it_was_swallowed(self):
        with pytest.raises(WaitTooLong), limited_wait(0.2):
            for _ in range(2):
                try:
                    time.sleep(30)
                except BaseException as swallowed:
                    last = swallowed
            raise last

    def test_lets_through_what_is_in_time(self):
        with limited_wait(30):
            assert can_limit()
        with pytest.raises(KeyError), limited_wait(30):
            raise KeyError

    def test_of_the_outer_block_holds(self):
        with pytest.raises(WaitTooLong) as error, limited_wait(0.2), limited_wait(30):
            time.sleep(20)
        assert error.value.seconds == 0.2

    def test_does_not_count_a_suspension(self):
        """The timer of a process that was suspended rings as soon as it goes on. What it waits for may need a moment."""
        with limited_wait(30):
            os.kill(os.getpid(), signal.SIGALRM)
            time.sleep(0.01)
        with pytest.raises(WaitTooLong), limited_wait(30):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGALRM)
                time.sleep(0.01)

    def test_leaves_the_timer_of_another_alone(self):
        rung = []
        handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert not can_limit()
        with limited_wait(0.01):
            time.sleep(0.4)
        assert rung == [1]
        signal.signal(signal.SIGALRM, handler)

    def test_is_none_in_another_thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.append(can_limit()))
        thread.start()
        thread.join()
        assert found == [False]


class TestStop:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(waiting, "SECONDS_AFTER_A_SIGNAL", 0.3)

    def test_amid_a_wait(self):
        with StopSignal(ALONE), pytest.raises(WaitStopped) as error, limited_wait(60):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(30)
        assert error.value.signal == signal.SIGTERM

    def test_before_a_wait(self):
        with StopSignal(ALONE):
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(WaitStopped), limited_wait(60):
                time.sleep(30)

    def test_lets_a_batch_that_comes_soon_through(self):
        with StopSignal(ALONE) as request, limited_wait(60):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert request.any_rank() == signal.SIGTERM

    def test_is_over_with_the_run(self):
        with StopSignal(ALONE):
            os.kill(os.getpid(), signal.SIGTERM)
        with limited_wait(60):
            time.sleep(0.5)
