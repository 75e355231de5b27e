"""Measuring a task whose metrics are not of one tensor for all images, on one process as on several.

transformers' `Trainer` gathers predictions as tensors, and fills the last batches of several processes up with images that
it has measured already. Here each batch is made of the same images whatever the number of processes, each process measures
every so-manieth batch, and what they found is put together in the order of the batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_sit.data.sampling import derive_seed
from modeling_sit.runtime.distributed import broadcast_from_main

LOSS = "loss"


class Measurement(ABC):
    """What collects the predictions of an evaluation, batch by batch."""

    @abstractmethod
    def add(self, inputs: dict[str, Any], predictions: Any) -> None:
        """Take in a batch and what the model predicts for it."""

    @abstractmethod
    def merge(self, accelerator: Accelerator) -> None:
        """Take in what all other processes have. Every process calls it once, after its last batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics by their names, after [`merge`]."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """How many images were measured: those that could be read."""


def batches_of_one_shape(shapes: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Batches of images of one shape each, so that none of them is padded for the sake of another one: what a model
    predicts for an image is then the same in any batch.

    Args:
        shapes (sequence): Shape of each image as the model sees it, comparable and hashable.
        batch_size (`int`): Images in a batch at most.

    Returns:
        `list[list[int]]`: Indices of the images of each batch, the largest images first.
    """
    by_shape: dict[Any, list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(index)
    return [
        by_shape[shape][first : first + batch_size]
        for shape in sorted(by_shape, reverse=True)
        for first in range(0, len(by_shape[shape]), batch_size)
    ]


def measure(
    batches: Iterable[dict[str, Any]],
    predict: Callable[[dict[str, Any]], tuple[torch.Tensor, Any]],
    measurement: Measurement,
    accelerator: Accelerator,
    seed: int,
) -> dict[str, float]:
    """Measure a model on batches, those of all processes together. Every process calls it.

    Args:
        batches (iterable of `dict`): This process's batches, with `pixel_values`: of all batches, each
            `accelerator.num_processes`-th from its own number on.
        predict (callable): From a batch to its scalar loss, a mean over its images, and its predictions. What it draws from
            PyTorch's global generators depends on the seed and the number of the batch only.
        measurement ([`Measurement`]): Collects the predictions.
        accelerator (`Accelerator`): Knows the processes.
        seed (`int`): Seed of the random numbers. The generators go on afterwards as if nothing had been drawn.

    Returns:
        `dict[str, float]`: The metrics, and the mean `loss` over the images; the same in every process.
    """
    losses: list[tuple[int, float, int]] = []
    with torch.no_grad(), generators_kept(accelerator.device):
        for place, inputs in enumerate(batches):
            number = accelerator.process_index + place * accelerator.num_processes
            torch.manual_seed(derive_seed(seed, number))
            loss, predictions = predict(inputs)
            losses.append((number, float(loss), len(inputs["pixel_values"])))
            measurement.add(inputs, predictions)
    if accelerator.num_processes > 1:
        losses = sorted(gather_object(losses))
        measurement.merge(accelerator)
    metrics = broadcast_from_main(accelerator, measurement.compute)
    num_images = sum(number for *_, number in losses)
    return {**metrics, LOSS: sum(loss * number for _, loss, number in losses) / num_images}


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """After this block, PyTorch's global generators of the CPU and of the device go on as if there were no block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
