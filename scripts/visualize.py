#!/usr/bin/env python
"""Look at what a model has learned.

    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py reconstructions --model_name_or_path M --images a.jpg b.jpg --output FILE.png
    python scripts/visualize.py embeddings      --model_name_or_path M --dataset D --output FILE.png \\
        --compare_with random --html FILE.html
    python scripts/visualize.py attention       --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py neighbours      --model_name_or_path M --dataset D --output FILE.png

Images are those of the validation split where there is one, else of the training split; `--train_split` or
`--validation_split` names another. The same flags and seed give the same figure. Classes have Okabe and Ito's colors,
which color-blind readers can tell apart, in four shapes.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.help_text import ExampleHelpFormatter
from modeling_sit.cli.parser import RecipeArgumentParser, choose_command
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.features import FeatureArguments
from modeling_sit.visualization.arguments import (
    AttentionArguments,
    ChosenImagesArguments,
    EmbeddingsArguments,
    FigureArguments,
    NeighboursArguments,
    ReconstructionArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.run import (
    SavedFigure,
    run_attention,
    run_embeddings,
    run_neighbours,
    run_reconstructions,
)


@dataclass
class Command:
    """A kind of figure: its arguments, the function that draws and saves it, and what `--help` says about it."""

    purpose: str
    arguments: tuple[type, ...]
    run: Callable[..., SavedFigure]
    example: str
    rule: str


SPLIT_RULE = (
    "Images are those of the validation split where there is one, else of the training split; --train_split or\n"
    "--validation_split names another. The first few show as many classes as possible."
)
MAP_RULE = SPLIT_RULE.partition(" The first")[0] + " Of more than --max_images, that many are chosen at random."
NEIGHBOURS_RULE = (
    "Queries are images of the validation split, and their neighbors are sought in the training split. If there is only one\n"
    "split, both are of it, and no image is its own neighbor. --train_split and --validation_split name others."
)
COMMANDS = {
    "reconstructions": Command(
        "Images clean, corrupted, reconstructed, and with the reconstruction pasted into the holes.",
        (FigureArguments, ReconstructionArguments, ChosenImagesArguments),
        run_reconstructions,
        "    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png\n"
        "    python scripts/visualize.py reconstructions --model_name_or_path M --images a.jpg b.jpg --output FILE.png",
        SPLIT_RULE,
    ),
    "embeddings": Command(
        "A map of the features, on which similar images lie close, colored by label or by cluster.",
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        run_embeddings,
        "    python scripts/visualize.py embeddings --model_name_or_path M --dataset D --output FILE.png \\\n"
        "        --compare_with random --html FILE.html",
        MAP_RULE,
    ),
    "attention": Command(
        "Where the contrastive token looks, for each head.",
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        run_attention,
        "    python scripts/visualize.py attention --model_name_or_path M --dataset D --output FILE.png",
        SPLIT_RULE,
    ),
    "neighbours": Command(
        "Images, and those whose features are nearest to theirs.",
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        run_neighbours,
        "    python scripts/visualize.py neighbours --model_name_or_path M --dataset D --output FILE.png",
        NEIGHBOURS_RULE,
    ),
}


def main() -> None:
    purposes = {name: command.purpose for name, command in COMMANDS.items()}
    name, argv = choose_command(purposes, __doc__.partition("\n")[0])
    command = COMMANDS[name]
    parser = RecipeArgumentParser(
        command.arguments,
        prog=f"{os.path.basename(sys.argv[0])} {name}",
        description=f"{command.purpose}\n\n{command.example}\n\n{command.rule}",
        formatter_class=ExampleHelpFormatter,
    )
    arguments = parser.parse(argv)
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        saved = command.run(*arguments)
        for line in [*saved.notes, *(f"written to {path}" for path in saved.paths)]:
            print(line)


if __name__ == "__main__":
    main()
