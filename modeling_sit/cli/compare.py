"""`modeling-sit compare`: whether pretraining helps on labeled images."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.compare import ComparisonArguments, run_comparison

DESCRIPTION = """Measure whether pretraining helps on labeled images, against raw pixels, the untrained encoder and training from scratch.

    modeling-sit compare --model_name_or_path M --dataset D --output_dir O

The command fine-tunes with each fraction of the labels and each seed, from the pretrained weights and from scratch, with a learning
rate and a length that it chooses for both on held-out training images. It classifies the raw pixels with the same labels, and measures
the frozen features before and after pretraining. It writes tables (`results.md`), numbers (`results.json`) and a chart
(`results.png`), and says in words whether pretraining helped. Runs that are finished are not repeated: the same command
goes on with an interrupted comparison.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((ComparisonArguments,), command="compare", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        run_comparison(arguments)
