"""Which image is seen when, and with which seed."""

import pytest
import torch

from modeling_sit.data.sampling import (
    CROPS,
    ORDER,
    PREVIEW,
    STEP,
    LoadingSettings,
    ResumableBatchSampler,
    derive_seed,
)


def batches(num_images=10, batch_size=3, seed=0, start=0, stop=6, **process) -> list[list[tuple[int, int]]]:
    return list(ResumableBatchSampler(num_images, LoadingSettings(batch_size, seed, **process), start, stop))


def indices(batches) -> list[int]:
    return [index for batch in batches for index, _ in batch]


def test_every_image_once_an_epoch():
    for start in (0, 4, 8):
        assert sorted(indices(batches(12, 3, start=start, stop=start + 4))) == list(range(12))


def test_what_does_not_fill_a_batch_is_left_to_other_epochs():
    epochs = [indices(batches(10, 3, start=start, stop=start + 3)) for start in range(0, 300, 3)]
    assert all(len(epoch) == len(set(epoch)) == 9 for epoch in epochs)
    left_out = [(set(range(10)) - set(epoch)).pop() for epoch in epochs]
    assert set(left_out) == set(range(10))


def test_order_is_another_one_in_another_epoch_and_with_another_seed():
    first, second = indices(batches(50, 10, stop=5)), indices(batches(50, 10, start=5, stop=10))
    assert first != second
    assert first != indices(batches(50, 10, seed=1, stop=5))
    assert first == indices(batches(50, 10, stop=5))
    assert first != sorted(first)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_batches_of_one_process(num_processes):
    together = batches(40, 4 * num_processes, stop=9)
    parts = [
        batches(40, 4, stop=9, process_index=process, num_processes=num_processes) for process in range(num_processes)
    ]
    assert all(len(part) == 9 and all(len(batch) == 4 for batch in part) for part in parts)
    for whole, *own in zip(together, *parts, strict=True):
        assert whole == [pair for batch in own for pair in batch]
        assert len({index for index, _ in whole}) == 4 * num_processes


@pytest.mark.parametrize("start", range(8))
def test_starting_at_a_batch_is_dropping_those_before(start):
    for process in range(2):
        processes = {"process_index": process, "num_processes": 2}
        assert batches(stop=8, start=start, **processes) == batches(stop=8, **processes)[start:]


def test_length_and_stop():
    sampler = ResumableBatchSampler(10, LoadingSettings(3, 0), 2, 7)
    assert len(sampler) == len(list(sampler)) == 5
    assert len(list(sampler)) == 5  # it can be walked through again
    assert batches(stop=0) == []
    assert batches(start=4, stop=4) == []


def test_seeds_of_draws_differ_between_images_epochs_and_runs():
    seeds = [seed for batch in batches(30, 5, stop=60) for _, seed in batch]
    seeds += [seed for batch in batches(30, 5, seed=1, stop=60) for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 600


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    result = batches()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert batches() == result


@pytest.mark.parametrize(("num_images", "num_processes"), [(2, 1), (5, 2)])
def test_too_few_images(num_images, num_processes):
    with pytest.raises(ValueError, match=f"{num_images} images"):
        ResumableBatchSampler(num_images, LoadingSettings(3, 0, num_processes=num_processes), 0, 1)
    ResumableBatchSampler(3 * num_processes, LoadingSettings(3, 0, num_processes=num_processes), 0, 1)


def test_derived_seeds_are_seeds():
    for seed in (0, 42, 2**32 - 1, 2**63 - 1):
        derived = derive_seed(seed, ORDER, 10**9)
        assert 0 <= derived < 2**63
        torch.manual_seed(derived)
        assert derived == derive_seed(seed, ORDER, 10**9)


def test_derived_seeds_differ_where_an_argument_does():
    arguments = [
        (seed, purpose, *numbers)
        for seed in (0, 1, 42, 2**40)
        for purpose in (ORDER, CROPS, STEP, PREVIEW)
        for numbers in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (7, 3))
    ]
    assert len({derive_seed(*one) for one in arguments}) == len(arguments)


def test_a_seed_of_two_words_is_not_the_same_as_two_numbers():
    assert derive_seed(1 + (CROPS << 32), 0, 5) != derive_seed(1, CROPS, 0, 5)
