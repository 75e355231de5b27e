"""The order of an epoch's images, and balanced draws."""

import pytest
import torch

from modeling_sit.finetuning.losses import balancing_weights
from modeling_sit.finetuning.sampling import EpochOrder


def epoch(order: EpochOrder, number: int) -> list[tuple[int, int]]:
    order.set_epoch(number)
    return list(order)


def test_every_image_once_an_epoch_in_new_orders():
    order = EpochOrder(50, seed=3)
    epochs = [[index for index, _ in epoch(order, number)] for number in range(3)]
    assert all(sorted(indices) == list(range(50)) for indices in epochs)
    assert len({tuple(indices) for indices in epochs}) == 3
    assert len(order) == 50


def test_is_a_function_of_seed_and_epoch():
    """Not of the global generators, nor of how often it was asked."""
    again = EpochOrder(20, seed=3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert epoch(EpochOrder(20, seed=3), 7) == epoch(again, 7) == epoch(again, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert epoch(again, 8) != epoch(again, 7) != epoch(EpochOrder(20, seed=4), 7)


@pytest.mark.parametrize("weights", [None, torch.ones(30)])
def test_every_draw_has_a_seed_of_its_own(weights):
    """Also of an image that is drawn twice."""
    seeds = {seed for number in range(5) for _, seed in epoch(EpochOrder(30, 0, weights), number)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_balanced_draws_give_all_classes_alike():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = torch.cat(
        [
            labels[[index for index, _ in epoch(EpochOrder(1000, 0, balancing_weights(labels)), number)]]
            for number in range(3)
        ]
    )
    assert (drawn.bincount() - 1000).abs().max() < 150
