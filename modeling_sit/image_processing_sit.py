"""Image processor for SiT on torchvision."""

from transformers.image_processing_backends import TorchvisionBackend

from .image_processing_pil_sit import SiTCorruptionMixin, SiTImageProcessorKwargs


class SiTImageProcessor(SiTCorruptionMixin, TorchvisionBackend):
    """
    Resizes, rescales and normalizes images; with `do_corrupt=True` it corrupts them for pretraining too.

    The corruption settings (see [`~image_processing_pil_sit.SiTImageProcessorKwargs`]) are saved in
    `preprocessor_config.json`; [`~SiTImageProcessor.corrupt`] applies them to a batch on any device.

    Example:

    ```python
    >>> import torch
    >>> from modeling_sit import SiTImageProcessor

    >>> processor = SiTImageProcessor(size={"height": 64, "width": 64})
    >>> images = [torch.randint(256, (3, 80, 100), dtype=torch.uint8) for _ in range(4)]
    >>> features = processor(
    ...     images, do_corrupt=True, generator=torch.Generator().manual_seed(0), return_tensors="pt"
    ... )
    >>> list(features)
    ['pixel_values', 'target_pixel_values', 'corruption_mask']
    ```
    """

    remote_code_classes = (*SiTCorruptionMixin.remote_code_classes, "image_processing_sit.SiTImageProcessor")


__all__ = ["SiTImageProcessor", "SiTImageProcessorKwargs"]
