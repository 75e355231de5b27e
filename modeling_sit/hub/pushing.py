"""Pushing a run's folder to the Hub beside the training, which it never stops."""

import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm

from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.repository import HubRepository, HubUnreachable
from modeling_sit.hub.repository_files import (
    CHECKPOINT_FOLDERS,
    find_checkpoint_files,
    find_model_files,
    stage_files,
)
from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX, delete_temporary
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import mark_run

STAGED = f"{TEMPORARY_PREFIX}push-"
# Who sends SIGTERM sends SIGKILL soon after: schedulers in 30 seconds, containers in 10.
SECONDS_TO_LEAVE = 8.0


@dataclass
class Push:
    """
    Something on its way to the Hub.

    Args:
        what (`str`): Its name, for messages.
        folder (`Path`): Where its files are kept.
        files (mapping from `str` to `Path`): Each of them by its path in the repository.
    """

    what: str
    folder: Path
    files: Mapping[str, Path]


class HubPusher:
    """
    Pushes a run's folder, in a thread of its own. While a push is on its way, only the newest of the others waits. For
    the main process.

    Args:
        arguments (`HubArguments`): Where to push, and whether checkpoints too.
        folder (`Path`): The run's output folder.

    Raises:
        [`SiTError`]: If the repository's name is not valid, or `HF_HUB_OFFLINE` forbids to push.
    """

    def __init__(self, arguments: HubArguments, folder: Path):
        if constants.is_offline_mode():
            raise SiTError(
                "nothing can be pushed while HF_HUB_OFFLINE is set",
                argument="push_to_hub",
                remedy=f"unset it, or leave `push_to_hub` out and push later with: {push_command(folder, arguments)}",
            )
        self.repository = HubRepository(arguments.hub_model_id or folder.resolve().name, arguments.hub_private_repo)
        self.arguments, self.folder = arguments, folder
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next: Push | None = None
        self._replaced_folders = CHECKPOINT_FOLDERS if arguments.hub_strategy == "checkpoint" else ()
        self._is_reachable, self._is_left = True, False

    def check_login(self) -> None:
        """Check that the user is logged in to the Hub. If the Hub cannot be reached, the training goes on.

        Raises:
            [`SiTError`]: If there is no token, a wrong one, or one for reading only.
        """
        # The client logs every retry, which would break the progress bar.
        hub_logging.set_verbosity_error()
        self._unless_unreachable(self.repository.check_login)

    def create_repository(self) -> None:
        """Create the repository, before the training.

        Raises:
            [`SiTError`]: If the user may not write to it, or it is public and has to be private.
        """
        _delete_staged(self.folder)
        if self._is_reachable:
            self._unless_unreachable(self.repository.create)

    def _unless_unreachable(self, function: Callable[[], None]) -> None:
        try:
            function()
        except HubUnreachable as problem:
            self._is_reachable = False
            _say(f"{problem}; the run goes on, and tries again at the next push")

    def push_checkpoint(self, step: int, with_model: bool) -> None:
        """Start to push the newest checkpoint, if the arguments ask for it, and return.

        Args:
            step (`int`): Step of the checkpoint.
            with_model (`bool`): Whether the folder holds the model of this step too.
        """
        if self.arguments.hub_strategy == "checkpoint":
            self._start(f"step {step}", is_finished=False, with_model=with_model)

    def push_finished(self) -> None:
        """Push the folder of a finished run, and wait until the push is done or has failed."""
        self._start("the model and its card", is_finished=True, with_model=True)
        try:
            self._wait(None)
        except KeyboardInterrupt:
            self.close(0)
            raise

    def close(self, seconds: float | None = None) -> None:
        """Wait for a push that is on its way, at most this long. Default: a few seconds."""
        if self._is_left or self._wait(SECONDS_TO_LEAVE if seconds is None else seconds):
            return
        self._is_left = True
        _say(f"not all was pushed to {self.repository.name}; push it with: {self._command}")
        _delete_staged(self.folder)

    @property
    def _command(self) -> str:
        return push_command(self.folder, self.arguments, self.repository.name)

    def _start(self, what: str, is_finished: bool, with_model: bool) -> None:
        staged = None
        try:
            files = find_model_files(self.folder, is_finished) if with_model else {}
            if self.arguments.hub_strategy == "checkpoint":
                files |= find_checkpoint_files(self.folder)
            staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=self.folder))
            mark_run(staged, "unfinished")
            push = Push(what, staged, stage_files(files, staged))
        except (OSError, SiTError) as problem:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)
            self._report_failure(what, problem)
            return
        disable_progress_bars()
        with self._lock:
            if self._next is not None:
                shutil.rmtree(self._next.folder, ignore_errors=True)
            self._next = push
            if self._thread is None:
                # A daemon: a program that has to exit does not wait for it. `push_finished` does.
                self._thread = threading.Thread(target=self._push_all, name="push to the Hub", daemon=True)
                self._thread.start()

    def _push_all(self) -> None:
        while True:
            with self._lock:
                push, self._next = self._next, None
                if push is None:
                    self._thread = None
                    return
            try:
                message = push.what[0].upper() + push.what[1:]
                self.repository.commit(push.files, message, self._replaced_folders)
            except (HubUnreachable, SiTError, OSError) as problem:
                if not self._is_left:
                    self._report_failure(push.what, problem)
            else:
                _say(f"pushed to {self.repository.url}: {push.what}")
            finally:
                shutil.rmtree(push.folder, ignore_errors=True)

    def _report_failure(self, what: str, problem: Exception) -> None:
        _say(f"{what} not pushed to {self.repository.name}: {problem}; push it later with: {self._command}")

    def _wait(self, seconds: float | None) -> bool:
        """Wait for this many seconds at most. Returns whether every push is done."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()


def push_command(folder: Path, arguments: HubArguments, name: str | None = None) -> str:
    """The command that pushes a folder later, with the same arguments."""
    words = ["modeling-sit", "push", str(folder)]
    name = name or arguments.hub_model_id
    given: dict[str, list[str]] = {"hub_model_id": [name]} if name else {}
    if arguments.hub_private_repo:
        given["hub_private_repo"] = []
    if arguments.hub_strategy != "end":
        given["hub_strategy"] = [arguments.hub_strategy]
    for argument, values in given.items():
        words += [f"--{argument}", *values]
    return shlex.join(words)


def _delete_staged(folder: Path) -> None:
    for path in folder.glob(f"{STAGED}*"):
        delete_temporary(path)


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        tqdm.write(" ".join(line.split()), sys.stderr)
