#!/usr/bin/env python
"""Fine-tune a pretrained model on labeled images.

accelerate launch scripts/finetune.py [RECIPE.yaml] --model_name_or_path MODEL --dataset IMAGES --output_dir FOLDER ...
"""

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.finetuning.arguments import FinetuningArguments, FinetuningTrainingArguments
from modeling_sit.finetuning.run import run_finetuning
from modeling_sit.hub.arguments import HubArguments


def main() -> None:
    parser = RecipeArgumentParser(
        (FinetuningArguments, FinetuningTrainingArguments, HubArguments), description=__doc__.partition("\n")[0]
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        run_finetuning(*parser.parse())


if __name__ == "__main__":
    main()
