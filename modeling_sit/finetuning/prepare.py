"""What a run needs before it trains: its task, the arguments that were left open, and the trainer."""

import torch
from transformers.trainer_utils import set_seed

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.classification import Classification
from modeling_sit.finetuning.detection import Detection, InstanceSegmentation
from modeling_sit.finetuning.presets import Preset, settle_defaults
from modeling_sit.finetuning.segmentation import SemanticSegmentation
from modeling_sit.finetuning.splits import Splits
from modeling_sit.finetuning.trainer import ReproducibleTrainer, Task
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.runtime.compiler import check_compiler
from modeling_sit.runtime.errors import SiTError

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "instance_segmentation": InstanceSegmentation,
    "semantic_segmentation": SemanticSegmentation,
}


def prepare_trainer(
    arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: Splits
) -> tuple[ReproducibleTrainer, Preset]:
    """The trainer of a run, with its model. Sets what the arguments leave open, in place.

    Args:
        arguments, training_arguments: The run's arguments, without `auto`.
        splits ([`Splits`]): The images. Without validation images that may choose, the run does not evaluate while it trains.

    Returns:
        `tuple[ReproducibleTrainer, Preset]`: The trainer, and the defaults that were chosen.

    Raises:
        [`SiTError`]: If the model or an argument is wrong.
    """
    # The collator decodes images from their encoded bytes, in columns that `Trainer` would drop.
    training_arguments.remove_unused_columns = False
    training_arguments.dataloader_pin_memory &= torch.cuda.is_available()
    if training_arguments.torch_compile:
        check_compiler(training_arguments.device)
    set_seed(training_arguments.seed)
    task = TASKS[arguments.task](arguments, training_arguments, splits)
    if splits.validation is None or not splits.may_choose:
        training_arguments.evaluate_never()
    _settle_choice(task.metric_names, arguments, training_arguments)
    task.load_model()
    facts = task.facts(len(splits.train), training_arguments)
    preset = settle_defaults(facts, arguments, training_arguments, task.preset_class)
    batch_size = training_arguments.per_device_train_batch_size * training_arguments.world_size
    if training_arguments.dataloader_drop_last and len(splits.train) < batch_size:
        raise SiTError(
            f"{len(splits.train):,} training images do not fill a batch of {batch_size:,}",
            argument="dataloader_drop_last",
            remedy="leave it out, or give a smaller `per_device_train_batch_size`",
        )
    task.prepare_training(training_arguments)
    return ReproducibleTrainer(task, arguments, training_arguments), preset


def _settle_choice(
    metric_names: tuple[str, ...], arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments
) -> None:
    """Set the metric that chooses the best checkpoint.

    Raises:
        [`SiTError`]: If the run does not measure it, or evaluates nothing by which it could stop.
    """
    names = (*metric_names, "loss")
    chosen = (training_arguments.metric_for_best_model or names[0]).removeprefix("eval_")
    if chosen not in names:
        raise SiTError(f"{chosen} is not measured, only {', '.join(names)}", argument="metric_for_best_model")
    training_arguments.metric_for_best_model = chosen
    if arguments.early_stopping_patience is not None and training_arguments.eval_strategy == "no":
        raise SiTError(
            "the run evaluates nothing that could stop it",
            argument="early_stopping_patience",
            remedy="set `eval_strategy` to epoch or steps",
        )
