#!/usr/bin/env python
"""Write a checkpoint in another format, and see that it gives the same outputs there.

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
does not explain it nothing is left of what was written, and the exit code is 1. What a format cannot hold is named.
"""

import argparse
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import HfArgumentParser, PreTrainedModel

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.sources import load_images
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.interop.formats import FORMATS, Format
from modeling_sit.interop.onnx import OPSET
from modeling_sit.interop.source import Source, choose_model, load_source, num_parameters
from modeling_sit.interop.staging import check_destination, staged
from modeling_sit.interop.verification import largest_differences, one_and_the_rest, random_images
from modeling_sit.runtime.atomic_files import write_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.selection import choose_split, read_first


@dataclass(kw_only=True)
class ConversionArguments(WeightsFileArguments, DatasetArguments):
    """What is written, and how it is compared.

    Raises:
        `ValueError`: If a value is out of range, or a flag is for another format.
    """

    format: Literal[tuple(FORMATS)] = field(metadata={"help": "The format of TO. Required."})
    outputs: Literal["features", "logits"] | None = field(
        default=None,
        metadata={
            "help": "features: the backbone alone; logits: with the classifier. Default: the classifier where FROM has one "
            "(sit and safetensors keep pretraining's heads too)."
        },
    )
    opset: int | None = field(
        default=None, metadata={"help": f"Version of ONNX's operators, for --format onnx. Default: {OPSET}."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace files of TO that are there already; others stay."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Compare on images of this dataset, as any program here takes it. Default: random images."},
    )
    num_images: int = field(default=4, metadata={"help": "How many images to compare on."})
    seed: int = field(default=0, metadata={"help": "Seed of the random images."})
    tolerance: float | None = field(
        default=None, metadata={"help": "Largest difference of an output to accept. Default: 1e-5; 1e-4 for onnx."}
    )

    def __post_init__(self):
        if self.num_images < 1:
            raise ValueError(f"--num_images {self.num_images}: must be at least 1")
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"--opset {self.opset} is for --format onnx, not {self.format}")
        if self.opset is not None and self.opset < OPSET:
            raise ValueError(f"--opset {self.opset}: must be at least {OPSET}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"--tolerance {self.tolerance}: must be at least 0")
        for name in ("dataset_config_name", "image_column", "train_split", "validation_split"):
            if self.dataset is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is of a dataset; give --dataset too")
        if self.label_column is not None:
            raise ValueError("--label_column: no labels are read here")


def main() -> None:
    source_name, destination, arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors():
        convert(source_name, destination, arguments)


def convert(source_name: str, destination: Path, arguments: ConversionArguments) -> None:
    """Write, compare, and keep it if it is the same."""
    output_format = FORMATS[arguments.format]
    output_format.check_installed(arguments.format)
    check_destination(source_name, destination, output_format.suffix, arguments.overwrite_output_dir)
    source = load_source(source_name, arguments.network, arguments.num_attention_heads)
    model, left_out = choose_model(source.model, arguments.outputs, output_format.keeps_heads)
    images = images_to_compare(source, arguments)
    tolerance = output_format.tolerance if arguments.tolerance is None else arguments.tolerance
    write = output_format.write if arguments.opset is None else partial(output_format.write, opset=arguments.opset)

    remedy = "name another TO, or make room"
    with write_errors(destination, remedy), staged(destination) as unfinished:
        notes = write(model, source.processor, unfinished)
        differences = compare(arguments.format, output_format, unfinished, model, images, tolerance)

    print(f"{source_name}: {type(source.model).__name__}, {num_parameters(source.model):,} parameters")
    # It has been written under another name than it has now.
    for line in (*source.notes, *left_out, *notes):
        print(line.replace(str(unfinished), str(destination)))
    if Path(source_name, "README.md").is_file():
        print("not copied: README.md, the model card, which describes FROM")
    which = f"{len(images)} {'random images' if arguments.dataset is None else f'images of {arguments.dataset}'}"
    said = ", ".join(f"{name} {difference:.2g}" for name, difference in differences.items())
    print(f"largest difference in {output_format.library}, on {which}: {said} (tolerance {tolerance:g})")
    print(f"written to {destination}")


def images_to_compare(source: Source, arguments: ConversionArguments) -> torch.Tensor:
    """Normalized images `(num_images, channels, height, width)`: random, or the first of a dataset.

    Raises:
        [`SiTError`]: If none can be read.
    """
    config = source.model.config
    if arguments.dataset is None:
        return random_images(config, arguments.num_images, arguments.seed)
    if source.processor is None:
        raise SiTError("--dataset: FROM has no preprocessor_config.json that says how to prepare images; leave it out")
    found = load_images(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
    )
    split = choose_split(found, arguments.train_split, arguments.validation_split)
    _, images = read_first(split, range(len(split)), arguments.num_images, config.num_channels)
    return source.processor(images, return_tensors="pt")["pixel_values"]


def compare(
    name: str, output_format: Format, path: Path, model: PreTrainedModel, images: torch.Tensor, tolerance: float
) -> dict[str, float]:
    """Largest difference of each output, once what was written is read back.

    Raises:
        [`SiTError`]: If it cannot be read back or compared, or a difference is above the tolerance.
    """
    library = output_format.library
    try:
        differences = largest_differences(model, output_format.load(path), one_and_the_rest(images))
    # Each library has errors of its own for what it cannot load.
    except Exception as problem:
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise SiTError(
            f"--format {name}: what was written does not work in {library}: {reason}; nothing is written"
        ) from problem
    worst = max(differences, key=differences.get)
    if differences[worst] > tolerance:
        raise SiTError(
            f"--format {name}: {worst} differs by {differences[worst]:.2g} in {library}, more than the tolerance of "
            f"{tolerance:g}; nothing is written"
        )
    return differences


class ConversionArgumentParser(HfArgumentParser):
    """FROM and TO in front of transformers' flags of a dataclass, and errors of one line."""

    def __init__(self, **kwargs):
        super().__init__((ConversionArguments,), allow_abbrev=False, **kwargs)
        self.add_argument("source", metavar="FROM", help="The checkpoint: a folder, a file of weights, or a Hub id.")
        self.add_argument("destination", metavar="TO", help="The file or folder to write; new.")

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse_arguments() -> tuple[str, Path, ConversionArguments]:
    parser = ConversionArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        arguments, rest, unknown = parser.parse_args_into_dataclasses(
            return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as problem:
        parser.error(" ".join(str(problem).split()))
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    return rest.source, Path(rest.destination), arguments


if __name__ == "__main__":
    main()
