#!/usr/bin/env python
"""Write a checkpoint in another format, and check that it gives the same outputs there.

    python scripts/convert_checkpoint.py FROM TO --format vit           # transformers' own ViT: a folder, no package, no code
    python scripts/convert_checkpoint.py FROM TO --format timm          # a folder for timm.create_model("local-dir:TO")
    python scripts/convert_checkpoint.py FROM TO.onnx --format onnx     # a graph for ONNX Runtime, batches of any size
    python scripts/convert_checkpoint.py FROM TO.pt2 --format torch_export         # a graph that PyTorch loads alone
    python scripts/convert_checkpoint.py FROM TO.safetensors --format torchvision  # weights of torchvision's vit_b_16
    python scripts/convert_checkpoint.py FROM TO.safetensors --format safetensors  # SiT's weights in one file
    python scripts/convert_checkpoint.py FROM TO --format sit           # a SiT repository

FROM is a folder that `scripts/pretrain.py` or `scripts/finetune.py` wrote, or the id of such a model on the Hub; or a
checkpoint of the authors' code (.pth), or a plain Vision Transformer of transformers or timm.

What was written is loaded again by the library that it is for, and its outputs are compared with the source's: on random
images (`--seed`), or on images of `--dataset`, one at a time and several. The largest difference is printed. If rounding
does not explain it, nothing of what was written is left, and the exit code is 1. What a format cannot hold is named.
"""

import argparse

import transformers
from transformers import HfArgumentParser

from modeling_sit.cli.errors import one_line_errors, with_flags
from modeling_sit.interop.convert import ConversionArguments, run_conversion
from modeling_sit.runtime.errors import SiTError

POSITIONAL = ("source", "destination")


class ConversionArgumentParser(HfArgumentParser):
    """transformers' parser with FROM and TO as positional arguments, and errors of one line."""

    def add_argument(self, *names, **settings):
        if names[0].removeprefix("--") in POSITIONAL:
            del settings["required"]
            names = (names[0].removeprefix("--"),)
        return super().add_argument(*names, **settings)

    @property
    def flags(self) -> set[str]:
        """Names of all flags, without dashes."""
        return {option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")}

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def parse(self) -> ConversionArguments:
        try:
            arguments, unknown = self.parse_args_into_dataclasses(
                return_remaining_strings=True, look_for_args_file=False
            )
        except SiTError as problem:
            self.error(" ".join(with_flags(problem, self.flags).split()))
        except ValueError as problem:
            self.error(" ".join(str(problem).split()))
        if unknown:
            self.error(f"unknown argument {unknown[0]}")
        return arguments


def main() -> None:
    parser = ConversionArgumentParser(
        (ConversionArguments,),
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments = parser.parse()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        print(run_conversion(arguments).summary)


if __name__ == "__main__":
    main()
