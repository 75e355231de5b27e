#!/usr/bin/env python
"""Pretrain."""
import os

from transformers.utils import logging as transformers_logging

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.pretraining.arguments import PretrainingFlags
from modeling_sit.pretraining.run import run_pretraining
from modeling_sit.runtime.signals import die_with_parent


def main() -> None:
    parser = RecipeArgumentParser(PretrainingFlags.classes())
    with one_line_errors(parser.flags):
        flags = PretrainingFlags(*parser.parse())
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        die_with_parent(os.environ)
        run_pretraining(flags)


if __name__ == "__main__":
    main()
