"""transformers' `Trainer` for classifiers of images: what is random, what is learned, and what is saved."""

import copy
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from modeling_sit.data.labeled import LabeledImageDataset
from modeling_sit.data.sampling import STEP, derive_seed
from modeling_sit.finetuning.arguments import FinetuningArguments, FinetuningTrainingArguments
from modeling_sit.finetuning.augmentation import create_augmentation, create_erasing
from modeling_sit.finetuning.checkpoints import STATE, WEIGHTS, load_weights, save_weights
from modeling_sit.finetuning.collation import AugmentedImages, Collator, is_readable
from modeling_sit.finetuning.ema import ModelEma
from modeling_sit.finetuning.layer_decay import parameter_groups
from modeling_sit.finetuning.lora import Adapters
from modeling_sit.finetuning.losses import (
    MultiLabelLoss,
    SingleLabelLoss,
    balanced_class_weights,
    create_mixing,
    soft_targets,
)
from modeling_sit.finetuning.metrics import create_compute_metrics
from modeling_sit.finetuning.sampling import EpochOrder, balancing_weights
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.hub.repository_files import BEST_CHECKPOINT
from modeling_sit.interop.resize import image_shape
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import StopSignal, ignore_signals_in_worker


class ImageClassificationTrainer(Trainer):
    """
    Trains a classifier as the flags say. Everything random is a function of the seed and the place in the run, so that a
    run that goes on from a checkpoint ends where an uninterrupted one does, to the last bit.

    Args:
        model (`PreTrainedModel`): The classifier.
        arguments (`FinetuningArguments`), training_arguments (`FinetuningTrainingArguments`): The flags.
        processor: The model's image processor.
        train (`LabeledImageDataset`): Images to learn from.
        train_labels (`torch.Tensor`): Their labels, `(n,)`, or `(n, num_labels)` where an image may have several.
        validation (`LabeledImageDataset`, *optional*): Images to measure on the way.

    Raises:
        [`SiTError`]: If a flag does not suit the model or the machine.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: FinetuningArguments,
        training_arguments: FinetuningTrainingArguments,
        processor: Any,
        train: LabeledImageDataset,
        train_labels: torch.Tensor,
        validation: LabeledImageDataset | None,
    ):
        multi_label = train_labels.ndim == 2
        self.adapters = Adapters(model, arguments) if arguments.lora_rank else None
        self.freezes_backbone = arguments.freeze_backbone
        self.layer_decay = arguments.layer_decay
        self.patience = arguments.early_stopping_patience
        self.smoothing = training_arguments.label_smoothing_factor
        if self.smoothing is None:
            self.smoothing = 0.0 if multi_label else 0.1
        # Done here, on mixed targets too; `Trainer`'s own knows neither those nor several labels.
        training_arguments.label_smoothing_factor = 0.0
        self.mixing = create_mixing(arguments.mixup_alpha, arguments.cutmix_alpha)
        weights = balanced_class_weights(train_labels, model.config.num_labels)
        weights = weights.to(training_arguments.device) if arguments.class_weights == "balanced" else None
        if multi_label:
            self.training_loss: nn.Module = MultiLabelLoss(arguments.multi_label_loss == "asymmetric", weights)
            self.validation_loss: nn.Module = MultiLabelLoss(asymmetric=False)
        else:
            self.training_loss, self.validation_loss = SingleLabelLoss(weights), SingleLabelLoss()
        self.order = EpochOrder(
            len(train),
            training_arguments.seed,
            balancing_weights(train_labels) if arguments.balanced_sampling else None,
        )
        fill = [round(255 * mean) for mean in processor.image_mean]
        augmentation = create_augmentation(image_shape(processor), arguments, fill)
        callbacks: list[TrainerCallback] = [FollowEpochs(self.order)]
        if self.patience is not None:
            # How long it has been waiting already.
            training_arguments.restore_callback_states_from_checkpoint = True
            callbacks.append(EarlyStoppingCallback(self.patience, arguments.early_stopping_threshold))
        super().__init__(
            model,
            training_arguments,
            data_collator=Collator(processor, create_erasing(arguments.random_erasing_probability)),
            train_dataset=AugmentedImages(train, augmentation),
            eval_dataset=validation,
            processing_class=processor,
            compute_metrics=create_compute_metrics(multi_label),
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SiTError("fine-tuning is data parallel only: leave out --fsdp and --deepspeed")
        # The loss is the mean of a batch, which `Trainer` is to divide by the batches of a step.
        self.model_accepts_loss_kwargs = False
        self.average = ModelEma(self.model, arguments.ema_decay) if arguments.ema_decay else None
        if self.average is not None:
            self.add_callback(FollowWeights(self.average))
        self._step_and_batch = (-1, 0)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint is not None and self._stopped_early(resume_from_checkpoint):
            self.state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / STATE))
            self._load_from_checkpoint(resume_from_checkpoint)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            return
        if resume_from_checkpoint is not None:
            self.add_callback(FindBestCheckpoint(Path(resume_from_checkpoint)))
        super().train(resume_from_checkpoint=resume_from_checkpoint)

    def _stopped_early(self, checkpoint: str) -> bool:
        state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
        saved = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
        return self.patience is not None and saved.get("early_stopping_patience_counter", 0) >= self.patience

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(
                self.model if model is None else model,
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        return with_steady_workers(super().get_train_dataloader())

    def get_eval_dataloader(self, *args, **kwargs) -> torch.utils.data.DataLoader:
        return with_steady_workers(super().get_eval_dataloader(*args, **kwargs))

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
        if not loss.isfinite():
            raise SiTError(
                f"loss not finite at step {self.state.global_step + 1}; try a lower --learning_rate or more --warmup_steps"
            )
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if self.freezes_backbone:
            self.model.base_model.eval()
        readable = is_readable(labels)
        if not model.training:
            outputs = model(pixel_values=pixel_values)
            loss = self._loss(self.validation_loss, outputs.logits[readable], labels[readable])
            return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss
        if not readable.any():
            return 0 * model(pixel_values=pixel_values).logits.sum()
        pixel_values = pixel_values[readable]
        targets = soft_targets(labels[readable], self.model.config.num_labels, self.smoothing)
        if self.mixing is not None:
            pixel_values, targets = self.mixing(pixel_values, targets)
        return self.training_loss(model(pixel_values=pixel_values).logits, targets)

    def _loss(self, loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) == 0:
            return 0 * logits.sum()
        return loss(logits, soft_targets(labels, self.model.config.num_labels))

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        with self.average.applied(self.model):
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model as it is to be used, and into a checkpoint the weights that training goes on with beside."""
        live, self.model = self.model, self.finished_model()
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model = live
        if _internal_call and self.args.should_save:
            save_weights(output_dir, self.model, self._averaged())

    def finished_model(self) -> PreTrainedModel:
        """The model as it is to be used: averaged weights, adapters merged; a copy, if there are any."""
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


def with_steady_workers(loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
    """The same loader; a signal to all processes of a run does not end its workers, whose batches the step still needs."""
    # Accelerate's loader holds the one that starts the workers.
    getattr(loader, "base_dataloader", loader).worker_init_fn = ignore_signals_in_worker
    return loader


class FollowEpochs(TrainerCallback):
    """Tells the order of the images which epoch it is: with several processes, who resumes amid an epoch is not told."""

    def __init__(self, order: EpochOrder):
        self.order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.order.set_epoch(int(state.epoch or 0))


class FollowWeights(TrainerCallback):
    """Makes the moving average follow the weights, step by step."""

    def __init__(self, average: ModelEma):
        self.average = average

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.average.update(model, state.global_step)


class FindBestCheckpoint(TrainerCallback):
    """
    Tells a run that goes on where the best checkpoint so far is, if its folder was moved, or came from the Hub.

    Args:
        resumed (`Path`): The checkpoint that the run goes on from.
    """

    def __init__(self, resumed: Path):
        self.resumed = resumed
        # `Trainer` forgets one that is not where it was, and would leave the last one in its place.
        self.best = TrainerState.load_from_json(str(resumed / STATE)).best_model_checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        best = self.best
        if best is None or not args.load_best_model_at_end or (Path(best) / WEIGHTS).is_file():
            return
        beside = (self.resumed.with_name(BEST_CHECKPOINT), self.resumed.with_name(Path(best).name))
        is_this_one = Path(best).name == f"checkpoint-{state.global_step}"
        for found in (self.resumed,) if is_this_one else beside:
            if (found / WEIGHTS).is_file():
                state.best_model_checkpoint = str(found)
                return
        raise SiTError(
            f"--resume_from_checkpoint {self.resumed}: the best checkpoint so far is not here: put {Path(best).name} beside it, "
            "or give --load_best_model_at_end False"
        )


class PushCheckpoints(TrainerCallback):
    """Has every checkpoint pushed to the Hub, if the flags say so, while training goes on."""

    def __init__(self, pusher: HubPusher):
        self.pusher = pusher

    def on_save(self, args, state, control, **kwargs):
        self.pusher.push_checkpoint(state.global_step, with_model=False)


class StopAtSignal(TrainerCallback):
    """Ends training after the step in which a SIGTERM or SIGINT came, with a checkpoint."""

    def __init__(self, request: StopSignal):
        self.request = request
        self.received: signal.Signals | None = None

    def on_step_end(self, args, state, control, **kwargs):
        self.received = self.request.any_rank()
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received is None:
            return
        # `Trainer` takes the last step for the end of an epoch; what it measured there would not be an epoch's figure.
        is_whole = float(state.epoch).is_integer()
        control.should_save = is_whole
        control.should_evaluate = control.should_evaluate and is_whole
