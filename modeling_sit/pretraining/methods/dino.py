"""DINO: predict which prototypes a teacher assigns to another view of the image (arXiv 2104.14294)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.views import ViewArguments
from modeling_sit.pretraining.local_views import choose_local_crops, local_tokens, local_view_groups
from modeling_sit.pretraining.method import BACKBONE, DEFAULTS, Method, ViewGroup
from modeling_sit.pretraining.prototypes import (
    CONSTANTS,
    Center,
    PrototypeArguments,
    PrototypeHead,
    choose_prototypes,
    different_views_loss,
)
from modeling_sit.pretraining.schedules import cosine
from modeling_sit.pretraining.students import Student, create_peer, feature_size, without_dropout
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.accelerator import reshard

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = r"""@inproceedings{caron2021dino,
  title     = {Emerging Properties in Self-Supervised Vision Transformers},
  author    = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\'e}gou, Herv{\'e} and Mairal, Julien and
               Bojanowski, Piotr and Joulin, Armand},
  booktitle = {International Conference on Computer Vision},
  year      = {2021}
}"""


class DINOStudent(Student):
    """The backbone, and a head of prototypes."""

    def __init__(self, config: SiTConfig, arguments: PrototypeArguments):
        sizes = (feature_size(config), config.projection_hidden_size, config.projection_size)
        super().__init__(config, PrototypeHead(*sizes, arguments))

    def forward(
        self,
        pixel_values: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        local_pixel_values: torch.Tensor | None = None,
    ) -> ModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2 * batch, channels, height, width)`): Clean views, view 1 first.
            targets (`torch.Tensor` of shape `(2 * batch, num_prototypes)`): The teacher's probabilities for them.
            temperature (`float`): The student's.
            local_pixel_values (`torch.Tensor` of shape `(crops * batch, channels, height, width)`, *optional*): Local crops,
                the first of all images first.
        """
        features = self.features(pixel_values)
        if local_pixel_values is not None:
            features = torch.cat([features, self.features(local_pixel_values, interpolate_pos_encoding=True)])
        loss = different_views_loss(self.head(features) / temperature, targets)
        return ModelOutput(loss=loss, token_loss=loss)

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(views, width)`, and their embeddings `(views, size)`, which are compared with prototypes."""
        features = self.features(pixel_values)
        return features, self.head.embed(features)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(views, num_prototypes)`."""
        return self.head(self.features(pixel_values))


class DINO(Method):
    """
    The teacher assigns the two views of an image to prototypes: softmax of its logits minus their center, at a low temperature.
    The student predicts the assignment of a view from every other one, local crops included.

    Args:
        config ([`SiTConfig`]): The backbone, and the head's widths.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    losses: tuple[str, ...] = ("loss", "token_loss")
    forward_methods: tuple[str, ...] = ("encode", "project")
    title = "DINO (self-distillation between views, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294))"
    citation = CITATION
    tags: tuple[str, ...] = ("self-distillation",)
    Arguments: type = PrototypeArguments
    uses = frozenset({"projection_hidden_size", "projection_size", "teacher_momentum", "export"})
    fixed = BACKBONE | {
        "projection_hidden_size",
        "projection_size",
        "num_prototypes",
        "unit_prototypes",
        "head_batch_norm",
    }
    defaults: Mapping[str, Any] = {**DEFAULTS, **CONSTANTS, "weight_decay": 0.04, "weight_decay_end": 0.4}
    # Of the 800 epochs of ViT-S/16. Of these the temperature rises in 30, and prototypes are frozen in the first.
    paper: Mapping[str, Any] = {
        "num_prototypes": 65_536,
        "unit_prototypes": False,
        "teacher_temperature": 0.07,
        "first_teacher_temperature": 0.04,
        "teacher_temperature_warmup": 30 / 800,
        "frozen_prototypes": 1 / 800,
        "projection_hidden_size": 2_048,
        "projection_size": 256,
        "num_local_crops": 10,
        "local_crop_scale": [0.05, 0.25],
        "crop_scale": [0.25, 1.0],
    }
    learning_rate_factor = 0.5
    most_prototypes, published_crops = 65_536, 8
    student_class = DINOStudent

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        self.momentum = flags.run.teacher_momentum
        create = partial(self.student_class, arguments=self.arguments)
        self.student = create_peer(create, config, flags.model, flags.run.seed)
        self.teacher = Teacher(without_dropout(self.student))
        self.center = Center(self.arguments.num_prototypes)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        choose_prototypes(choosing, facts, cls.most_prototypes)
        choose_local_crops(choosing, facts, number=cls.published_crops, scale=(0.05, 0.4))

    @classmethod
    def settings_have_teacher(cls, settings: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        return super().encoder_tokens(settings) + 3 * local_tokens(settings)

    @property
    def trouble_with_one_image(self) -> str | None:
        return (
            "says little of the mean over images, by which the teacher avoids to give all of them the same prototype"
        )

    def view_groups(self, arguments: ViewArguments) -> list[ViewGroup]:
        local = local_view_groups(self.arguments, arguments, self.config, self.processor)
        return [*super().view_groups(arguments), *local]

    def schedules(self, progress: float) -> dict[str, float]:
        return {
            "teacher_momentum": cosine(self.momentum, 1.0, progress),
            "teacher_temperature": self.arguments.teacher_temperature_at(progress),
            "frozen_prototypes": float(progress < self.arguments.frozen_prototypes),
        }

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        with accelerator.autocast():
            logits = self.teacher.project(views[0])
        return {
            "pixel_values": views[0],
            "targets": self.center.assign(logits, schedule["teacher_temperature"], accelerator),
            "temperature": self.arguments.student_temperature,
            "local_pixel_values": views[1] if len(views) > 1 else None,
        }

    @torch.no_grad()
    def after_step(self, schedule: Mapping[str, float]) -> None:
        if schedule["frozen_prototypes"]:
            # The step is taken back. The optimizer's averages have gone on, so that the first step that counts is no leap;
            # and data-parallel training misses no gradient. The teacher has the prototypes as they were.
            for model in (self.student, self.teacher.model):
                reshard(model)
            prototypes = (model.head.prototypes.parameters() for model in (self.student, self.teacher.model))
            for student, teacher in zip(*prototypes, strict=True):  # one by one, as shards know how to be copied
                student.copy_(teacher)
        super().after_step(schedule)
        self.center.update(self.arguments.center_momentum)

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features, projection = self.student.encode(pixel_values)
        _, teacher_projection = self.teacher.model.encode(pixel_values)
        return {"features": features, "projection": projection, "teacher_projection": teacher_projection}
