"""The interface of a pretraining method: what it adds to the loop, from clean views to a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from modeling_sit import SiTConfig, SiTImageProcessor, SiTModel
from modeling_sit.configuration_sit import DENSE_FIELDS
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.training_data import CropGroup
from modeling_sit.data.views import ViewArguments
from modeling_sit.interop.resize import pair
from modeling_sit.pretraining.schedules import MOST_WARMUP
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.batch_norm import synchronize_batch_norm

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

# Of the optimizer, as in the paper (arXiv 2104.03602, section 4).
DEFAULTS: Mapping[str, Any] = MappingProxyType({"weight_decay": 0.05, "adam_beta2": 0.999, "max_grad_norm": 3.0})
# Fields of the configuration that the backbone's weights are made for.
BACKBONE = frozenset(
    {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "num_channels",
        "qkv_bias",
        "position_embedding_type",
    }
)


@dataclass
class NoArguments:
    """Of a method that has no arguments of its own."""


@dataclass
class ViewGroup:
    """
    Views of one size: how their crops are cut, and what follows on the device.

    Args:
        crops ([`CropGroup`]): Number, size and scale of the crops of each image.
        augment (`nn.Module`): From crops, uint8 `(number, batch, channels, height, width)`, to normalized views, float32
            `(number * batch, channels, height, width)`, view 1 of all images first. It draws from PyTorch's global generator.
    """

    crops: CropGroup
    augment: nn.Module


class Method(nn.Module):
    """
    What a pretraining method adds to the loop. The loop, checkpoints, monitors, cards, export, dry run and previews know
    nothing else of it.

    A subclass has `__init__(self, config, processor, flags)`, which the run calls as `METHODS[name](config, processor,
    flags)`, and sets `student` and, where there is one, `teacher`. Its own buffers, those that are neither the student's
    nor the teacher's, are its state: a checkpoint keeps them.

    Attributes:
        student (`nn.Module`): The network that is trained. `forward(**inputs)` gives a `ModelOutput` with `loss`. Its
            backbone, a [`SiTModel`], is `student.vit`; `student.config` is a [`SiTConfig`].
        teacher ([`Teacher`], *optional*): Follows the student, without gradients.
        losses (`tuple` of `str`): Fields of the output that are logged, the total first. All names end with `loss`.
        forward_methods (`tuple` of `str`): Methods of student and teacher that are called in place of `forward`, so that
            sharded weights are gathered for them.
        title (`str`): The method and its paper, in Markdown, for the model card: "pretrained without labels by TITLE".
        citation (`str`): BibTeX of the paper.
        tags (`tuple` of `str`): Tags of the model card.
        collapse_signs (`tuple` of `str`): Monitored values whose low ones are a sign that the embeddings have collapsed.
        preview_rows (`str`): What the rows of [`preview`] show, for the model card.
        Arguments (`type`): A dataclass of the arguments that the method has of its own, which become flags. Each field is
            `None` by default and has a `help`. `__post_init__` checks what is given. Methods may share a field.
        uses (`frozenset` of `str`): Arguments of the other groups, and fields of the configuration, that this method has and
            others do not. Users of those are refused them.
        defaults (mapping): Values of arguments and fields of the configuration that are neither given nor chosen.
        paper (mapping): Those of the published recipe, for the preset `paper`, where they differ from SiT's.
        learning_rate_factor (`float`): Of the peak learning rate that the preset `auto` has for the width.
        most_warmup (`float`): Fraction of a run that epochs of warm-up are shortened to.
    """

    losses: tuple[str, ...] = ("loss",)
    forward_methods: tuple[str, ...] = ()
    title: str = ""
    citation: str = ""
    tags: tuple[str, ...] = ()
    collapse_signs: tuple[str, ...] = ("embedding_std", "rankme")
    preview_rows: str = "clean view, corrupted view, reconstruction, reconstruction pasted into the clean pixels"
    # Names in the fingerprint that a run that goes on must have as the checkpoint has them.
    fixed: frozenset[str] = BACKBONE
    # Names of weights of losses: 0 means that the loss has no head, so a checkpoint fits only where both are 0 or neither.
    loss_weights: tuple[str, ...] = ()

    Arguments: type = NoArguments
    uses: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = DEFAULTS
    paper: Mapping[str, Any] = MappingProxyType({})
    learning_rate_factor: float = 1.0
    most_warmup: float = MOST_WARMUP

    student: nn.Module
    teacher: Teacher | None

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__()
        self.config = config
        self.processor = processor
        self.teacher = None
        self.arguments = self.Arguments(
            **{item.name: getattr(flags.method, item.name) for item in fields(self.Arguments)}
        )

    @classmethod
    def setting_names(cls) -> frozenset[str]:
        """Names of the arguments and fields of the configuration that this method has and others need not have."""
        return cls.uses | {item.name for item in fields(cls.Arguments)}

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        """Choose what the method has of its own for the preset `auto`, with reasons, and what it wants otherwise than SiT. It
        comes after the choice of model, batch and length, and before all else.

        Args:
            choosing ([`Choosing`]): Settings by name, `choosing["max_steps"]`, and `choosing.choose(name, value, reason)`.
            facts ([`Facts`]): Of the images and the device.
        """

    def view_groups(self, arguments: ViewArguments) -> list[ViewGroup]:
        """The views that the method wants of each image. Default: two views of the model's size.

        Args:
            arguments ([`ViewArguments`]): What the user asked for.

        Raises:
            [`SiTError`]: If the arguments do not fit the size.
        """
        crops = CropGroup(2, self.config.image_shape, tuple(arguments.crop_scale))
        augment = ViewAugmentation(
            arguments, self.config.image_shape, self.processor.image_mean, self.processor.image_std
        )
        return [ViewGroup(crops, augment)]

    def schedules(self, progress: float) -> dict[str, float]:
        """What changes on the way beside learning rate and weight decay, such as a momentum or a temperature. It is logged.

        Args:
            progress (`float`): Of the step, in [0, 1]: 0 at the first, 1 at the last.
        """
        return {}

    @property
    def contrasts(self) -> bool:
        """Whether a loss tells an image from the others of its batch, so that a batch of one teaches it nothing."""
        return False

    @property
    def trouble_with_one_image(self) -> str | None:
        """What a warning says of a batch of one image, after "a batch of one image"; `None` where it is as good as others."""
        if not self.contrasts:
            return None
        return "has no other to compare it with, so the loss that compares images teaches nothing"

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        """The student's arguments for a batch. Every process calls this.

        What is random comes from PyTorch's global generator, which the loop has seeded by run, batch and process.

        Args:
            views (sequence of `torch.Tensor`): Clean, normalized views, one tensor for each of [`view_groups`].
            accelerator (`Accelerator`): Knows the processes, and gives the precision for a teacher's forward pass.
            schedule (mapping from `str` to `float`): Of this step: [`schedules`], `learning_rate` and `weight_decay`.
        """
        return {"pixel_values": views[0]}

    def after_step(self, schedule: Mapping[str, float]) -> None:
        """Follow an optimizer step: move averages and centers. Default: the teacher follows by `teacher_momentum`."""
        if self.teacher is not None:
            self.teacher.update(self.student, schedule["teacher_momentum"])

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What monitors measure, of clean images `(batch, channels, height, width)`.

        Returns:
            `dict`: `features` `(batch, hidden_size)`, those that transfer. Where the method trains them, `projection`
            `(batch, size)` of the student and `teacher_projection` of the same shape.
        """
        return {"features": self.student.vit(pixel_values).last_hidden_state[:, 0]}

    def preview(self, crops: torch.Tensor, seed: int) -> PIL.Image.Image | None:
        """An image that shows what the student makes of crops, uint8 `(images, channels, height, width)`; `None` where
        there is nothing to see. Every process calls this. The same seed gives the same corruption."""
        return None

    @property
    def has_preview(self) -> bool:
        """Whether [`preview`] gives an image."""
        return False

    def exported(self, export: str) -> nn.Module:
        """The module whose weights the output folder gets. It may be sharded. Default: the backbone.

        Args:
            export (`str`): `"teacher"` or `"student"`. Without a teacher it is the student.
        """
        return (self.teacher.model if self.exports_teacher(export) else self.student).vit

    def exports_teacher(self, export: str) -> bool:
        """Whether the output folder gets the teacher's weights."""
        return export == "teacher" and self.teacher is not None

    def plain_model(self) -> PreTrainedModel:
        """A model of the class that [`exported`] is of, without weights: it writes configuration and code."""
        with torch.device("meta"):
            return SiTModel(self.config)

    def compiled_parts(self) -> list[nn.Module]:
        """Modules that PyTorch's compiler makes faster."""
        networks = [self.student] if self.teacher is None else [self.student, self.teacher.model]
        return [network.vit for network in networks]

    def fingerprint(self) -> dict[str, Any]:
        """Settings that the outcome follows from, by name, as JSON knows them. Default: the fields of the configuration without
        those of detection and segmentation, the normalization, and the method's own arguments."""
        names = [name for name in SiTConfig.__annotations__ if name.removeprefix("_") not in DENSE_FIELDS]
        return {
            **{name: getattr(self.config, name) for name in names},
            **{name: getattr(self.processor, name) for name in ("image_mean", "image_std")},
            **asdict(self.arguments),
        }

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        """Tokens that the encoder reads of an image in a step, [CLS] included, heads and decoder not: the student's three
        times, for the forward and the backward pass, a teacher's once. Default: two views of the model's size.

        Args:
            settings (mapping from `str`): [`fingerprint`] and the run's arguments, as `run_state.json` has them.
        """
        (height, width), (patch_height, patch_width) = map(pair, (settings["image_size"], settings["patch_size"]))
        tokens = 1 + (height // patch_height) * (width // patch_width)
        return 2 * tokens * (3 + cls.settings_have_teacher(settings))

    @classmethod
    def settings_have_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Whether a run of these settings has a teacher. Default: no."""
        return False

    def describe_losses(self) -> str:
        """The losses with their weights, in a few words, for the log and the model card."""
        return " + ".join(name.removesuffix("_loss") for name in self.losses[1:] or self.losses)

    # What follows is the same for every method.

    @property
    def networks(self) -> list[nn.Module]:
        """The student, and the teacher where there is one."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def synchronize_batch_norm(self) -> None:
        """Have the student's batch norm see the images of all processes."""
        self.student = synchronize_batch_norm(self.student)

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """The method's own buffers, such as a center: neither the student's nor the teacher's."""
        networks = ("student.", "teacher.")
        return {name: value for name, value in self.named_buffers() if not name.startswith(networks)}

    def load_own_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what [`own_state_dict`] gave.

        Raises:
            `ValueError`: If names or shapes are others.
        """
        own = self.own_state_dict()
        shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (own, state)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the method's state has {shapes[1]}, and {shapes[0]} is needed")
        for name, value in own.items():
            value.copy_(state[name])
