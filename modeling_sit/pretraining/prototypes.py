"""What DINO and iBOT have in common: a head that compares images with learned prototypes, the teacher's assignment of images to
them, the loss between views, and their settings."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from modeling_sit.pretraining.local_views import LocalCropArguments
from modeling_sit.pretraining.presets import EVERYTHING, SHORT_RUN, look_up
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.presets import Choosing, Facts

# By the number of images. Of many more prototypes than kinds of images, most stay empty, or all get the same.
PROTOTYPES = (
    (19_999, 1_024),
    (49_999, 2_048),
    (99_999, 4_096),
    (199_999, 16_384),
    (499_999, 32_768),
    (EVERYTHING, 65_536),
)
# Of the teacher: the first up to so many images, the second from so many on; between them by the number's logarithm.
TEMPERATURES = ((20_000, 0.04), (1_000_000, 0.07))
# The teacher's memory, 1 / (1 - momentum) steps, as a fraction of a short run: with SiT's 0.025 all images soon had one prototype.
MEMORY_OF_SHORT_RUNS = 0.1
FIRST_TEMPERATURE = 0.04  # at most
MAX_HEAD_WIDTH = 2_048
# Of all datasets.
CONSTANTS = {
    "unit_prototypes": True,
    "head_batch_norm": False,
    "student_temperature": 0.1,
    "teacher_temperature_warmup": 0.3,
    "center_momentum": 0.9,
    "frozen_prototypes": 0.05,
    "local_crop_scale": [0.05, 0.4],
}


@dataclass
class PrototypeArguments(LocalCropArguments):
    """Prototypes, and the temperatures and centers of what is assigned to them.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    num_prototypes: int | None = field(
        default=None,
        metadata={
            "help": "Number of prototypes, the outputs of the head. Default: 1,024 to 65,536, by the number of images."
        },
    )
    unit_prototypes: bool | None = field(
        default=None,
        metadata={
            "help": "Whether prototypes keep length 1, which is safer; learned lengths are better in long runs on many "
            "images. Default: yes."
        },
    )
    head_batch_norm: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the head has batch norm between its layers, which prevents a collapse in short runs. "
            "Default: by `preset`; the paper's ViTs have none."
        },
    )
    student_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the student's softmax. Default: 0.1."}
    )
    teacher_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of the teacher's softmax. Default: 0.04 to 0.07, by the number of images."},
    )
    first_teacher_temperature: float | None = field(
        default=None,
        metadata={"help": "The teacher's temperature at the start. Default: `teacher_temperature`, at most 0.04."},
    )
    teacher_temperature_warmup: float | None = field(
        default=None,
        metadata={"help": "Fraction of the run in which the teacher's temperature changes, linearly. Default: 0.3."},
    )
    center_momentum: float | None = field(
        default=None, metadata={"help": "Momentum of the mean of the teacher's outputs. Default: 0.9."}
    )
    frozen_prototypes: float | None = field(
        default=None,
        metadata={"help": "Fraction of the run, from its start, in which prototypes stay as they are. Default: 0.05."},
    )

    def __post_init__(self):
        super().__post_init__()
        temperatures = ("student_temperature", "teacher_temperature", "first_teacher_temperature")
        for names, is_in_range, range_name in (
            (("num_prototypes",), lambda value: value >= 2, "at least 2"),
            (temperatures, lambda value: 0 < value < math.inf, "above 0"),
            (("teacher_temperature_warmup", "frozen_prototypes"), lambda value: 0 <= value <= 1, "in [0, 1]"),
            (("center_momentum",), lambda value: 0 <= value < 1, "in [0, 1)"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_in_range(value):
                    raise SiTError(f"must be {range_name}, got {value}", argument=name)

    def teacher_temperature_at(self, progress: float) -> float:
        """The teacher's temperature of a step, by its place in the run, in [0, 1]."""
        if progress >= self.teacher_temperature_warmup:
            return self.teacher_temperature
        way = progress / self.teacher_temperature_warmup
        return self.first_teacher_temperature + way * (self.teacher_temperature - self.first_teacher_temperature)


def choose_prototypes(choosing: "Choosing", facts: "Facts", most: int) -> None:
    """Choose the head and the temperatures for the preset `auto`, `most` prototypes at most."""
    images = "a number of images that is not known" if facts.count == EVERYTHING else f"{facts.count:,} images"
    choosing.choose("num_prototypes", min(look_up(PROTOTYPES, facts.count), most), images)
    (few, low), (many, high) = TEMPERATURES
    place = math.log(min(max(facts.count, few), many) / few) / math.log(many / few)
    choosing.choose("teacher_temperature", round(low + place * (high - low), 3), f"{images}: the fewer, the sharper")
    first = min(FIRST_TEMPERATURE, choosing["teacher_temperature"])
    choosing.choose("first_teacher_temperature", first, f"the teacher's at the start, at most {FIRST_TEMPERATURE}")
    is_short = choosing["max_steps"] < SHORT_RUN
    reason = f"{'a short' if is_short else 'a long'} run ({choosing['max_steps']:,} steps)"
    # Batch norm needs two rows, and of one image a single patch may be masked.
    choosing.choose("head_batch_norm", is_short and choosing["per_device_train_batch_size"] > 1, reason)
    if is_short:
        memory = max(2, MEMORY_OF_SHORT_RUNS * choosing["max_steps"])
        choosing.choose("teacher_momentum", round(1 - 1 / memory, 5), f"a memory of {memory:,.0f} steps, {reason}")
    width = choosing["hidden_size"]
    choosing.choose("projection_hidden_size", min(4 * width, MAX_HEAD_WIDTH), f"4 x the width of {width}")


class PrototypeHead(nn.Module):
    """
    Features `(batch, width_in)` to logits `(batch, num_prototypes)`: three linear layers with GELU, the direction of what they
    give, and its cosine similarity to each prototype (arXiv 2104.14294, section 3.1).

    Args:
        width_in, width, size (`int`): Of the features, of the two hidden layers, and of the embedding.
        arguments ([`PrototypeArguments`]): Number of the prototypes, whether their lengths are 1 or learned, and whether batch
            norm stands before each GELU.
    """

    def __init__(self, width_in: int, width: int, size: int, arguments: PrototypeArguments):
        super().__init__()
        self.mlp = nn.Sequential()
        for inputs in (width_in, width):
            norm = [nn.BatchNorm1d(width)] if arguments.head_batch_norm else []
            self.mlp.extend([nn.Linear(inputs, width), *norm, nn.GELU()])
        self.mlp.append(nn.Linear(width, size))
        self.prototypes = Prototypes(size, arguments.num_prototypes, arguments.unit_prototypes)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, size)` of length 1, float32 at least."""
        embeddings = self.mlp(features)
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.prototypes(self.embed(features))


class Prototypes(nn.Linear):
    """Embeddings `(batch, size)` to logits `(batch, num_prototypes)`. The rows of the weight are the prototypes' directions.

    It computes in float32: of 16 bits, a logit divided by a teacher's temperature is off by a tenth.
    """

    def __init__(self, size: int, num_prototypes: int, unit_length: bool):
        super().__init__(size, num_prototypes, bias=False)
        self.length = None if unit_length else nn.Parameter(torch.ones(num_prototypes, 1))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            prototypes = F.normalize(self.weight, dim=1)
            if self.length is not None:
                prototypes = prototypes * self.length
            return F.linear(embeddings, prototypes)


class Center(nn.Module):
    """
    The running mean of a teacher's logits over the images of all processes. Without it the teacher would soon assign all images
    to one prototype. It begins with the mean of the first batch. From 0, as in the authors' code, it would take dozens of steps to
    get there, and the student would learn meanwhile that all images belong to one prototype.

    Args:
        num_prototypes (`int`): Outputs of the teacher.
    """

    def __init__(self, num_prototypes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_prototypes))
        self.seen: torch.Tensor | None = None  # since the last update: sums of logits, and their number

    def assign(self, logits: torch.Tensor, temperature: float, accelerator: Accelerator) -> torch.Tensor:
        """The teacher's probabilities, of the shape of its logits `(rows, num_prototypes)`. Every process must call this."""
        seen = accelerator.reduce(torch.cat([logits.sum(dim=0), logits.new_full((1,), len(logits))]), "sum")
        self.seen = seen if self.seen is None else self.seen + seen
        # Without a branch, for which the host would wait.
        center = torch.where(self.mean.any(), self.mean, seen[:-1] / seen[-1])
        return ((logits - center) / temperature).softmax(dim=-1)

    def update(self, momentum: float) -> None:
        """Follow what was assigned since the last update, of all batches of a step."""
        self.mean.lerp_(self.seen[:-1] / self.seen[-1], torch.where(self.mean.any(), 1 - momentum, 1.0))
        self.seen = None


def different_views_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each of the student's views with the teacher's assignment of every other view, the mean over images and
    pairs (arXiv 2104.14294, equation 3).

    Args:
        logits (`torch.Tensor` of shape `(views * batch, num_prototypes)`): The student's, divided by its temperature, view 1
            of all images first. The first two views are the teacher's, too.
        targets (`torch.Tensor` of shape `(2 * batch, num_prototypes)`): The teacher's probabilities, view 1 first.

    Returns:
        `torch.Tensor`: Scalar.
    """
    first, second = targets.chunk(2)
    num_views = len(logits) // len(first)
    # Cross-entropy is linear in its targets, so those of a view are added up.
    others = torch.cat([second, first, *[first + second] * (num_views - 2)])
    return F.cross_entropy(logits, others, reduction="sum") / (len(first) * 2 * (num_views - 1))
