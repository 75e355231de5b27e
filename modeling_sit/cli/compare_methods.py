"""`modeling-sit compare-methods`: which pretraining method, on these images, for this budget?"""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors, raise_failures
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.compare_methods import run_methods_comparison
from modeling_sit.experiments.methods_arguments import MethodsComparisonArguments

DESCRIPTION = """Measure which pretraining method suits your images: each gets the same budget and the same search of its settings.

    modeling-sit compare-methods --methods sit,simclr --dataset IMAGES --output_dir FOLDER
    modeling-sit compare-methods --methods sit,simclr --dataset IMAGES --output_dir FOLDER --budget tokens --budget_value 1e9

Each method is pretrained with each seed. Then frozen features are measured, and the models are fine-tuned with some of the labels
and with all of them; raw pixels, the untrained encoder and training from scratch are measured beside them. The tables go to
results.md, all values to results.json, charts to results.png and embeddings.html. If the command is interrupted, the same
command goes on. A pretraining whose loss is not finite is named, the others go on, and the exit code is 1.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((MethodsComparisonArguments,), command="compare-methods", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        result = run_methods_comparison(arguments)
        raise_failures(result.failed, result.output_dir)
