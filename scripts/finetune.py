#!/usr/bin/env python
"""Fine-tune a pretrained model to classify labeled images, with transformers' Trainer.

accelerate launch scripts/finetune.py [RECIPE.yaml] --model_name_or_path MODEL --dataset IMAGES --output_dir FOLDER ...
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import set_seed

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.labeled import LabeledImageDataset, labels_of
from modeling_sit.evaluation.results import write_results
from modeling_sit.finetuning.arguments import FinetuningArguments, FinetuningTrainingArguments
from modeling_sit.finetuning.card import write_finetuning_card
from modeling_sit.finetuning.checkpoints import find_checkpoint, step_of
from modeling_sit.finetuning.classifier import load_classifier
from modeling_sit.finetuning.history import RunHistory
from modeling_sit.finetuning.metrics import main_metric
from modeling_sit.finetuning.splits import Splits, load_splits
from modeling_sit.finetuning.trainer import ImageClassificationTrainer, PushCheckpoints, StopAtSignal
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.provenance import Start, describe_start
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.runtime.atomic_files import digest
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import StopSignal

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "modeling_sit" / "templates" / "finetuning_card.md"


def main() -> None:
    parser = RecipeArgumentParser(
        (FinetuningArguments, FinetuningTrainingArguments, HubArguments), description=__doc__.partition("\n")[0]
    )
    with one_line_errors(parser.flags):
        finetune(*parser.parse())


def finetune(
    arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, hub_arguments: HubArguments
) -> None:
    started = time.time()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_output_dir(training_arguments.output_dir, arguments.model_name_or_path)
    checkpoint = find_checkpoint(training_arguments.output_dir, training_arguments.resume_from_checkpoint)
    # Images are read from their encoded bytes by the collator, which needs the columns that Trainer would drop.
    training_arguments.remove_unused_columns = False
    training_arguments.dataloader_pin_memory &= torch.cuda.is_available()
    set_seed(training_arguments.seed)

    splits = load_splits(arguments, training_arguments.seed, training_arguments.eval_strategy != "no")
    check_choosing(arguments, training_arguments, splits.multi_label)
    processor, model = load_classifier(arguments, splits.label_names, splits.multi_label)
    num_channels = model.config.num_channels
    trainer = ImageClassificationTrainer(
        model,
        arguments,
        training_arguments,
        processor,
        train=LabeledImageDataset(splits.train, num_channels),
        train_labels=labels_of(splits.train),
        validation=LabeledImageDataset(splits.validation, num_channels) if splits.validation is not None else None,
    )
    if trainer.is_world_process_zero():
        print(splits.summary())
    history = RunHistory.read(checkpoint, started)
    history.starts.append(
        describe_start(step_of(checkpoint), training_arguments.device, training_arguments.world_size)
    )
    trainer.add_callback(history)
    with pushing_to_the_hub(trainer, hub_arguments) as pusher:
        train(trainer, checkpoint, pusher)
        model_id = pusher.repository.name if pusher is not None else None
        write_model(trainer, splits, arguments, training_arguments, history, model_id)
        if pusher is not None:
            pusher.push_finished()


def train(trainer: ImageClassificationTrainer, checkpoint: str | None, pusher: HubPusher | None) -> None:
    """Train from the start, or from a checkpoint; a signal ends the program here."""
    with StopSignal(trainer.accelerator) as stop_request:
        stop = StopAtSignal(stop_request)
        trainer.add_callback(stop)
        if pusher is not None:
            trainer.add_callback(PushCheckpoints(pusher))
        trainer.train(checkpoint)
    if stop.received is not None:
        leave(trainer, stop.received)


def write_model(
    trainer: ImageClassificationTrainer,
    splits: Splits,
    arguments: FinetuningArguments,
    training_arguments: FinetuningTrainingArguments,
    history: RunHistory,
    model_id: str | None,
) -> None:
    """Measure the finished model, and leave it in the output folder with its card and results."""
    log = list(trainer.state.log_history)  # before the finished model is measured, at the last step once more
    num_channels = trainer.model.config.num_channels
    report = measure(trainer, splits, arguments, training_arguments, num_channels)
    weights = Path(training_arguments.output_dir) / "model.safetensors"
    earlier_weights = digest(weights) if trainer.is_world_process_zero() and weights.exists() else None
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_finetuning_card(
            CARD_TEMPLATE,
            Path(training_arguments.output_dir),
            report=report,
            label_names=splits.label_names,
            log=log,
            starts=[Start(**start) for start in history.starts],
            seconds=history.seconds,
            license=arguments.license,
            model_id=model_id,
            # What else was measured of these very weights is still true.
            keep_results=weights.exists() and digest(weights) == earlier_weights,
        )
        metric = main_metric(splits.multi_label)
        print(f"{metric} {report[metric]:.4f} on {report['num_validation']} images of {report['split']}")
        print(f"written to {write_results(training_arguments.output_dir, {'finetune': report})}")


@contextmanager
def pushing_to_the_hub(trainer: ImageClassificationTrainer, hub_arguments: HubArguments) -> Iterator[HubPusher | None]:
    """What pushes to the Hub, known to be let in; in the main process, if the flags ask for it. Lets nothing be cut off that
    is on its way, for a while."""
    pusher = None
    with sync_errors(trainer.accelerator):
        if hub_arguments.hub_strategy == "checkpoint" and trainer.args.save_strategy == "no":
            raise SiTError("--hub_strategy checkpoint: there is none with --save_strategy no; leave one out")
        if hub_arguments.push_to_hub and trainer.is_world_process_zero():
            pusher = HubPusher(hub_arguments, Path(trainer.args.output_dir))
            pusher.check_login()
            pusher.create_repository()
    try:
        yield pusher
    finally:
        if pusher is not None:
            pusher.close()


def measure(
    trainer: ImageClassificationTrainer,
    splits: Splits,
    arguments: FinetuningArguments,
    training_arguments: FinetuningTrainingArguments,
    num_channels: int,
) -> dict[str, Any]:
    """What `eval_results.json` says of the finished model: its figures on the test images, or where there are none on those
    that were chosen by, and how it came about."""
    validation = None
    if splits.validation is not None:
        validation = {
            **figures(trainer.evaluate()),
            "num_validation": len(splits.validation),
            "split": splits.validation_name,
        }
    test = None
    if splits.test is not None:
        results = trainer.evaluate(LabeledImageDataset(splits.test, num_channels), metric_key_prefix="test")
        test = {**figures(results), "num_validation": len(splits.test), "split": splits.test_name}
    chosen_by = None
    if training_arguments.load_best_model_at_end:
        chosen_by = f"{training_arguments.metric_for_best_model} on {splits.validation_name}"
    return {
        **(test or validation),
        "chosen_by": chosen_by,
        "validation": validation,
        "num_train": len(splits.train),
        "label_fraction": arguments.label_fraction,
        "from_scratch": arguments.from_scratch,
        "epochs": trainer.state.epoch,
        "seed": training_arguments.seed,
        "dataset": splits.name,
        "model_name_or_path": arguments.model_name_or_path,
    }


def figures(results: dict[str, float]) -> dict[str, float]:
    """The figures among what `Trainer` gives, without their prefix, its timings and the epoch."""
    named = {name.partition("_")[2]: value for name, value in results.items()}
    return {name: named[name] for name in ("accuracy", "mean_average_precision", "macro_f1", "loss") if name in named}


def check_output_dir(output_dir: str, model_name_or_path: str) -> None:
    """Raise `SiTError` if the folder cannot be made, or is that of the pretrained model, which would be lost."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SiTError(f"--output_dir {output_dir} cannot be written: {problem.strerror}") from problem
    if Path(output_dir).resolve() == Path(model_name_or_path).resolve():
        raise SiTError(f"--output_dir {output_dir} is --model_name_or_path, which would be replaced; name another")


def check_choosing(
    arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, multi_label: bool
) -> None:
    """Settle what the best checkpoint is the best in.

    Raises:
        [`SiTError`]: If there is no such figure, or nothing is measured that training could stop by.
    """
    names = (main_metric(multi_label), "macro_f1", "loss")
    chosen = (training_arguments.metric_for_best_model or names[0]).removeprefix("eval_")
    if chosen not in names:
        raise SiTError(f"--metric_for_best_model {chosen}: not measured; there are {', '.join(names)}")
    training_arguments.metric_for_best_model = chosen
    if arguments.early_stopping_patience is not None and training_arguments.eval_strategy == "no":
        raise SiTError(
            "--early_stopping_patience stops by measurements on the way: set --eval_strategy to epoch or steps"
        )
    if multi_label is False and arguments.multi_label_loss != "binary_cross_entropy":
        raise SiTError(
            f"--multi_label_loss {arguments.multi_label_loss}: {arguments.dataset} has one label an image; leave it out"
        )


def leave(trainer: ImageClassificationTrainer, stopped_by: signal.Signals) -> None:
    """End the run before its time, with the exit code by which shells and schedulers know the signal."""
    if trainer.is_world_process_zero():
        step = trainer.state.global_step
        # With `--save_strategy best`, `Trainer` writes none where it measures at that very step and finds it worse.
        is_written = (Path(trainer.args.output_dir) / f"checkpoint-{step}").is_dir()
        which = "its checkpoint is written" if is_written else "the checkpoint is an earlier one"
        print(f"stopped by {stopped_by.name} after step {step}: {which}; --resume_from_checkpoint auto goes on")
    trainer.accelerator.end_training()
    sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
