"""Projections of all processes, by view, with where a process's own stand."""

from types import SimpleNamespace

import pytest
import torch

from modeling_sit.losses import contrastive_loss
from modeling_sit.training.contrast import gather_projections


def processes(projections: list[torch.Tensor]) -> list[SimpleNamespace]:
    """Stand-ins for the accelerators of processes with these projections: gathering puts one after the other."""
    return [
        SimpleNamespace(
            num_processes=len(projections), process_index=index, gather=lambda mine: torch.cat(projections)
        )
        for index in range(len(projections))
    ]


def random_projections(num_processes: int, batch_size: int = 3, size: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 * batch_size, size, generator=generator) for _ in range(num_processes)]


def test_one_process_keeps_its_own():
    (mine,) = random_projections(1)
    (accelerator,) = processes([mine])
    gathered, offset = gather_projections(accelerator, mine)
    assert torch.equal(gathered, mine)
    assert offset == 0


@pytest.mark.parametrize("num_processes", [2, 3])
def test_view_1_of_all_processes_comes_first(num_processes):
    parts = random_projections(num_processes)
    expected = torch.cat([part[:3] for part in parts] + [part[3:] for part in parts])
    for index, (accelerator, mine) in enumerate(zip(processes(parts), parts, strict=True)):
        gathered, offset = gather_projections(accelerator, mine)
        assert torch.equal(gathered, expected)
        assert offset == 3 * index
        view_1, view_2 = gathered.chunk(2)
        assert torch.equal(view_1[offset : offset + 3], mine[:3])
        assert torch.equal(view_2[offset : offset + 3], mine[3:])


def test_losses_of_processes_average_to_that_of_one_process_with_all_pictures():
    students, teachers = random_projections(4)[:2], random_projections(4)[2:]
    losses = []
    for accelerator, student, teacher in zip(processes(teachers), students, teachers, strict=True):
        gathered, offset = gather_projections(accelerator, teacher)
        losses.append(contrastive_loss(student, gathered, 0.2, offset))

    def together(parts):
        return torch.cat([part[:3] for part in parts] + [part[3:] for part in parts])

    torch.testing.assert_close(torch.stack(losses).mean(), contrastive_loss(together(students), together(teachers)))
