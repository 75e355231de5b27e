"""The model of a dense task: a pretrained backbone, or the same from scratch, with heads and an image processor for it."""

import math
from typing import Any

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.dense_images import DenseImages
from modeling_sit.finetuning.dense_presets import NARROW
from modeling_sit.interop.load import load_checkpoint

# Sides of the input are multiples of this: the coarsest stride of the feature pyramid.
STRIDE = 32
HEADS = {
    "tiny": {"pyramid_size": 64, "box_head_size": 256, "mask_head_num_layers": 2, "rois_per_image": 64},
    "full": {"pyramid_size": 256, "box_head_size": 1024, "mask_head_num_layers": 4, "rois_per_image": 512},
}
# The longer side of the input, where nobody says it: that of the images, at most this.
MOST_PIXELS, MOST_PIXELS_CPU = 640, 192
NUM_SAMPLED = 200
# Settings of an image processor that a dense one has too.
KEPT = (
    *("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "resample", "do_convert_rgb"),
    *("intensity_range", "patch_size"),
)


def usual_image_size(images: DenseImages, on_cpu: bool) -> int:
    """The longer side of the input: the median of those of the images, up to the next multiple of 32, and not too many for
    the machine."""
    rows = range(0, len(images), max(1, len(images) // NUM_SAMPLED))
    longest = [max(size) for size in map(images.size_of, rows) if size is not None]
    most = MOST_PIXELS_CPU if on_cpu else MOST_PIXELS
    return min(most, max(STRIDE, STRIDE * math.ceil(np.median(longest or [most]) / STRIDE)))


def usual_head_size(saved: dict[str, Any]) -> str:
    """The name of the size of the heads that suits a backbone, by its configuration: see [`HEADS`]."""
    return "tiny" if saved.get("hidden_size", SiTConfig.hidden_size) <= NARROW else "full"


def load_dense_model(
    arguments: FinetuningArguments,
    model_class: type[PreTrainedModel],
    label_names: list[str],
    image_size: int,
    settings: dict[str, Any],
) -> tuple[SiTImageProcessor, PreTrainedModel]:
    """The image processor, and the model with heads for these labels. Heads that the checkpoint has, of the same shapes,
    go on; others are new.

    Args:
        arguments (`FinetuningArguments`): The model.
        model_class (`type`): Its class.
        label_names (`list[str]`): Names of the classes.
        image_size (`int`): Pixels of the longer side of the input.
        settings (`dict`): More fields of its configuration.

    Raises:
        [`SiTError`]: If there is no such model, it lacks weights of the backbone, or an argument does not fit it.
    """
    settings = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: number for number, label in enumerate(label_names)},
        **settings,
    }
    if arguments.drop_path_rate is not None:
        settings["drop_path_rate"] = arguments.drop_path_rate
    loaded = load_checkpoint(
        arguments.model_name_or_path,
        model_class,
        network=arguments.network,
        num_attention_heads=arguments.num_attention_heads,
        settings=settings,
        from_scratch=arguments.from_scratch,
    )
    loaded.log_notes()
    if arguments.freeze_backbone:
        loaded.model.base_model.requires_grad_(False)
    processor = dense_processor(loaded.require_processor(), loaded.model.config, image_size)
    processor.do_reduce_labels = arguments.do_reduce_labels  # what measures the model reads masks as it learned them
    arguments.set_intensity_range(processor, loaded.model.config)
    return processor, loaded.model


def dense_processor(processor: BaseImageProcessor, config: SiTConfig, longest_edge: int) -> SiTImageProcessor:
    """An image processor that keeps the ratio of images and pads them, with the normalization of another one.

    Args:
        processor (`BaseImageProcessor`): The checkpoint's.
        config ([`SiTConfig`]): The model's.
        longest_edge (`int`): Pixels of the longer side, before the padding.
    """
    kept = {name: getattr(processor, name) for name in KEPT if getattr(processor, name, None) is not None}
    patch = math.lcm(*config.patch_shape)
    return SiTImageProcessor(
        **kept | {"patch_size": config.patch_size},
        do_resize=True,
        size={"longest_edge": longest_edge},
        do_center_crop=False,
        do_pad=True,
        pad_multiple=STRIDE if STRIDE % patch == 0 else math.lcm(4, patch),
    )
