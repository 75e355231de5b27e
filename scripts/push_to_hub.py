#!/usr/bin/env python
"""Push the folder of a finished run to the Hugging Face Hub: what `--push_to_hub` of the run does, or could not do.

    python scripts/push_to_hub.py FOLDER [--hub_model_id NAMESPACE/NAME] [--hub_private_repo] [--hub_strategy checkpoint]

Up go the model (weights, configuration, image processor, the code to load it), its card with the images that it shows, results
and logs; with `--hub_strategy checkpoint` the newest checkpoint too, under last-checkpoint/. What is there already, as it is, is
not sent again. Log in first: `hf auth login`, or set HF_TOKEN.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.card_writing import name_repository
from modeling_sit.hub.repository import HubRepository, HubUnreachable, check_for_token
from modeling_sit.hub.repository_files import (
    CARD,
    CHECKPOINT_FOLDERS,
    find_checkpoint_files,
    find_model_files,
)
from modeling_sit.runtime.errors import SiTError


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    flags = {name: field.metadata["help"] for name, field in HubArguments.__dataclass_fields__.items()}
    parser.add_argument("folder", metavar="FOLDER", help="The --output_dir of a run.")
    parser.add_argument("--hub_model_id", help=flags["hub_model_id"].replace("the output folder", "the folder"))
    parser.add_argument("--hub_private_repo", action="store_true", help=flags["hub_private_repo"])
    parser.add_argument(
        "--hub_strategy",
        choices=("end", "checkpoint"),
        default="end",
        help="Whether to push the newest checkpoint too, for another machine to go on from.",
    )
    arguments = parser.parse_args()
    with one_line_errors():
        push(Path(arguments.folder), arguments.hub_model_id, arguments.hub_private_repo, arguments.hub_strategy)


def push(folder: Path, hub_model_id: str | None, hub_private_repo: bool, hub_strategy: str) -> None:
    hub_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    if not folder.is_dir():
        raise SiTError(f"{folder}: no such folder; give the --output_dir of a run")
    if constants.is_offline_mode():
        raise SiTError("HF_HUB_OFFLINE is set, so that nothing can be pushed: unset it")
    files = find_model_files(folder)
    if hub_strategy == "checkpoint":
        checkpoint_files = find_checkpoint_files(folder)
        if not checkpoint_files:
            raise SiTError(f"--hub_strategy checkpoint: {folder} has no checkpoint; leave the flag out")
        files |= checkpoint_files
    repository = HubRepository(hub_model_id or folder.resolve().name, hub_private_repo)
    check_for_token(files)
    try:
        repository.check_login()
        name_repository(folder, repository.name)
        repository.commit(files, "The model and its card", CHECKPOINT_FOLDERS if hub_strategy == "checkpoint" else ())
    except HubUnreachable as problem:
        raise SiTError(f"not pushed to {repository.name}: {problem}; try again later") from problem
    megabytes = sum(file.stat().st_size for file in files.values()) / 1e6
    print(f"pushed to {repository.url}: {len(files)} files, {megabytes:,.1f} MB")
    if CARD not in files:
        print(f"without a model card, for {folder} has no {CARD}: the run that wrote it is not done")


if __name__ == "__main__":
    main()
