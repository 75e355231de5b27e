"""SimCLR: tell the two views of an image apart from all others of the batch, without a teacher (arXiv 2002.05709)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.losses import nt_xent_loss
from modeling_sit.pretraining.method import BACKBONE, Method
from modeling_sit.pretraining.students import Student, create_peer, feature_size
from modeling_sit.runtime.distributed import gather_projections

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = """@inproceedings{chen2020simclr,
  title     = {A Simple Framework for Contrastive Learning of Visual Representations},
  author    = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}"""


class SimCLRStudent(Student):
    """The backbone, and a head of three linear layers with batch norm after each (the second version's, arXiv 2006.10029)."""

    def __init__(self, config: SiTConfig):
        width = config.projection_hidden_size
        super().__init__(config, SimCLRHead(feature_size(config), width, config.projection_size))

    def forward(
        self,
        pixel_values: torch.Tensor,
        gather: Callable[[torch.Tensor], tuple[torch.Tensor, int]],
    ) -> ModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2 * batch, channels, height, width)`): Clean views, view 1 first.
            gather (`Callable`): Gives for this process's projections those of all processes, with gradients, and which of
                their images is this process's first.
        """
        _, projections = self.encode(pixel_values)
        loss = nt_xent_loss(projections, self.config.temperature, *gather(projections))
        return ModelOutput(loss=loss, contrastive_loss=loss)


class SimCLRHead(nn.Sequential):
    """Features `(batch, width_in)` to projections `(batch, width_out)`. The batch norms scale; the last one does not shift."""

    def __init__(self, width_in: int, width: int, width_out: int):
        layers = []
        for inputs, outputs in ((width_in, width), (width, width), (width, width_out)):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        super().__init__(*layers[:-1])
        self[-1].bias.requires_grad_(False)


class SimCLR(Method):
    """
    The two views of an image have to find each other among all views of the batch: cross-entropy over cosine similarities
    divided by a temperature (NT-Xent), the mean over the views. The authors' code has the sum of the two directions.

    Args:
        config ([`SiTConfig`]): The backbone, the head's widths, and the temperature.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    losses = ("loss", "contrastive_loss")
    forward_methods = ("encode",)
    title = "SimCLR (contrast between views, [arXiv 2002.05709](https://arxiv.org/abs/2002.05709))"
    citation = CITATION
    tags = ("contrastive-learning",)
    uses = frozenset({"projection_hidden_size", "projection_size", "temperature"})
    fixed = BACKBONE | {"projection_hidden_size", "projection_size"}
    # The published one is of ResNets and LARS, which does not train a ViT (`base_learning_rate` is then AdamW's as for SiT).
    paper: Mapping[str, Any] = {
        "temperature": 0.1,
        "crop_scale": [0.08, 1.0],
        "color_jitter": [0.8, 0.8, 0.8, 0.2],
        "blur_probability": [0.5, 0.5],
        "solarize_probability": [0.0, 0.0],
    }

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        self.student = create_peer(SimCLRStudent, config, flags.model, flags.run.seed)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        choosing.choose("temperature", 0.2, "SimCLR's for batches of some hundred images")

    @property
    def contrasts(self) -> bool:
        return True

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        return {"pixel_values": views[0], "gather": partial(gather_projections, accelerator)}

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features, projection = self.student.encode(pixel_values)
        return {"features": features, "projection": projection}
