"""iBOT: DINO, and which prototypes the teacher assigns to the patches that are hidden from the student (arXiv 2111.07832)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.pretraining.block_masks import draw_patch_masks
from modeling_sit.pretraining.methods.dino import DINO, DINOStudent
from modeling_sit.pretraining.prototypes import Center, PrototypeArguments, different_views_loss
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags

CITATION = """@inproceedings{zhou2022ibot,
  title     = {{iBOT}: Image {BERT} Pre-Training with Online Tokenizer},
  author    = {Zhou, Jinghao and Wei, Chen and Wang, Huiyu and Shen, Wei and Xie, Cihang and Yuille, Alan and Kong, Tao},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""


@dataclass
class IBOTArguments(PrototypeArguments):
    """DINO's arguments, and which patches are masked.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    patch_mask_ratio: list[float] | None = field(
        default=None,
        metadata={"help": "Range of the fraction of patches that are masked in a masked view. Default: 0.1 0.5."},
    )
    masked_views: float | None = field(
        default=None, metadata={"help": "Fraction of the views that are masked; the others are whole. Default: 0.5."}
    )
    patch_mask_shape: Literal["blocks", "random"] | None = field(
        default=None, metadata={"help": "Whether masked patches lie in blocks or anywhere. Default: blocks."}
    )

    def __post_init__(self):
        super().__post_init__()
        ratio = self.patch_mask_ratio
        if ratio is not None and not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1] < 1):
            raise SiTError(
                f"must be a range 0 < low <= high < 1, got {' '.join(map(str, ratio))}", argument="patch_mask_ratio"
            )
        if self.masked_views is not None and not 0 < self.masked_views <= 1:
            raise SiTError(f"must be above 0, and at most 1, got {self.masked_views}", argument="masked_views")


class IBOTStudent(DINOStudent):
    """DINO's student, and what stands in the place of masked patches. The head is one for token and patches.

    It reads them one after the other, so that its batch norm has statistics for each. With statistics of both together, all
    tokens would be at the same place among the patches, and get the same prototypes.
    """

    def __init__(self, config: SiTConfig, arguments: IBOTArguments):
        super().__init__(config, arguments)
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(
        self,
        pixel_values: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        local_pixel_values: torch.Tensor | None,
        masks: torch.Tensor,
        masked_patches: torch.Tensor,
        patch_targets: torch.Tensor,
    ) -> ModelOutput:
        """
        Args:
            pixel_values, targets, temperature, local_pixel_values: As for [`DINOStudent`].
            masks (`torch.Tensor` of shape `(2 * batch, patches)`): Bool, the patches that the student does not see.
            masked_patches (`torch.Tensor` of shape `(masked,)`): Where these are among all patches of all views.
            patch_targets (`torch.Tensor` of shape `(masked, num_prototypes)`): The teacher's probabilities for them.
        """
        tokens = self.vit(
            pixel_values, bool_masked_pos=masks, mask_token=self.mask_token[None, None]
        ).last_hidden_state
        features = [tokens[:, 0]]
        if local_pixel_values is not None:
            features.append(self.features(local_pixel_values, interpolate_pos_encoding=True))
        patches = tokens[:, 1:].flatten(0, 1)[masked_patches]
        token_loss = different_views_loss(self.head(torch.cat(features)) / temperature, targets)
        patch_logits = self.head(patches) / temperature
        # The mean over the patches of a view, and over all views: those without a mask count, as 0.
        weights = (masks / masks.sum(dim=1, keepdim=True).clamp(min=1) / len(masks)).flatten()[masked_patches]
        patch_loss = (F.cross_entropy(patch_logits, patch_targets, reduction="none") * weights).sum()
        return ModelOutput(loss=token_loss + patch_loss, token_loss=token_loss, patch_loss=patch_loss)

    def project_patches(
        self, pixel_values: torch.Tensor, masked_patches: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(views, num_prototypes)` of the tokens, and `(masked, num_prototypes)` of some patches of all views."""
        tokens = self.vit(pixel_values).last_hidden_state
        return self.head(tokens[:, 0]), self.head(tokens[:, 1:].flatten(0, 1)[masked_patches])


class IBOT(DINO):
    """
    DINO whose student does not see some patches of its two views. It also predicts what the teacher, who sees them, assigns
    these patches to, in the same view.

    Args:
        config ([`SiTConfig`]): The backbone, and the head's widths.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.

    Raises:
        [`SiTError`]: If another feature is asked for than the token, or a batch may have one masked patch only and the head
            has batch norm.
    """

    losses = ("loss", "token_loss", "patch_loss")
    forward_methods = (*DINO.forward_methods, "project_patches")
    title = "iBOT (self-distillation with masked patches, [arXiv 2111.07832](https://arxiv.org/abs/2111.07832))"
    citation = CITATION
    tags = ("self-distillation", "masked-image-modeling")
    Arguments = IBOTArguments
    defaults: Mapping[str, Any] = {
        **DINO.defaults,
        "patch_mask_ratio": [0.1, 0.5],
        "masked_views": 0.5,
        "patch_mask_shape": "blocks",
    }
    paper: Mapping[str, Any] = {**DINO.paper, "num_prototypes": 8_192}
    most_prototypes, published_crops = 8_192, 10
    student_class = IBOTStudent

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        if config.pooling != "token":
            raise SiTError(
                f"pooling={config.pooling}: iBOT trains the token and the patches one by one",
                argument="config_overrides",
                remedy="leave pooling out",
            )
        super().__init__(config, processor, flags)
        self.grid = self.student.vit.embeddings.grid
        num_masked_views = math.ceil(self.arguments.masked_views * 2 * flags.run.per_device_train_batch_size)
        fewest = num_masked_views * max(1, round(self.arguments.patch_mask_ratio[0] * math.prod(self.grid)))
        if self.arguments.head_batch_norm and fewest < 2:
            raise SiTError(
                "batch norm needs two rows, and a batch may have a single masked patch",
                argument="head_batch_norm",
                remedy="raise `per_device_train_batch_size`, or set it to false",
            )
        self.patch_center = Center(self.arguments.num_prototypes)

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        # Masks come from the CPU, so that the host does not wait to know how many patches there are.
        ratio, shape = self.arguments.patch_mask_ratio, self.arguments.patch_mask_shape
        masks = draw_patch_masks(len(views[0]), self.grid, ratio, self.arguments.masked_views, shape == "blocks")
        masked_patches = masks.flatten().nonzero().squeeze(1).to(accelerator.device)
        with accelerator.autocast():
            logits, patch_logits = self.teacher.model.project_patches(views[0], masked_patches)
        temperature = schedule["teacher_temperature"]
        return {
            "pixel_values": views[0],
            "targets": self.center.assign(logits, temperature, accelerator),
            "temperature": self.arguments.student_temperature,
            "local_pixel_values": views[1] if len(views) > 1 else None,
            "masks": masks.to(accelerator.device),
            "masked_patches": masked_patches,
            "patch_targets": self.patch_center.assign(patch_logits, temperature, accelerator),
        }

    @torch.no_grad()
    def after_step(self, schedule: Mapping[str, float]) -> None:
        super().after_step(schedule)
        self.patch_center.update(self.arguments.center_momentum)
