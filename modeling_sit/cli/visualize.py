"""`modeling-sit visualize KIND`: figures of a pretrained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser, choose_command, program_name
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.visualization.arguments import (
    AttentionArguments,
    ChosenImagesArguments,
    DenseImagesArguments,
    DetectionsArguments,
    EmbeddingsArguments,
    FigureArguments,
    NeighboursArguments,
    ReconstructionArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.dense_run import run_detections, run_segmentation
from modeling_sit.visualization.embeddings_run import run_embeddings
from modeling_sit.visualization.run import run_attention, run_neighbours, run_reconstructions

SPLIT_RULE = """The images are from the validation split, or from the training split if there is no other. --train_split or
--validation_split names another split."""
FIRST_RULE = f"{SPLIT_RULE} The first images are from as many classes as possible."
DENSE_RULE = (
    f"""{SPLIT_RULE} What is true of the images is drawn too, if it is known. Classes are matched by their names."""
)
MAP_RULE = f"{SPLIT_RULE} If there are more than --max_images, the command chooses that many at random."
NEIGHBOURS_RULE = """Queries are images of the validation split. Their neighbors are from the training split. If there is only one split,
both are from it, and no image is its own neighbor. --train_split and --validation_split name other splits."""


@dataclass(frozen=True)
class Kind:
    """A kind of figure: what `--help` says about it, its arguments, and the function that draws it from them."""

    purpose: str
    draw: Callable
    arguments: tuple[type, ...]
    rule: str
    options: str = ""


KINDS = {
    "reconstructions": Kind(
        "Images: clean, corrupted, reconstructed, and with the reconstruction pasted into the corrupted pixels.",
        run_reconstructions,
        (FigureArguments, ReconstructionArguments, ChosenImagesArguments),
        FIRST_RULE,
        " [--splits train test] [--other_datasets FOREIGN]",
    ),
    "embeddings": Kind(
        "A map of the features, colored by label or by cluster. Similar images are close to each other.",
        run_embeddings,
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        MAP_RULE,
        " [--compare_with random OTHER] [--html FILE.html]",
    ),
    "attention": Kind(
        "Where the contrastive token looks, for each head.",
        run_attention,
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        FIRST_RULE,
    ),
    "neighbours": Kind(
        "Images, and the images with the nearest features.",
        run_neighbours,
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        NEIGHBOURS_RULE,
    ),
    "detections": Kind(
        "Images with the boxes or masks of objects: the true ones, and those that a detector finds.",
        run_detections,
        (FigureArguments, ResolutionArguments, DetectionsArguments, DenseImagesArguments),
        DENSE_RULE,
        " [--threshold 0.5]",
    ),
    "segmentation": Kind(
        "Images with a class for each pixel: the true one, and the one that a model finds.",
        run_segmentation,
        (FigureArguments, ResolutionArguments, DenseImagesArguments),
        DENSE_RULE,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    purposes = {name: kind.purpose for name, kind in KINDS.items()}
    name, rest = choose_command(purposes, "Draw what a model sees.", argv, program_name("visualize"))
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
