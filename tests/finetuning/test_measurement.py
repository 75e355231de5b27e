"""Measuring batch by batch: which images are in a batch, the mean loss, and the random numbers."""

import pytest
import torch
from accelerate import Accelerator

from modeling_sit.finetuning.measurement import Measurement, batches_of_one_shape, measure


class Sum(Measurement):
    def __init__(self):
        self.found = []

    def add(self, inputs, predictions):
        self.found += predictions.tolist()

    def merge(self, accelerator):
        raise AssertionError("there is one process only")

    def compute(self):
        return {"sum": float(sum(self.found))}

    @property
    def num_images(self):
        return len(self.found)


def test_batches_have_images_of_one_shape_and_each_image_once():
    shapes = [(32, 64), (64, 32), (32, 64), (32, 64), (64, 32)]
    assert batches_of_one_shape(shapes, 2) == [[1, 4], [0, 2], [3]]
    assert batches_of_one_shape([], 2) == []


def test_the_loss_is_a_mean_over_images_and_random_by_batch_only():
    batches = [{"pixel_values": torch.full((count, 3, 2, 2), float(count))} for count in (3, 1)]
    drawn = []

    def predict(inputs):
        assert not torch.is_grad_enabled()
        drawn.append(torch.rand(1).item())
        return inputs["pixel_values"].mean(), inputs["pixel_values"][:, 0, 0, 0]

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    metrics = [measure(batches, predict, Sum(), Accelerator(cpu=True), seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)  # as if nothing had been drawn
    assert metrics[0] == metrics[1] == {"sum": 10.0, "loss": pytest.approx((3 * 3 + 1) / 4)}
    assert drawn[:2] == drawn[2:4] and drawn[0] != drawn[1] and drawn[:2] != drawn[4:]
