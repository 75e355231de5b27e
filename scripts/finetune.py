#!/usr/bin/env python
"""Fine-tune a pretrained model to classify labelled pictures, with transformers' Trainer.

accelerate launch scripts/finetune.py [RECIPE.yaml] --model_name_or_path MODEL --dataset PICTURES --output_dir FOLDER ...
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction, set_seed

import modeling_sit  # noqa: F401  registers SiT with the Auto classes
from modeling_sit.cli.arguments import DatasetArguments, RecipeArgumentParser
from modeling_sit.cli.errors import UserError, one_line_errors
from modeling_sit.data.labelled import (
    IGNORED_LABEL,
    LabelledPictures,
    labelled_splits,
    random_crop_and_flip,
    select_label_fraction,
)
from modeling_sit.data.sources import load_pictures
from modeling_sit.evaluation.metrics import load_metric
from modeling_sit.evaluation.results import write_results
from modeling_sit.training.model_card import typed_command, write_finetuning_card

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "finetuning_template.md"


@dataclass(kw_only=True)
class FinetuningArguments(DatasetArguments):
    """What is fine-tuned, on what."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the pretrained model. Required."})
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Whether to start from random weights: what the pretrained ones are to be compared with."},
    )
    label_fraction: float = field(
        default=1.0, metadata={"help": "Share of the training pictures of each class to learn from, in (0, 1]."}
    )
    pooling: Literal["token", "mean", "token_mean"] | None = field(
        default=None,
        metadata={"help": "What the classifier of a SiT model reads. Default: as its configuration says."},
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of a SiT model. Default: as its configuration says."}
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Range of a crop's area, as share of the picture's."}
    )
    horizontal_flip_probability: float = field(default=0.5, metadata={"help": "Chance of mirroring."})

    def __post_init__(self):
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"--label_fraction must be in (0, 1], got {self.label_fraction}")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"--crop_scale takes a range 0 < low <= high <= 1, got {self.crop_scale}")
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"--drop_path_rate must be in [0, 1), got {self.drop_path_rate}")
        if not 0 <= self.horizontal_flip_probability <= 1:
            raise ValueError(
                f"--horizontal_flip_probability must be in [0, 1], got {self.horizontal_flip_probability}"
            )


@dataclass
class FinetuningTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, with defaults that suit a Vision Transformer."""

    num_train_epochs: float = field(default=100, metadata={"help": "Times that each picture is seen."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pictures a step on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pictures measured at a time."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Decay of weights, not of biases and norms."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of linear warm-up; below 1, a share of all."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing in [0, 1)."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure on the way: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint: no, steps or epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("the following arguments are required: --output_dir")
        super().__post_init__()


def main() -> None:
    parser = RecipeArgumentParser(
        (FinetuningArguments, FinetuningTrainingArguments), description=__doc__.partition("\n")[0]
    )
    with one_line_errors():
        finetune(*parser.parse())


def finetune(arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_output_dir(training_arguments.output_dir, arguments.model_name_or_path)
    # Pictures are read from their encoded bytes by the collator, which needs the columns that Trainer would drop.
    training_arguments.remove_unused_columns = False
    training_arguments.dataloader_pin_memory &= torch.cuda.is_available()
    set_seed(training_arguments.seed)

    pictures = load_pictures(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
        labels="required",
    )
    if pictures.multi_label:
        raise UserError(
            f"--dataset {pictures.name}: several labels per picture, which fine-tuning does not support yet"
        )
    train, validation = labelled_splits(pictures)
    train = select_label_fraction(train, arguments.label_fraction, training_arguments.seed)
    processor, model = load_classifier(arguments, pictures.label_names)
    augment = random_crop_and_flip(
        picture_shape(processor), tuple(arguments.crop_scale), arguments.horizontal_flip_probability
    )

    trainer = PictureTrainer(
        model,
        training_arguments,
        data_collator=Collator(processor),
        train_dataset=LabelledPictures(train, model.config.num_channels, augment),
        eval_dataset=LabelledPictures(validation, model.config.num_channels),
        processing_class=processor,
        compute_metrics=create_compute_metrics(),
    )
    trainer.train(resume_from_checkpoint=find_checkpoint(training_arguments))
    results = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        report = {
            "accuracy": results["eval_accuracy"],
            "loss": results["eval_loss"],
            "num_train": len(train),
            "num_validation": len(validation),
            "label_fraction": arguments.label_fraction,
            "from_scratch": arguments.from_scratch,
            "epochs": trainer.state.epoch,
            "seed": training_arguments.seed,
            "dataset": pictures.name,
            "split": str(validation.split),
            "model_name_or_path": arguments.model_name_or_path,
        }
        write_finetuning_card(
            CARD_TEMPLATE,
            Path(training_arguments.output_dir),
            report=report,
            label_names=pictures.label_names,
            command=typed_command(),
            num_processes=training_arguments.world_size,
            device=training_arguments.device,
        )
        print(f"accuracy {report['accuracy']:.4f} on {len(validation)} pictures of {validation.split}")
        print(f"written to {write_results(training_arguments.output_dir, {'finetune': report})}")


def load_classifier(arguments: FinetuningArguments, label_names: list[str]):
    """The image processor, and the model with a new classifier for these labels, pretrained or from scratch.

    Raises:
        `UserError`: If there is no such model, or a flag does not suit it.
    """
    name = arguments.model_name_or_path
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"--model_name_or_path {name}: no config.json in this folder, so it holds no model")
    labels = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: number for number, label in enumerate(label_names)},
        "problem_type": "single_label_classification",
    }
    of_sit = {
        key: getattr(arguments, key) for key in ("pooling", "drop_path_rate") if getattr(arguments, key) is not None
    }
    try:
        config = AutoConfig.from_pretrained(name, **labels, **of_sit)
        for key in of_sit:
            if key not in config.to_dict():
                raise UserError(f"--{key}: {type(config).__name__} has no such setting")
        processor = AutoImageProcessor.from_pretrained(name)
        if arguments.from_scratch:
            return processor, AutoModelForImageClassification.from_config(config)
        model, info = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from problem
    missing = sorted(key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if missing:
        raise UserError(
            f"--model_name_or_path {name}: {len(missing)} weights of the backbone are not there, such as {missing[0]}"
        )
    return processor, model


def check_output_dir(output_dir: str, model_name_or_path: str) -> None:
    """Raise `UserError` if the folder cannot be made, or is that of the pretrained model, which would be lost."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--output_dir {output_dir} cannot be written: {problem.strerror}") from problem
    if Path(output_dir).resolve() == Path(model_name_or_path).resolve():
        raise UserError(f"--output_dir {output_dir} is --model_name_or_path, which would be replaced; name another")


def picture_shape(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width in pixels of what the processor gives the model."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return (size.height or size.shortest_edge, size.width or size.shortest_edge)


class PictureTrainer(Trainer):
    """transformers' Trainer; a loss that is not finite ends the run instead of being logged as 0, and a batch without a
    readable picture has none."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if (inputs["labels"] != IGNORED_LABEL).any():
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = 0 * outputs.logits.sum()
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            raise UserError(
                f"loss not finite at step {self.state.global_step + 1}; try a lower --learning_rate or more --warmup_steps"
            )
        return loss


class Collator:
    """Pictures to `pixel_values` by the image processor; names what could not be read."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        for item in items:
            if item["unreadable"] is not None:
                print(f"skipped an unreadable picture: {item['unreadable']}", file=sys.stderr, flush=True)
        features = self.processor([item["image"] for item in items], return_tensors="pt")
        labels = torch.tensor([item["label"] for item in items])
        return {"pixel_values": features["pixel_values"], "labels": labels}


def create_compute_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    """Accuracy, by the project's `evaluate` metric, over the pictures that could be read."""
    accuracy = load_metric("accuracy")

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        readable = prediction.label_ids != IGNORED_LABEL
        predicted = np.argmax(prediction.predictions, axis=-1)
        return accuracy.compute(predictions=predicted[readable], references=prediction.label_ids[readable])

    return compute_metrics


def find_checkpoint(training_arguments: FinetuningTrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` names, or with `auto` the newest of the output folder, if any."""
    asked = training_arguments.resume_from_checkpoint
    output_dir = Path(training_arguments.output_dir)
    if asked == "auto":
        complete = [path.parent for path in output_dir.glob("checkpoint-*/trainer_state.json")]
        return str(max(complete, key=lambda path: int(path.name.partition("-")[2]))) if complete else None
    if asked is not None and not (Path(asked) / "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {asked}: no checkpoint (it has no trainer_state.json)")
    return asked


if __name__ == "__main__":
    main()
