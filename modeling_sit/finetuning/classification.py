"""Classification: a label an image, or several."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers.trainer_utils import EvalPrediction

from modeling_sit.data.labeled import IGNORED_LABEL, LabeledImageDataset, labels_of
from modeling_sit.evaluation.metrics import load_metric
from modeling_sit.evaluation.predictions import Predictions
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.augmentation import AugmentedImages, Collator, create_augmentation, create_erasing
from modeling_sit.finetuning.classifier import load_classifier
from modeling_sit.finetuning.labeled_splits import LabeledSplits, load_splits
from modeling_sit.finetuning.losses import (
    MultiLabelLoss,
    SingleLabelLoss,
    balanced_class_weights,
    balancing_weights,
    create_mixing,
    soft_targets,
)
from modeling_sit.finetuning.presets import RunFacts
from modeling_sit.finetuning.trainer import Task
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.resize import image_shape
from modeling_sit.runtime.errors import SiTError


class Classification(Task):
    """
    Learns the labels of images by cross-entropy, or of several labels an image by a loss of each label.

    Args:
        arguments (`FinetuningArguments`): The model, the augmentation and the loss.
        training_arguments (`FinetuningTrainingArguments`): The run's other arguments.
        splits ([`LabeledSplits`]): The images.

    Raises:
        [`SiTError`]: If the dataset does not suit the arguments.
    """

    splits: LabeledSplits

    def __init__(
        self, arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: LabeledSplits
    ):
        self.arguments = arguments
        self.splits = splits
        self.multi_label = self.splits.multi_label
        self.metric_names = metric_names(self.multi_label)
        self.measure = create_compute_metrics(self.multi_label)
        if not self.multi_label and arguments.multi_label_loss != "binary_cross_entropy":
            raise SiTError(
                f"{arguments.multi_label_loss!r} is for several labels an image, and {self.splits.name} has one",
                argument="multi_label_loss",
                remedy="leave it out",
            )
        self.num_labels = len(self.splits.label_names)
        self.train_labels = labels_of(self.splits.train)
        weights = None
        if arguments.class_weights == "balanced":
            weights = balanced_class_weights(self.train_labels, self.num_labels).to(training_arguments.device)
        if self.multi_label:
            self.loss: nn.Module = MultiLabelLoss(arguments.multi_label_loss == "asymmetric", weights)
            self.unweighted_loss: nn.Module = MultiLabelLoss(asymmetric=False)
        else:
            self.loss, self.unweighted_loss = SingleLabelLoss(weights), SingleLabelLoss()

    @staticmethod
    def load_splits(arguments: FinetuningArguments, seed: int, evaluates: bool | None) -> LabeledSplits:
        return load_splits(arguments, seed, evaluates)

    def load_model(self) -> None:
        self.processor, self.model = load_classifier(self.arguments, self.splits.label_names, self.multi_label)

    def facts(self, num_train: int, training_arguments: FinetuningTrainingArguments) -> RunFacts:
        return replace(super().facts(num_train, training_arguments), multi_label=self.multi_label)

    def prepare_training(self, training_arguments: FinetuningTrainingArguments) -> None:
        # `Trainer`'s own smoothing knows neither mixed targets nor several labels.
        self.smoothing, training_arguments.label_smoothing_factor = training_arguments.label_smoothing_factor, 0.0
        self.mixing = create_mixing(self.arguments.mixup_alpha, self.arguments.cutmix_alpha)

    def train_dataset(self) -> AugmentedImages:
        fill = [round(255 * mean) for mean in self.processor.image_mean]
        num_channels = getattr(self.model.config, "num_channels", 3)
        augmentation = create_augmentation(image_shape(self.processor), self.arguments, fill, num_channels)
        return AugmentedImages(self.eval_dataset(self.splits.train), augmentation)

    def eval_dataset(self, split) -> LabeledImageDataset:
        return LabeledImageDataset(split, PixelFormat.of_model(self.model.config, self.processor))

    def collator(self) -> Collator:
        return Collator(self.processor, create_erasing(self.arguments.random_erasing_probability))

    def sampling_weights(self) -> torch.Tensor | None:
        return balancing_weights(self.train_labels) if self.arguments.balanced_sampling else None

    def training_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        readable = is_readable(labels)
        if not readable.any():
            return 0 * model(pixel_values=pixel_values).logits.sum()
        pixel_values = pixel_values[readable]
        targets = soft_targets(labels[readable], self.num_labels, self.smoothing)
        if self.mixing is not None:
            pixel_values, targets = self.mixing(pixel_values, targets)
        return self.loss(model(pixel_values=pixel_values).logits, targets)

    def validation_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, labels = model(pixel_values=inputs["pixel_values"]).logits, inputs["labels"]
        readable = is_readable(labels)
        if not readable.any():
            return 0 * logits[readable].sum(), {"logits": logits}
        targets = soft_targets(labels[readable], self.num_labels)
        return self.unweighted_loss(logits[readable], targets), {"logits": logits}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        (rows,) = is_readable(torch.as_tensor(prediction.label_ids)).numpy().nonzero()
        self.num_measured = len(rows)
        if not self.multi_label:
            predicted = prediction.predictions[rows].argmax(axis=-1)
            self.predictions = Predictions(rows, prediction.label_ids[rows], predicted)
        return self.measure(prediction)


def metric_names(multi_label: bool) -> tuple[str, str]:
    """Names of a classifier's metrics; the first one compares classifiers."""
    return ("mean_average_precision" if multi_label else "accuracy", "macro_f1")


def create_compute_metrics(multi_label: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """A function that measures the predictions for the readable images by the project's `evaluate` metrics.

    Accuracy and macro F1 of the most likely class; with several labels, mean average precision, and macro F1 of the
    labels with a probability above one half.
    """
    names = metric_names(multi_label)
    metrics = {
        name: load_metric(name, *(["multilabel"] if multi_label and name == "macro_f1" else [])) for name in names
    }

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        readable = is_readable(torch.as_tensor(prediction.label_ids)).numpy()
        labels, logits = prediction.label_ids[readable], prediction.predictions[readable]
        if multi_label:
            labels = labels.astype(int)
            predicted = {"mean_average_precision": logits, "macro_f1": (logits > 0).astype(int)}
        else:
            predicted = dict.fromkeys(names, logits.argmax(axis=-1))
        measured = {}
        for name, metric in metrics.items():
            measured.update(metric.compute(predictions=predicted[name], references=labels))
        return measured

    return compute_metrics


def is_readable(labels: torch.Tensor) -> torch.Tensor:
    """Which images of a batch could be read, `(batch,)`, bool, by their labels `(batch,)` or `(batch, num_labels)`."""
    readable = labels != IGNORED_LABEL
    return readable if labels.ndim == 1 else readable.all(dim=1)
