#!/usr/bin/env python
"""Find out whether pretraining helps on labeled images: the same fine-tuning from pretrained weights and from scratch.

    python scripts/compare.py --model_name_or_path M --dataset D --finetuning_recipe RECIPE.yaml --output_dir O

Fine-tunes with each fraction of the labels and each seed, from the pretrained weights and from scratch, measures the frozen
features of both, and leaves tables in `results.md`, the results in `results.json` and a chart in `results.png`. Runs that are
finished in the folder are not run again, so a comparison goes on where it stopped.
"""

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.compare import ComparisonArguments, run_comparison


def main() -> None:
    parser = RecipeArgumentParser((ComparisonArguments,), description=__doc__.partition("\n")[0])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        run_comparison(*parser.parse())


if __name__ == "__main__":
    main()
