"""`modeling-sit pretrain`: a Vision Transformer from images without labels."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.pretraining.run import PretrainingFlags, run_pretraining

DESCRIPTION = """Pretrain a Vision Transformer on your own images, without labels.

    modeling-sit pretrain flowers --dataset IMAGES --output_dir FOLDER
    accelerate launch -m modeling_sit pretrain flowers --dataset IMAGES --output_dir FOLDER      with several processes

FOLDER becomes a model repository: weights, configuration, image processor, model card, and the code to load them.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser(PretrainingFlags.classes(), command="pretrain", description=DESCRIPTION)
    flags = PretrainingFlags(*parser.parse(argv))
    with one_line_errors(parser.flags):
        run_pretraining(flags)
