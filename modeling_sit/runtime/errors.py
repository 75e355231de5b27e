"""Mistakes that a user can put right: one exception that knows the argument, the problem and the remedy."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# An argument that a text names, as Python writes it: `name`, `name=value` or `name="value"`.
NAMED_ARGUMENT = re.compile(r"`([a-z]\w*)(?:=(\"?)([^`\"]*)\2)?`")


class SiTError(Exception):
    """
    Something that the user can put right.

    The texts name other arguments in backticks, as Python writes them: `` `label_column` `` or
    `` `image_cache="disk"` ``. The command line shows them as flags.

    Args:
        problem (`str`): What is wrong: names the file, the column or the value. One line, no full stop.
        argument (`str`, *optional*): Name of the argument that is wrong, such as `image_column`.
        remedy (`str`, *optional*): What to do. One line, no full stop.

    Attributes:
        is_shared (`bool`): Whether every process of the run raises this error, so that one may report it for all.
    """

    def __init__(self, problem: str, *, argument: str | None = None, remedy: str | None = None):
        super().__init__(problem)
        self.problem = problem
        self.argument = argument
        self.remedy = remedy
        self.is_shared = False

    def __str__(self) -> str:
        text = self.problem if self.argument is None else f"{self.argument}: {self.problem}"
        return text if self.remedy is None else f"{text}; {self.remedy}"

    def __reduce__(self):
        return _rebuild, (self.problem, self.argument, self.remedy)

    def renamed(self, names: Mapping[str, str]) -> "SiTError":
        """The same error for a caller whose arguments have other names.

        Args:
            names (mapping from `str` to `str`): The caller's name of each argument.
        """

        def rename(text: str | None) -> str | None:
            return text and NAMED_ARGUMENT.sub(
                lambda found: found[0].replace(found[1], names.get(found[1], found[1]), 1), text
            )

        error = type(self)(
            rename(self.problem), argument=names.get(self.argument, self.argument), remedy=rename(self.remedy)
        )
        error.is_shared = self.is_shared
        return error


def _rebuild(problem: str, argument: str | None, remedy: str | None) -> SiTError:
    return SiTError(problem, argument=argument, remedy=remedy)


@contextmanager
def argument_names(**names: str) -> Iterator[None]:
    """Rename the arguments of every [`SiTError`] that the block raises, with [`SiTError.renamed`].

    Args:
        names: The caller's name of each argument: `argument_names(validation_split="test_split")`.
    """
    try:
        yield
    except SiTError as error:
        raise error.renamed(names) from error


class TrainingInterrupted(Exception):
    """
    A signal ended a run before its last step. A checkpoint is written, where the run writes checkpoints.

    Args:
        signal (`int`): The signal's number, such as `signal.SIGTERM`.
        message (`str`): One line: after which step, and how to go on.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal

    def __reduce__(self):
        return type(self), (self.signal, str(self))
