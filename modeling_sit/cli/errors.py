"""How a command reports a mistake: one line with the flag, the problem and the remedy, without a traceback."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

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
        if is_reporting_rank(error.is_shared):
            # Not behind a progress bar, on a line of its own.
            tqdm.write("error: " + " ".join(with_flags(error, flags).split()), file=sys.stderr)
        sys.exit(1)
    except TrainingInterrupted as interruption:
        # Ctrl-C ends a `| tee`, too.
        with suppress(BrokenPipeError):
            if is_reporting_rank():
                tqdm.write(as_flags(str(interruption), flags))
        sys.exit(128 + interruption.signal)
    except KeyboardInterrupt:
        tqdm.write("interrupted", file=sys.stderr)
        sys.exit(130)


def raise_failures(failed: Mapping[str, str], output_dir: Path) -> None:
    """Raise [`SiTError`] if some runs of an experiment have failed, so that the exit code says it.

    Args:
        failed (mapping from `str` to `str`): The problem of each.
        output_dir (`Path`): Where the results of the others are.
    """
    if failed:
        (name, problem), *others = failed.items()
        more = f", and {len(others)} more" if others else ""
        raise SiTError(f"failed: {name} ({problem}){more}; {output_dir}/results.md has all else")


def with_flags(error: SiTError, flags: Collection[str]) -> str:
    """The text of an error, with the arguments that it names written as flags.

    Args:
        error ([`SiTError`]): The error.
        flags (collection of `str`): Names that are flags. Others stay as they are.

    Returns:
        `str`: Such as `--image_column: no column 'foo'; give --image_column img`.
    """
    texts = [as_flags(text, flags) for text in (error.problem, error.remedy) if text is not None]
    if error.argument is not None:
        texts[0] = f"{'--' if error.argument in flags else ''}{error.argument}: {texts[0]}"
    return "; ".join(texts)


def as_flags(text: str, flags: Collection[str]) -> str:
    """A text with the arguments that it names in backticks written as flags.

    Args:
        text (`str`): Such as ``with `streaming` or `image_cache="disk"` ``.
        flags (collection of `str`): Names that are flags. Others stay as they are.

    Returns:
        `str`: Such as `with --streaming or --image_cache disk`.
    """

    def as_flag(found) -> str:
        name, _, value = found.groups()
        if name not in flags:
            return found[0]
        return f"--{name}" if value is None else f"--{name} {value}"

    return NAMED_ARGUMENT.sub(as_flag, text)


def is_reporting_rank(is_shared: bool = True) -> bool:
    """Whether this process writes a message to the terminal.

    Args:
        is_shared (`bool`, *optional*, defaults to `True`): Whether every process of the run has the same message, so that
            the main one writes it for all.
    """
    # Accelerate takes a second to import, and without it no process knows of others.
    state = sys.modules.get("accelerate.state")
    if state is None or not state.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    return not is_shared or state.PartialState().is_main_process
