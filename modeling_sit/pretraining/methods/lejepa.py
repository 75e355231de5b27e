"""LeJEPA: pull the views of an image together, and spread the projections like a Gaussian, without a teacher
(arXiv 2511.08544)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.views import ViewArguments
from modeling_sit.pretraining.local_views import (
    LocalCropArguments,
    choose_local_crops,
    local_tokens,
    local_view_groups,
)
from modeling_sit.pretraining.method import BACKBONE, Method, ViewGroup
from modeling_sit.pretraining.sigreg import random_directions, sigreg_loss
from modeling_sit.pretraining.students import Student, create_peer, feature_size, projector
from modeling_sit.runtime.distributed import mean_over_processes
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = """@article{balestriero2025lejepa,
  title   = {LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
  author  = {Balestriero, Randall and LeCun, Yann},
  journal = {arXiv preprint arXiv:2511.08544},
  year    = {2025}
}"""

# Of views and local crops alike: no view has a part of its own.
BLUR, SOLARIZE = 0.5, 0.2


@dataclass
class LeJEPAArguments(LocalCropArguments):
    """What LeJEPA has of its own.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    sigreg_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of SIGReg, which keeps the projections of images apart, between 0 and 1; invariance has the rest. "
            "Default: by `preset`; the paper's is 0.05."
        },
    )
    num_slices: int | None = field(
        default=None,
        metadata={
            "help": "Random directions, drawn anew each step, along which projections are compared with a Gaussian. "
            "Default: by `preset`; the paper's is 1024."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sigreg_weight is not None and not 0 < self.sigreg_weight < 1:
            raise SiTError(f"must be between 0 and 1, got {self.sigreg_weight}", argument="sigreg_weight")
        if self.num_slices is not None and self.num_slices < 1:
            raise SiTError(f"must be at least 1, got {self.num_slices}", argument="num_slices")


class LeJEPAStudent(Student):
    """The backbone, and a projector of three layers, the last without batch norm: SIGReg scales what comes out.

    Args:
        config ([`SiTConfig`]): The backbone, and the projector's widths.
        sigreg_weight (`float`): Of SIGReg, between 0 and 1.
    """

    def __init__(self, config: SiTConfig, sigreg_weight: float):
        width = config.projection_hidden_size
        head = projector([feature_size(config), width, width, config.projection_size], output_norm=False)
        head[-1] = nn.Linear(width, config.projection_size)  # no batch norm follows that would take its bias away
        super().__init__(config, head)
        self.sigreg_weight = sigreg_weight

    def forward(
        self,
        views: Sequence[torch.Tensor],
        directions: torch.Tensor,
        average: Callable[[torch.Tensor], torch.Tensor],
        num_images: int,
    ) -> ModelOutput:
        """
        Args:
            views (sequence of `torch.Tensor` of shape `(number * batch, channels, height, width)`): Two global views of each
                image, and, where there are some, local crops; view 1 of all images first.
            directions, average, num_images: As for [`sigreg_loss`].
        """
        batch_size = len(views[0]) // 2
        features = torch.cat([self.features(group, interpolate_pos_encoding=True) for group in views])
        projections = self.head(features).unflatten(0, (-1, batch_size))
        # Mixed precision would compute the distances in 16 bits.
        with torch.autocast(projections.device.type, enabled=False):
            projections = projections.float()
            center = projections[:2].mean(dim=0)  # of an image's global views
            invariance = (projections - center).square().mean()
            sigreg = sigreg_loss(projections, directions, average, num_images)
        loss = (1 - self.sigreg_weight) * invariance + self.sigreg_weight * sigreg
        return ModelOutput(loss=loss, invariance_loss=invariance, sigreg_loss=sigreg)


class LeJEPA(Method):
    """
    All views of an image are pulled to the mean of its two large ones, and the projections of a batch are kept from
    collapsing by SIGReg: along random directions they have to be distributed like a standard Gaussian. There is no teacher, no
    stopped gradient and no schedule of its own. The projector's batch norm is over all views together.

    Args:
        config ([`SiTConfig`]): The backbone, and the projector's widths.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    losses = ("loss", "invariance_loss", "sigreg_loss")
    forward_methods = ("encode",)
    title = "LeJEPA (invariance and SIGReg, [arXiv 2511.08544](https://arxiv.org/abs/2511.08544))"
    citation = CITATION
    tags = ("joint-embedding",)
    Arguments = LeJEPAArguments
    uses = frozenset({"projection_hidden_size", "projection_size"})
    fixed = BACKBONE | {"projection_hidden_size", "projection_size"}
    paper: Mapping[str, Any] = {
        "num_train_epochs": 100.0,
        "max_grad_norm": 0.0,
        "projection_hidden_size": 2048,
        "projection_size": 64,
        "sigreg_weight": 0.05,
        "num_slices": 1024,
        "num_local_crops": 6,
        "local_crop_scale": [0.05, 0.3],
        "crop_scale": [0.3, 1.0],
        "blur_probability": [BLUR, BLUR],
        "solarize_probability": [SOLARIZE, SOLARIZE],
    }

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        create = partial(LeJEPAStudent, sigreg_weight=self.arguments.sigreg_weight)
        self.student = create_peer(create, config, flags.model, flags.run.seed)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        choosing.choose("sigreg_weight", 0.05, "the paper's")
        slices = 256 if facts.kind == "cpu" else 1024
        choosing.choose("num_slices", slices, "fewer on a CPU" if facts.kind == "cpu" else "the paper's")
        size = 32 if choosing["hidden_size"] < 192 else 64
        choosing.choose("projection_size", size, f"for a width of {choosing['hidden_size']}")
        choose_local_crops(choosing, facts, number=6, scale=(0.05, 0.3))

    @property
    def contrasts(self) -> bool:
        return True

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        return super().encoder_tokens(settings) + 3 * local_tokens(settings)

    def describe_losses(self) -> str:
        weight = self.arguments.sigreg_weight
        return f"{1 - weight:g} x invariance + {weight:g} x SIGReg"

    def view_groups(self, arguments: ViewArguments) -> list[ViewGroup]:
        local = local_view_groups(
            self.arguments,
            arguments,
            self.config,
            self.processor,
            blur_probability=BLUR,
            solarize_probability=SOLARIZE,
        )
        return super().view_groups(arguments) + local

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        return {
            "views": views,
            "directions": random_directions(self.config.projection_size, self.arguments.num_slices, views[0].device),
            "average": partial(mean_over_processes, accelerator),
            "num_images": len(views[0]) // 2 * accelerator.num_processes,
        }

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features, projection = self.student.encode(pixel_values)
        return {"features": features, "projection": projection}
