"""Image processor for SiT on Pillow and NumPy, and what both image processors share: corruption settings and modes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs

from .dense_outputs import SiTDenseOutputsMixin
from .dense_processing import SiTDenseInputsMixin
from .gmml import CorruptionSettings, corrupt
from .image_modes import MODES, PixelFormat, check_intensity_range, convert_image, has_percentiles, to_8_bits


class SiTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    intensity_range (list of `float` or `str`, *optional*):
        The stored values that become black and white, of images of more than 8 bits: a low and a high one, such as
        `[0, 4095]` of 12-bit data, or one such pair after the other for each channel. Values beyond them are clipped.
        Arrays and tensors of another type than uint8 follow it too, if `do_rescale`. Images of 8 bits stay as they are,
        unless a value is a percentage, such as `["0.5%", "99.5%"]`: these percentiles of each image's own values.
        Default: the range of the type. The number of channels is that of `image_mean`, from 1 to 16.
    do_corrupt (`bool`, *optional*, defaults to `False`):
        Whether to corrupt the images for pretraining: `pixel_values` are the corrupted images then, with
        `target_pixel_values` (clean) and `corruption_mask` `(batch, 1, height, width)` beside them.
    generator (`torch.Generator`, *optional*):
        Source of the corruption's randomness; not saved. Default: PyTorch's global generator.
    corruption (`str`, *optional*, defaults to `"noise+replace"`):
        `"none"`, `"noise"`, `"zeros"`, `"replace"`, `"zeros+replace"` or `"noise+replace"`.
    noise_ratio (pair of `float`, *optional*, defaults to `[0.5, 0.7]`):
        Range of the fraction of pixels that noise covers.
    zeros_ratio (pair of `float`, *optional*, defaults to `[0.5, 0.7]`):
        Range of the fraction of pixels that zeros cover.
    replace_ratio (pair of `float`, *optional*, defaults to `[0.3, 0.3]`):
        Range of the fraction of pixels that another image covers.
    block_size (pair of `float`, *optional*, defaults to `[0.05, 0.25]`):
        Range of a block's height and width, as fractions of the image's.
    align_to_patches (`bool`, *optional*, defaults to `False`):
        Whether blocks are made of whole patches.
    patch_size (`int` or pair of `int`, *optional*, defaults to 16):
        Height and width of a patch in pixels, for `align_to_patches`. For detection and segmentation, images that are
        smaller are refused.
    pad_multiple (`int`, *optional*, defaults to 32):
        With `do_pad`, and without `pad_size`, images are padded to the smallest height and width of the batch that are
        multiples of it. SiT's detectors need 32.
    do_reduce_labels (`bool`, *optional*, defaults to `False`):
        Whether 0 in `segmentation_maps` is no class: 1 becomes the first class, and 0 becomes 255.
    """

    intensity_range: tuple[float | int | str, ...] | list[float | int | str] | None
    do_corrupt: bool | None
    generator: torch.Generator | None
    corruption: str | None
    noise_ratio: tuple[float, float] | list[float] | None
    zeros_ratio: tuple[float, float] | list[float] | None
    replace_ratio: tuple[float, float] | list[float] | None
    block_size: tuple[float, float] | list[float] | None
    align_to_patches: bool | None
    patch_size: int | tuple[int, int] | list[int] | None
    pad_multiple: int | None
    do_reduce_labels: bool | None


CORRUPTION_SETTINGS = (
    "corruption",
    "noise_ratio",
    "zeros_ratio",
    "replace_ratio",
    "block_size",
    "align_to_patches",
    "patch_size",
)


class SiTCorruptionMixin:
    """GMML corruption and image modes for image processors of either backend."""

    valid_kwargs = SiTImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}  # noqa: RUF012 transformers reads class attributes
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    intensity_range = None
    do_corrupt = False
    generator = None
    corruption = "noise+replace"
    noise_ratio = [0.5, 0.7]  # noqa: RUF012 lists, as JSON gives them back
    zeros_ratio = [0.5, 0.7]  # noqa: RUF012
    replace_ratio = [0.3, 0.3]  # noqa: RUF012
    block_size = [0.05, 0.25]  # noqa: RUF012
    align_to_patches = False
    patch_size = 16
    # For Pillow, then for torchvision: where transformers finds the class in a repository that it loads code from.
    remote_code_classes = ("image_processing_pil_sit.SiTImageProcessorPil",)

    def __init__(self, **kwargs):
        # Lists, so that the settings are the same after they were saved and loaded.
        super().__init__(
            **{name: list(value) if isinstance(value, tuple) else value for name, value in kwargs.items()}
        )
        CorruptionSettings(**{name: getattr(self, name) for name in CORRUPTION_SETTINGS})
        if self.intensity_range is not None:
            check_intensity_range(self.intensity_range, self.num_channels)

    @property
    def num_channels(self) -> int:
        """Channels of the images: those of `image_mean`."""
        return _number(self.image_mean)

    def corrupt(
        self, pixel_values: torch.Tensor, generator: torch.Generator | None = None, num_views: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Corrupt a batch of normalized images on their own device, with this processor's settings.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Left unchanged.
            generator (`torch.Generator`, *optional*): Source of randomness. Default: PyTorch's global generator.
            num_views (`int`, *optional*, defaults to 1):
                Views of each image, view 1 of all of them first; what replaces a place comes from the same view.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Corrupted images, and the corruption mask
            `(batch, 1, height, width)`, bool.
        """
        settings = {name: getattr(self, name) for name in CORRUPTION_SETTINGS}
        return corrupt(pixel_values, generator=generator, num_views=num_views, **settings)

    def process_image(self, image, do_convert_rgb: bool | None = None, input_data_format=None, **kwargs):
        # The releases of transformers differ in what becomes of transparency and deep gray; here it is one way.
        channels, intensity_range = self.num_channels, kwargs.get("intensity_range")
        if do_convert_rgb and isinstance(image, Image.Image):
            image, do_convert_rgb = convert_image(image, PixelFormat(channels, intensity_range)), False
        elif channels != 3:
            do_convert_rgb = False
        if not isinstance(image, Image.Image):
            if input_data_format is None and image.ndim == 3 and channels not in (1, 3):
                is_first = image.shape[0] == channels and image.shape[-1] != channels
                input_data_format = ChannelDimension.FIRST if is_first else ChannelDimension.LAST
            if intensity_range is not None and kwargs.get("do_rescale"):
                image = _scaled(image, intensity_range, input_data_format)
        image = super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )
        if do_convert_rgb and channels == 3 and image.shape[0] == 1:  # a gray array, which not every release converts
            return image.expand(3, -1, -1) if isinstance(image, torch.Tensor) else image.repeat(3, axis=0)
        return image

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        CorruptionSettings(**{name: kwargs[name] for name in CORRUPTION_SETTINGS})
        if kwargs.get("intensity_range") is not None:
            check_intensity_range(kwargs["intensity_range"], _number(kwargs["image_mean"]))

    def _preprocess(self, images, do_corrupt=False, generator=None, return_tensors=None, **kwargs) -> BatchFeature:
        settings = {name: kwargs.pop(name) for name in CORRUPTION_SETTINGS}
        if not do_corrupt:
            return super()._preprocess(images, return_tensors=return_tensors, **kwargs)
        clean = super()._preprocess(images, return_tensors="pt", **kwargs)["pixel_values"]
        corrupted, mask = corrupt(clean, generator=generator, **settings)
        features = {"pixel_values": corrupted, "target_pixel_values": clean, "corruption_mask": mask}
        if return_tensors != "pt":
            features = {name: np.asarray(value.cpu()) for name, value in features.items()}
        return BatchFeature(data=features, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        settings = super().to_dict()
        settings.pop("generator", None)
        settings["do_corrupt"] = False  # of a saved processor, inference never corrupts
        if self._auto_class is not None:
            settings["auto_map"] = {self._auto_class: list(self.remote_code_classes)}
        return settings


class SiTImageProcessorPil(SiTCorruptionMixin, SiTDenseInputsMixin, SiTDenseOutputsMixin, PilBackend):
    """
    Image processor for SiT where torchvision is missing. As [`SiTImageProcessor`], one image at a time.
    """

    def process_image(self, image, *args, **kwargs):
        is_array = not isinstance(image, Image.Image)
        processed = super().process_image(image, *args, **kwargs)
        return (
            processed.view(_Channels)
            if len(processed) not in MODES or (is_array and len(processed) == 4)
            else processed
        )

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        if not isinstance(image, _Channels):
            return super().resize(image, size, resample, **kwargs)
        # Pillow knows no such images, and takes the fourth channel of four for transparency.
        resized = [
            super(SiTImageProcessorPil, self).resize(channel[None], size, resample, **kwargs)
            for channel in np.asarray(image)
        ]
        return np.concatenate(resized)


class _Channels(np.ndarray):
    """An image `(channels, height, width)` whose channels are no colors."""


def _number(image_mean: float | Sequence[float] | None) -> int:
    """The number of channels that a mean is of; one number stands for three."""
    return len(image_mean) if isinstance(image_mean, (list, tuple)) else 3


def _scaled(image: np.ndarray | torch.Tensor, intensity_range: Sequence[float | str], data_format: str | None):
    """An array or a tensor scaled to 8 bits by a range; one of 8 bits as it is, unless the range has percentiles."""
    values = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if values.dtype == np.uint8 and not has_percentiles(intensity_range):
        return image
    if values.ndim == 2:
        scaled = to_8_bits(values[..., None], intensity_range)[..., 0]
    elif (data_format or infer_channel_dimension_format(values, num_channels=(1, 3, 4))) == ChannelDimension.FIRST:
        scaled = np.moveaxis(to_8_bits(np.moveaxis(values, 0, -1), intensity_range), -1, 0)
    else:
        scaled = to_8_bits(values, intensity_range)
    return torch.from_numpy(scaled).to(image.device) if isinstance(image, torch.Tensor) else scaled


__all__ = ["SiTImageProcessorKwargs", "SiTImageProcessorPil"]
