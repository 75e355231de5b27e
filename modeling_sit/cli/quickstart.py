"""`modeling-sit quickstart`: pretraining, fine-tuning and a comparison on built-in images."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.quickstart import QuickstartArguments, run_quickstart
from modeling_sit.runtime.memory import keep_freed_memory

DESCRIPTION = """Show that pretraining without labels helps: on scikit-learn's digits, in minutes on a CPU.

    modeling-sit quickstart --output_dir outputs/quickstart

The command pretrains once. Then it fine-tunes with a tenth of the labels and with all labels, from the pretrained weights and
from scratch, with three seeds each, and classifies the raw pixels with the same labels. Where there are two cores, a second process
fine-tunes meanwhile, and writes what it says into second_process.log. `make quickstart` runs it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((QuickstartArguments,), command="quickstart", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    keep_freed_memory()
    with one_line_errors(parser.flags):
        run_quickstart(arguments)
