"""`modeling-sit push FOLDER`: the folder of a finished run, on the Hugging Face Hub."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.hub.arguments import PushArguments
from modeling_sit.hub.push import run_push

DESCRIPTION = """Push the output folder of a finished run to the Hugging Face Hub, as --push_to_hub does during the run.

    modeling-sit push FOLDER [--hub_model_id NAMESPACE/NAME] [--hub_private_repo] [--hub_strategy checkpoint]

The command pushes the model (weights, configuration, image processor, the code to load it), the card with its images, results
and logs. With --hub_strategy checkpoint it also pushes the newest checkpoint, to last-checkpoint/. It does not send files again
that are already there and are the same. Log in first with `hf auth login`, or set HF_TOKEN.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser(
        (PushArguments,), command="push", positionals={"folder": "FOLDER"}, description=DESCRIPTION
    )
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        print(run_push(arguments))
