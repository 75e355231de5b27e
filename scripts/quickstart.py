#!/usr/bin/env python
"""Show on scikit-learn's digits, within minutes on a CPU, that pretraining without labels helps.

Pretrains once, then fine-tunes with a tenth of the labels and with all of them, from the pretrained weights and from
scratch, with three seeds each. `make quickstart` runs this.
"""

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.experiments.quickstart import QuickstartArguments, run_quickstart


def main() -> None:
    parser = RecipeArgumentParser((QuickstartArguments,), description=__doc__.partition("\n")[0])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        run_quickstart(*parser.parse())


if __name__ == "__main__":
    main()
