"""Online monitors: what a network in training is worth, measured on a bounded sample beside the run.

A monitor is a function from the model and the images to (name, value) pairs, and one line in the tables below. The model
embeds a set of images once a round, whichever monitors ask for it, and is left as it was found.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BaseImageProcessor

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sources import ImageDatasets, read_row
from modeling_sit.evaluation.features import distributed_batches
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.linear import linear_predict
from modeling_sit.image_modes import MODES
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import ignore_signals_in_worker

# Below these the embeddings count as collapsed. Networks with random weights, and trained ones, have a spread from 0.06 and
# a rank from 1.9 up; those that a far too high learning rate has destroyed, 0.02 and 1.25 at most. A spread of 0.03 says
# that two images' embeddings have a cosine similarity of 0.999 on average.
COLLAPSED_SPREAD = 0.03
COLLAPSED_RANKME = 1.3

KNN_NEIGHBOURS = 20
# Without validation images, one in so many of the labeled ones is held back to measure on.
HELD_BACK = 3


@dataclass
class MonitorArguments:
    """What is monitored on the way.

    Raises:
        `ValueError`: If a monitor does not exist, or a value is out of range.
    """

    monitors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of `rankme`, `embedding_std`, `teacher_agreement` and, with labels, `knn` and `linear`; or `none`; several by spaces "
            "or commas. Default: all that apply."
        },
    )
    monitor_steps: int | None = field(
        default=None, metadata={"help": "Steps between rounds of monitors; 0 for none. Default: ten in the run."}
    )
    monitor_images: int = field(
        default=1024,
        metadata={
            "help": "Training images to measure on, drawn once a run; of validation images, half as many for `knn` and "
            "`linear`. A test split is not used unless --validation_split names it: a third of the training images is "
            "held back then."
        },
    )

    def __post_init__(self):
        if self.monitors is not None:
            self.monitors = [name for names in self.monitors for name in names.split(",") if name]
        for name in self.monitors or ():
            if name not in (*MONITORS, "none"):
                raise ValueError(f"--monitors {name}: no such monitor, only {', '.join(MONITORS)}, or none")
        if self.monitors is not None and "none" in self.monitors and len(self.monitors) > 1:
            raise ValueError(f"--monitors {' '.join(self.monitors)}: none goes alone")
        if self.monitor_steps is not None and self.monitor_steps < 0:
            raise ValueError(f"--monitor_steps must be at least 0, got {self.monitor_steps}")
        if self.monitor_images < 2:
            raise ValueError(f"--monitor_images must be at least 2, got {self.monitor_images}")


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
        """Whether there are labeled images both to learn from and to measure on."""
        if not self.num_labels:
            return False
        num_labeled = int((_labels(self.train) >= 0).sum())
        return num_labeled >= (1 if self.validation else HELD_BACK)


@dataclass(frozen=True)
class Embeddings:
    """
    What a network makes of a set of images, in its order, without those that cannot be read. All on the CPU.

    Args:
        token (`torch.Tensor` of shape `(num_images, hidden_size)`):
            The student's contrastive tokens, float32: the features that transfer.
        projection (`torch.Tensor` of shape `(num_images, projection_size)`): The student's projections, float32.
        teacher_projection (`torch.Tensor` like `projection`, *optional*): The teacher's, where there is one.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): Int64, -1 for none, where the set has labels.
        num_unreadable (`int`): Images that were left out.
    """

    token: torch.Tensor
    projection: torch.Tensor
    teacher_projection: torch.Tensor | None
    labels: torch.Tensor | None
    num_unreadable: int

    def select(self, rows: torch.Tensor) -> "Embeddings":
        """Those of some images, by a mask `(num_images,)`, bool."""
        columns = (self.token, self.projection, self.teacher_projection, self.labels)
        return Embeddings(*(None if column is None else column[rows] for column in columns), self.num_unreadable)


class MonitoredModel:
    """
    Student and teacher at one moment of the run, as monitors see them: by what they make of clean images.

    Args:
        student ([`SiTForPreTraining`]): Bare, not wrapped.
        teacher ([`Teacher`], *optional*): `None` where there is none.
        processor (`BaseImageProcessor`): Makes `pixel_values` of images.
        accelerator (`Accelerator`): Knows the processes, which share out the images, the device and the precision.
        batch_size (`int`, *optional*, defaults to 64): Images of each process at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images; 0 does it in this one.
    """

    def __init__(
        self,
        student: SiTForPreTraining,
        teacher: Teacher | None,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
        batch_size: int = 64,
        num_workers: int = 0,
    ):
        self.student = student
        self.teacher = teacher
        self.processor = processor
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.embedded: dict[int, tuple[datasets.Dataset, Embeddings]] = {}

    @property
    def has_contrast(self) -> bool:
        """Whether the projections are trained, and so mean something."""
        return self.student.config.contrastive_weight > 0

    def embed(self, images: datasets.Dataset) -> Embeddings:
        """
        Embed a set of images, or recall what was made of it before. Every process must call this, and gets the same.

        Neither modes nor buffers of the networks are left changed, and no global generator is drawn from.

        Raises:
            [`SiTError`]: If an embedding is not finite: training has diverged.
        """
        if id(images) not in self.embedded:
            # The dataset is kept beside, so that no other one can come by its id.
            self.embedded[id(images)] = (images, self._embed(images))
        return self.embedded[id(images)][1]

    def _embed(self, images: datasets.Dataset) -> Embeddings:
        networks = [self.student] if self.teacher is None else [self.student, self.teacher]
        # Not inference mode: networks with sharded weights would come out of it with weights that cannot be trained on.
        with _evaluation_mode(networks), torch.no_grad():
            batches = [self._embed_batch(*batch) for batch in self._read_own_share(images)]
        # What was added to give every process the same number of images stands at the end.
        columns = {name: torch.cat([batch[name] for batch in batches])[: len(images)] for name in batches[0]}
        readable = columns.pop("readable").bool()
        embeddings = Embeddings(
            token=columns["token"],
            projection=columns["projection"],
            teacher_projection=columns.get("teacher_projection"),
            labels=_labels(images) if "label" in images.column_names else None,
            num_unreadable=int((~readable).sum()),
        ).select(readable)
        if not all(columns[name][readable].isfinite().all() for name in columns):
            raise SiTError(
                "the network's embeddings are not finite, so its training has diverged. Try a lower --base_learning_rate, "
                "longer --warmup_epochs, or --mixed_precision no"
            )
        return embeddings

    def _embed_batch(self, pixel_values: torch.Tensor, readable: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the networks make of the batches of all processes, in the images' order, on the CPU."""
        pixel_values = pixel_values.to(self.accelerator.device)
        columns = {"readable": readable.to(self.accelerator.device)}
        with self.accelerator.autocast():
            columns["token"], columns["projection"] = self.student.encode(pixel_values)
            if self.teacher is not None:
                columns["teacher_projection"] = self.teacher.project(pixel_values)
        return {name: made.float().cpu() for name, made in self.accelerator.gather(columns).items()}

    def _read_own_share(self, images: datasets.Dataset) -> DataLoader:
        config = self.student.config
        return DataLoader(
            range(len(images)),
            batch_sampler=distributed_batches(
                len(images), self.batch_size, self.accelerator.num_processes, self.accelerator.process_index
            ),
            # Reading is left to the workers by way of the one function of a loader that sees a batch as a whole.
            collate_fn=partial(_read_batch, images=images, processor=self.processor, num_channels=config.num_channels),
            worker_init_fn=ignore_signals_in_worker,
            num_workers=self.num_workers,
            # A loader draws a seed for its workers, by default from the global generator.
            generator=torch.Generator(),
        )


# The monitors. They are asked in all processes, and tell the same in each.

Monitor = Callable[[MonitoredModel, MonitorImages], Iterable[tuple[str, float]]]
"""From the model and the images to the names and values of what was measured; nothing where that cannot be."""


def rankme(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """[`effective_rank`] of the contrastive tokens, `rankme`, and of the projections where there is contrast,
    `projection_rankme`. Between 1 (collapsed) and the number of dimensions or of images, whichever is smaller."""
    embeddings = model.embed(images.train)
    yield "rankme", effective_rank(embeddings.token)
    if model.has_contrast:
        yield "projection_rankme", effective_rank(embeddings.projection)


def embedding_std(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """[`spread`] of the contrastive tokens, between 0 (collapsed) and 1. The projections' would hide a collapse where a
    batch norm stands at their end."""
    yield "embedding_std", spread(model.embed(images.train).token)


def teacher_agreement(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Mean cosine similarity, between -1 and 1, of the student's and the teacher's projection of the same clean image."""
    embeddings = model.embed(images.train)
    if embeddings.teacher_projection is not None:
        similarities = F.cosine_similarity(embeddings.projection.double(), embeddings.teacher_projection.double())
        yield "teacher_agreement", similarities.mean().item()


def knn(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy, in [0, 1], of the weighted nearest neighbours' votes ([`knn_predict`]) by the contrastive tokens."""
    train, validation = _labeled_splits(model, images)
    if len(train.labels) and len(validation.labels):
        k = min(KNN_NEIGHBOURS, len(train.labels))
        scores = knn_predict(train.token, train.labels, validation.token, images.num_labels, k=k)
        yield "knn_accuracy", _accuracy(scores, validation.labels)


def linear(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy, in [0, 1], of a linear probe ([`linear_predict`]) on the contrastive tokens."""
    train, validation = _labeled_splits(model, images)
    if len(train.labels) and len(validation.labels):
        scores = linear_predict(train.token, train.labels, validation.token, images.num_labels)
        yield "linear_accuracy", _accuracy(scores, validation.labels)


UNCONDITIONAL_MONITORS: dict[str, Monitor] = {"rankme": rankme, "embedding_std": embedding_std}
TEACHER_MONITORS: dict[str, Monitor] = {"teacher_agreement": teacher_agreement}
LABEL_MONITORS: dict[str, Monitor] = {"knn": knn, "linear": linear}
MONITORS: dict[str, Monitor] = {**UNCONDITIONAL_MONITORS, **TEACHER_MONITORS, **LABEL_MONITORS}


def effective_rank(embeddings: torch.Tensor, epsilon: float = 1e-7) -> float:
    """
    RankMe (Garrido et al., arXiv 2210.02885, equation 1): the exponential of the entropy of the singular values' shares.

    Args:
        embeddings (`torch.Tensor` of shape `(num_images, size)`): One row an image; computed on in float64.
        epsilon (`float`, *optional*, defaults to 1e-7): Added to each share, as in the paper.

    Returns:
        `float`: Between 1 and the lesser of `num_images` and `size`, to some 1e-6 a dimension.
    """
    singular_values = torch.linalg.svdvals(embeddings.double())
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny) + epsilon
    return torch.exp(-(shares * shares.log()).sum()).item()


def spread(embeddings: torch.Tensor) -> float:
    """
    Standard deviation of the L2-normalized embeddings, mean over the dimensions, times the root of their number (Chen and
    He, arXiv 2011.10566, section 4.1): 0 if all point the same way, 1 if they point evenly in all directions.

    Args:
        embeddings (`torch.Tensor` of shape `(num_images, size)`): One row an image; computed on in float64.
    """
    directions = F.normalize(embeddings.double(), dim=1)
    return directions.std(dim=0, correction=0).mean().item() * embeddings.shape[1] ** 0.5


def collapse_warning(values: dict[str, float]) -> str | None:
    """One line that says by which of these values the embeddings have collapsed, and what to try; `None` if they have not.

    Args:
        values (`dict[str, float]`): What [`OnlineMonitors.run`] gave.
    """
    thresholds = {"embedding_std": COLLAPSED_SPREAD, "rankme": COLLAPSED_RANKME}
    signs = [
        f"{name} {values[name]:.3g} is below {threshold}"
        for name, threshold in thresholds.items()
        if name in values and values[name] < threshold
    ]
    if not signs:
        return None
    return (
        f"the embeddings have collapsed, images are embedded nearly alike: {' and '.join(signs)}. If this stays, try a "
        "lower --base_learning_rate, longer --warmup_epochs or a larger --per_device_train_batch_size"
    )


class OnlineMonitors:
    """
    The monitors of a run, and the images that they measure on.

    Args:
        arguments ([`MonitorArguments`]): The flags.
        images ([`ImageDatasets`]): The run's; a stream has to be whole in every process.
        config ([`SiTConfig`]): The student's.
        processor (`BaseImageProcessor`): The run's image processor.
        accelerator (`Accelerator`): The run's.
        seed (`int`): Decides which images are drawn; the same in all processes.
        batch_size (`int`, *optional*, defaults to 64): Images that each process embeds at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes of each process that read images, while a round lasts.

    Raises:
        [`SiTError`]: If a monitor is asked for that lacks labels or a teacher.
    """

    def __init__(
        self,
        arguments: MonitorArguments,
        images: ImageDatasets,
        config: SiTConfig,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
        seed: int,
        batch_size: int = 64,
        num_workers: int = 0,
    ):
        self.processor = processor
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.has_told_unreadable = False
        self.chosen: list[str] = []
        if arguments.monitors != ["none"] and arguments.monitor_steps != 0:
            self.images = MonitorImages.sample(images, arguments.monitor_images, seed)
            has_teacher = config.use_teacher and config.contrastive_weight > 0
            self.chosen = choose_monitors(arguments.monitors, self.images.has_labels, has_teacher)

    def run(self, student: SiTForPreTraining, teacher: Teacher | None) -> dict[str, float]:
        """
        One round: embed the images and ask every monitor. All processes must call this, and all get the same values.

        Args:
            student ([`SiTForPreTraining`]): Bare, not wrapped. Left as it was, to the last buffer and mode.
            teacher ([`Teacher`], *optional*): Likewise.

        Returns:
            `dict[str, float]`: Values by name; of what could not be measured, none.

        Raises:
            [`SiTError`]: If an embedding is not finite.
        """
        if not self.chosen:
            return {}
        model = MonitoredModel(student, teacher, self.processor, self.accelerator, self.batch_size, self.num_workers)
        values = {}
        if len(model.embed(self.images.train).token) > 0:
            for name in self.chosen:
                values.update(MONITORS[name](model, self.images))
        self._tell_unreadable(model)
        return values

    def _tell_unreadable(self, model: MonitoredModel) -> None:
        num_unreadable = sum(embeddings.num_unreadable for _, embeddings in model.embedded.values())
        if num_unreadable and not self.has_told_unreadable and self.accelerator.is_main_process:
            num_images = sum(len(images) for images, _ in model.embedded.values())
            tqdm.write(
                f"monitors: {num_unreadable:,} of {num_images:,} images drawn cannot be read and are left out",
                file=sys.stderr,
            )
        self.has_told_unreadable |= num_unreadable > 0


def choose_monitors(asked: list[str] | None, has_labels: bool, has_teacher: bool) -> list[str]:
    """
    Names of the monitors to run, each once, in the order given; by default all that apply.

    Args:
        asked (`list[str]`, *optional*): `--monitors`.
        has_labels (`bool`): Whether there are labeled images to learn from and to measure on.
        has_teacher (`bool`): Whether the run has a teacher.

    Raises:
        [`SiTError`]: If one is asked for that does not apply.
    """
    lacks: dict[str, str] = {}
    if not has_labels:
        lacks |= dict.fromkeys(
            LABEL_MONITORS,
            "needs one label for each image, and none or too few of the images drawn have one; name their column with "
            "--label_column",
        )
    if not has_teacher:
        lacks |= dict.fromkeys(
            TEACHER_MONITORS,
            "needs a teacher, and this run trains none; give --contrastive_weight and use_teacher their defaults",
        )
    if asked is None:
        return [name for name in MONITORS if name not in lacks]
    for name in asked:
        if name in lacks:
            raise SiTError(f"--monitors {name}: {lacks[name]}, or leave it out")
    return [name for name in dict.fromkeys(asked) if name != "none"]


@contextmanager
def _evaluation_mode(networks: list[torch.nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode, and after it every module of theirs in the mode that it had, with its weights as they lay:
    without a backward pass after it, a forward pass leaves the outermost weights of a sharded network gathered."""
    training_flags = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in training_flags:
            module.training = training
            if isinstance(module, FSDPModule):
                module.reshard()


def _read_batch(
    indices: list[int], images: datasets.Dataset, processor: BaseImageProcessor, num_channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pixel_values` of images, and 1 for each that can be read; grey takes the place of one that cannot, for all
    processes must go on with as many images."""
    decoded, readable = [], []
    for index in indices:
        try:
            decoded.append(read_row(images, index, num_channels)[0])
            readable.append(1)
        except UnreadableImage:
            decoded.append(Image.new(MODES[num_channels], (32, 32), "grey"))
            readable.append(0)
    pixel_values = processor(images=decoded, do_corrupt=False, return_tensors="pt")["pixel_values"]
    return pixel_values, torch.tensor(readable, dtype=torch.uint8)


def _sample(
    split: datasets.Dataset | datasets.IterableDataset, num_images: int, seed: int, labeled_only: bool = False
) -> datasets.Dataset:
    if isinstance(split, datasets.IterableDataset):
        rows = list(split.take(num_images))
        split = datasets.Dataset.from_list(rows, features=split.features, split=split.split)
    candidates = torch.arange(len(split))
    if labeled_only:
        candidates = candidates[_labels(split) >= 0]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return split.select(candidates[order[:num_images]].sort().values.tolist())


def _labels(split: datasets.Dataset) -> torch.Tensor:
    """Labels, int64; -1 for none, which a stream may have as null and NumPy then as not a number."""
    labels = split.with_format("numpy")["label"][:]
    return torch.from_numpy(np.nan_to_num(labels.astype(np.float64), nan=-1.0).astype(np.int64))


def _are_same_split(images: ImageDatasets) -> bool:
    return images.train.split is not None and images.train.split == images.validation.split


def _labeled_splits(model: MonitoredModel, images: MonitorImages) -> tuple[Embeddings, Embeddings]:
    """Embeddings of the labeled images to learn from, and of others to measure on."""
    train = model.embed(images.train)
    train = train.select(train.labels >= 0)
    if images.validation is not None:
        validation = model.embed(images.validation)
        return train, validation.select(validation.labels >= 0)
    held_back = torch.arange(len(train.labels)) % HELD_BACK == HELD_BACK - 1
    return train.select(~held_back), train.select(held_back)


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return (scores.argmax(dim=1) == labels).double().mean().item()
