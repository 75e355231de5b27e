#!/usr/bin/env python
"""Push the folder of a finished run to the Hugging Face Hub: what `--push_to_hub` of the run does, or could not do.

    python scripts/push_to_hub.py FOLDER [--hub_model_id NAMESPACE/NAME] [--hub_private_repo] [--hub_strategy checkpoint]

Pushed are the model (weights, configuration, image processor, the code that loads it), its card with the images that it shows,
results and logs; with `--hub_strategy checkpoint` the newest checkpoint too, below last-checkpoint/. Files that are there already
are not sent again. Log in first: `hf auth login`, or set HF_TOKEN.
"""

import argparse
from dataclasses import fields

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.hub.arguments import PushArguments
from modeling_sit.hub.push import run_push


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    help_texts = {field.name: field.metadata["help"] for field in fields(PushArguments)}
    parser.add_argument("folder", metavar="FOLDER", help=help_texts["folder"])
    parser.add_argument("--hub_model_id", help=help_texts["hub_model_id"])
    parser.add_argument("--hub_private_repo", action="store_true", help=help_texts["hub_private_repo"])
    parser.add_argument(
        "--hub_strategy", choices=("end", "checkpoint"), default="end", help=help_texts["hub_strategy"]
    )
    with one_line_errors([field.name for field in fields(PushArguments) if field.name != "folder"]):
        print(run_push(PushArguments(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
