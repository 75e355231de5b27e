"""Image processor for SiT on torchvision."""

from transformers.image_processing_backends import TorchvisionBackend

from .dense_outputs import SiTDenseOutputsMixin
from .dense_processing import SiTDenseInputsMixin
from .image_processing_pil_sit import SiTCorruptionMixin, SiTImageProcessorKwargs


class SiTImageProcessor(SiTCorruptionMixin, SiTDenseInputsMixin, SiTDenseOutputsMixin, TorchvisionBackend):
    """
    Resizes, rescales and normalizes images; with `do_corrupt=True` it corrupts them for pretraining too. For detection and
    segmentation it keeps the ratio of images (`size={"longest_edge": 320}`), pads them (`do_pad=True`), prepares
    annotations and label maps (see [`~dense_processing.SiTDenseInputsMixin.preprocess`]), and turns outputs of models into
    boxes, segments and label maps (see [`~dense_outputs.SiTDenseOutputsMixin`]).

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
