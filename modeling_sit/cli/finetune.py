"""`modeling-sit finetune`: a pretrained model on labeled images."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.run import run_finetuning
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.arguments import HubArguments

DESCRIPTION = """Train a pretrained model on labeled images.

    modeling-sit finetune --model_name_or_path MODEL --dataset IMAGES --output_dir FOLDER
    modeling-sit finetune --task instance_segmentation ...        boxes and masks; see --task
    accelerate launch -m modeling_sit finetune ...        the same with several processes

FOLDER becomes a model repository, with the results on the held-out images.
"""


def main(argv: Sequence[str] | None = None) -> None:
    classes = (FinetuningArguments, FinetuningTrainingArguments, HubArguments)
    parser = RecipeArgumentParser(classes, command="finetune", description=DESCRIPTION)
    with one_line_errors(parser.flags):
        run_finetuning(*parser.parse(argv))
