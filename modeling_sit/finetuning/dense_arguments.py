"""Arguments of fine-tuning for detection and segmentation, and what says which arguments are of which tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from modeling_sit.runtime.errors import SiTError

CLASSIFICATION = ("classification",)
OBJECTS = ("detection", "instance_segmentation")
PIXELS = ("semantic_segmentation",)
DENSE = (*OBJECTS, *PIXELS)
TASKS = "tasks"  # the key in the metadata of a field


def either(tasks: Sequence[str]) -> str:
    """Names of tasks in a sentence: `one`, `one or two`."""
    return " or ".join(tasks) if len(tasks) < 3 else f"{', '.join(tasks[:-1])} or {tasks[-1]}"


def only_for(tasks: Sequence[str], help: str) -> dict[str, Any]:
    """The metadata of a field that only some tasks have; the others leave it at its default.

    Args:
        tasks (sequence of `str`): The tasks.
        help (`str`): What it is.
    """
    return {"help": f"{help} Only with `task` {either(tasks)}.", TASKS: tuple(tasks)}


def check_task(arguments: Any, task: str) -> None:
    """Raise [`SiTError`] if a field of other tasks has another value than its default.

    Args:
        arguments: An instance of a dataclass with fields of [`only_for`].
        task (`str`): The task of the run.
    """
    for each in fields(arguments):
        tasks = each.metadata.get(TASKS)
        if tasks is not None and task not in tasks and getattr(arguments, each.name) != each.default:
            raise SiTError(
                f"it is for {either(tasks)}, and the task is {task}",
                argument=each.name,
                remedy=f"leave it out, or set `task` to {either(tasks)}",
            )


@dataclass(kw_only=True)
class DenseArguments:
    """The heads and the augmentation of detection and segmentation."""

    head_size: Literal["tiny", "full"] | None = field(
        default=None,
        metadata=only_for(
            DENSE,
            "Size of the heads. tiny: a feature pyramid of 64 channels, 64 regions of an image to learn from, 2 layers for "
            "masks. full: as usual on COCO, 256, 512 and 4. Default: tiny for backbones up to 192 wide.",
        ),
    )
    anchor_sizes: list[float] | None = field(
        default=None,
        metadata=only_for(
            OBJECTS,
            "Sides in pixels of the boxes that a detector starts from, one for each of the strides 4, 8, 16, 32 and 64. Default: "
            "1 to 8 times the stride, what fits the objects of the training images best.",
        ),
    )
    detections_per_image: int | None = field(
        default=None,
        metadata=only_for(
            OBJECTS,
            "Objects that the model finds in an image at most. Default: 100, as many as COCO's measures count.",
        ),
    )
    segmentation_head: Literal["fpn", "linear"] | None = field(
        default=None,
        metadata=only_for(
            PIXELS,
            "fpn: a feature pyramid. linear: one linear layer on the patch tokens, with `freeze_backbone` the measure of the "
            "features. Default: fpn.",
        ),
    )
    do_reduce_labels: bool = field(
        default=False,
        metadata=only_for(PIXELS, "Whether 0 in the masks means no class, so that the classes begin with 1."),
    )
    scale_jitter: list[float] | None = field(
        default=None,
        metadata=only_for(
            DENSE,
            "Range of the random factor by which a training image is enlarged before it is cropped or padded. 1 1 for none. "
            "Default: 0.5 to 2 for long runs, else 0.8 to 1.25.",
        ),
    )
    photometric_distortion: bool = field(
        default=False,
        metadata=only_for(
            DENSE, "Whether to change brightness, contrast, saturation and hue of training images at random."
        ),
    )

    def check_dense(self) -> None:
        """Raise [`SiTError`] if a value is out of range."""
        jitter = self.scale_jitter
        if jitter is not None and (len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]):
            raise SiTError(f"must be a range 0 < low <= high, got {jitter}", argument="scale_jitter")
        if self.anchor_sizes is not None and (len(self.anchor_sizes) != 5 or min(self.anchor_sizes) <= 0):
            raise SiTError(f"must be 5 numbers above 0, got {self.anchor_sizes}", argument="anchor_sizes")
        if self.detections_per_image is not None and self.detections_per_image < 1:
            raise SiTError(f"must be at least 1, got {self.detections_per_image}", argument="detections_per_image")
