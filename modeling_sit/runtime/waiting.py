"""Waits with a limit: whatever a program waits for, it does not wait for ever."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Once a signal has asked a run to stop, a wait goes on for so many seconds at most. Most batches come within them.
SECONDS_AFTER_A_SIGNAL = 10.0
# The last part of a limit starts when the rest is over. A process that was suspended for hours, with all that it waits
# for, still has this part when it goes on.
LAST_PART = 0.1


class WaitTooLong(Exception):
    """
    A wait has come to its limit.

    Args:
        seconds (`float`): The limit.
    """

    def __init__(self, seconds: float):
        super().__init__(f"nothing came for {seconds:g} s")
        self.seconds = seconds


class WaitStopped(Exception):
    """
    A signal asks the run to stop, and what it waits for did not come soon.

    Args:
        signal (`int`): The signal's number.
    """

    def __init__(self, signal: int):
        super().__init__("a signal ended a wait")
        self.signal = signal


class _Alarm(BaseException):
    """Not an `Exception`: readers of images take any of those for a damaged image."""


class _Clock:
    """The one alarm of this process."""

    def __init__(self):
        self.is_running = False
        self.num_rings = 0
        self.stopped_by: int | None = None

    def is_free(self) -> bool:
        """Whether a wait can be limited: Python handles signals in the main thread, and the timer may be someone's."""
        is_main = threading.current_thread() is threading.main_thread()
        return is_main and (self.is_running or signal.getitimer(signal.ITIMER_REAL)[0] == 0)

    def start(self, seconds: float) -> None:
        if self.stopped_by is not None:
            seconds = min(seconds, SECONDS_AFTER_A_SIGNAL)
        self.num_rings, self.is_running = 0, True
        signal.setitimer(signal.ITIMER_REAL, (1 - LAST_PART) * seconds, LAST_PART * seconds)

    def stop(self) -> None:
        self.is_running = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def ring(self, number: int, frame) -> None:
        self.num_rings += 1
        if self.is_running and self.num_rings > 1:
            raise _Alarm


_clock = _Clock()


@contextmanager
def limited_wait(seconds: float) -> Iterator[None]:
    """
    Let a block take so many seconds at most, be it in a read, a lock or a receipt. Within another such block, the
    other's limit is the limit.

    Python cannot interrupt a thread other than the main one, nor an alarm clock that someone else has set. There the block
    has no limit: see [`can_limit`].

    Args:
        seconds (`float`): Above 0. Time in which the process is suspended does not count.

    Raises:
        [`WaitTooLong`]: After that time.
        [`WaitStopped`]: If [`stop_waiting`] was called, a few seconds later.
    """
    if _clock.is_running or not _clock.is_free():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _clock.ring)
    try:
        _clock.start(seconds)
        try:
            yield
        finally:
            _clock.stop()
    except _Alarm:
        _clock.stop()
        if _clock.stopped_by is not None:
            raise WaitStopped(_clock.stopped_by) from None
        raise WaitTooLong(seconds) from None
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


def can_limit() -> bool:
    """Whether [`limited_wait`] works here."""
    return _clock.is_free()


def stop_waiting(number: int) -> None:
    """Have the wait that goes on, and those to come, end soon: a signal has asked the run to stop.

    Args:
        number (`int`): The signal's.
    """
    _clock.stopped_by = number
    if _clock.is_running:
        _clock.start(SECONDS_AFTER_A_SIGNAL)


def wait_again() -> None:
    """Forget the signal: the run that it asked to stop has ended."""
    _clock.stopped_by = None
