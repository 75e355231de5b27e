"""The arithmetic of a step, counted, and the highest speed of the device, measured."""

import copy
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from modeling_sit import SiTConfig, SiTForPreTraining
from throughput.measuring import synchronize

# The counter knows every matrix product, but not every fused attention: attention is counted written out. Two images,
# for batch norm needs more than one value.
NUM_COUNTED = 2


def count_pretraining_flops(config: SiTConfig) -> int:
    """FLOPs an image of SiT's step: the student's forward and backward pass and the teacher's forward pass of two views.

    Counted on shapes alone. A multiplication and an addition are two. What is neither a matrix product nor a convolution
    (norms, activations, augmentation, the optimizer) and the losses are not counted, as usual in model FLOPs.
    """
    with torch.device("meta"):
        model = SiTForPreTraining(_written_out(config))
        views = torch.empty(2 * NUM_COUNTED, config.num_channels, *config.image_shape)

    def step() -> None:
        if config.use_teacher and config.contrastive_weight > 0:
            with torch.no_grad():
                model.project(views)
        outputs = model(views)
        sum(output.sum() for output in (outputs.reconstruction, outputs.projection) if output is not None).backward()

    return _count(step) // NUM_COUNTED


def count_training_flops(model_class: type[PreTrainedModel], config, **inputs: torch.Tensor) -> int:
    """FLOPs an image of a forward and backward pass of one view.

    Args:
        inputs (tensors): What the model is given beside `pixel_values`, for `NUM_COUNTED` images, on the meta device.
    """
    with torch.device("meta"):
        model = model_class(_written_out(config))
        pixel_values = torch.empty(NUM_COUNTED, config.num_channels, config.image_size, config.image_size)
    return _count(lambda: model(pixel_values, **inputs).loss.backward()) // NUM_COUNTED


def _written_out(config):
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    return config


def _count(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOPs a second of the device at its best: a product of large square matrices, the fastest of several."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    times = []
    for _ in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times[2:])
