"""Images that cannot be read: skipped and named once, or an error."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_sit.data.decoding import UnreadableImage, remedy
from modeling_sit.runtime.errors import SiTError


class UnreadableImages:
    """
    The images of this process that could not be read, each named once on stderr.

    Args:
        on_bad_image (`str`): `"skip"`, or `"error"`, with which [`check`] raises if there was one.
        known (iterable of `str`, *optional*): Messages that the run has logged before.
    """

    def __init__(self, on_bad_image: str, known: Iterable[str] = ()):
        self.on_bad_image = on_bad_image
        self.known = set(known)

    def add(self, problems: list[str]) -> None:
        """Record unreadable images by the messages about them."""
        for problem in problems:
            if problem not in self.known:
                self.known.add(problem)
                if self.on_bad_image == "skip":
                    tqdm.write(f"skipped an unreadable image: {problem}", file=sys.stderr)

    def named_by_all(self) -> list[str]:
        """Those of all processes. Every process must call this."""
        return sorted(set(gather_object(sorted(self.known))))

    def check(self) -> None:
        """Raise a [`SiTError`] about the first unreadable image, if `on_bad_image` is `"error"`."""
        if self.on_bad_image == "error" and self.known:
            raise SiTError(
                min(self.known), argument="on_bad_image", remedy='`on_bad_image="skip"` would go on without it'
            )


@contextmanager
def unreadable_errors(dataset: str) -> Iterator[None]:
    """Turn an `UnreadableImage` into a [`SiTError`] that names the dataset."""
    try:
        yield
    except UnreadableImage as problem:
        raise as_error(dataset, problem) from problem


def as_error(dataset: str, problem: UnreadableImage) -> SiTError:
    """The [`SiTError`] for a dataset with too many unreadable images in a row."""
    # The message of a worker's exception begins with its traceback.
    reason = str(problem).strip().splitlines()[-1].rpartition(f"{type(problem).__name__}: ")[2]
    return SiTError(f"{dataset} cannot be read: {reason}", argument="dataset", remedy=remedy(reason))
