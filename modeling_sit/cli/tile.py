"""`modeling-sit tile`: make a multi-label dataset from a dataset with one label per image."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.tile import TilingArguments, run_tiling
from modeling_sit.hub.provenance import typed_command

DESCRIPTION = """Make a multi-label dataset: tile images with one label into images with several labels.

    modeling-sit tile --dataset flowers --output_dir flowers-tiled [--grid 2 2] [--image_size 224]

Each tiled image shows four images of one split and has all their labels. Images of different splits are never mixed. If there is
no validation split, the command sets --validation_fraction of the training images aside as one, before the tiling. Use it to
choose models. To measure on the test split, give `modeling-sit evaluate` the flag --validation_split test.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((TilingArguments,), command="tile", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        run_tiling(arguments, typed_command())
