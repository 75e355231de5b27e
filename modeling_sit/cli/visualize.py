"""`modeling-sit visualize KIND`: figures of a pretrained model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser, choose_command, program_name
from modeling_sit.visualization.arguments import FigureArguments
from modeling_sit.visualization.visualize import KINDS

SPLIT_RULE = """The images are from the validation split, or from the training split if there is no other. --train_split or
--validation_split names another split."""
FIRST_RULE = f"{SPLIT_RULE} The first images are from as many classes as possible."
DENSE_RULE = (
    f"""{SPLIT_RULE} What is true of the images is drawn too, if it is known. Classes are matched by their names."""
)
MAP_RULE = f"{SPLIT_RULE} If there are more than --max_images, the command chooses that many at random."
NEIGHBOURS_RULE = """Queries are images of the validation split. Their neighbors are from the training split. If there is only one split,
both are from it, and no image is its own neighbor. --train_split and --validation_split name other splits."""


@dataclass
class SavedFigureArguments(FigureArguments):
    """The model, and the figure's file."""

    output: str = field(
        metadata={"help": "File for the figure, .png or .pdf. An existing file is replaced. Required."}
    )


@dataclass(frozen=True)
class Words:
    """What `--help` says about a kind of figure."""

    purpose: str
    rule: str
    options: str = ""


WORDS = {
    "reconstructions": Words(
        "Images: clean, corrupted, reconstructed, and with the reconstruction pasted into the corrupted pixels.",
        FIRST_RULE,
        " [--splits train test] [--other_datasets FOREIGN]",
    ),
    "embeddings": Words(
        "A map of the features, colored by label or by cluster. Similar images are close to each other.",
        MAP_RULE,
        " [--compare_with random OTHER] [--html FILE.html]",
    ),
    "attention": Words("Where the contrastive token looks, for each head.", FIRST_RULE),
    "neighbours": Words("Images, and the images with the nearest features.", NEIGHBOURS_RULE),
    "detections": Words(
        "Images with the boxes or masks of objects: the true ones, and those that a detector finds.",
        DENSE_RULE,
        " [--threshold 0.5]",
    ),
    "segmentation": Words(
        "Images with a class for each pixel: the true one, and the one that a model finds.", DENSE_RULE
    ),
}


# Of the name of a kind.
OTHER_SPELLINGS = {"neighbors": "neighbours"}


def main(argv: Sequence[str] | None = None) -> None:
    purposes = {name: words.purpose for name, words in WORDS.items()}
    argv = list(sys.argv[1:] if argv is None else argv)
    argv[:1] = [OTHER_SPELLINGS.get(name, name) for name in argv[:1]]
    name, rest = choose_command(purposes, "Draw what a model sees.", argv, program_name("visualize"))
    words, (draw, (_, *classes)) = WORDS[name], KINDS[name]
    program = f"{program_name('visualize')} {name}"
    example = f"    modeling-sit visualize {name} --model_name_or_path M --dataset D --output FILE.png{words.options}"
    parser = RecipeArgumentParser(
        (SavedFigureArguments, *classes), prog=program, description=f"{words.purpose}\n\n{example}\n\n{words.rule}"
    )
    arguments = parser.parse(rest)
    with one_line_errors(parser.flags):
        drawn = draw(*arguments)
        for line in (*drawn.notes, *(f"written to {path}" for path in drawn.paths)):
            print(line)
