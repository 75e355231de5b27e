"""`modeling-sit ablate`: which setting is better, on these images?"""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors, raise_failures
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.ablate import run_ablation
from modeling_sit.experiments.ablation_arguments import AblationArguments

DESCRIPTION = """Answer a question about the method on your images: pretrain and measure each cell of a plan, with several seeds.

    modeling-sit ablate corruption_kind --dataset IMAGES --output_dir FOLDER --dry_run
    modeling-sit ablate corruption_kind --dataset IMAGES --output_dir FOLDER
    modeling-sit ablate MINE.yaml --dataset IMAGES --output_dir FOLDER --cells noise,replace

PLAN is a YAML file, or the name of a plan of the package. The tables go to results.md, all values to results.json and results.csv,
and a chart of each factor to results-FACTOR.png. If the command is interrupted, the same command goes on. Several machines with one
shared folder may run it at once: each takes what nobody is at. A cell that fails is named, the others go on, and the exit code is 1.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser(
        (AblationArguments,), command="ablate", positionals={"plan": "PLAN"}, description=DESCRIPTION
    )
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        result = run_ablation(arguments)
        raise_failures(result.failed, result.output_dir)
