"""Projections of all processes, by view and with gradients, with where a process's own stand."""

from types import SimpleNamespace

import pytest
import torch
from two_processes import BATCH_SIZE, loss_weights_of, projections_of, random_batch, share_of

from modeling_sit.losses import contrastive_loss
from modeling_sit.runtime.gather import gather_projections, mean_num_corrupted_pixels, views_first

ALONE = SimpleNamespace(num_processes=1, process_index=0, reduce=lambda tensor, reduction: tensor)


def random_projections(num_processes: int, batch_size: int = 3, size: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 * batch_size, size, generator=generator) for _ in range(num_processes)]


def together(parts: list[torch.Tensor]) -> torch.Tensor:
    batch_size = len(parts[0]) // 2
    return torch.cat([part[:batch_size] for part in parts] + [part[batch_size:] for part in parts])


def test_one_process_keeps_its_own():
    (mine,) = random_projections(1)
    mine.requires_grad_()
    gathered, offset = gather_projections(ALONE, mine)
    assert torch.equal(gathered, mine)
    assert offset == 0
    gathered.sum().backward()
    assert torch.equal(mine.grad, torch.ones_like(mine))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_view_1_of_all_processes_comes_first(num_processes):
    parts = random_projections(num_processes)
    assert torch.equal(views_first(torch.stack(parts)), together(parts))


def test_two_processes_have_the_same_and_know_their_own(replicated):
    expected = together([projections_of(process) for process in range(2)])
    for process, results in enumerate(replicated):
        gathered, offset = results["gather"]["gathered"], int(results["gather"]["offset"])
        assert torch.equal(gathered, expected)
        assert offset == process * BATCH_SIZE
        mine = torch.cat([view[offset : offset + BATCH_SIZE] for view in gathered.chunk(2)])
        assert torch.equal(mine, projections_of(process))


def test_gradients_come_from_both_processes_losses(replicated):
    """Against one process that has all projections, and whose loss is the sum of both."""
    parts = [projections_of(process).requires_grad_() for process in range(2)]
    gathered = together(parts)
    sum((gathered * loss_weights_of(process)).sum() for process in range(2)).backward()
    for part, results in zip(parts, replicated, strict=True):
        torch.testing.assert_close(results["gather"]["gradient"], part.grad)


def test_16_bits_are_gathered_in_32(replicated):
    expected = together([projections_of(process).half().float() for process in range(2)])
    assert torch.equal(replicated[0]["gather"]["half_gathered"], expected)


def test_losses_of_processes_average_to_that_of_one_process_with_all_images():
    students, teachers = random_projections(4)[:2], random_projections(4)[2:]
    gathered = views_first(torch.stack(teachers))
    losses = [contrastive_loss(student, gathered, 0.2, 3 * process) for process, student in enumerate(students)]
    torch.testing.assert_close(torch.stack(losses).mean(), contrastive_loss(together(students), together(teachers)))


def test_mean_number_of_corrupted_pixels(replicated):
    batch = random_batch(0)
    counts = [int(share_of(batch, process)["corruption_mask"].sum()) for process in range(2)]
    assert counts[0] > 2 * counts[1]
    for results in replicated:
        assert results["gather"]["mean_num_corrupted_pixels"] == sum(counts) / 2
    mask = share_of(batch, 1)["corruption_mask"]
    assert mean_num_corrupted_pixels(ALONE, mask) == counts[1]
