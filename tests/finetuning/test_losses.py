"""Targets and losses, against loops, closed forms and other libraries."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from modeling_sit.finetuning.losses import (
    MultiLabelLoss,
    SingleLabelLoss,
    balanced_class_weights,
    balancing_weights,
    create_mixing,
    soft_targets,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
SEVERAL = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0.0]])


class TestTargets:
    def test_of_one_label(self):
        assert soft_targets(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
        expected = torch.tensor([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
        torch.testing.assert_close(soft_targets(torch.tensor([2, 0]), 3, 0.3), expected)

    def test_of_several(self):
        assert soft_targets(SEVERAL, 4).equal(SEVERAL)
        torch.testing.assert_close(soft_targets(SEVERAL, 4, 0.2), SEVERAL * 0.8 + 0.1)


class TestMixing:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    targets = soft_targets(torch.arange(8), 8, 0.1)

    def test_none(self):
        assert create_mixing(0, 0) is None

    def test_mixup_mixes_targets_as_it_mixes_pixels(self):
        torch.manual_seed(1)
        images, targets = create_mixing(0.8, 0)(self.images, self.targets)
        # The share of its own image, by least squares over the pixels of the two.
        for number in range(8):
            own, other = self.images[number], self.images[number - 1]
            share = ((images[number] - other) * (own - other)).sum() / (own - other).square().sum()
            torch.testing.assert_close(images[number], share * own + (1 - share) * other)
            expected = share * self.targets[number] + (1 - share) * self.targets[number - 1]
            torch.testing.assert_close(targets[number], expected)
        assert not torch.equal(images, self.images)

    def test_cutmix_mixes_targets_by_the_area(self):
        for seed in range(4):
            torch.manual_seed(seed)
            images, targets = create_mixing(0, 1.0)(self.images, self.targets)
            share = (images[0] == self.images[0]).float().mean()
            expected = share * self.targets[0] + (1 - share) * self.targets[-1]
            torch.testing.assert_close(targets[0], expected)

    def test_both_are_drawn(self):
        mixing = create_mixing(0.8, 1.0)
        kinds = set()
        for seed in range(20):
            torch.manual_seed(seed)
            images, _ = mixing(self.images, self.targets)
            kinds.add(bool((images[0] == self.images[0]).any() or (images[0] == self.images[-1]).any()))
        assert kinds == {True, False}

    def test_is_a_function_of_torch_manual_seed(self):
        results = []
        for _ in range(2):
            torch.manual_seed(5)
            results.append(create_mixing(0.8, 1.0)(self.images, self.targets)[0])
        assert torch.equal(*results)


class TestSingleLabelLoss:
    def test_is_cross_entropy_with_label_smoothing(self, logits):
        loss = SingleLabelLoss()(logits, soft_targets(LABELS, 4, 0.1))
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.1))

    def test_weighted(self, logits):
        weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
        loss = SingleLabelLoss(weights)(logits, soft_targets(LABELS, 4))
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, LABELS, weight=weights))

    def test_weighted_over_mixed_targets(self, logits):
        weights, targets = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.rand(6, 4).softmax(1)
        total = norm = 0.0
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
            log_sum = math.log(sum(math.exp(value) for value in row))
            for value, share, weight in zip(row, target, weights.tolist(), strict=True):
                total += weight * share * (log_sum - value)
                norm += weight * share
        assert SingleLabelLoss(weights)(logits, targets).item() == pytest.approx(total / norm, rel=1e-5)


class TestMultiLabelLoss:
    def test_is_binary_cross_entropy(self, logits):
        expected = torch.nn.BCELoss()(logits.sigmoid(), SEVERAL)
        torch.testing.assert_close(MultiLabelLoss(False)(logits, SEVERAL), expected)

    def test_positive_weights(self, logits):
        weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
        for asymmetric in (False, True):
            plain = MultiLabelLoss(asymmetric)(logits, SEVERAL)
            positive = MultiLabelLoss(asymmetric)(logits[:, 1:2], torch.ones(6, 1))
            weighted = MultiLabelLoss(asymmetric, weights[1:2])(logits[:, 1:2], torch.ones(6, 1))
            torch.testing.assert_close(weighted, 2 * positive)
            negatives = MultiLabelLoss(asymmetric, weights)(logits, torch.zeros(6, 4))
            torch.testing.assert_close(negatives, MultiLabelLoss(asymmetric)(logits, torch.zeros(6, 4)))
            assert MultiLabelLoss(asymmetric, weights)(logits, SEVERAL) != plain

    def test_asymmetric_by_hand(self, logits):
        total = 0.0
        for row, target in zip(logits.double().tolist(), SEVERAL.tolist(), strict=True):
            for value, truth in zip(row, target, strict=True):
                p = 1 / (1 + math.exp(-value))
                if truth:
                    total -= (1 - p) * math.log(p)
                else:
                    shifted = max(p - 0.05, 0)
                    total -= shifted**4 * math.log(1 - shifted)
        assert MultiLabelLoss(True)(logits, SEVERAL).item() == pytest.approx(total / 24, rel=1e-5)

    def test_asymmetric_as_in_timm(self, logits):
        timm_loss = pytest.importorskip("timm.loss").AsymmetricLossMultiLabel
        theirs = timm_loss(gamma_neg=4, gamma_pos=1, clip=0.05, reduction="mean")(logits, SEVERAL)
        torch.testing.assert_close(MultiLabelLoss(True)(logits, SEVERAL), theirs)

    def test_finite_for_logits_that_are_certain(self):
        logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
        for targets in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
            loss = MultiLabelLoss(True)(logits, targets)
            loss.backward()
            assert loss.isfinite() and logits.grad.isfinite().all()


class TestBalancedClassWeights:
    def test_is_scikit_learns(self):
        labels = torch.tensor([0] * 7 + [1] * 2 + [3])
        weights = balanced_class_weights(labels, 5)
        expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy())
        torch.testing.assert_close(weights[[0, 1, 3]].double(), torch.tensor(expected), rtol=1e-6, atol=0)
        assert weights[[2, 4]].tolist() == [1, 1]

    def test_of_several_labels(self):
        labels = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0.0]])
        assert balanced_class_weights(labels, 3).tolist() == [pytest.approx(1 / 3), 3, 1]
        # A weight of 0 would leave the first one unlearned.
        assert balanced_class_weights(labels[:3], 3).tolist() == [1, 2, 1]


class TestBalancingWeights:
    def test_are_one_over_the_class_size(self):
        labels = torch.tensor([0, 0, 0, 2, 0, 2])
        assert balancing_weights(labels).tolist() == [1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 4, 1 / 2]

    def test_of_several_labels_the_rarest_counts(self):
        labels = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0.0]])
        assert balancing_weights(labels).tolist() == [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 2, 1 / 2]
