"""`modeling-sit demo MODEL`: a page in the browser that shows what a checkpoint makes of images."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.demo.run import run_demo

DESCRIPTION = """Show what a checkpoint makes of images, on a page in the browser.

    modeling-sit demo MODEL --dataset IMAGES
    modeling-sit demo MODEL --dataset IMAGES --compare_with random     beside the same network before training
    modeling-sit demo MODEL --dataset IMAGES --export_space FOLDER     a folder for a Space of the Hugging Face Hub

The page reconstructs images that are corrupted by random blocks or by hand, shows attention, finds the nearest images of the dataset,
draws the map of its features, and predicts, if the checkpoint has the head of a task. Images are yours (drop one on the page) or of
the dataset. MODEL is a checkpoint of any form that the package reads.

Only this machine reaches the page, unless --host says otherwise, and no file outside the dataset can be read through it. It needs
gradio: pip install "modeling-sit[demo]".
"""


def main(argv: Sequence[str] | None = None) -> None:
    positionals = {"model_name_or_path": "MODEL"}
    parser = RecipeArgumentParser((DemoArguments,), command="demo", positionals=positionals, description=DESCRIPTION)
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        run_demo(arguments)
