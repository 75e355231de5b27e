"""What monitors measure on: a sample of the images, and what the networks make of it."""

from dataclasses import dataclass, replace
from functools import partial

import datasets
import numpy as np
import torch
from accelerate import Accelerator

from modeling_sit.data.image_datasets import ImageDatasets, first_rows
from modeling_sit.data.loaders import DEFAULT_TIMEOUT, BatchLoader
from modeling_sit.evaluation.features import distributed_batches, evaluation_mode, read_batch
from modeling_sit.image_modes import PixelFormat
from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.errors import SiTError

# Without validation images, one in so many of the labeled ones is used to measure on, and the others to learn from.
VALIDATION_STEP = 3


@dataclass(frozen=True)
class MonitorImages:
    """
    The images that monitors measure on.

    Args:
        train (`datasets.Dataset`):
            A sample of the training images, in their order: column `image` (`datasets.Image(decode=False)`) and, with
            labels, `label`, -1 where an image has none.
        validation (`datasets.Dataset`, *optional*):
            A sample of the labeled validation images. Without it, what measures by labels holds back some of `train`.
        num_labels (`int`, *optional*, defaults to 0): Number of classes; 0 without labels.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None = None
    num_labels: int = 0

    @classmethod
    def sample(cls, images: ImageDatasets, num_images: int, seed: int) -> "MonitorImages":
        """
        Draw `num_images` of the training images and half as many of the validation images with labels (all, where
        there are fewer); of a stream take the first, be they of one class. The draw is a function of the seed alone. Of
        images with several labels each, the labels are left out.
        """
        if images.multi_label:  # which the monitors that measure by labels do not know
            images = replace(images, train=images.train.remove_columns("label"), label_names=None)
        validation, num_labels = None, len(images.label_names or ())
        if num_labels and images.validation is not None and not _are_same_split(images):
            validation = _sample(images.validation, num_images // 2, seed, labeled_only=True)
        return cls(_sample(images.train, num_images, seed), validation or None, num_labels)

    @property
    def has_labels(self) -> bool:
        """Whether there are labeled images both to learn from and to measure on, of several classes."""
        if not self.num_labels:
            return False
        labels = labels_of(self.train)
        labels = labels[labels >= 0]
        return len(labels) >= (1 if self.validation else VALIDATION_STEP) and len(labels.unique()) > 1


@dataclass(frozen=True)
class Embeddings:
    """
    What a method makes of a set of images, in their order, without those that cannot be read. All on the CPU.

    Args:
        features (`torch.Tensor` of shape `(num_images, hidden_size)`): The student's features that transfer, float32.
        projection (`torch.Tensor` of shape `(num_images, size)`, *optional*): The student's projections, float32, where the
            method trains them.
        teacher_projection (`torch.Tensor` like `projection`, *optional*): The teacher's, where there is one.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): Int64, -1 for none, where the dataset has labels.
        num_unreadable (`int`): Images that were left out.
    """

    features: torch.Tensor
    projection: torch.Tensor | None
    teacher_projection: torch.Tensor | None
    labels: torch.Tensor | None
    num_unreadable: int

    def select(self, rows: torch.Tensor) -> "Embeddings":
        """Those of some images, by a mask `(num_images,)`, bool."""
        columns = (self.features, self.projection, self.teacher_projection, self.labels)
        return Embeddings(*(None if column is None else column[rows] for column in columns), self.num_unreadable)


class MonitoredMethod:
    """
    A method at one moment of the run, as monitors see it: by what it makes of clean images.

    Args:
        method ([`Method`]): Its networks are bare, not wrapped.
        accelerator (`Accelerator`): Knows the processes, which share the images, the device and the precision.
        batch_size (`int`, *optional*, defaults to 64): Images of each process at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images; 0 reads in this one.
        timeout (`float`, *optional*, defaults to 600): Seconds to wait for a batch at most.
    """

    def __init__(
        self,
        method: Method,
        accelerator: Accelerator,
        batch_size: int = 64,
        num_workers: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ):
        self.method = method
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.embedded: dict[int, tuple[datasets.Dataset, Embeddings]] = {}

    def embed(self, images: datasets.Dataset) -> Embeddings:
        """
        Embed a set of images, or return what was made of it before. Every process must call this, and gets the same.

        Neither modes nor buffers of the networks are changed, and nothing is drawn from a global generator.

        Raises:
            [`SiTError`]: If an embedding is not finite: training has diverged.
        """
        if id(images) not in self.embedded:
            # The dataset is kept beside, so that no other one can come by its id.
            self.embedded[id(images)] = (images, self._embed(images))
        return self.embedded[id(images)][1]

    def _embed(self, images: datasets.Dataset) -> Embeddings:
        # Not inference mode: networks with sharded weights would come out of it with weights that cannot be trained on.
        with evaluation_mode(*self.method.networks), torch.no_grad():
            batches = [self._embed_batch(*batch) for batch in self._own_batches(images)]
        # What was added to give every process the same number of images stands at the end.
        columns = {name: torch.cat([batch[name] for batch in batches])[: len(images)] for name in batches[0]}
        readable = columns.pop("readable").bool()
        embeddings = Embeddings(
            features=columns["features"],
            projection=columns.get("projection"),
            teacher_projection=columns.get("teacher_projection"),
            labels=labels_of(images) if "label" in images.column_names else None,
            num_unreadable=int((~readable).sum()),
        ).select(readable)
        if not all(columns[name][readable].isfinite().all() for name in columns):
            raise SiTError(
                "the network's embeddings are not finite, so its training has diverged",
                remedy="try a lower `base_learning_rate`, more `warmup_steps`, or `mixed_precision=no`",
            )
        return embeddings

    def _embed_batch(
        self, pixel_values: torch.Tensor, readable: torch.Tensor, _: list[tuple[int, str]]
    ) -> dict[str, torch.Tensor]:
        """What the networks make of the batches of all processes, in the images' order, on the CPU."""
        pixel_values = pixel_values.to(self.accelerator.device)
        columns = {"readable": readable.to(self.accelerator.device)}
        with self.accelerator.autocast():
            columns |= self.method.embed(pixel_values)
        return {name: made.float().cpu() for name, made in self.accelerator.gather(columns).items()}

    def _own_batches(self, images: datasets.Dataset) -> BatchLoader:
        return BatchLoader(
            range(len(images)),
            batch_sampler=distributed_batches(
                len(images), self.batch_size, self.accelerator.num_processes, self.accelerator.process_index
            ),
            # Reading is left to the workers by way of the one function of a loader that sees a batch as a whole.
            collate_fn=partial(
                read_batch,
                dataset=images,
                processor=self.method.processor,
                pixel_format=PixelFormat.of_model(self.method.config, self.method.processor),
                do_corrupt=False,
            ),
            limit=self.timeout,
            num_workers=self.num_workers,
            # A loader draws a seed for its workers, by default from the global generator.
            generator=torch.Generator(),
        )


def _sample(
    split: datasets.Dataset | datasets.IterableDataset, num_images: int, seed: int, labeled_only: bool = False
) -> datasets.Dataset:
    split = first_rows(split, num_images)
    candidates = torch.arange(len(split))
    if labeled_only:
        candidates = candidates[labels_of(split) >= 0]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return split.select(candidates[order[:num_images]].sort().values.tolist())


def labels_of(split: datasets.Dataset) -> torch.Tensor:
    """Labels, int64; -1 for none, which a stream may have as null and NumPy then as not a number."""
    labels = split.with_format("numpy")["label"][:]
    return torch.from_numpy(np.nan_to_num(labels.astype(np.float64), nan=-1.0).astype(np.int64))


def _are_same_split(images: ImageDatasets) -> bool:
    return images.train.split is not None and images.train.split == images.validation.split
