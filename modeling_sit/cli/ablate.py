"""`modeling-sit ablate`: which setting is better, on these images?"""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.ablate import AblationResult, run_ablation
from modeling_sit.experiments.ablation_arguments import AblationArguments
from modeling_sit.runtime.errors import SiTError

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
        _raise_failures(run_ablation(arguments))


def _raise_failures(result: AblationResult) -> None:
    """Raise [`SiTError`] if something has failed, so that the exit code says it."""
    if result.failed:
        (name, problem), *others = result.failed.items()
        more = f", and {len(others)} more" if others else ""
        raise SiTError(f"failed: {name} ({problem}){more}; {result.output_dir}/results.md has all else")
