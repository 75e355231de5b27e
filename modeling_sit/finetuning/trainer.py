"""transformers' `Trainer`, reproducible to the bit, for any task.

[`ReproducibleTrainer`] knows steps, seeds, the order of the images, averages, adapters and checkpoints. All that depends
on the task is in a [`Task`]: the dataset, the model, batches, the loss and the metrics. A new task is a file beside
`classification.py` with a subclass of `Task`, an entry in `prepare.TASKS` and a name in `FinetuningArguments.task`. It
defines

- `__init__(arguments, training_arguments, splits)`, which keeps `splits` and checks the arguments,
- `metric_names`, the first of which chooses the best checkpoint,
- `load_splits`, `load_model`, `prepare_training`, `train_dataset`, `eval_dataset` and `collator`,
- `preset_class` and `facts`, where its defaults are others than a classifier's, and `lines`, what it tells at the start,
- `training_loss`, `validation_loss` and `compute_metrics`; or instead of the last one, with `measures_batches`,
  `measurement` and `eval_batches`,
- `sampling_weights`, where an epoch does not draw each image once; `examples`, where its card shows some.
"""

import copy
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from modeling_sit.data.hand_over import kill_workers
from modeling_sit.data.loaders import BatchLoader, timely_batches, worker_deaths
from modeling_sit.data.sampling import STEP, derive_seed
from modeling_sit.evaluation.predictions import Predictions
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.callbacks import EarlyStoppingCallback, FindBestCheckpoint, FollowEpochs
from modeling_sit.finetuning.checkpoints import delete_old_checkpoints, is_over, load_weights, read_state, save_weights
from modeling_sit.finetuning.ema import ModelEma
from modeling_sit.finetuning.layer_decay import blocks_of, layer_decay_groups
from modeling_sit.finetuning.lora import Adapters
from modeling_sit.finetuning.measurement import Measurement, measure
from modeling_sit.finetuning.presets import Preset, RunFacts, read_facts
from modeling_sit.finetuning.sampling import EpochOrder
from modeling_sit.finetuning.splits import Splits
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.runtime.atomic_files import replace_files, write_errors
from modeling_sit.runtime.distributed import any_process
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.waiting import WaitStopped

REMEDY = 'make room, and go on with `resume_from_checkpoint="auto"`'


class Task(ABC):
    """
    What a run learns: its dataset, its model, its loss and its metrics. One instance belongs to one run.

    Attributes:
        preset_class (`type`): What chooses the defaults of its arguments.
        measures_batches (`bool`):
            Whether a [`measurement`] measures one batch after the other. If not, [`compute_metrics`] has all of them.
        arguments (`FinetuningArguments`), splits (`Splits`): The run's arguments and images. Set by `__init__`.
        metric_names (`tuple[str, ...]`):
            Names of what `compute_metrics` or `measurement` gives, without the loss; the first one compares models.
        class_metric_names (`tuple[str, ...]`): Names of metrics of single classes, which are in the results only.
        model (`PreTrainedModel`), processor: Set by [`load_model`].
        predictions ([`Predictions`], *optional*): Of the last evaluation, if the task is one label for each image.
        num_measured (`int`): Images that the last evaluation measured: those that could be read.
    """

    preset_class: type[Preset] = Preset
    measures_batches = False

    arguments: FinetuningArguments
    splits: Splits
    metric_names: tuple[str, ...]
    class_metric_names: tuple[str, ...] = ()
    model: PreTrainedModel
    processor: Any
    predictions: Predictions | None = None
    num_measured: int

    @staticmethod
    @abstractmethod
    def load_splits(arguments: FinetuningArguments, seed: int, evaluates: bool | None) -> Splits:
        """The images to train on, to choose by and to measure.

        Args:
            arguments (`FinetuningArguments`): Dataset, names of splits, fractions.
            seed (`int`): Seed of the random draws: which labels are used, and which images are held back.
            evaluates (`bool`, *optional*):
                Whether the run evaluates during training, so that it can choose a checkpoint. `None` for whether there is
                a validation split, or so many training images that some can be held back.

        Raises:
            [`SiTError`]: If there is no such split, two are the same, or labels are missing.
        """

    @abstractmethod
    def load_model(self) -> None:
        """Set `model` and `processor`. New weights are drawn from PyTorch's global generator.

        Raises:
            [`SiTError`]: If there is no such model, or it does not suit the arguments.
        """

    def facts(self, num_train: int, training_arguments: FinetuningTrainingArguments) -> RunFacts:
        """What the defaults of the run depend on, once the model is loaded."""
        num_blocks = len(blocks_of(self.model))
        return read_facts(num_train, self.model.config, self.arguments, training_arguments, num_blocks)

    def lines(self) -> list[str]:
        """What the task tells about the model and the images, once the model is loaded, a line each."""
        return []

    @abstractmethod
    def prepare_training(self, training_arguments: FinetuningTrainingArguments) -> None:
        """Called once the arguments have no `None` that stands for a default, before anything below.

        Args:
            training_arguments (`FinetuningTrainingArguments`):
                What the task does itself is to be taken out of them, such as label smoothing.
        """

    @abstractmethod
    def train_dataset(self) -> torch.utils.data.Dataset:
        """The training images. The key of an item is a pair (index, seed); the seed alone makes it random."""

    @abstractmethod
    def eval_dataset(self, split: Any) -> torch.utils.data.Dataset:
        """The images of `splits.validation` or `splits.test` for an evaluation."""

    @abstractmethod
    def collator(self) -> Callable[[list[Any]], dict[str, Any]]:
        """What makes a batch of items. It may draw random numbers by the items' seeds only."""

    @abstractmethod
    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Scalar loss of a batch, a mean over its images. Random by PyTorch's global generator, which has a seed of the
        step.

        Args:
            model (`nn.Module`): The model, maybe wrapped for several processes.
            inputs (`dict`): A batch on the model's device.
        """

    @abstractmethod
    def validation_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Scalar loss of a batch, and the predictions: for [`compute_metrics`] a dict of tensors with the batch first."""

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of all predictions of an evaluation, by their names. Sets `num_measured`."""
        raise NotImplementedError

    def measurement(self, dataset: torch.utils.data.Dataset) -> Measurement:
        """What measures an evaluation of a dataset of [`eval_dataset`], if the task `measures_batches`."""
        raise NotImplementedError

    def eval_batches(self, dataset: torch.utils.data.Dataset, batch_size: int) -> list[list[int]]:
        """Which images of the dataset are in each batch of its evaluation, as indices, if the task `measures_batches`."""
        raise NotImplementedError

    def sampling_weights(self) -> torch.Tensor | None:
        """How likely an epoch draws each training image, `(num_images,)`; `None` for each of them once."""
        return None

    def examples(self, folder: Path) -> Figure | None:
        """What the finished model in a folder finds in a few of the measured images, for its card; `None` for nothing. Called
        in the main process, when the run is over."""
        return None


class LossNotFinite(SiTError):
    """The loss of a training step is not finite: mostly, the learning rate is too high."""


class ReproducibleTrainer(Trainer):
    """
    Trains a task. Everything random is a function of the seed and the place in the run, so that a run that resumes from
    a checkpoint ends where an uninterrupted one does, to the last bit.

    Args:
        task ([`Task`]): The task, with its model loaded.
        arguments (`FinetuningArguments`), training_arguments (`FinetuningTrainingArguments`): The run's arguments.

    Raises:
        [`SiTError`]: If an argument does not suit the model or the machine.
    """

    def __init__(self, task: Task, arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments):
        self.task = task
        self.adapters = Adapters(task.model, arguments) if arguments.lora_rank else None
        self.freezes_backbone = arguments.freeze_backbone
        self.layer_decay = arguments.layer_decay
        self.patience = arguments.early_stopping_patience
        self.order = EpochOrder(len(task.splits.train), training_arguments.seed, task.sampling_weights())
        callbacks: list[TrainerCallback] = [FollowEpochs(self.order)]
        if self.patience is not None:
            callbacks.append(EarlyStoppingCallback(self.patience, arguments.early_stopping_threshold))
        validation = task.splits.validation
        super().__init__(
            task.model,
            training_arguments,
            data_collator=task.collator(),
            train_dataset=task.train_dataset(),
            eval_dataset=None if validation is None else task.eval_dataset(validation),
            processing_class=task.processor,
            compute_metrics=None if task.measures_batches else task.compute_metrics,
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SiTError("fine-tuning is data parallel only", remedy="leave out `fsdp` and `deepspeed`")
        # The loss is the mean of a batch, which `Trainer` is to divide by the batches of a step.
        self.model_accepts_loss_kwargs = False
        self.average = ModelEma(self.model, arguments.ema_decay) if arguments.ema_decay else None
        if self.average is not None:
            self.add_callback(self.average)
        self._step_and_batch = (-1, 0)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint is not None:
            state, find_best = read_state(resume_from_checkpoint), FindBestCheckpoint(Path(resume_from_checkpoint))
            if is_over(state, self.args.num_steps(len(self.get_train_dataloader())), self.patience):
                self.state = state
                find_best.on_train_begin(self.args, state, self.control)
                self._load_from_checkpoint(resume_from_checkpoint)
                if self.args.load_best_model_at_end and state.best_model_checkpoint:
                    self._load_best_model()
                return
            self.add_callback(find_best)
        try:
            with worker_deaths():
                super().train(resume_from_checkpoint=resume_from_checkpoint)
        except WaitStopped as stopped:
            name = signal.Signals(stopped.signal).name
            raise TrainingInterrupted(
                stopped.signal,
                f"stopped by {name} after step {self.state.global_step}, as no batch came: an earlier checkpoint may be "
                'there, and `resume_from_checkpoint="auto"` goes on from it',
            ) from stopped

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = layer_decay_groups(
                self.model if model is None else model,
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        return self._guarded(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset=None) -> torch.utils.data.DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not self.task.measures_batches:
            # `Trainer` would leave out the last images of an evaluation, too.
            drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
            loader = super().get_eval_dataloader(dataset)
            self.args.dataloader_drop_last = drops
            return self._guarded(loader)
        batches = self.task.eval_batches(dataset, self.args.per_device_eval_batch_size)
        return BatchLoader(
            dataset,
            limit=self.args.dataloader_timeout,
            batch_sampler=batches[self.args.process_index :: self.args.world_size],
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        # Where a run goes on amid an epoch, Accelerate makes another loader, which has no limit.
        try:
            with timely_batches(self.args.dataloader_timeout * num_batches, self.args.dataloader_num_workers):
                return super().get_batch_samples(epoch_iterator, num_batches, device)
        except (SiTError, WaitStopped):
            kill_workers()
            raise

    def _guarded(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        # Accelerate's loader holds the one that starts the workers.
        BatchLoader.guard(getattr(loader, "base_dataloader", loader), self.args.dataloader_timeout)
        return loader

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self.order

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        step, batch = self._step_and_batch
        batch = batch + 1 if step == self.state.global_step else 0
        self._step_and_batch = (self.state.global_step, batch)
        torch.manual_seed(
            derive_seed(self.args.seed, STEP, self.state.global_step, batch, self.accelerator.process_index)
        )
        loss = super().training_step(*args, **kwargs)
        # In all processes or in none: one that leaves alone would have the others wait for it.
        if any_process(self.accelerator, ~loss.isfinite()):
            error = LossNotFinite(
                f"loss not finite at step {self.state.global_step + 1}",
                remedy="try a lower `learning_rate` or more `warmup_steps`",
            )
            error.is_shared = self.accelerator.num_processes > 1
            raise error
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if self.freezes_backbone:
            self.model.base_model.eval()
        if model.training:
            return self.task.training_loss(model, inputs)
        loss, predictions = self.task.validation_loss(model, inputs)
        return (loss, {"loss": loss, **predictions}) if return_outputs else loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with worker_deaths(), nullcontext() if self.average is None else self.average.applied(self.model):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        if not self.task.measures_batches:
            return super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if not self.accelerator._models:  # nothing was trained
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader

        def predict(inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            return self.task.validation_loss(self.model, inputs)

        batches, measurement = map(self._prepare_inputs, dataloader), self.task.measurement(dataloader.dataset)
        metrics = measure(batches, predict, measurement, self.accelerator, self.args.seed)
        self.task.num_measured = measurement.num_images
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        of_classes = set(self.task.class_metric_names)
        super().log(
            {name: value for name, value in logs.items() if name.partition("_")[2] not in of_classes}, *args, **kwargs
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the finished model, and in a checkpoint also the weights that training resumes from."""
        folder = Path(output_dir or self.args.output_dir)
        # First in an empty folder: in another, transformers deletes what looks like its weights.
        place = replace_files(folder) if self.args.should_save else nullcontext(folder)
        with write_errors(folder, REMEDY), place as unfinished:
            live, self.model = self.model, self.finished_model()
            try:
                super().save_model(str(unfinished), _internal_call)
            finally:
                self.model = live
            if _internal_call and self.args.should_save:
                save_weights(unfinished, self.model, self._averaged())

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with write_errors(Path(self.args.output_dir), REMEDY), self._keeping_all_checkpoints() as limit:
            super()._save_checkpoint(*args, **kwargs)
        if limit and self.args.should_save:
            delete_old_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)

    def _finalize_training(self, *args, **kwargs):
        with self._keeping_all_checkpoints() as limit:
            outcome = super()._finalize_training(*args, **kwargs)
        best = self.state.best_model_checkpoint
        if limit == 1 and best is not None and self.args.should_save:
            delete_old_checkpoints(self.args.output_dir, limit, best, keeps_newest=False)
        return outcome

    @contextmanager
    def _keeping_all_checkpoints(self) -> Iterator[int | None]:
        """In this block `Trainer`, which would delete whole folders with all that a user has in them, deletes none. Gives
        the number of checkpoints to keep."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield limit
        finally:
            self.args.save_total_limit = limit

    def finished_model(self) -> PreTrainedModel:
        """The model for use: with averaged weights and merged adapters. A copy where there are any."""
        if self.adapters is None and self.average is None:
            return self.model
        if self.average is None:
            return self.adapters.merged()
        with self.average.applied(self.model):
            return copy.deepcopy(self.model) if self.adapters is None else self.adapters.merged()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(resume_from_checkpoint, self.model, self._averaged())

    def _load_best_model(self) -> None:
        load_weights(self.state.best_model_checkpoint, self.model, self._averaged())

    def _averaged(self) -> dict[str, torch.Tensor] | None:
        return None if self.average is None else self.average.weights
