"""Fine-tuning from start to end: read the dataset, train, measure, and write the model with its card and results."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.evaluation.feature_files import paths_of
from modeling_sit.evaluation.predictions import PREDICTIONS_FILE
from modeling_sit.evaluation.protocol_arguments import DENSE_PROTOCOLS, FEATURE_PROTOCOLS
from modeling_sit.evaluation.results import drop_results, write_results
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.callbacks import PushCheckpoints, RunHistory, ShowLogs, StopAtSignal
from modeling_sit.finetuning.card import FinetuningFacts, write_finetuning_card
from modeling_sit.finetuning.checkpoints import find_checkpoint, step_of
from modeling_sit.finetuning.prepare import TASKS, prepare_trainer
from modeling_sit.finetuning.resume_check import check_same_settings, given_settings, run_settings
from modeling_sit.finetuning.trainer import ReproducibleTrainer
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.finetuning.trials import TUNING_FILE
from modeling_sit.finetuning.tuning import Tuning, tune
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.card_results import FINETUNING_METRICS
from modeling_sit.hub.card_writing import EXAMPLES, LOSS_CURVE
from modeling_sit.hub.provenance import Start, describe_call, describe_start
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.interop.convert_in import range_of
from modeling_sit.runtime.accelerator import end_training
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.atomic_files import digest
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.markdown import code, escaped, table
from modeling_sit.runtime.memory import memory_errors
from modeling_sit.runtime.notebook import show
from modeling_sit.runtime.private_paths import without_private_paths
from modeling_sit.runtime.products import fast_products
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.runtime.run_folders import MODEL_FILES, check_foreign, is_marked, mark_run
from modeling_sit.runtime.signals import StopSignal
from modeling_sit.runtime.words import counted


@dataclass
class FinetuningResult:
    """
    A finished fine-tuning run.

    Args:
        model (`PreTrainedModel`): The model, in evaluation mode.
        processor: Its image processor.
        metrics (`dict[str, Any]`): The results, as `eval_results.json` has them.
        output_dir (`Path`): The model repository.
    """

    model: PreTrainedModel = field(repr=False)
    processor: Any = field(repr=False)
    metrics: dict[str, Any]
    output_dir: Path

    def _ipython_display_(self) -> None:
        """In a notebook: the metrics, the curve, and examples of boxes or masks."""
        names = [*FINETUNING_METRICS[self.metrics["task"]], "loss"]
        measured = {name: self.metrics[name] for name in names if self.metrics.get(name) is not None}
        show(
            f"The model is in {code(self.output_dir)}. On {counted(self.metrics['num_validation'], 'image')} of "
            f"{escaped(self.metrics['split'])}:",
            table([escaped(name) for name in measured], [[f"{value:.4g}" for value in measured.values()]]),
            self.output_dir / LOSS_CURVE,
            self.output_dir / EXAMPLES,
        )


@quiet_transformers()
def finetune(
    model_name_or_path: str,
    dataset: Any,
    output_dir: str | Path,
    *,
    recipe: str | Path | None = None,
    **arguments: Any,
) -> FinetuningResult:
    """Fine-tune a pretrained model on labeled images.

    Args:
        model_name_or_path (`str`): Folder, Hub id or file of weights of the pretrained model.
        dataset (`str` or `datasets.Dataset`): Labeled images, as in [`DatasetArguments`].
        output_dir (`str` or `Path`): Folder for the model, its card, results and checkpoints.
        recipe (`str` or `Path`, *optional*): YAML file of values for the arguments, or the name of a shipped one.
        arguments: Fields of [`FinetuningArguments`], [`FinetuningTrainingArguments`] and [`HubArguments`].

    Returns:
        [`FinetuningResult`]: The model, its image processor, the metrics and the folder.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If a value, the dataset or the model is wrong.
        [`TrainingInterrupted`]: If a signal ended the run.
    """
    given = {"model_name_or_path": model_name_or_path, "dataset": dataset, "output_dir": output_dir, **arguments}
    classes = (FinetuningArguments, FinetuningTrainingArguments, HubArguments)
    groups = build_arguments(classes, given, recipe, "finetune")
    given |= {} if recipe is None else {"recipe": recipe}
    return run_finetuning(*groups, command=describe_call("finetune", given))


@memory_errors("a smaller `per_device_train_batch_size`, or `image_size`, takes less")
def run_finetuning(
    arguments: FinetuningArguments,
    training_arguments: FinetuningTrainingArguments,
    hub_arguments: HubArguments,
    command: str | None = None,
    is_told: bool = False,
) -> FinetuningResult:
    """Fine-tune as the arguments say. Every process of a run calls it, and the main one writes.

    Args:
        arguments, training_arguments, hub_arguments: What the user asked for.
        command (`str`, *optional*): What started the run, for the model card. Default: the command line.
        is_told (`bool`, *optional*, defaults to `False`): Whether the user has read of a run like this one what was chosen.

    Raises:
        [`SiTError`]: If the dataset, the model or an argument is wrong.
        [`TrainingInterrupted`]: If a signal ended the run.
    """
    started = time.time()
    check_outside_dataset(training_arguments.output_dir, arguments.dataset)
    _check_output_dir(training_arguments.output_dir, arguments.model_name_or_path)
    checkpoint = find_checkpoint(training_arguments.output_dir, training_arguments.resume_from_checkpoint)
    history = RunHistory.read(checkpoint, started)
    check_same_settings(history.settings, given_settings(arguments, training_arguments), checkpoint)
    mark_run(Path(training_arguments.output_dir), "finetune")
    tuning = _tune(arguments, training_arguments) if training_arguments.is_tuned else None
    evaluates = training_arguments.evaluates
    if evaluates is None and arguments.early_stopping_patience is not None:
        evaluates = True
    splits = TASKS[arguments.task].load_splits(arguments, training_arguments.seed, evaluates)
    if tuning is None:
        splits.tell(range_of(arguments.model_name_or_path, arguments.intensity_range))
    trainer, preset = prepare_trainer(arguments, training_arguments, splits)
    if trainer.is_world_process_zero() and not is_told:
        print("\n".join([splits.summary(), *trainer.task.lines(), *preset.lines()]), flush=True)
    settings = run_settings(arguments, training_arguments, trainer.task)
    check_same_settings(history.settings, settings, checkpoint)
    history.settings = settings
    history.starts.append(
        describe_start(step_of(checkpoint), training_arguments.device, training_arguments.world_size, command)
    )
    trainer.add_callback(history)
    trainer.add_callback(ShowLogs())
    with fast_products(trainer.model), _pusher(trainer, hub_arguments) as pusher:
        _train(trainer, checkpoint, pusher)
        log = list(trainer.state.log_history)  # before the evaluation of the finished model adds to it
        report = _measure(trainer, arguments, tuning)
        facts = FinetuningFacts(
            report=report,
            label_names=splits.label_names,
            log=log,
            starts=[Start(**start) for start in history.starts],
            seconds=history.seconds,
            license=arguments.license,
            model_id=pusher.repository.name if pusher is not None else None,
        )
        _write(trainer, facts)
        if pusher is not None:
            pusher.push_finished()
    model = trainer.finished_model().eval()
    return FinetuningResult(model, trainer.task.processor, report, Path(training_arguments.output_dir))


def _check_output_dir(output_dir: str, model_name_or_path: str) -> None:
    """Make the folder.

    Raises:
        [`SiTError`]: If it cannot be made, or is that of the pretrained model, which would be lost.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SiTError(f"{output_dir} cannot be written: {problem.strerror}", argument="output_dir") from problem
    if Path(output_dir).resolve() == Path(model_name_or_path).resolve():
        raise SiTError(
            f"{output_dir} holds the pretrained model, which would be replaced",
            argument="output_dir",
            remedy="name another folder",
        )
    # `Trainer` has always left its arguments beside a model.
    if not is_marked(Path(output_dir), "finetune") and not (Path(output_dir) / "training_args.bin").exists():
        check_foreign(Path(output_dir), (*MODEL_FILES, LOSS_CURVE, EXAMPLES, PREDICTIONS_FILE, TUNING_FILE))


def _tune(arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments) -> Tuning:
    """Set the learning rate and the number of steps to those that held-out images choose."""
    tuning = tune(arguments, training_arguments)
    training_arguments.learning_rate = tuning.learning_rate
    # A run that holds images back would choose by fewer of them.
    training_arguments.per_device_train_batch_size = tuning.per_device_train_batch_size
    # The epochs of a run that holds images back have fewer steps than those of the search.
    if training_arguments.max_steps is not None or training_arguments.num_train_epochs is None:
        training_arguments.max_steps = tuning.max_steps
    if training_arguments.evaluates is None and arguments.early_stopping_patience is None:
        # The length is chosen: the run can learn from the held-out images too.
        training_arguments.evaluates = False
    return tuning


@contextmanager
def _pusher(trainer: ReproducibleTrainer, hub_arguments: HubArguments) -> Iterator[HubPusher | None]:
    """What pushes to the Hub, after a check of the login; in the main process, if the arguments ask for it. At the end,
    waits a while for what is on its way."""
    pusher = None
    with sync_errors(trainer.accelerator):
        if hub_arguments.hub_strategy == "checkpoint" and trainer.args.save_strategy == "no":
            raise SiTError(
                'there is no checkpoint to push with `save_strategy="no"`',
                argument="hub_strategy",
                remedy="leave one of them out",
            )
        if hub_arguments.push_to_hub and trainer.is_world_process_zero():
            pusher = HubPusher(hub_arguments, Path(trainer.args.output_dir))
            pusher.check_login()
            pusher.create_repository()
    try:
        yield pusher
    finally:
        if pusher is not None:
            pusher.close()


def _train(trainer: ReproducibleTrainer, checkpoint: str | None, pusher: HubPusher | None) -> None:
    """Train from the start, or from a checkpoint.

    Raises:
        [`TrainingInterrupted`]: If a signal ended the training.
    """
    with StopSignal(trainer.accelerator) as stop_request:
        stop = StopAtSignal(stop_request)
        trainer.add_callback(stop)
        if pusher is not None:
            trainer.add_callback(PushCheckpoints(pusher))
        trainer.train(checkpoint)
    if stop.received is not None:
        step = trainer.state.global_step
        # With `save_strategy="best"`, `Trainer` writes none where it evaluates at that very step and finds it worse.
        is_written = (Path(trainer.args.output_dir) / f"checkpoint-{step}").is_dir()
        which = "its checkpoint is written" if is_written else "the checkpoint is an earlier one"
        end_training(trainer.accelerator)
        raise TrainingInterrupted(
            stop.received,
            f'stopped by {stop.received.name} after step {step}: {which}, and `resume_from_checkpoint="auto"` goes on',
        )


def _measure(trainer: ReproducibleTrainer, arguments: FinetuningArguments, tuning: Tuning | None) -> dict[str, Any]:
    """The results of the finished model for `eval_results.json`: its metrics on the test images, or without those on the
    validation images, and how it was trained."""
    splits = trainer.task.splits
    metric_names = (*trainer.task.metric_names, *trainer.task.class_metric_names)

    def measured(results: dict[str, float], split: str) -> dict[str, Any]:
        return {**_metrics(results, metric_names), "num_validation": trainer.task.num_measured, "split": split}

    validation = None
    if splits.validation is not None:
        validation = measured(trainer.evaluate(), splits.validation_name)
    test = None
    if splits.test is not None:
        results = trainer.evaluate(trainer.task.eval_dataset(splits.test), metric_key_prefix="test")
        test = measured(results, splits.test_name)
    chosen_by = None
    if trainer.args.load_best_model_at_end:
        chosen_by = f"{trainer.args.metric_for_best_model} on {splits.validation_name}"
    return {
        "task": arguments.task,
        **(test or validation),
        "chosen_by": chosen_by,
        "validation": validation,
        "num_train": len(splits.train),
        "label_fraction": arguments.label_fraction,
        "from_scratch": arguments.from_scratch,
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "learning_rate": trainer.args.learning_rate,
        "tuned_by": None if tuning is None else f"{tuning.metric} on {tuning.chosen_on}",
        "seed": trainer.args.seed,
        "dataset": without_private_paths(splits.name),
        "model_name_or_path": without_private_paths(arguments.model_name_or_path),
    }


def _metrics(results: dict[str, float], metric_names: tuple[str, ...]) -> dict[str, float | None]:
    """The metrics and the loss in what `Trainer` gives, without their prefix; `None` for what is not a number, as where the
    images have no objects of a size. JSON knows no other word for it."""
    named = {name.partition("_")[2]: value for name, value in results.items()}
    found = {name: named[name] for name in (*metric_names, "loss") if name in named}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _write(trainer: ReproducibleTrainer, facts: FinetuningFacts) -> None:
    """Write the finished model with its card and results."""
    output_dir, report = Path(trainer.args.output_dir), facts.report
    weights = output_dir / "model.safetensors"
    earlier_weights = digest(weights) if trainer.is_world_process_zero() and weights.exists() else None
    trainer.save_model()
    if trainer.is_world_process_zero():
        # Other results that were measured with the same weights are still true.
        keep_results = weights.exists() and digest(weights) == earlier_weights
        facts.examples = trainer.task.examples(output_dir)
        write_finetuning_card(output_dir, facts, keep_results)
        predictions_file = output_dir / PREDICTIONS_FILE
        predictions_file.unlink(missing_ok=True)
        if trainer.task.predictions is not None:
            splits, rows = trainer.task.splits, trainer.task.predictions.rows
            paths = paths_of(splits.validation if splits.test is None else splits.test).take(rows).to_pylist()
            predictions = replace(trainer.task.predictions, rows=splits.measured_rows[rows], paths=paths)
            predictions.write(predictions_file, splits.label_names)
        if earlier_weights is not None and not keep_results:
            drop_results(output_dir, (*FEATURE_PROTOCOLS, *DENSE_PROTOCOLS))
        written = write_results(output_dir, {"finetune": report})
        metric = trainer.task.metric_names[0]
        value = "nothing to measure" if report[metric] is None else f"{report[metric]:.4f}"
        print(f"{metric} {value} on {counted(report['num_validation'], 'image')} of {report['split']}")
        print(f"written to {written}")
