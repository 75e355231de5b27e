#!/usr/bin/env python
"""Measure the frozen features of a pretrained encoder on labeled images.

    python scripts/evaluate.py --model_name_or_path M --dataset D --protocols knn,linear,fewshot,retrieval
    accelerate launch scripts/evaluate.py ...        the same on several processes

The encoder reads every image of the training and the validation split once; each protocol then measures how well these
features predict the labels. Prints the metrics with their 95 % bootstrap intervals, adds them to `eval_results.json`,
and with --update_model_card to the model card.
"""

from dataclasses import dataclass, field
from pathlib import Path

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.protocols import ProtocolArguments
from modeling_sit.evaluation.results import as_table
from modeling_sit.evaluation.run import EvaluationArguments, check_results_folder, run_evaluation
from modeling_sit.hub.card_file import card_to_update
from modeling_sit.hub.card_results import update_card
from modeling_sit.runtime.errors import SiTError


@dataclass
class CardArguments:
    """Whether the results go into the model card."""

    update_model_card: bool = field(
        default=False,
        metadata={
            "help": "Whether to write the results into the model card too, README.md in the model's folder: into its "
            "model-index and its table of results."
        },
    )


def main() -> None:
    parser = RecipeArgumentParser(
        (EvaluationArguments, DatasetArguments, ProtocolArguments, CardArguments),
        description=__doc__.partition("\n")[0],
    )
    arguments, dataset_arguments, protocol_arguments, card_arguments = parser.parse()
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        check_results_folder(arguments)
        model_dir = Path(arguments.model_name_or_path)
        if card_arguments.update_model_card:
            if arguments.from_scratch:
                raise SiTError(
                    "the results of `from_scratch` are not the pretrained model's", argument="update_model_card"
                )
            card_to_update(model_dir)
        evaluation = run_evaluation(arguments, dataset_arguments, protocol_arguments)
        if evaluation is None:
            return
        print(as_table(evaluation.protocols))
        print(f"written to {evaluation.path}")
        if card_arguments.update_model_card:
            print(f"written to {update_card(model_dir, **evaluation.for_card)}")


if __name__ == "__main__":
    main()
