"""Push the folder of a finished run to the Hugging Face Hub."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm

from modeling_sit.hub.arguments import PushArguments
from modeling_sit.hub.card_writing import name_repository
from modeling_sit.hub.repository import HubRepository, HubUnreachable, check_for_token
from modeling_sit.hub.repository_files import CARD, CHECKPOINT_FOLDERS, find_checkpoint_files, find_model_files
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.words import counted


@dataclass(frozen=True)
class PushResult:
    """
    What was pushed.

    Args:
        url (`str`): Address of the repository.
        num_files (`int`): Files of the model, the card, results and checkpoints. Not all of them had to be sent.
        num_bytes (`int`): Their size.
        has_card (`bool`): Whether there was a model card.
    """

    url: str
    num_files: int
    num_bytes: int
    has_card: bool

    def __str__(self) -> str:
        size = tqdm.format_sizeof(self.num_bytes, "B")
        text = f"pushed to {self.url}: {counted(self.num_files, 'file')}, {size}"
        return (
            text
            if self.has_card
            else f"{text}\nwithout a model card: the folder has no {CARD}, so its run is not done"
        )


def push(
    folder: str | Path,
    *,
    hub_model_id: str | None = None,
    hub_private_repo: bool = False,
    hub_strategy: Literal["end", "checkpoint"] = "end",
) -> str:
    """
    Push the folder of a finished run: the model with the code that loads it, its card with its images, results and
    logs.
    Log in before (`hf auth login`, or HF_TOKEN).

    Args:
        folder (`str` or `Path`): The output folder of a run.
        hub_model_id (`str`, *optional*): `NAME` or `NAMESPACE/NAME`. Default: the folder's name, in the user's
            namespace.
        hub_private_repo (`bool`, *optional*, defaults to `False`): Whether the repository has to be private.
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            `"checkpoint"` pushes the newest checkpoint too, below `last-checkpoint/`.

    Returns:
        `str`: Address of the repository.

    Raises:
        [`SiTError`]: If the folder holds no model, or the Hub cannot be reached or refuses it.
    """
    arguments = PushArguments(
        str(folder), hub_model_id=hub_model_id, hub_private_repo=hub_private_repo, hub_strategy=hub_strategy
    )
    return run_push(arguments).url


def run_push(arguments: PushArguments) -> PushResult:
    """Push a folder, as [`push`] does.

    Raises:
        [`SiTError`]: As [`push`].
    """
    folder = Path(os.path.expanduser(arguments.folder))
    with_checkpoint = arguments.hub_strategy == "checkpoint"
    if not folder.is_dir():
        raise SiTError(f"{folder}: no such folder", argument="folder", remedy="give the output folder of a run")
    if constants.is_offline_mode():
        raise SiTError("nothing can be pushed while HF_HUB_OFFLINE is set", remedy="unset it")
    files = find_model_files(folder)
    if with_checkpoint:
        checkpoint_files = find_checkpoint_files(folder)
        if not checkpoint_files:
            raise SiTError(f"{folder} has no checkpoint", argument="hub_strategy", remedy="leave `hub_strategy` out")
        files |= checkpoint_files
    repository = HubRepository(arguments.hub_model_id or folder.resolve().name, arguments.hub_private_repo)
    check_for_token(files)
    try:
        with _quiet_client():
            repository.check_login()
            name_repository(folder, repository.name)
            repository.commit(files, "The model and its card", CHECKPOINT_FOLDERS if with_checkpoint else ())
    except HubUnreachable as problem:
        raise SiTError(f"not pushed to {repository.name}: {problem}", remedy="try again later") from problem
    num_bytes = sum(file.stat().st_size for file in files.values())
    return PushResult(repository.url, len(files), num_bytes, CARD in files)


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Have the Hub's client log errors only, and draw progress bars only on a terminal."""
    verbosity, had_bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()
