"""`modeling-sit tile`: make a multi-label dataset of one with one label an image."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.tile import TilingArguments, run_tiling
from modeling_sit.hub.provenance import typed_command

DESCRIPTION = """Make a multi-label dataset: tile images with one label each into images with several.

    modeling-sit tile --dataset flowers --output_dir flowers-tiled [--grid 2 2] [--image_size 224]

Each tiled image shows four images of one split, and has the labels of all of them. Splits are not mixed. Where there is no
validation split, --validation_fraction of the training images become one before the tiling. Choose by it, and give
`modeling-sit evaluate` --validation_split test to measure on the test split.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((TilingArguments,), command="tile", description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        run_tiling(arguments, typed_command())
