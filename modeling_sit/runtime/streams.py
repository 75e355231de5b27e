"""Output that nobody reads any more does not end a run: `| head -1` leaves, a terminal is closed, the disk of a log is full."""

import contextlib
import io
import os
import sys
from typing import TextIO


class SurvivingFile(io.FileIO):
    """An open file that drops what cannot be written."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def survive_closed_output() -> None:
    """Have what this process prints dropped where it cannot be written, instead of an error where it is printed.

    Streams that something else has put in the place of the process's own, such as a notebook's, stay.
    """
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _surviving(sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _surviving(sys.stderr)


def copy_of_output() -> TextIO:
    """Where this process prints, for later, when its output goes elsewhere. Drops what cannot be written."""
    with contextlib.suppress(OSError):
        return io.TextIOWrapper(SurvivingFile(os.dup(1), "w"), encoding="utf-8", write_through=True)
    return open(os.devnull, "w", encoding="utf-8")


def _surviving(stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    if stream is None:  # closed before the process began
        return open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(OSError):
        stream.flush()
    file = SurvivingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # As Python does for its own streams.
        file if stream.write_through else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
