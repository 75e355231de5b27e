"""Multi-crop: small views of small parts of an image beside its large ones, which cost a fraction of their tokens
(arXiv 2006.09882)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.training_data import CropGroup
from modeling_sit.data.views import ViewArguments
from modeling_sit.interop.resize import pair
from modeling_sit.pretraining.method import ViewGroup
from modeling_sit.pretraining.presets import EVERYTHING, look_up
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.presets import Choosing, Facts

# Side of a local crop, as a fraction of a view's: 96 of 224 pixels.
LOCAL_SIDE = 96 / 224
# Least area of a local crop and least of a view, by the shorter side of the images. In small images a twentieth of the area
# shows nothing. Larger images have the published ranges.
SMALL_IMAGES = ((40, (0.2, 0.5)), (96, (0.1, 0.4)), (EVERYTHING, (0.0, 0.0)))


@dataclass
class LocalCropArguments:
    """
    Local crops, small views of small parts of an image. A method's own arguments may inherit them. `None` of the size is
    [`local_crop_shape`]'s choice.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    num_local_crops: int | None = field(
        default=None,
        metadata={"help": "Local crops of each image beside the two views. 0 for none. Default: by `preset`."},
    )
    local_crop_size: int | None = field(
        default=None,
        metadata={
            "help": "Shorter side of the local crops in pixels, in whole patches. Default: about 0.43 of the views'."
        },
    )
    local_crop_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the area of a local crop, as a fraction of the image's area. Default: by `preset`."
        },
    )

    def __post_init__(self):
        if self.num_local_crops is not None and self.num_local_crops < 0:
            raise SiTError(f"must be at least 0, got {self.num_local_crops}", argument="num_local_crops")
        if self.local_crop_size is not None and self.local_crop_size < 1:
            raise SiTError(f"must be at least 1 pixel, got {self.local_crop_size}", argument="local_crop_size")
        if self.local_crop_scale is not None:
            if len(self.local_crop_scale) != 2:
                raise SiTError(f"must be 2 numbers, got {len(self.local_crop_scale)}", argument="local_crop_scale")
            low, high = self.local_crop_scale
            if not 0 < low <= high <= 1:
                raise SiTError(
                    f"must be a range 0 < low <= high <= 1 of the image's area, got {low} {high}",
                    argument="local_crop_scale",
                )


def local_view_groups(
    local: LocalCropArguments,
    views: ViewArguments,
    config: SiTConfig,
    processor: SiTImageProcessor,
    *,
    blur_probability: float = 0.5,
    solarize_probability: float = 0.0,
) -> list[ViewGroup]:
    """The group of local crops, to add to the group of a method's views; no group where their number is 0.

    They are augmented as the views are, with probabilities of their own for blur and solarization. These are at most the
    views': where those have no blur, local crops have none.

    Args:
        local ([`LocalCropArguments`]): Number, size and scale of the local crops.
        views ([`ViewArguments`]): How the views are augmented.
        config ([`SiTConfig`]): Size of the views and of the patches.
        processor ([`SiTImageProcessor`]): Mean and standard deviation of each channel.
        blur_probability, solarize_probability (`float`, *optional*): Of every local crop, as published.

    Raises:
        [`SiTError`]: If the size is not made of whole patches, or is larger than the views'.
    """
    if not local.num_local_crops:
        return []
    shape = local_crop_shape(config.image_shape, config.patch_shape, local.local_crop_size)
    chances = {"blur_probability": blur_probability, "solarize_probability": solarize_probability}
    chances = {name: [min(chance, max(getattr(views, name)))] * 2 for name, chance in chances.items()}
    augment = ViewAugmentation(
        replace(views, **chances), shape, processor.image_mean, processor.image_std, local.num_local_crops
    )
    return [ViewGroup(CropGroup(local.num_local_crops, shape, tuple(local.local_crop_scale)), augment)]


def local_crop_shape(
    image_shape: tuple[int, int], patch_shape: tuple[int, int], size: int | None = None
) -> tuple[int, int]:
    """Height and width of local crops in pixels: of the shape of the views, in whole patches.

    Args:
        image_shape, patch_shape (pairs of `int`): Height and width of views and patches in pixels.
        size (`int`, *optional*): The shorter side in pixels. Default: about 0.43 of the views' (96 of 224 pixels).

    Raises:
        [`SiTError`]: If the size is not made of whole patches, or is larger than the views'.
    """
    shorter = min(image_shape)
    fraction = LOCAL_SIDE
    if size is not None:
        patch = patch_shape[image_shape.index(shorter)]
        if size > shorter:
            raise SiTError(
                f"{size} pixels are more than the {shorter} of the views",
                argument="local_crop_size",
                remedy="lower it, or raise `image_size`",
            )
        if size % patch:
            raise SiTError(
                f"{size} is not made of whole patches",
                argument="local_crop_size",
                remedy=f"give a multiple of {patch}, such as {size // patch * patch or patch}",
            )
        fraction = size / shorter
    return tuple(
        max(1, round(fraction * side / patch)) * patch for side, patch in zip(image_shape, patch_shape, strict=True)
    )


def local_tokens(settings: Mapping[str, Any]) -> int:
    """Tokens, [CLS] included, of all local crops of an image together.

    Args:
        settings (mapping from `str`): As for [`Method.encoder_tokens`].
    """
    patch_shape = pair(settings["patch_size"])
    shape = local_crop_shape(pair(settings["image_size"]), patch_shape, settings["local_crop_size"])
    patches = math.prod(side // patch for side, patch in zip(shape, patch_shape, strict=True))
    return settings["num_local_crops"] * (1 + patches)


def choose_local_crops(choosing: "Choosing", facts: "Facts", *, number: int, scale: tuple[float, float]) -> None:
    """Choose local crops for the preset `auto`, and views that begin where local crops end.

    Args:
        choosing ([`Choosing`]): Settings so far.
        facts ([`Facts`]): Of the images and the device.
        number (`int`): Local crops of the published recipe. A CPU has half as many.
        scale (pair of `float`): Range of their area in the published recipe, for images of usual size.
    """
    is_cpu = facts.kind == "cpu"
    reason = f"half of the published {number}, on a CPU" if is_cpu else "the published number"
    choosing.choose("num_local_crops", number // 2 if is_cpu else number, reason)
    if not choosing["num_local_crops"]:
        return
    given = choosing.given.get("local_crop_size")
    size = min(local_crop_shape(pair(choosing["image_size"]), pair(choosing["patch_size"]), given))
    tokens = local_tokens({**choosing.values, "num_local_crops": 1, "local_crop_size": given})
    choosing.choose("local_crop_size", size, f"{tokens} tokens each, for views of {choosing.view_side} pixels")
    smallest, largest = (max(numbers) for numbers in zip(look_up(SMALL_IMAGES, facts.side), scale, strict=True))
    choosing.choose("local_crop_scale", [smallest, largest], f"images of {facts.side} pixels")
    choosing.choose("crop_scale", [choosing["local_crop_scale"][1], 1.0], "views begin where local crops end")
