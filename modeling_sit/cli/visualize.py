"""`modeling-sit visualize KIND`: figures of a pretrained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser, choose_command, program_name
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
from modeling_sit.visualization.run import run_attention, run_embeddings, run_neighbours, run_reconstructions

SPLIT_RULE = """Images are those of the validation split where there is one, else of the training split; --train_split or
--validation_split names another."""
FIRST_RULE = f"{SPLIT_RULE} The first few show as many classes as they can."
MAP_RULE = f"{SPLIT_RULE} Of more than --max_images, so many are chosen at random."
NEIGHBOURS_RULE = """Queries are images of the validation split, and their neighbours are sought in the training split. Where there is
one split alone, both are of it, and no image is its own neighbour. --train_split and --validation_split name others."""


@dataclass(frozen=True)
class Kind:
    """A kind of figure: what `--help` says of it, its arguments, and the function that draws it from them."""

    purpose: str
    draw: Callable
    arguments: tuple[type, ...]
    rule: str
    options: str = ""


KINDS = {
    "reconstructions": Kind(
        "Images clean, corrupted, reconstructed, and with the reconstruction pasted into the holes.",
        run_reconstructions,
        (FigureArguments, ReconstructionArguments, ChosenImagesArguments),
        FIRST_RULE,
        " [--images a.jpg b.jpg]",
    ),
    "embeddings": Kind(
        "A map of the features, on which similar images lie close, colored by label or by cluster.",
        run_embeddings,
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        MAP_RULE,
        " [--compare_with random] [--html FILE.html]",
    ),
    "attention": Kind(
        "Where the contrastive token looks, for each head.",
        run_attention,
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        FIRST_RULE,
    ),
    "neighbours": Kind(
        "Images, and those whose features are nearest to theirs.",
        run_neighbours,
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        NEIGHBOURS_RULE,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    purposes = {name: kind.purpose for name, kind in KINDS.items()}
    name, rest = choose_command(purposes, "Draw what a pretrained model sees.", argv, program_name("visualize"))
    kind = KINDS[name]
    program = f"{program_name('visualize')} {name}"
    example = f"    modeling-sit visualize {name} --model_name_or_path M --dataset D --output FILE.png{kind.options}"
    parser = RecipeArgumentParser(
        kind.arguments, prog=program, description=f"{kind.purpose}\n\n{example}\n\n{kind.rule}"
    )
    arguments = parser.parse(rest)
    with one_line_errors(parser.flags):
        saved = kind.draw(*arguments)
        for line in (*saved.notes, *(f"written to {path}" for path in saved.paths)):
            print(line)
