"""`modeling-sit compare`: whether pretraining helps on labeled images."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.compare import ComparisonArguments, run_comparison

DESCRIPTION = """Tell whether pretraining helps on labeled images: the same fine-tuning from pretrained weights and from scratch.

    modeling-sit compare --model_name_or_path M --dataset D --finetuning_recipe digits_finetune --output_dir O

Fine-tunes with each fraction of the labels and each seed, from the pretrained weights and from scratch, and measures the
frozen features of both. Leaves tables in `results.md`, numbers in `results.json` and a chart in `results.png`. Runs that
are in the folder already are not repeated, so that a comparison that was cut off goes on.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((ComparisonArguments,), command="compare", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        run_comparison(arguments)
