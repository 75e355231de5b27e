#!/usr/bin/env python
"""Measure the frozen features of a pretrained encoder on labeled images.

    python scripts/evaluate.py --model_name_or_path M --dataset D --protocols knn,linear,fewshot,retrieval
    accelerate launch scripts/evaluate.py ...        the same on several processes

The encoder reads every image of the training and the validation split once; each protocol then tells from these features
how well the labels can be predicted. Prints the figures with their 95 % bootstrap intervals, adds them to
`eval_results.json`, and with --update_model_card to the model card.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel

import modeling_sit  # noqa: F401  registers SiT with AutoModel and AutoImageProcessor
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.labeled import labeled_splits
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.evaluation.features import Features, extract_features
from modeling_sit.evaluation.protocols import PROTOCOLS, ProtocolArguments
from modeling_sit.evaluation.results import as_result, as_table, read_results, write_results
from modeling_sit.hub.card_file import card_to_update
from modeling_sit.hub.card_results import update_card
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.distributed import main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError


@dataclass(kw_only=True)
class EvaluationArguments(WeightsFileArguments, FeatureArguments):
    """What is measured, where, and where the figures go."""

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    from_scratch: bool = field(
        default=False,
        metadata={
            "help": "Whether to leave the pretrained weights aside and measure the same encoder with the weights that training "
            "starts from: what pretraining is to be compared with. Wants an --output_dir of its own."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for eval_results.json. Default: the model's, where it is a local one."}
    )
    update_model_card: bool = field(
        default=False,
        metadata={
            "help": "Whether to write the figures into the model card, README.md in the model's folder, too: into its "
            "model-index and its table of results."
        },
    )
    device: str | None = field(
        default=None,
        metadata={"help": "cpu, cuda or, in one process, such as cuda:1. Default: cuda where there is one."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.from_scratch and (self.output_dir is None or self.update_model_card):
            raise ValueError(
                "--from_scratch: these figures are not the pretrained model's; give an --output_dir for them and no "
                "--update_model_card"
            )


def main() -> None:
    parser = RecipeArgumentParser(
        (EvaluationArguments, DatasetArguments, ProtocolArguments), description=__doc__.partition("\n")[0]
    )
    arguments, dataset_arguments, protocol_arguments = parser.parse()
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        device = choose_device(arguments.device)
        accelerator = Accelerator(cpu=device.type == "cpu")
        device = device if accelerator.num_processes == 1 else accelerator.device
        with sync_errors(accelerator):
            output_dir = choose_output_dir(arguments)
        model, processor = main_process_first(
            accelerator,
            lambda: load_encoder(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads),
        )
        if arguments.from_scratch:
            model = random_encoder(model, protocol_arguments.seed)
        images = main_process_first(accelerator, lambda: load_images(**vars(dataset_arguments), labels="required"))
        with sync_errors(accelerator):
            extraction = arguments.settings(model.config)
            train_images, validation_images = labeled_splits(images)

        train = features_of(train_images, model, processor, extraction, accelerator, device)
        validation = features_of(validation_images, model, processor, extraction, accelerator, device)
        accelerator.end_training()
        if not accelerator.is_main_process:
            return

        measurements = {
            name: PROTOCOLS[name](train, validation, images.label_names, protocol_arguments, device)
            for name in protocol_arguments.chosen
        }
        print(as_table(measurements))
        settings = {"pooling": arguments.pooling, "layer": arguments.layer}
        measured_on = {
            "num_train": len(train.features),
            "num_validation": len(validation.features),
            "skipped": len(train.skipped) + len(validation.skipped),
            "dataset": images.name,
            "split": str(validation_images.split),
            **settings,
            "model_name_or_path": arguments.model_name_or_path,
            "from_scratch": arguments.from_scratch,
        }
        results = {name: {**as_result(measurement), **measured_on} for name, measurement in measurements.items()}
        print(f"written to {write_results(output_dir, results)}")
        if arguments.update_model_card:
            card = update_card(
                Path(arguments.model_name_or_path),
                measurements,
                dataset=images.name,
                dataset_config=dataset_arguments.dataset_config_name,
                split=str(validation_images.split),
                settings={**{name: measured_on[name] for name in ("num_train", "num_validation")}, **settings},
            )
            print(f"written to {card}")


def choose_output_dir(arguments: EvaluationArguments) -> Path:
    """The folder for the figures, with any earlier results there, and the card that is to be updated, known to be readable."""
    output_dir, model_dir = (
        Path(arguments.output_dir or arguments.model_name_or_path),
        Path(arguments.model_name_or_path),
    )
    if arguments.output_dir is None and not model_dir.is_dir():
        raise SiTError(
            f"--model_name_or_path {model_dir}: no such folder; if it is a file of weights, or a model on the Hub, say with "
            "--output_dir where eval_results.json goes"
        )
    if arguments.update_model_card:
        card_to_update(model_dir)
    read_results(output_dir)
    return output_dir


def features_of(
    split: datasets.Dataset,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    extraction: dict[str, Any],
    accelerator: Accelerator,
    device: torch.device,
) -> Features | None:
    """Features of a split, in the main process, with a line on stderr for each image that was skipped."""
    with sync_errors(accelerator):
        try:
            features = extract_features(
                model,
                split,
                processor,
                device=device,
                accelerator=accelerator,
                **extraction,
            )
        except ValueError as problem:
            raise SiTError(f"split {split.split}: {problem}") from problem
        if features is not None:
            for name, reason in features.skipped:
                print(f"skipped {name}: {reason}", file=sys.stderr)
            # Chunk by chunk, for the check makes a copy.
            if not all(chunk.isfinite().all() for chunk in features.features.split(65536)):
                raise SiTError(f"{model.name_or_path} gives features that are not finite: its training has diverged")
    return features


if __name__ == "__main__":
    main()
