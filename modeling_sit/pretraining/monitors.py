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
from modeling_sit.data.loaders import DEFAULT_TIMEOUT
from modeling_sit.evaluation.collapse import effective_rank, embedding_std
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.linear import linear_predict
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.monitor_images import VALIDATION_STEP, Embeddings, MonitoredMethod, MonitorImages
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import plain_no

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
            names = [name for names in self.monitors for name in names.split(",") if name]
            self.monitors = ["none" if plain_no(name) == "no" else name for name in names]
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


def rankme(method: MonitoredMethod, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """[`effective_rank`] of the features, `rankme`, and of the projections where they are trained, `projection_rankme`.
    Between 1 (collapsed) and the number of dimensions or of images, whichever is smaller."""
    embeddings = method.embed(images.train)
    yield "rankme", effective_rank(embeddings.features)
    if embeddings.projection is not None:
        yield "projection_rankme", effective_rank(embeddings.projection)


def std(method: MonitoredMethod, images: MonitorImages) -> Iterator[tuple[str, float]]:
    """[`embedding_std`] of the features, between 0 (collapsed) and 1. The projections' would hide a collapse where a batch
    norm stands at their end."""
    yield "embedding_std", embedding_std(method.embed(images.train).features)


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

    timeout: float = DEFAULT_TIMEOUT  # seconds to wait for a batch at most

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
        monitored = MonitoredMethod(method, self.accelerator, self.batch_size, self.num_workers, self.timeout)
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
        has_labels (`bool`): Whether there are labeled images of several classes to learn from and to measure on.
        has_teacher (`bool`): Whether the run has a teacher.

    Raises:
        [`SiTError`]: If one is asked for that does not apply.
    """
    lacks: dict[str, str] = {}
    if not has_labels:
        lacks |= dict.fromkeys(
            LABEL_MONITORS,
            "needs one label for each image, and the sampled images have none, too few, or all the same: name a column of "
            "several classes with `label_column`",
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
