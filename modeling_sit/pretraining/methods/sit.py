"""SiT: reconstruct corrupted views, and tell images apart by a teacher (arXiv 2104.03602)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor
from modeling_sit.data.views import rotate_views
from modeling_sit.pretraining.arguments import CorruptionArguments
from modeling_sit.pretraining.method import BACKBONE, Method
from modeling_sit.pretraining.model_setup import create_student
from modeling_sit.pretraining.schedules import cosine
from modeling_sit.pretraining.students import without_dropout
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.distributed import gather_projections, mean_num_corrupted_pixels
from modeling_sit.visualization.reconstructions import preview_sheet

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags

# Fields of the configuration that the weights of the heads are made for.
HEADS = frozenset(
    {
        "decoder_hidden_size",
        "decoder_num_hidden_layers",
        "projection_hidden_size",
        "projection_first_act",
        "projection_size",
        "projection_output_norm",
        "use_teacher",
    }
)
# Of the image processor. The images' size and patches are the configuration's.
CORRUPTION = frozenset(item.name for item in fields(CorruptionArguments))

CITATION = """@article{atito2021sit,
  title   = {SiT: Self-supervised vIsion Transformer},
  author  = {Atito, Sara and Awais, Muhammad and Kittler, Josef},
  journal = {arXiv preprint arXiv:2104.03602},
  year    = {2021}
}"""


@dataclass
class SiTArguments:
    """What is contrasted."""

    contrast_views: Literal["corrupted", "clean"] | None = field(
        default=None,
        metadata={
            "help": "Views of the student that are contrasted: the corrupted ones, which it also reconstructs; or the clean "
            "ones, which take another pass through the encoder. Default: corrupted."
        },
    )


class SiT(Method):
    """
    The student reads corrupted views, the teacher clean ones. The loss is reconstruction of the corrupted pixels plus contrast
    of the student's view 1 with the teacher's view 2 among all images, and the reverse.

    Args:
        config ([`SiTConfig`]): The model and its losses.
        processor ([`SiTImageProcessor`]): Corrupts.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    Arguments = SiTArguments
    forward_methods = ("encode",)
    title = (
        "SiT (group masked model learning and contrast between views, "
        "[arXiv 2104.03602](https://arxiv.org/abs/2104.03602))"
    )
    citation = CITATION
    tags = ("masked-image-modeling", "contrastive-learning")
    loss_weights = ("reconstruction_weight", "contrastive_weight", "rotation_weight")
    fixed = BACKBONE | HEADS
    uses = frozenset(
        {
            *(*CORRUPTION, *HEADS, *loss_weights),
            *("teacher_momentum", "export", "temperature", "reconstruction_norm", "reconstruction_region"),
        }
    )

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        self.momentum = flags.run.teacher_momentum
        self.student = create_student(config, flags.model, flags.run.seed)
        if config.use_teacher and config.contrastive_weight > 0:
            self.teacher = Teacher(without_dropout(self.student))
        self.losses = ("loss", "reconstruction_loss", "contrastive_loss")
        if config.rotation_weight > 0:
            self.losses += ("rotation_loss",)
        kinds = [kind for kind in processor.corruption.split("+") if kind != "none"]
        self.corrupts = any(getattr(processor, f"{kind}_ratio")[1] for kind in kinds)

    @classmethod
    def settings_have_teacher(cls, settings: Mapping[str, Any]) -> bool:
        return settings["use_teacher"] and settings["contrastive_weight"] > 0

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        tokens = super().encoder_tokens(settings)
        if settings.get("contrast_views") == "clean" and settings["contrastive_weight"] > 0:
            tokens += 3 * tokens // (3 + cls.settings_have_teacher(settings))
        return tokens

    @property
    def contrasts(self) -> bool:
        return self.config.contrastive_weight > 0

    def schedules(self, progress: float) -> dict[str, float]:
        return {"teacher_momentum": cosine(self.momentum, 1.0, progress)}

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        (clean,) = views
        inputs = {}
        if self.config.rotation_weight > 0:
            clean, inputs["rotation_labels"] = rotate_views(clean)
        # View 1 and view 2 apart: what replaces a place comes from another image, not from its other view.
        corrupted, mask = self.processor.corrupt(clean, num_views=2)
        inputs |= {"pixel_values": corrupted, "target_pixel_values": clean}
        if self.arguments.contrast_views == "clean" and self.contrasts:
            inputs["contrastive_pixel_values"] = clean
        if self.corrupts:  # else the loss counts all pixels
            inputs["corruption_mask"] = mask
            inputs["num_corrupted_pixels"] = mean_num_corrupted_pixels(accelerator, mask)
        if self.teacher is None:
            inputs["gather_projections"] = partial(gather_projections, accelerator)
        else:
            with accelerator.autocast():
                projections = self.teacher.project(clean)
            projections, offset = gather_projections(accelerator, projections)
            inputs |= {"teacher_projections": projections, "teacher_projections_offset": offset}
        return inputs

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features, projection = self.student.encode(pixel_values)
        embeddings = {"features": features}
        if self.config.contrastive_weight > 0:
            embeddings["projection"] = projection
        if self.teacher is not None:
            embeddings["teacher_projection"] = self.teacher.project(pixel_values)
        return embeddings

    def preview(self, crops: torch.Tensor, seed: int) -> PIL.Image.Image | None:
        return preview_sheet(self.student, self.processor, crops, seed)

    @property
    def has_preview(self) -> bool:
        return self.config.reconstruction_weight > 0

    def exported(self, export: str) -> nn.Module:
        return self.teacher.model if self.exports_teacher(export) else self.student

    def plain_model(self) -> SiTForPreTraining:
        # A sharded student is of a class that PyTorch made, whose code would be saved in place of SiT's.
        with torch.device("meta"):
            return SiTForPreTraining(self.student.config)

    def compiled_parts(self) -> list[nn.Module]:
        # The projection heads are left out: a few large products of matrices between batch norms that may speak to
        # other processes.
        networks = [self.student] if self.teacher is None else [self.student, self.teacher.model]
        return [part for network in networks for part in (network.vit, network.decoder)]

    def fingerprint(self) -> dict[str, Any]:
        return {
            **super().fingerprint(),
            **{name: getattr(self.processor, name) for name in CORRUPTION},
        }

    def describe_losses(self) -> str:
        config = self.config
        contrast = "to a teacher" if config.use_teacher else "without a teacher"
        contrast += ", clean views" if self.arguments.contrast_views == "clean" else ""
        weights = {
            f"reconstruction ({config.reconstruction_norm}, {config.reconstruction_region} pixels)": (
                config.reconstruction_weight
            ),
            f"contrast ({contrast})": config.contrastive_weight,
            "rotation": config.rotation_weight,
        }
        return " + ".join(f"{weight:g} x {name}" for name, weight in weights.items() if weight > 0)
