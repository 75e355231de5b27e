"""Online monitors: what a network in training is worth, measured on a bounded sample beside the run.

A monitor is a function from the embeddings of the images to (name, value) pairs, and one line in the tables below. The method
embeds a set of images once a round, whichever monitors ask for it, and is left as it was found.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tqdm.auto import tqdm

from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.evaluation.collapse import effective_rank, embedding_std
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.linear import linear_predict
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.monitor_images import VALIDATION_STEP, Embeddings, MonitoredMethod, MonitorImages
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import ignore_signals_in_worker

KNN_NEIGHBOURS = 20


@dataclass
class MonitorArguments:
    """What is monitored on the way.

    Raises:
        [`SiTError`]: If a monitor does not exist, or a value is out of range.
    """

    monitors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Monitors to run: rankme, embedding_std, teacher_agreement and, with labels, knn and linear; or "
            "none. Spaces or commas separate them. Default: all that apply."
        },
    )
    monitor_steps: int | None = field(
        default=None,
        metadata={"help": "Steps between rounds of monitors; 0 for none. Default: ten rounds in the run."},
    )
    monitor_images: int = field(
        default=1024,
        metadata={
            "help": "Number of training images to measure on, drawn once per run. `knn` and `linear` use half as "
            "many validation images. A test split is used only if `validation_split` names it. Without a "
            "validation split, a third of these training images is held back."
        },
    )

    def __post_init__(self):
        if self.monitors is not None:
            self.monitors = [name for names in self.monitors for name in names.split(",") if name]
        for name in self.monitors or ():
            if name not in (*MONITORS, "none"):
                raise SiTError(f"no monitor {name!r}, only {', '.join(MONITORS)}, or none", argument="monitors")
        if self.monitors is not None and "none" in self.monitors and len(self.monitors) > 1:
            raise SiTError(f"got {', '.join(self.monitors)}: none goes alone", argument="monitors")
        if self.monitor_steps is not None and self.monitor_steps < 0:
            raise SiTError(f"must be at least 0, got {self.monitor_steps}", argument="monitor_steps")
        if self.monitor_images < 2:
            raise SiTError(f"must be at least 2, got {self.monitor_images}", argument="monitor_images")


# The monitors. They are asked in all processes, and give the same values in each.

Monitor = Callable[[MonitoredMethod, MonitorImages], Iterable[tuple[str, float]]]
"""From the method and the images to the names and values of what was measured; nothing where that cannot be."""


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
    """[`collapse.effective_rank`] of the contrastive tokens, `rankme`, and of the projections where there is contrast,
    `projection_rankme`. Between 1 (collapsed) and the number of dimensions or of images, whichever is smaller."""
    embeddings = model.embed(images.train)
    yield "rankme", collapse.effective_rank(embeddings.token)
    if model.has_contrast:
        yield "projection_rankme", collapse.effective_rank(embeddings.projection)


def embedding_std(model: MonitoredModel, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """[`collapse.embedding_std`] of the contrastive tokens, between 0 (collapsed) and 1. The projections' would hide a collapse where a
    batch norm stands at their end."""
    yield "embedding_std", collapse.embedding_std(model.embed(images.train).token)


def teacher_agreement(method: MonitoredMethod, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Mean cosine similarity, between -1 and 1, of the student's and the teacher's projection of the same clean image."""
    embeddings = method.embed(images.train)
    if embeddings.projection is not None and embeddings.teacher_projection is not None:
        similarities = F.cosine_similarity(embeddings.projection.double(), embeddings.teacher_projection.double())
        yield "teacher_agreement", similarities.mean().item()


def knn(method: MonitoredMethod, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy, in [0, 1], of the weighted nearest neighbours' votes ([`knn_predict`]) by the features."""
    train, validation = _labeled_splits(method, images)
    if len(train.labels) and len(validation.labels):
        k = min(KNN_NEIGHBOURS, len(train.labels))
        scores = knn_predict(train.features, train.labels, validation.features, images.num_labels, k=k)
        yield "knn_accuracy", _accuracy(scores, validation.labels)


def linear(method: MonitoredMethod, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy, in [0, 1], of a linear probe ([`linear_predict`]) on the features."""
    train, validation = _labeled_splits(method, images)
    if len(train.labels) and len(validation.labels):
        scores = linear_predict(train.features, train.labels, validation.features, images.num_labels)
        yield "linear_accuracy", _accuracy(scores, validation.labels)


UNCONDITIONAL_MONITORS: dict[str, Monitor] = {"rankme": rankme, "embedding_std": std}
TEACHER_MONITORS: dict[str, Monitor] = {"teacher_agreement": teacher_agreement}
LABEL_MONITORS: dict[str, Monitor] = {"knn": knn, "linear": linear}
MONITORS: dict[str, Monitor] = {**UNCONDITIONAL_MONITORS, **TEACHER_MONITORS, **LABEL_MONITORS}


class OnlineMonitors:
    """
    The monitors of a run, and the images that they measure on.

    Args:
        arguments ([`MonitorArguments`]): What the user asked for.
        images ([`ImageDatasets`]): The run's; a stream has to be whole in every process.
        has_teacher (`bool`): Whether the method has a teacher.
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
        has_teacher: bool,
        accelerator: Accelerator,
        seed: int,
        batch_size: int = 64,
        num_workers: int = 0,
    ):
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.has_logged_unreadable = False
        self.chosen: list[str] = []
        if arguments.monitors != ["none"] and arguments.monitor_steps != 0:
            self.images = MonitorImages.sample(images, arguments.monitor_images, seed)
            self.chosen = choose_monitors(arguments.monitors, self.images.has_labels, has_teacher)

    def run(self, method: Method) -> dict[str, float]:
        """
        One round: embed the images and ask every monitor. All processes must call this, and all get the same values.

        Args:
            method ([`Method`]): Left as it was, to the last buffer and mode.

        Returns:
            `dict[str, float]`: Values by name; of what could not be measured, none.

        Raises:
            [`SiTError`]: If an embedding is not finite.
        """
        if not self.chosen:
            return {}
        monitored = MonitoredMethod(method, self.accelerator, self.batch_size, self.num_workers)
        values = {}
        if len(monitored.embed(self.images.train).features) > 0:
            for name in self.chosen:
                values.update(MONITORS[name](monitored, self.images))
        self._log_unreadable(monitored)
        return values

    def _log_unreadable(self, monitored: MonitoredMethod) -> None:
        num_unreadable = sum(embeddings.num_unreadable for _, embeddings in monitored.embedded.values())
        if num_unreadable and not self.has_logged_unreadable and self.accelerator.is_main_process:
            num_images = sum(len(images) for images, _ in monitored.embedded.values())
            tqdm.write(
                f"monitors: {num_unreadable:,} of {num_images:,} sampled images cannot be read and are left out",
                file=sys.stderr,
            )
        self.has_logged_unreadable |= num_unreadable > 0


def choose_monitors(asked: list[str] | None, has_labels: bool, has_teacher: bool) -> list[str]:
    """
    Names of the monitors to run, each once, in the order given; by default all that apply.

    Args:
        asked (`list[str]`, *optional*): What the user asked for.
        has_labels (`bool`): Whether there are labeled images to learn from and to measure on.
        has_teacher (`bool`): Whether the run has a teacher.

    Raises:
        [`SiTError`]: If one is asked for that does not apply.
    """
    lacks: dict[str, str] = {}
    if not has_labels:
        lacks |= dict.fromkeys(
            LABEL_MONITORS,
            "needs one label for each image, and none or too few of the sampled images have one: name their column with "
            "`label_column`",
        )
    if not has_teacher:
        lacks |= dict.fromkeys(
            TEACHER_MONITORS,
            "needs a teacher, and this run trains none",
        )
    if asked is None:
        return [name for name in MONITORS if name not in lacks]
    for name in asked:
        if name in lacks:
            raise SiTError(f"{name} {lacks[name]}", argument="monitors", remedy="or leave it out")
    return [name for name in dict.fromkeys(asked) if name != "none"]


def _labeled_splits(method: MonitoredMethod, images: MonitorImages) -> tuple[Embeddings, Embeddings]:
    """Embeddings of the labeled images to learn from, and of others to measure on."""
    train = method.embed(images.train)
    train = train.select(train.labels >= 0)
    if images.validation is not None:
        validation = method.embed(images.validation)
        return train, validation.select(validation.labels >= 0)
    to_measure_on = torch.arange(len(train.labels)) % VALIDATION_STEP == VALIDATION_STEP - 1
    return train.select(~to_measure_on), train.select(to_measure_on)


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return (scores.argmax(dim=1) == labels).double().mean().item()
