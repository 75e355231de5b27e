"""How a command tells its user of a mistake: one line with the flag, the problem and the remedy, never a traceback."""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from accelerate.state import PartialState, is_initialized
from tqdm.auto import tqdm

from modeling_sit.runtime.errors import NAMED_ARGUMENT, SiTError, TrainingInterrupted


@contextmanager
def one_line_errors(flags: Collection[str] = ()) -> Iterator[None]:
    """Turn a [`SiTError`] into `error: MESSAGE` on stderr and exit code 1, Ctrl-C into exit code 130, and a run that a
    signal ended into 128 plus the signal's number.

    Args:
        flags (collection of `str`): Names of the command's flags, without dashes.
    """
    try:
        yield
    except SiTError as error:
        if is_reporting_rank(error):
            # Not behind a progress bar, on a line of its own.
            tqdm.write("error: " + " ".join(with_flags(error, flags).split()), file=sys.stderr)
        sys.exit(1)
    except TrainingInterrupted as interruption:
        sys.exit(128 + interruption.signal)
    except KeyboardInterrupt:
        tqdm.write("error: interrupted", file=sys.stderr)
        sys.exit(130)


def with_flags(error: SiTError, flags: Collection[str]) -> str:
    """The text of an error, with the arguments that it names written as flags.

    Args:
        error ([`SiTError`]): The error.
        flags (collection of `str`): Names that are flags. Others stay as they are.

    Returns:
        `str`: Such as `--image_column: no column 'foo'; give --image_column img`.
    """

    def as_flag(found) -> str:
        name, _, value = found.groups()
        if name not in flags:
            return found[0]
        return f"--{name}" if value is None else f"--{name} {value}"

    texts = [NAMED_ARGUMENT.sub(as_flag, text) for text in (error.problem, error.remedy) if text is not None]
    if error.argument is not None:
        texts[0] = f"{'--' if error.argument in flags else ''}{error.argument}: {texts[0]}"
    return "; ".join(texts)


def is_reporting_rank(error: SiTError | None = None) -> bool:
    """Whether this process reports an error: the main one, where all raise the same; else any that has one of its own."""
    if not is_initialized():
        return os.environ.get("RANK", "0") == "0"
    return error is None or not error.is_shared or PartialState().is_main_process
