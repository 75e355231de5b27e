"""Models that find boxes, masks, or a class for each pixel: how they are loaded, what they give, and their classes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import transformers
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

Output = Literal["boxes", "masks", "pixels"]
"""What a model gives: boxes of objects, masks of objects, or a class for each pixel."""

# By the ends of the names of transformers' classes, and ours: the Auto class that loads it, and what it gives. Universal
# models give what their image processors make of their queries.
ARCHITECTURES: dict[str, tuple[str, tuple[Output, ...]]] = {
    "ForObjectDetection": ("AutoModelForObjectDetection", ("boxes",)),
    "ForInstanceSegmentation": ("AutoModelForInstanceSegmentation", ("boxes", "masks", "pixels")),
    "ForUniversalSegmentation": ("AutoModelForUniversalSegmentation", ("boxes", "masks", "pixels")),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", ("pixels",)),
    "DetrForSegmentation": ("AutoModelForUniversalSegmentation", ("boxes", "masks", "pixels")),
}
# The image processor's method for each. One may have it for other models of its kind.
POST_PROCESSING: dict[Output, str] = {
    "boxes": "post_process_object_detection",
    "masks": "post_process_instance_segmentation",
    "pixels": "post_process_semantic_segmentation",
}
# Ours, whose image processor serves all of them; and those whose queries are no boxes.
OUTPUTS: dict[str, tuple[Output, ...]] = {
    "SiTForInstanceSegmentation": ("boxes", "masks"),
    "RfDetrForInstanceSegmentation": ("boxes", "masks"),
    "MaskFormerForInstanceSegmentation": ("masks", "pixels"),
}
# What these read beside an image.
UNFIT = {"OneFormerForUniversalSegmentation": "a task in words", "VideomtForUniversalSegmentation": "a video"}
NAMES = {"boxes": "boxes", "masks": "masks of objects", "pixels": "a class for each pixel"}


@dataclass(frozen=True)
class DenseModel:
    """
    A model with the head of a dense task.

    Args:
        name (`str`): The folder or the Hub id.
        model (`PreTrainedModel`): The model.
        processor (`BaseImageProcessor`): Its image processor, which also makes boxes, masks and label maps of the outputs.
        outputs (`frozenset`): What it gives ([`Output`]).
    """

    name: str
    model: PreTrainedModel
    processor: BaseImageProcessor
    outputs: frozenset[Output]

    @classmethod
    def of(cls, model: PreTrainedModel, processor: BaseImageProcessor, name: str = "the model") -> "DenseModel":
        """A model that is loaded already."""
        architecture = type(model).__name__
        kinds = OUTPUTS.get(architecture, _loading_of(architecture)[1])
        return cls(
            name, model, processor, frozenset(each for each in kinds if hasattr(processor, POST_PROCESSING[each]))
        )

    @property
    def id2label(self) -> dict[int, str]:
        """Names of its classes."""
        return {int(number): str(name) for number, name in self.model.config.id2label.items()}

    @cached_property
    def pixel_format(self) -> PixelFormat:
        """What images are decoded to."""
        config = getattr(self.model.config, "backbone_config", None) or self.model.config
        if not isinstance(getattr(config, "num_channels", None), int):
            config = self.model.config
        return PixelFormat.of_model(config, self.processor)

    def require(self, wanted: Sequence[Output], purpose: str, argument: str) -> None:
        """Raise [`SiTError`] if it gives nothing of what is wanted.

        Args:
            wanted (sequence of [`Output`]): What is wanted.
            purpose (`str`): What for, such as a protocol.
            argument (`str`): The argument that asks for it.
        """
        if self.outputs.isdisjoint(wanted):
            given = " and ".join(NAMES[each] for each in NAMES if each in self.outputs)
            raise SiTError(
                f"{purpose} needs {' or '.join(NAMES[each] for each in wanted)}, and {self.name}, a "
                f"{type(self.model).__name__}, gives {given}",
                argument=argument,
            )


def load_dense_model(model_name_or_path: str, alternative: str = "") -> DenseModel:
    """
    Load a model with the head of a dense task, and its image processor: a SiT's, or one of transformers' (DETR, RT-DETR,
    UperNet, SegFormer, Mask2Former and the like), also with a SiT as its backbone.

    Args:
        model_name_or_path (`str`): A folder of `save_pretrained`, or the id of a model on the Hub.
        alternative (`str`, *optional*): What else the user can do if the model has no such head, for the error.

    Returns:
        [`DenseModel`]: In evaluation mode, on the CPU, in float32.

    Raises:
        [`SiTError`]: If there is no such model, it has no such head, or a weight is missing.
    """
    name = str(model_name_or_path)
    auto_class, _ = _loading_of(_architecture(name), name, alternative)
    loaded = load_checkpoint(name, getattr(transformers, auto_class))
    if loaded.missing_keys:
        raise SiTError(
            f"{name}: {len(loaded.missing_keys)} weights are missing, such as {loaded.missing_keys[0]}",
            argument="model_name_or_path",
        )
    loaded.log_notes()
    return DenseModel.of(loaded.model, loaded.require_processor(), name)


def _architecture(name: str) -> str:
    if Path(name).is_file():
        raise SiTError(
            f"{name} is a file of weights, without the head of such a task",
            argument="model_name_or_path",
            remedy="give a folder of `save_pretrained`",
        )
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError):
        config = {}  # the loader says why
    return (config.get("architectures") or [""])[0]


def _loading_of(architecture: str, name: str = "the model", alternative: str = "") -> tuple[str, tuple[Output, ...]]:
    if architecture in UNFIT:
        raise SiTError(
            f"{name} is a {architecture}, which reads {UNFIT[architecture]}, and not an image alone",
            argument="model_name_or_path",
        )
    for end, loading in ARCHITECTURES.items():
        if architecture.endswith(end):
            return loading
    if not architecture:
        return ARCHITECTURES["ForObjectDetection"]
    raise SiTError(
        f"{name} is a {architecture}, which finds neither boxes nor masks",
        argument="model_name_or_path",
        remedy=f"fine-tune it for such a task first{alternative}",
    )


def match_labels(id2label: Mapping[int, str], label_names: Sequence[str]) -> np.ndarray:
    """Which class of a dataset each class of a model is, by its name; in upper or lower case, where only one class of each side is
    called so. By their order, if the model does not know all names of the dataset, and those of one of them are numbers only, as of
    label maps without names, or transformers' own (`LABEL_0`).

    Args:
        id2label (mapping): Names of the model's classes, by number.
        label_names (sequence of `str`): Names of the dataset's classes.

    Returns:
        `np.ndarray` of shape `(largest number + 1,)`: Index in `label_names` for each of the model's numbers; -1: none.

    Raises:
        [`SiTError`]: If the two have no class in common.
    """
    indices = np.full(max(id2label, default=0) + 1, -1)
    known = {name: index for index, name in enumerate(label_names)}
    ours, theirs = (_by_normalized_name(names) for names in (label_names, id2label.values()))
    alike = {theirs[name][0]: ours[name][0] for name in ours if len(ours[name]) == len(theirs.get(name, ())) == 1}
    known |= {name: known[other] for name, other in alike.items()}
    has_names = {*map(_normalized, label_names)} <= {*map(_normalized, id2label.values())}
    is_numbered = all(name == str(number) for number, name in enumerate(label_names)) or all(
        name in (str(number), f"LABEL_{number}") for number, name in id2label.items()
    )
    if is_numbered and not has_names:
        if len(id2label) != len(label_names):
            logger.warning(
                "the model has %d classes and the dataset %d, not all of them with names: they are matched by their order",
                len(id2label),
                len(label_names),
            )
        for number in id2label:
            indices[number] = number if number < len(label_names) else -1
        return indices
    for number, name in id2label.items():
        indices[number] = known.get(name, -1)
    missing = [name for index, name in enumerate(label_names) if index not in indices]
    if len(missing) == len(label_names):
        raise SiTError(
            f"the model knows none of the dataset's classes: it has {_some(list(id2label.values()))}, and the dataset "
            f"{_some(label_names)}",
            argument="dataset",
            remedy="rename the classes of one of them",
        )
    if missing:
        logger.warning("the model does not know %d of the dataset's classes: %s", len(missing), _some(missing))
    return indices


def _by_normalized_name(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault(_normalized(name), []).append(name)
    return found


def _normalized(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
