"""Write a checkpoint in another format, and check that it gives the same outputs there."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_sit import SiTForPreTraining
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.decoding import Image, UnreadableImage
from modeling_sit.data.image_datasets import read_row
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.interop.formats import FORMATS, Format
from modeling_sit.interop.graphs import OPSET, WITH_LOGITS
from modeling_sit.interop.load import LoadedCheckpoint, load_checkpoint
from modeling_sit.interop.verification import largest_differences, one_and_the_rest, random_images
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX, finish_files, fsync, temporary_folder, write_errors
from modeling_sit.runtime.errors import SiTError, argument_names


@dataclass(kw_only=True)
class ConversionArguments(WeightsFileArguments, DatasetArguments):
    """What is written, and how it is compared with its source."""

    source: str = field(
        metadata={"metavar": "FROM", "help": "The checkpoint: a folder, a file of weights, or a Hub id. Required."}
    )
    destination: str = field(metadata={"metavar": "TO", "help": "The file or folder to write. Required."})
    format: Literal[tuple(FORMATS)] = field(metadata={"help": "The format to write. Required."})
    outputs: Literal["features", "logits"] | None = field(
        default=None,
        metadata={
            "help": "features: the backbone only. logits: with the head of classes or of semantic segmentation. Default: "
            "with such a head, if there is one and the format has it (sit and safetensors keep every head)."
        },
    )
    opset: int | None = field(
        default=None, metadata={"help": f"Version of ONNX's operators, for the format onnx. Default: {OPSET}."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to replace existing files. Other files in the folder stay."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Images for the comparison, in any form that pretraining takes. Default: random images."},
    )
    num_images: int = field(default=4, metadata={"help": "Number of images for the comparison."})
    seed: int = field(default=0, metadata={"help": "Seed of the random images."})
    tolerance: float | None = field(
        default=None, metadata={"help": "Largest allowed difference of an output. Default: 1e-5; 1e-4 for onnx."}
    )

    def __post_init__(self):
        if self.num_images < 1:
            raise SiTError(f"must be at least 1, got {self.num_images}", argument="num_images")
        if self.opset is not None and self.format != "onnx":
            raise SiTError(f'{self.opset} is for `format="onnx"`, not {self.format}', argument="opset")
        if self.opset is not None and self.opset < OPSET:
            raise SiTError(f"must be at least {OPSET}, got {self.opset}", argument="opset")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise SiTError(f"must be at least 0, got {self.tolerance}", argument="tolerance")
        for name in ("dataset_config_name", "image_column", "train_split", "validation_split", "intensity_range"):
            if self.dataset is None and getattr(self, name) is not None:
                raise SiTError("it needs a `dataset`", argument=name)
        if self.train_split is not None and self.validation_split is not None:
            raise SiTError("one split is enough; leave out this or `validation_split`", argument="train_split")
        if self.label_column is not None:
            raise SiTError("conversion reads no labels", argument="label_column")


@dataclass(frozen=True)
class ConversionResult:
    """
    What was written, and how far its outputs are from the source's.

    Args:
        destination (`Path`): The file or folder.
        differences (`dict[str, float]`): Largest absolute difference of each output, by the output's name.
        tolerance (`float`): The largest difference that was accepted.
        notes (`list[str]`): How to load it, what was left out or assumed, a line each.
        summary (`str`): All of this as text for the user, in several lines.
    """

    destination: Path
    differences: dict[str, float]
    tolerance: float
    notes: list[str]
    summary: str


def convert(
    source: str, destination: str | Path, *, format: str, recipe: str | Path | None = None, **arguments: Any
) -> ConversionResult:
    """
    Write a checkpoint in another format, load it there again, and compare its outputs with the source's.

    Args:
        source (`str`): A folder of this package, a file of weights, a plain ViT of transformers or timm, or a Hub id.
        destination (`str` or `Path`): The file or folder to write.
        format (`str`): One of `sit`, `safetensors`, `vit`, `timm`, `torchvision`, `torch_export` and `onnx`.
        recipe (`str` or `Path`, *optional*): As of [`~runtime.recipes.read_recipe`].
        arguments: Fields of [`ConversionArguments`].

    Returns:
        [`ConversionResult`]

    Raises:
        [`SiTError`]: If an argument does not fit, the checkpoint cannot be loaded, the format cannot hold it, or the
            outputs differ by more than the tolerance. Nothing of what was written is left.
    """
    keywords = {"source": source, "destination": destination, "format": format, **arguments}
    return run_conversion(*build_arguments((ConversionArguments,), keywords, recipe, "convert"))


def run_conversion(arguments: ConversionArguments) -> ConversionResult:
    """[`convert`] for arguments that are checked already."""
    output_format, destination = FORMATS[arguments.format], Path(arguments.destination)
    output_format.check_installed(arguments.format)
    check_outside_dataset(destination, arguments.dataset, "destination")
    check_destination(arguments.source, destination, output_format.suffix, arguments.overwrite_output_dir)
    with argument_names(model_name_or_path="source"):
        source = load_checkpoint(
            arguments.source, network=arguments.network, num_attention_heads=arguments.num_attention_heads
        )
    model, left_out = choose_model(source.model, arguments.outputs, output_format)
    images, described = images_to_compare(source, arguments)
    tolerance = output_format.tolerance if arguments.tolerance is None else arguments.tolerance
    write = output_format.write if arguments.opset is None else partial(output_format.write, opset=arguments.opset)

    remedy = "give another `destination`, or make room"
    with write_errors(destination, remedy), staged(destination) as unfinished:
        loading = write(model, source.processor, unfinished)
        differences = compare(output_format, unfinished, model, images, tolerance)

    notes = [*source.notes, *left_out, *loading]
    if source.processor is None:
        notes.append("the source has no image processor (preprocessor_config.json), so none is written")
    if Path(arguments.source, "README.md").is_file():
        notes.append("not copied: README.md, the model card, which describes the source")
    # It was written under another name than it has now.
    notes = [note.replace(str(unfinished), str(destination)) for note in notes]
    found = ", ".join(f"{name} {difference:.2g}" for name, difference in differences.items())
    lines = [
        f"{arguments.source}: {type(source.model).__name__}, {num_parameters(source.model):,} parameters",
        *notes,
        f"largest difference in {output_format.library}, on {described}: {found} (tolerance {tolerance:g})",
        f"written to {destination}",
    ]
    return ConversionResult(destination, differences, tolerance, notes, "\n".join(lines))


def choose_model(
    model: PreTrainedModel, outputs: str | None, output_format: Format
) -> tuple[PreTrainedModel, list[str]]:
    """
    The part of a model that is written, and lines that name the parts that are not.

    Args:
        outputs (`str`, *optional*):
            `"features"` for the backbone, `"logits"` for the backbone with the classifier. Default: all that the
            format can hold.
        output_format ([`~interop.formats.Format`]): What is written.

    Raises:
        [`SiTError`]: If logits are asked for and the model has no classifier, or the format cannot hold the model.
    """
    has_logits = isinstance(model, WITH_LOGITS) and model.config.num_labels > 0
    if outputs == "logits" and not has_logits:
        raise SiTError(
            "the source has no classifier", argument="outputs", remedy="fine-tune it first, or choose features"
        )
    for refused, reason in output_format.refusals.items():
        if isinstance(model, refused) and outputs is None:
            raise SiTError(
                f"not for a {type(model).__name__}: {reason}",
                argument="format",
                remedy='write the backbone alone with `outputs="features"`',
            )
    is_held = isinstance(model, output_format.classes)
    if outputs == "logits" and not is_held:
        raise SiTError(
            f"{output_format.library} has no model like a {type(model).__name__}",
            argument="format",
            remedy='write the backbone alone with `outputs="features"`',
        )
    # A classifier without classes is a backbone to what has no other heads.
    is_held = is_held and (has_logits or SiTForPreTraining in output_format.classes)
    chosen = model if is_held and outputs != "features" else model.base_model
    left_out = [] if chosen is model else [part for part in model.named_children() if part[1] is not chosen]
    described = [f"{name} ({num_parameters(part):,} parameters)" for name, part in left_out if part is not None]
    return chosen, [f"not in it, because its outputs are features: {', '.join(described)}"] if described else []


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images_to_compare(source: LoadedCheckpoint, arguments: ConversionArguments) -> tuple[torch.Tensor, str]:
    """Normalized images `(num_images, channels, height, width)`, random or the first of a dataset, and what they are.

    Raises:
        [`SiTError`]: If there are none that can be read.
    """
    config = source.model.config
    if arguments.dataset is None:
        return (
            random_images(source.model, arguments.num_images, arguments.seed),
            f"{arguments.num_images} random images",
        )
    if source.processor is None:
        raise SiTError(
            "the source has no preprocessor_config.json that says how to prepare images",
            argument="dataset",
            remedy="leave it out",
        )
    found = load_images(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
    )
    found.refuse_streams()
    split = found.train if arguments.train_split is not None or found.validation is None else found.validation
    if split is None:
        splits = ", ".join(found.splits)
        raise SiTError(f"{found.name} has the splits {splits}", argument="validation_split", remedy="name one of them")
    arguments.set_intensity_range(source.processor, config)
    images = first_images(split, arguments.num_images, PixelFormat.of_model(config, source.processor))
    if not images:
        raise SiTError(f"{found.name}: no image of it can be read", argument="dataset")
    pixel_values = source.processor(images, return_tensors="pt")["pixel_values"]
    return pixel_values, f"{len(images)} images of {found.name}"


def first_images(split: datasets.Dataset, count: int, pixel_format: PixelFormat) -> list[Image]:
    """The first images of a split that can be read. Those that cannot are named on stderr."""
    images = []
    for row in range(len(split)):
        try:
            images.append(read_row(split, row, pixel_format)[0])
        except UnreadableImage as problem:
            print(f"skipped {problem}", file=sys.stderr)
        if len(images) == count:
            break
    return images


def compare(
    output_format: Format, path: Path, model: PreTrainedModel, images: torch.Tensor, tolerance: float
) -> Mapping[str, float]:
    """Read back what was written, and give the largest difference of each output.

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
            f"what was written does not work in {library}: {reason}; nothing is written", argument="format"
        ) from problem
    worst = max(differences, key=differences.get)
    if differences[worst] > tolerance:
        raise SiTError(
            f"{worst} differs by {differences[worst]:.2g} in {library}, more than the tolerance of {tolerance:g}; nothing "
            "is written",
            argument="format",
        )
    return differences


def check_destination(source: str, destination: Path, suffix: str | None, overwrite: bool) -> None:
    """
    Raise [`SiTError`] if something is there that must not be overwritten, or the name does not fit the format.

    Args:
        suffix (`str`, *optional*): Suffix of the format's file, such as `.onnx`. `None`: the format is a folder.
        overwrite (`bool`): Whether files that are there may be replaced. The source is never replaced.
    """

    def refuse(problem: str, remedy: str) -> None:
        raise SiTError(f"{destination}: {problem}", argument="destination", remedy=remedy)

    if suffix is not None and destination.suffix != suffix:
        refuse("this format is a file", f"give a name that ends in {suffix}")
    if destination.exists() and Path(source).exists() and destination.samefile(source):
        refuse("this is the source, whose heads could be lost", "give another place")
    # A folder that holds nothing may be filled.
    is_there = any(destination.iterdir()) if destination.is_dir() else destination.exists()
    # ONNX puts the weights of large models beside the graph.
    is_there = is_there or (suffix == ".onnx" and destination.with_name(f"{destination.name}.data").exists())
    if suffix is not None and destination.is_dir():
        refuse("this is a folder, but the format is a file", "name a file in it")
    if suffix is None and destination.exists() and not destination.is_dir():
        refuse("this is a file, but the format is a folder", "give another place")
    if is_there and not overwrite:
        refuse("it is there already", "give another place, or `overwrite_output_dir`")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Give a path beside `destination`, with the same name, to write a file or a folder to.

    When the block ends without an error, what was written takes the place of `destination`: a file together with those
    beside it, a folder as a whole, or file by file if there is a folder already. After an error nothing of it is left.
    """
    with temporary_folder(destination.with_name(TEMPORARY_PREFIX + destination.name)) as staging:
        written = staging / destination.name
        yield written
        finish_files(staging)
        if written.is_dir() and destination.is_dir():
            for path in sorted(written.iterdir()):
                path.replace(destination / path.name)
            fsync(destination)
        else:
            for path in sorted(staging.iterdir()):
                path.replace(destination.with_name(path.name))
        fsync(destination.parent)
