"""Batches of crops for the training loop, and what it says of pictures that cannot be read."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_sit.cli.errors import UserError
from modeling_sit.data.decoding import UnreadablePicture


def read_batches(loader: DataLoader, dataset: str) -> Iterator[dict]:
    """The batches of a loader; closing this generator ends the loader's workers.

    Raises:
        [`UserError`]: Naming the data set, if too many pictures in a row cannot be read.
    """
    try:
        yield from loader
        return
    except UnreadablePicture as problem:
        error = _naming(dataset, problem)
        # Its frames hold it, and it holds them, and by them the loader's workers, for which the program's end would wait.
        problem.__traceback__ = None
    raise error


@contextmanager
def naming_unreadable(dataset: str) -> Iterator[None]:
    """Turn an `UnreadablePicture` into an error that names the data set."""
    try:
        yield
    except UnreadablePicture as problem:
        raise _naming(dataset, problem) from problem


def _naming(dataset: str, problem: UnreadablePicture) -> UserError:
    # A worker's exception carries its traceback in front of what it says.
    reason = str(problem).strip().splitlines()[-1].rpartition("UnreadablePicture: ")[2]
    return UserError(f"--dataset {dataset} cannot be read: {reason}; mend or remove the damaged files")


class UnreadablePictures:
    """
    The pictures of this process that could not be read, each named once on stderr.

    Args:
        on_bad_image (`str`): `"skip"`, or `"error"`: [`check`] raises then, if there was one.
        known (`list` of `str`, *optional*): Those that the run has named before.
    """

    def __init__(self, on_bad_image: str, known: Iterable[str] = ()):
        self.on_bad_image = on_bad_image
        self.known = set(known)

    def add(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.known:
                self.known.add(problem)
                if self.on_bad_image == "skip":
                    tqdm.write(f"skipped an unreadable picture: {problem}", file=sys.stderr)

    def named_by_all(self) -> list[str]:
        """Those of all processes. Every process must call this."""
        return sorted(set(gather_object(sorted(self.known))))

    def check(self) -> None:
        """Raise [`UserError`] by the first unreadable picture, if `on_bad_image` asks for it."""
        if self.on_bad_image == "error" and self.known:
            raise UserError(f"{min(self.known)} (--on_bad_image skip would go on without it)")


def crop_for_preview(crops_dataset: torch.utils.data.Dataset, keys: list) -> torch.Tensor:
    """One crop each of the items of these keys, `(pictures, channels, height, width)`, uint8."""
    return torch.stack([crops_dataset[key]["crops"][0] for key in keys])
