"""`modeling-sit push FOLDER`: the folder of a finished run, on the Hugging Face Hub."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.hub.arguments import PushArguments
from modeling_sit.hub.push import run_push

DESCRIPTION = """Push the folder of a finished run to the Hugging Face Hub: what --push_to_hub of the run does, or could not do.

    modeling-sit push FOLDER [--hub_model_id NAMESPACE/NAME] [--hub_private_repo] [--hub_strategy checkpoint]

The model goes up (weights, configuration, image processor, the code to load it), with its card and the images in it, results
and logs; with --hub_strategy checkpoint the newest checkpoint too, under last-checkpoint/. Files that are there already, and
are the same, are not sent again. Log in first: `hf auth login`, or set HF_TOKEN.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser(
        (PushArguments,), command="push", positionals={"folder": "FOLDER"}, description=DESCRIPTION
    )
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        print(run_push(arguments))
