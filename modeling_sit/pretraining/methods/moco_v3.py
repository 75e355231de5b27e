"""MoCo-v3: predict a teacher's projection of the other view among those of all images (arXiv 2104.02057)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.losses import contrastive_loss
from modeling_sit.pretraining.method import BACKBONE, DEFAULTS, Method
from modeling_sit.pretraining.schedules import cosine
from modeling_sit.pretraining.students import Student, create_peer, feature_size, projector, without_dropout
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.distributed import gather_projections
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = """@inproceedings{chen2021mocov3,
  title     = {An Empirical Study of Training Self-Supervised Vision Transformers},
  author    = {Chen, Xinlei and Xie, Saining and He, Kaiming},
  booktitle = {International Conference on Computer Vision},
  year      = {2021}
}"""

# From this width on the backbone is one that the paper trains: ViT-S. There it froze the patch embedding.
PUBLISHED_WIDTH = 384


@dataclass
class MoCoV3Arguments:
    """What MoCo-v3 has of its own."""

    use_predictor: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the student's projection goes through a predictor of two more layers, which the teacher does not "
            "have. Default: yes."
        },
    )
    freeze_patch_embedding: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the patch embedding keeps its random weights, which makes training in large batches more stable. "
            "Default: by `preset`; the paper's is yes."
        },
    )


class MoCoV3Student(Student):
    """
    The backbone, a projector of three layers, and a predictor of two. Batch norm without affine parameters ends both.

    Batch norm has statistics of view 1 and of view 2, as the authors' code has: the two are augmented differently.

    Args:
        config ([`SiTConfig`]): The backbone, and the widths of projector and predictor.
        use_predictor (`bool`): Whether there is a predictor.
    """

    def __init__(self, config: SiTConfig, use_predictor: bool):
        width, size = config.projection_hidden_size, config.projection_size
        super().__init__(config, projector([feature_size(config), width, width, size]))
        self.predictor = projector([size, width, size]) if use_predictor else nn.Identity()
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, teacher_projections: torch.Tensor, teacher_projections_offset: int
    ) -> ModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2 * batch, channels, height, width)`): Clean views, view 1 first.
            teacher_projections (`torch.Tensor` of shape `(2 * total_batch, size)`): The teacher's of all processes.
            teacher_projections_offset (`int`): Which of their images is this process's first.
        """
        views = self.features(pixel_values).chunk(2)
        predictions = torch.cat([self.predictor(self.head(view)) for view in views])
        loss = contrastive_loss(predictions, teacher_projections, self.config.temperature, teacher_projections_offset)
        return ModelOutput(loss=loss, contrastive_loss=loss)


class MoCoV3(Method):
    """
    The student's prediction from view 1 has to find the teacher's projection of view 2 among those of all images, and the
    reverse: cross-entropy over cosine similarities divided by the temperature, times twice the temperature, summed over the
    two directions.

    The authors let the teacher follow before it projects, and here it follows after the step. Both give the same sequence of
    teachers: at the first step the two networks are equal, so that the authors' update changes nothing, and each later one
    is that of our step before. But for its momentum, which is here the schedule's of the step before.

    Args:
        config ([`SiTConfig`]): The backbone, the heads' widths, and the temperature.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.

    Raises:
        [`SiTError`]: If a batch has one image.
    """

    losses = ("loss", "contrastive_loss")
    forward_methods = ("encode",)
    title = "MoCo-v3 (contrast with a momentum encoder, [arXiv 2104.02057](https://arxiv.org/abs/2104.02057))"
    citation = CITATION
    tags = ("contrastive-learning",)
    Arguments = MoCoV3Arguments
    uses = frozenset({"teacher_momentum", "export", "projection_hidden_size", "projection_size", "temperature"})
    fixed = BACKBONE | {"projection_hidden_size", "projection_size", "use_predictor", "freeze_patch_embedding"}
    defaults: Mapping[str, Any] = {**DEFAULTS, "weight_decay": 0.1, "use_predictor": True}
    # The authors decay biases and norms too, and start from batches of 4,096 (arXiv 2104.02057, section 5).
    paper: Mapping[str, Any] = {
        "num_train_epochs": 300.0,
        "base_learning_rate": 1.5e-4,
        "warmup_epochs": 40.0,
        "max_grad_norm": 0.0,
        "teacher_momentum": 0.99,
        "export": "student",
        "drop_path_rate": 0.0,
        "freeze_patch_embedding": True,
        "crop_scale": [0.08, 1.0],
    }
    most_warmup = paper["warmup_epochs"] / paper["num_train_epochs"]

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        if flags.run.per_device_train_batch_size < 2:
            raise SiTError(
                "MoCo-v3's heads have batch norm, which needs two images", argument="per_device_train_batch_size"
            )
        super().__init__(config, processor, flags)
        self.momentum = flags.run.teacher_momentum
        create = partial(MoCoV3Student, use_predictor=self.arguments.use_predictor)
        self.student = create_peer(create, config, flags.model, flags.run.seed)
        self.student.vit.embeddings.patch_embeddings.requires_grad_(not self.arguments.freeze_patch_embedding)
        model = without_dropout(self.student)
        model.predictor = nn.Identity()
        self.teacher = Teacher(model)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        choosing.choose("use_predictor", True, "as published")
        width = choosing["hidden_size"]
        if width < PUBLISHED_WIDTH:
            reason = f"a width of {width} has no capacity to spare; the paper freezes it from {PUBLISHED_WIDTH} on"
        else:
            reason = f"as published for a width of {PUBLISHED_WIDTH} and more"
        choosing.choose("freeze_patch_embedding", width >= PUBLISHED_WIDTH, reason)

    @classmethod
    def settings_have_teacher(cls, settings: Mapping[str, Any]) -> bool:
        return True

    @property
    def contrasts(self) -> bool:
        return True

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "batch_norm_views": "each"}

    def schedules(self, progress: float) -> dict[str, float]:
        return {"teacher_momentum": cosine(self.momentum, 1.0, progress)}

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        with accelerator.autocast():
            projections = torch.cat([self.teacher.project(view) for view in views[0].chunk(2)])
        projections, offset = gather_projections(accelerator, projections)
        return {
            "pixel_values": views[0],
            "teacher_projections": projections,
            "teacher_projections_offset": offset,
        }

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features, projection = self.student.encode(pixel_values)
        return {
            "features": features,
            "projection": projection,
            "teacher_projection": self.teacher.project(pixel_values),
        }
