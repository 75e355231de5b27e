"""What detection and segmentation have in common as tasks: images, the model, batches, and how they are measured."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel

from modeling_sit.data.dense.loading import Kind
from modeling_sit.dense_processing import padded_size, resized_size
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.dense_augmentation import DenseAugmentation
from modeling_sit.finetuning.dense_examples import draw_examples
from modeling_sit.finetuning.dense_images import (
    AugmentedDenseImages,
    DenseCollator,
    DenseImages,
    DenseItem,
    check_image_sizes,
)
from modeling_sit.finetuning.dense_model import HEADS, load_dense_model, usual_head_size, usual_image_size
from modeling_sit.finetuning.dense_presets import DensePreset
from modeling_sit.finetuning.dense_splits import DenseSplits, load_dense_splits
from modeling_sit.finetuning.measurement import Measurement, batches_of_one_shape
from modeling_sit.finetuning.presets import RunFacts
from modeling_sit.finetuning.trainer import Task
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.load import read_config
from modeling_sit.runtime.errors import SiTError


class DenseTask(Task):
    """
    A task with labels at places of the image.

    Args:
        arguments (`FinetuningArguments`): The model, its heads and the augmentation.
        training_arguments (`FinetuningTrainingArguments`): The run's other arguments.
        splits ([`DenseSplits`]): The images.

    Attributes:
        image_size (`int`): Pixels of the longer side of the input.
        kind (`str`): What is read of the dataset, as of [`~data.dense.loading.open_dense`].
        model_class (`type`): Class of the model.

    Raises:
        [`SiTError`]: If an argument does not suit the task.
    """

    kind: ClassVar[Kind]
    model_class: ClassVar[type[PreTrainedModel]]
    preset_class = DensePreset
    measures_batches = True
    splits: DenseSplits

    def __init__(
        self, arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments, splits: DenseSplits
    ):
        if training_arguments.label_smoothing_factor:
            raise SiTError(
                f"it is for classification, and the task is {arguments.task}",
                argument="label_smoothing_factor",
                remedy="leave it out",
            )
        self.arguments, self.splits, self.seed = arguments, splits, training_arguments.seed
        self.notes: list[str] = []
        self.image_size = arguments.image_size
        if self.image_size is None:
            on_cpu = training_arguments.device.type == "cpu"
            self.image_size = usual_image_size(DenseImages(splits.train, PixelFormat.of(3)), on_cpu)
            self.notes.append(f"images of {self.image_size} pixels on the longer side (`image_size`)")

    @classmethod
    def load_splits(cls, arguments: FinetuningArguments, seed: int, evaluates: bool | None) -> DenseSplits:
        return load_dense_splits(arguments, cls.kind, seed, evaluates)

    def load_model(self) -> None:
        saved = read_config(
            self.arguments.model_name_or_path,
            network=self.arguments.network,
            num_attention_heads=self.arguments.num_attention_heads,
        )
        settings = self.settings(saved)
        size = self.arguments.head_size
        if size is None and not self.has_heads(saved):
            size = usual_head_size(saved)
        if size is not None:
            self.notes.append(f"{size} heads (`head_size`)")
            settings |= HEADS[size]
        self.processor, self.model = load_dense_model(
            self.arguments, self.model_class, self.splits.label_names, self.image_size, settings
        )
        for split in (self.splits.train, self.splits.validation, self.splits.test):
            if split is not None:
                check_image_sizes(self.eval_dataset(split), self.processor)

    def has_heads(self, saved: dict[str, Any]) -> bool:
        """Whether a checkpoint, by its configuration, is of this task, so that its heads go on as they are."""
        return self.model_class.__name__ in (saved.get("architectures") or ())

    def settings(self, saved: dict[str, Any]) -> dict[str, Any]:
        """More fields of the model's configuration, which depend on the images or the arguments.

        Args:
            saved (`dict`): The checkpoint's.
        """
        return {}

    def facts(self, num_train: int, training_arguments: FinetuningTrainingArguments) -> RunFacts:
        return replace(super().facts(num_train, training_arguments), image_size=self.image_size)

    def lines(self) -> list[str]:
        return self.notes

    def prepare_training(self, training_arguments: FinetuningTrainingArguments) -> None:
        training_arguments.label_smoothing_factor = 0.0

    def train_dataset(self) -> AugmentedDenseImages:
        return AugmentedDenseImages(self.eval_dataset(self.splits.train), self.augmentation())

    def augmentation(self) -> Callable[[DenseItem], DenseItem]:
        """What changes a training image together with its labels."""
        fill = [round(255 * mean) for mean in self.processor.image_mean]
        if len(fill) == 1:
            fill *= getattr(self.model.config, "num_channels", 3)
        return DenseAugmentation(self.processor.size, self.arguments, fill, with_masks=self.kind == "masks")

    def eval_dataset(self, split: Any) -> DenseImages:
        label_names = self.splits.label_names if self.kind == "pixels" else None
        return DenseImages(split, PixelFormat.of_model(self.model.config, self.processor), label_names)

    def collator(self) -> DenseCollator:
        return DenseCollator(self.processor, with_masks=self.kind == "masks")

    def eval_batches(self, dataset: DenseImages, batch_size: int) -> list[list[int]]:
        shapes = []
        for index in range(len(dataset)):
            size = dataset.size_of(index)
            resized = None if size is None else resized_size(size, self.processor.size)
            shapes.append((0, 0) if resized is None else padded_size([resized], self.processor.pad_multiple))
        return batches_of_one_shape(shapes, batch_size)

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        return model(**self.model_inputs(inputs)).loss

    def validation_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        outputs = model(**self.model_inputs(inputs))
        return outputs.loss, outputs

    def model_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What of a batch the model takes. Where no image could be read, the labels of one gray image say nothing."""
        labels = inputs["labels"]
        if labels is None:
            labels = self.no_labels(inputs["pixel_values"])
        return {"pixel_values": inputs["pixel_values"], "pixel_mask": inputs["pixel_mask"], "labels": labels}

    @abstractmethod
    def no_labels(self, pixel_values: torch.Tensor) -> Any:
        """Labels of a batch of one image in which nothing is labeled."""

    def examples(self, folder: Path) -> Figure | None:
        measured = self.splits.test if self.splits.test is not None else self.splits.validation
        return draw_examples(folder, measured, self.splits.label_names, self.model.device, self.seed)

    @abstractmethod
    def measurement(self, dataset: DenseImages) -> Measurement:
        """What measures an evaluation of these images batch by batch."""
