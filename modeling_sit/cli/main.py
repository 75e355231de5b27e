"""`modeling-sit COMMAND`, `python -m modeling_sit COMMAND` and the files in `scripts/`: one program, a file a command."""

import importlib
import os
import sys
from collections.abc import Sequence

import transformers

from modeling_sit.cli.errors import is_reporting_rank
from modeling_sit.cli.parser import choose_command
from modeling_sit.cli.terminal import print_any_character
from modeling_sit.runtime.streams import survive_closed_output

# Each is a file of this folder, with underscores for dashes, and a function `main(argv)`.
COMMANDS = {
    "pretrain": "Pretrain a Vision Transformer on images without labels.",
    "finetune": "Train a pretrained model on labeled images.",
    "evaluate": "Measure the frozen features of a pretrained model, or what a fine-tuned model finds in images.",
    "compare": "Measure whether pretraining helps: the same fine-tuning from pretrained weights and from scratch.",
    "compare-methods": "Measure which pretraining method suits your images, at the same budget.",
    "ablate": "Answer a question about the method on your images: a plan of settings, each pretrained and measured.",
    "embed": "Write the features of all images of a dataset to parquet files.",
    "visualize": "Draw reconstructions, attention, maps of the features, neighbors, detections and segmentations.",
    "demo": "Show what a checkpoint makes of images, on a page in the browser.",
    "convert": "Write a checkpoint in another format, and check that the outputs are the same.",
    "push": "Push the output folder of a finished run to the Hugging Face Hub.",
    "tile": "Make a multi-label dataset: tile images with one label into images with several labels.",
    "doctor": "Look at this machine and at a dataset: what to paste into a report of trouble.",
    "quickstart": "Show that pretraining helps: on built-in images, in minutes on a CPU.",
}
DESCRIPTION = "Self-supervised pretraining of Vision Transformers on your own images."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Args:
        argv (sequence of `str`, *optional*): The command line without the program's name. Default: `sys.argv[1:]`.

    Raises:
        `SystemExit`: With a code other than 0 and one line on stderr, for a user's mistake.
    """
    print_any_character()
    name, rest = choose_command(COMMANDS, DESCRIPTION, argv)
    try:
        command = importlib.import_module(f"modeling_sit.cli.{name.replace('-', '_')}")
        prepare_process()
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.split(".")[0] == "modeling_sit":
            raise
        sys.exit(missing_package(name, problem.name) if is_reporting_rank() else 1)
    command.main(rest)


def missing_package(command: str, module: str) -> str:
    package = module.split(".")[0]
    return f"error: {command} needs the package {package!r}, which is not installed: pip install modeling-sit[train]"


def prepare_process() -> None:
    """Set what belongs to the whole process and not to a library: what ends it, its threads, and which libraries write to the terminal."""
    from modeling_sit.runtime.signals import die_with_parent
    from modeling_sit.runtime.threads import use_allowed_cores

    die_with_parent(os.environ)
    use_allowed_cores()
    survive_closed_output()
    # This package logs the important messages of loading a model itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
