#!/usr/bin/env python
"""Measure the frozen features of a pretrained encoder on labelled pictures.

    python scripts/evaluate.py --model_name_or_path M --dataset D --protocols knn

The encoder reads every picture of the training and the validation split once; each protocol then tells from these features
how well the labels can be predicted. Prints the figures, and adds them to `eval_results.json`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers

import modeling_sit  # noqa: F401  registers SiT with AutoModel and AutoImageProcessor
from modeling_sit.cli.arguments import DatasetArguments, RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.data.labelled import labelled_splits
from modeling_sit.data.sources import load_pictures
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.features import Features, extract_features
from modeling_sit.evaluation.protocols import PROTOCOLS, ProtocolArguments
from modeling_sit.evaluation.results import read_results, write_results


@dataclass
class EvaluationArguments:
    """What is measured, where, and where the figures go."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the pretrained model. Required."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for eval_results.json. Default: the model's, where it is a local one."}
    )
    pooling: Literal["token", "mean", "token_mean"] = field(
        default="token",
        metadata={
            "help": "What stands for a picture: the token in front, the patch tokens' mean, or both side by side."
        },
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Pictures that the encoder reads at a time."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that read pictures; 0 reads them in the main one."}
    )
    device: str | None = field(default=None, metadata={"help": "cpu or cuda. Default: cuda where there is one."})


def main() -> None:
    arguments, dataset_arguments, protocol_arguments = RecipeArgumentParser(
        (EvaluationArguments, DatasetArguments, ProtocolArguments), description=__doc__.partition("\n")[0]
    ).parse()
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors():
        output_dir = choose_output_dir(arguments)
        device = choose_device(arguments.device)
        model, processor = load_encoder(arguments.model_name_or_path)
        pictures = load_pictures(**vars(dataset_arguments), labels="required")
        if pictures.multi_label:
            raise UserError(f"--dataset {pictures.name}: several labels per picture, which no protocol supports yet")
        train_pictures, validation_pictures = labelled_splits(pictures)

        train = features_of(train_pictures, model, processor, arguments, device)
        validation = features_of(validation_pictures, model, processor, arguments, device)

        results = {}
        for name in protocol_arguments.chosen:
            figures = PROTOCOLS[name](train, validation, len(pictures.label_names), protocol_arguments, device)
            print(f"{name:<12}" + "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items()))
            results[name] = {
                **figures,
                "num_train": len(train.features),
                "num_validation": len(validation.features),
                "skipped": len(train.skipped) + len(validation.skipped),
                "dataset": pictures.name,
                "split": str(validation_pictures.split),
                "pooling": arguments.pooling,
                "model_name_or_path": arguments.model_name_or_path,
            }
        print(f"written to {write_results(output_dir, results)}")


def choose_output_dir(arguments: EvaluationArguments) -> Path:
    """The folder for the figures, with any earlier results there known to be readable."""
    output_dir = Path(arguments.output_dir or arguments.model_name_or_path)
    if arguments.output_dir is None and not output_dir.is_dir():
        raise UserError(
            f"--model_name_or_path {arguments.model_name_or_path}: no such folder; if it is a model on the Hub, say with "
            "--output_dir where eval_results.json goes"
        )
    read_results(output_dir)
    return output_dir


def choose_device(name: str | None) -> torch.device:
    """The device of that name, known to be there."""
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as problem:
        raise UserError(f"--device {name}: {str(problem).splitlines()[0]}") from problem


def features_of(split, model, processor, arguments: EvaluationArguments, device: torch.device) -> Features:
    """Features of a split, with a line on stderr for each picture that was skipped."""
    try:
        features = extract_features(
            model,
            split,
            processor,
            batch_size=arguments.per_device_eval_batch_size,
            pooling=arguments.pooling,
            num_workers=arguments.dataloader_num_workers,
            device=device,
        )
    except ValueError as problem:
        raise UserError(f"split {split.split}: {problem}") from problem
    for name, reason in features.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if not features.features.isfinite().all():
        raise UserError(
            f"{arguments.model_name_or_path} gives features that are not finite: its training has diverged"
        )
    return features


if __name__ == "__main__":
    main()
