"""The linear probe against scikit-learn by hand, against its own objective, and on real images."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from modeling_sit.evaluation import linear
from modeling_sit.evaluation.linear import SgdSettings, fit_by_lbfgs, fit_by_sgd, linear_predict, standardization


def blobs(num_images: int, num_labels: int, size: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes, in dimensions of very different means and scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_labels
    centres = torch.randn(num_labels, size, generator=torch.Generator().manual_seed(99))
    features = centres[labels] + torch.randn(num_images, size, generator=generator)
    return features * torch.logspace(-2, 2, size) + torch.arange(size) * 10, labels


def test_equals_scikit_learn_on_features_standardized_by_hand():
    (train, train_labels), (features, _) = blobs(60, 3), blobs(20, 3, seed=1)
    mean, std = train.double().numpy().mean(axis=0), train.double().numpy().std(axis=0)
    probe = LogisticRegression(C=0.3).fit((train.double().numpy() - mean) / std, train_labels.numpy())
    expected = torch.from_numpy(probe.predict_proba((features.double().numpy() - mean) / std)).float()
    scores = linear_predict(train, train_labels, features, num_labels=3, C=0.3)
    assert (scores.dtype, scores.shape) == (torch.float32, (20, 3))
    torch.testing.assert_close(scores, expected)


def test_is_the_optimum_of_its_objective():
    (train, train_labels), (features, _) = blobs(60, 3), blobs(20, 3, seed=1)
    mean, std = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        logits = (train - mean) / std @ weight.T + bias
        loss = 2.0 * F.cross_entropy(logits, train_labels, reduction="sum") + weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(objective)
    expected = ((features - mean) / std @ weight.T + bias).softmax(dim=1).detach().float()
    scores = linear_predict(train, train_labels, features, num_labels=3, C=2.0, max_iterations=1000)
    torch.testing.assert_close(scores, expected, atol=2e-3, rtol=0)


def test_reads_real_digits():
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target)
    scores = linear_predict(pixels[:600], labels[:600], pixels[600:1200], num_labels=10)
    # Well known of logistic regression on these pixels: above 90 %.
    assert (scores.argmax(dim=1) == labels[600:1200]).float().mean() > 0.9


def test_labels_without_images_score_nothing():
    train, labels = blobs(40, 2)
    compact = linear_predict(train, labels, train, num_labels=2)
    spread_out = linear_predict(train, labels * 3 + 1, train, num_labels=6)
    assert torch.equal(spread_out[:, [1, 4]], compact)
    assert not spread_out[:, [0, 2, 3, 5]].any()


def test_a_single_known_label_is_always_right():
    train, _ = blobs(4, 2)
    scores = linear_predict(train, torch.full((4,), 2), train[:3], num_labels=4)
    assert scores.tolist() == [[0, 0, 1, 0]] * 3


def test_dimensions_that_never_change_do_no_harm():
    train, labels = blobs(40, 2)
    padded = F.pad(train, (0, 1), value=7.0)
    torch.testing.assert_close(
        linear_predict(padded, labels, padded, num_labels=2), linear_predict(train, labels, train, num_labels=2)
    )


def test_same_arguments_same_scores_and_nothing_drawn():
    train, labels = blobs(40, 3)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    first, second = (linear_predict(train, labels, train, num_labels=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_stops_in_silence_after_as_many_iterations_as_it_may():
    train, labels = blobs(60, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rough = linear_predict(train, labels, train, num_labels=40, max_iterations=1)
        fine = linear_predict(train, labels, train, num_labels=40, max_iterations=50)
    losses = [F.nll_loss(scores.clamp_min(1e-9).log(), labels) for scores in (rough, fine)]
    assert losses[0] > 1.5 * losses[1]


def test_features_and_labels_are_left_as_they_are():
    train, labels = blobs(40, 3)
    train.requires_grad_()
    copies = train.detach().clone(), labels.clone()
    scores = linear_predict(train, labels, train, num_labels=3)
    assert not scores.requires_grad
    assert torch.equal(train, copies[0]) and torch.equal(labels, copies[1])
    assert linear_predict(train.half(), labels, train[:0].half(), num_labels=3).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 5)}, "shapes"),
        ({"train_features": torch.zeros(4, 6, 1)}, "shapes"),
        ({"train_labels": torch.zeros(3, dtype=torch.long)}, "not one each"),
        ({"train_features": torch.zeros(0, 6), "train_labels": torch.zeros(0, dtype=torch.long)}, "not one each"),
        ({"train_labels": torch.tensor([0, 1, 2, 3])}, r"run from 0 to 3, outside \[0, 3\)"),
        ({"train_labels": torch.tensor([0, 1, -1, 2])}, "run from -1"),
        ({"train_features": torch.full((4, 6), torch.nan)}, "train_features are not all finite"),
        ({"features": torch.full((4, 6), torch.inf)}, "features are not all finite"),
        ({"C": 0.0}, "positive"),
        ({"C": float("nan")}, "positive"),
        ({"max_iterations": 0}, "positive"),
    ],
)
def test_refuses(change, message):
    train, labels = blobs(4, 3)
    arguments = {"train_features": train, "train_labels": labels, "features": train, "num_labels": 3}
    with pytest.raises(ValueError, match=message):
        linear_predict(**{**arguments, **change})


# The probes of the protocols.


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr("modeling_sit.evaluation.linear.MIN_STEPS", 100)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target)
    return pixels[:600], labels[:600], pixels[600:1200], labels[600:1200]


def standardized(train, features):
    scaler = StandardScaler().fit(train.double().numpy())
    return scaler.transform(train.double().numpy()), scaler.transform(features.double().numpy())


def test_lbfgs_is_scikit_learn_at_every_strength(digits):
    train, train_labels, features, _ = digits
    x, y = standardized(train, features)
    for strength, probe in zip((0.01, 1.0), fit_by_lbfgs(train, train_labels, 10, [0.01, 1.0]), strict=True):
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
        expected = model.fit(x, train_labels.numpy()).predict_proba(y)
        torch.testing.assert_close(probe.predict(features), torch.from_numpy(expected).float(), atol=2e-3, rtol=0)


def test_hardly_any_penalty_is_fitted_to_the_end_too(digits):
    train, train_labels, features, _ = digits
    (probe,), (hasty,) = (
        fit_by_lbfgs(train, train_labels, 10, [1000.0], **limit) for limit in ({}, {"max_iterations": 20})
    )
    assert probe.converged and not hasty.converged
    x, y = standardized(train, features)
    newton = LogisticRegression(C=1000.0, solver="newton-cg", tol=1e-8, max_iter=1000).fit(x, train_labels.numpy())
    expected = torch.from_numpy(newton.predict_proba(y)).float()
    torch.testing.assert_close(probe.predict(features), expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("products", "iterations"), [(10**11, 10_000), (600 * 64 * 10 * 300, 300), (1, 200)])
def test_iterations_fall_with_the_size_of_the_set(digits, monkeypatch, products, iterations):
    asked_for = []

    def note_iterations(standardized, target, strengths, max_iterations, tolerance):
        asked_for.append(max_iterations)
        return [(np.zeros((10, 64)), np.zeros(10), True)]

    monkeypatch.setattr(linear, "LBFGS_MAX_PRODUCTS", products)
    monkeypatch.setattr(linear, "_fit_path", note_iterations)
    fit_by_lbfgs(digits[0], digits[1], 10, [1.0])
    fit_by_lbfgs(digits[0], digits[1], 10, [1.0], max_iterations=7)
    assert asked_for == [iterations, 7]


def test_lbfgs_leaves_features_in_float64_as_they_are():
    train, labels = blobs(40, 3)
    features = train.double()
    fit_by_lbfgs(features, labels, 3, [1.0])
    assert torch.equal(features, train.double())


def test_sgd_is_within_half_a_point_of_scikit_learn(digits):
    train, train_labels, features, labels = digits
    x, y = standardized(train, features)
    for strength, probe in zip((0.01, 1.0), fit_by_sgd(train, train_labels, 10, [0.01, 1.0]), strict=True):
        expected = LogisticRegression(C=strength, max_iter=1000).fit(x, train_labels.numpy()).score(y, labels.numpy())
        accuracy = (probe.predict(features).argmax(dim=1) == labels).double().mean().item()
        assert accuracy == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_penalty_is_the_same_in_both_ways_to_fit(num_labels):
    """Of two labels scikit-learn has one vector of weights, a softmax two."""
    train, labels = blobs(300, num_labels, size=8)
    (exact,), (near,) = (fit(train, labels, num_labels + 1, [0.003]) for fit in (fit_by_lbfgs, fit_by_sgd))
    assert (exact.predict(train) - near.predict(train)).abs().max() < 0.02


@pytest.mark.parametrize(("fit", "tolerance"), [(fit_by_lbfgs, 2e-3), (fit_by_sgd, 0.02)])
def test_several_labels_are_one_against_the_rest(digits, fit, tolerance):
    train, train_labels, features, _ = digits
    targets = torch.stack([train_labels < 3, train_labels % 2 == 0, torch.zeros(600), torch.ones(600)], dim=1).float()
    x, y = standardized(train, features)
    (probe,) = fit(train, targets, 4, [0.1])
    scores = probe.predict(features)
    for label in range(2):
        expected = LogisticRegression(C=0.1, max_iter=1000).fit(x, targets[:, label].numpy()).predict_proba(y)[:, 1]
        assert (scores[:, label] - torch.from_numpy(expected)).abs().mean() < tolerance
    # What no image has is never predicted, what all have always is.
    assert (scores[:, 2] == 0).all() and (scores[:, 3] > 0.9).all()


@pytest.mark.parametrize("fit", [fit_by_lbfgs, fit_by_sgd])
def test_labels_that_no_image_has_get_no_score(few_steps, fit):
    train, labels = blobs(40, 2)
    (probe,) = fit(train, labels * 3 + 1, 6, [1.0])
    scores = probe.predict(train)
    assert not scores[:, [0, 2, 3, 5]].any()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(40))


def test_sgd_draws_from_its_seed_alone(few_steps):
    train, labels = blobs(300, 3)
    before = torch.get_rng_state()
    first, second, other = (
        fit_by_sgd(train, labels, 3, [1.0], settings=SgdSettings(seed=seed))[0].weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_fits_of_one_pass_are_those_of_several(few_steps):
    train, labels = blobs(60, 3)
    together = fit_by_sgd(train, labels, 3, [0.01, 1.0])
    for strength, probe in zip((0.01, 1.0), together, strict=True):
        (alone,) = fit_by_sgd(train, labels, 3, [strength])
        torch.testing.assert_close(probe.weight, alone.weight, atol=1e-4, rtol=1e-3)


def test_standardization_is_scikit_learns():
    train, _ = blobs(100, 3)
    train[:, 2] = 0.1  # whose mean is not 0.1 to the last bit
    scaler = StandardScaler().fit(train.double().numpy())
    for chunk_size in (7, 1000):
        mean, scale = standardization(train, chunk_size)
        torch.testing.assert_close(mean, torch.from_numpy(scaler.mean_))
        torch.testing.assert_close(scale, torch.from_numpy(scaler.scale_))


def test_statistics_of_other_images_are_used(few_steps):
    train, labels = blobs(40, 3)
    others, _ = blobs(50, 3, seed=3)
    for fit in (fit_by_lbfgs, fit_by_sgd):
        (probe,) = fit(train, labels, 3, [1.0], statistics=standardization(others))
        torch.testing.assert_close(probe.mean.double(), others.double().mean(dim=0), atol=1e-4, rtol=1e-4)


def test_prediction_in_chunks():
    train, labels = blobs(40, 3)
    (probe,) = fit_by_lbfgs(train, labels, 3, [1.0])
    torch.testing.assert_close(probe.predict(train, chunk_size=7), probe.predict(train))
