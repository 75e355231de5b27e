"""SIGReg against a slow version, closed forms, and lightly's."""

import math

import pytest
import torch
from slow_sigreg import slow_sigreg

from modeling_sit.pretraining.sigreg import random_directions, sigreg_loss


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def random_projections(views: int = 3, images: int = 6, size: int = 5, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(views, images, size, generator=torch.Generator().manual_seed(seed)) + 0.5


def directions_of(size: int = 5, number: int = 7) -> torch.Tensor:
    torch.manual_seed(1)
    return random_directions(size, number, torch.device("cpu"))


def test_is_the_slow_one():
    projections, directions = random_projections(), directions_of()
    loss = sigreg_loss(projections, directions, alone, num_images=6)
    assert loss.item() == pytest.approx(slow_sigreg(projections, directions), rel=1e-5)


def test_collapsed():
    """All projections 0: the integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2), whose tails beyond 3 are small."""
    loss = sigreg_loss(torch.zeros(2, 50, 4), directions_of(4), alone, num_images=50)
    integral = math.sqrt(2 * math.pi) - 2 * math.sqrt(math.pi) + math.sqrt(2 * math.pi / 3)
    assert loss.item() == pytest.approx(50 * integral, rel=0.02)


def test_gaussian():
    """A sample of the normal distribution: the mean of |error|^2 is (1 - exp(-t^2)) / N, whatever the number of images."""
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    for images in (50, 400):
        sample = torch.randn(40, images, 16, generator=torch.Generator().manual_seed(0))
        loss = sigreg_loss(sample, directions_of(16, 64), alone, num_images=images)
        assert loss.item() == pytest.approx(expected, rel=0.05)


def test_gradients_spread_what_has_collapsed():
    projections = (0.01 * random_projections(images=64, size=4)).requires_grad_()
    optimizer = torch.optim.Adam([projections], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        sigreg_loss(projections, random_directions(4, 64, torch.device("cpu")), alone, num_images=64).backward()
        optimizer.step()
    final = projections.detach()
    assert final.mean(dim=1).abs().max() < 0.15
    assert final.std(dim=1).sub(1).abs().max() < 0.3


def test_shares_of_two_processes():
    """Each has the mean of the characteristic functions, and the mean of their gradients is the whole batch's."""
    whole, directions = random_projections().requires_grad_(), directions_of()
    loss = sigreg_loss(whole, directions, alone, num_images=6)
    loss.backward()
    shares = [share.detach().requires_grad_() for share in whole.chunk(2, dim=1)]
    functions = []
    for share in shares:
        sigreg_loss(share, directions, lambda own: functions.append(own) or own, num_images=6)
    losses = [
        sigreg_loss(share, directions, lambda _: torch.stack(functions).mean(dim=0), num_images=6) for share in shares
    ]
    assert [each.item() for each in losses] == pytest.approx([loss.item()] * 2)
    (sum(losses) / 2).backward()
    torch.testing.assert_close(torch.cat([share.grad for share in shares], dim=1), whole.grad)


def test_directions_are_unit_vectors_and_drawn_anew():
    torch.manual_seed(0)
    one, other = (random_directions(5, 300, torch.device("cpu")) for _ in range(2))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(300))
    assert one.mean(dim=1).abs().max() < 0.1 and not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(random_directions(5, 300, torch.device("cpu")), one)


def test_lightly_has_the_same(monkeypatch):
    losses = pytest.importorskip("lightly.loss.lejepa_loss")
    directions, projections = directions_of(), random_projections()
    monkeypatch.setattr(losses.SIGReg, "_generate_unit_vectors", lambda self, *arguments: directions)
    theirs = losses.LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=7)
    total = theirs(global_proj=projections[:2], local_proj=projections[2:])
    invariance = (projections - projections[:2].mean(dim=0)).square().mean()
    ours = 0.95 * invariance + 0.05 * sigreg_loss(projections, directions, alone, num_images=6)
    torch.testing.assert_close(ours, total)
