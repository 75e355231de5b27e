"""SIGTERM, SIGINT and SIGHUP: leave at the end of a step, with a checkpoint, instead of at once."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from modeling_sit.runtime.waiting import stop_waiting, wait_again

# A terminal that is closed sends SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# From Linux's <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
# A launcher passes on to its processes what a terminal or a scheduler has already sent to all of them.
SECONDS_OF_ONE_REQUEST = 2.0
SECONDS_OF_A_WORKER_WITHOUT_ITS_LOOP = 60


class StopSignal:
    """
    Notes a SIGTERM, SIGINT or SIGHUP while its block runs, so that the loop can leave when a step is done. A second SIGINT,
    after two seconds or more, raises `KeyboardInterrupt` at once. A second SIGTERM changes nothing: who sends it sends
    SIGKILL later. A SIGHUP that is ignored already stays ignored: that is what `nohup` is for.

    Python handles signals in the main thread only. Entered in another thread, it notes none.

    A signal in the last step, or after it, does not keep a run from its end. [`unanswered_signal`] gives it to who would start another
    run.

    Args:
        accelerator (`Accelerator`): Knows the processes. The signal may reach them at different steps, or only one.
    """

    _unanswered = 0

    def __init__(self, accelerator: Accelerator):
        self._received, self._received_at = 0, 0.0
        self._process = os.getpid()
        self._is_main_process = accelerator.is_main_process
        self._group = None
        if accelerator.num_processes > 1:
            # A group of its own, on the host: asking must not wait for the work of the accelerators.
            handler = getattr(accelerator, "init_handler", None)
            timeout = None if handler is None else handler.timeout
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def __enter__(self) -> "StopSignal":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            noted = [number for number in SIGNALS if not _is_ignored_hangup(number)]
            self._handlers = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None and self._received:
            StopSignal._unanswered = self._received
        for number, handler in self._handlers.items():
            # `None` is a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        wait_again()

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a dataloader worker that was just forked goes on
            return
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
            stop_waiting(number)
            if self._is_main_process:
                # Not by print, which the signal may have interrupted. Ctrl-C also ends a `tee` behind the run.
                with contextlib.suppress(OSError, AttributeError, ValueError):
                    os.write(
                        sys.__stderr__.fileno(),
                        b"\nstopping after this step, with a checkpoint (Ctrl-C again, later, to leave at once)\n",
                    )
        elif number == signal.SIGINT and now - self._received_at >= SECONDS_OF_ONE_REQUEST:
            raise KeyboardInterrupt

    def any_rank(self) -> signal.Signals | None:
        """The signal that any process has received, the same in all. Every process must call this after each step."""
        number = self._received
        if self._group is not None:
            highest = torch.tensor(number)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(highest)
        return signal.Signals(number) if number else None


def unanswered_signal() -> signal.Signals | None:
    """A signal that came in a block of [`StopSignal`] which went on to its end; each only once."""
    number, StopSignal._unanswered = StopSignal._unanswered, 0
    return signal.Signals(number) if number else None


def _is_ignored_hangup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def die_with_parent(environment: Mapping[str, str]) -> None:
    """Have the system send SIGTERM to this process when the launcher that started it is gone (Linux only).

    `accelerate launch` does not pass on the SIGTERM that ends it; its program would go on alone. This is for a process
    that a command line started, not for one that a library shares.

    Args:
        environment (mapping): Says whether a launcher of Accelerate or PyTorch started this process.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment or "TORCHELASTIC_RUN_ID" in environment
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_loop() -> None:
    """Have the system kill this dataloader worker when the process that started it is gone (Linux only): one that hangs
    would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ignore_signals_in_worker(worker: int) -> None:
    """Make a dataloader worker go on at SIGTERM, SIGINT and SIGHUP, which a terminal or a scheduler sends to all processes
    of a run: the loop still needs the worker's batches to end the step, and then ends the worker.

    After SIGTERM the worker goes on for a minute at most, because an interpreter that exits sends it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # With code 0: for a worker that a signal ends, PyTorch raises an error in the loop, even during a checkpoint.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(
        signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_A_WORKER_WITHOUT_ITS_LOOP)
    )
