"""How a program tells its user of a mistake: one line that names the culprit and the remedy, never a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import is_initialized
from tqdm.auto import tqdm


class SiTError(Exception):
    """Something that the user can put right. The message names the file, column or flag, and the remedy, in one line."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a [`SiTError`] into `error: MESSAGE` on stderr and exit code 1, and Ctrl-C into exit code 130."""
    try:
        yield
    except SiTError as error:
        if is_reporting_rank():
            # Not behind a progress bar, on a line of its own.
            tqdm.write("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        tqdm.write("error: interrupted", file=sys.stderr)
        sys.exit(130)


def is_reporting_rank() -> bool:
    """Whether this process is to tell its errors: until the processes of a run know of each other, all make the same."""
    return is_initialized() or os.environ.get("RANK", "0") == "0"
