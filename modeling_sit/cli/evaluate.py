"""`modeling-sit evaluate`: what the frozen features of a pretrained model are worth, or what a fine-tuned one finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.results import as_table
from modeling_sit.evaluation.run import check_results_folder, run_evaluation
from modeling_sit.hub.card_file import card_to_update
from modeling_sit.hub.card_results import update_card
from modeling_sit.runtime.errors import SiTError

DESCRIPTION = """Measure the frozen features of a pretrained model on labeled images, or what a fine-tuned model finds in images.

    modeling-sit evaluate --model_name_or_path M --dataset D --protocols knn,linear,fewshot,retrieval
    modeling-sit evaluate --model_name_or_path M --dataset D --protocols detection,segmentation
    accelerate launch -m modeling_sit evaluate ...        the same with several processes

Features: the encoder reads every image of the training and the validation split once. Then each protocol measures how well these
features predict the labels. Detection and segmentation: the model, one of this package's or of transformers', finds boxes, masks or
a class for each pixel in the images of the validation split, or of the test split if there is no other; --validation_split names
another. The command prints the metrics, with 95 % bootstrap intervals where there are such, and writes them to `eval_results.json`.
With --update_model_card it writes them to the model card too.
"""


@dataclass
class CardArguments:
    """Whether the results go into the model card."""

    update_model_card: bool = field(
        default=False,
        metadata={
            "help": "Whether to write the results into the model card too (README.md in the folder of the model): "
            "into its model-index and its table of results."
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    classes = (EvaluationArguments, DatasetArguments, ProtocolArguments, CardArguments)
    parser = RecipeArgumentParser(classes, command="evaluate", description=DESCRIPTION)
    *groups, card = parser.parse(argv)
    with one_line_errors(parser.flags):
        check_results_folder(groups[0])
        model_dir = Path(groups[0].model_name_or_path)
        if card.update_model_card:
            if groups[0].from_scratch:
                raise SiTError(
                    "the results of `from_scratch` are not the pretrained model's", argument="update_model_card"
                )
            card_to_update(model_dir)
        evaluation = run_evaluation(*groups)
        if evaluation is None:  # in another process than the main one
            return
        written = [evaluation.path]
        if card.update_model_card:
            written.append(update_card(model_dir, **evaluation.for_card))
        print(as_table(evaluation.protocols))
        for path in written:
            print(f"written to {path}")
