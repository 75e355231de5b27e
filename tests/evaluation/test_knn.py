"""The weighted kNN protocol against a loop over images, and against scikit-learn's classifier."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from modeling_sit.evaluation.knn import knn_predict


def slow_knn(train_features, train_labels, features, num_labels, k, temperature):
    """Votes of every image, one neighbour at a time, in Python's floats."""
    scores = []
    for feature in features.tolist():
        neighbours = []
        for index, train_feature in enumerate(train_features.tolist()):
            product = math.fsum(a * b for a, b in zip(feature, train_feature, strict=True))
            norms = math.hypot(*feature) * math.hypot(*train_feature)
            neighbours.append((-product / norms if norms else 0.0, index))
        votes = [0.0] * num_labels
        for negative_similarity, index in sorted(neighbours)[:k]:
            votes[int(train_labels[index])] += math.exp(-negative_similarity / temperature)
        scores.append([vote / math.fsum(votes) for vote in votes])
    return torch.tensor(scores, dtype=torch.float64)


def random_problem(num_train=53, num_images=17, hidden_size=6, num_labels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_train, hidden_size, generator=generator) * 3,
        torch.randint(num_labels, (num_train,), generator=generator),
        torch.randn(num_images, hidden_size, generator=generator),
        num_labels,
    )


@pytest.mark.parametrize("k", [1, 4, 20, 53])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 50, 4096])
def test_equals_a_loop_over_images(k, temperature, chunk_size):
    problem = random_problem()
    scores = knn_predict(*problem, k=k, temperature=temperature, chunk_size=chunk_size)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), slow_knn(*problem, k, temperature), rtol=1e-4, atol=1e-6)


def test_defaults_are_those_of_the_protocol():
    problem = random_problem()
    torch.testing.assert_close(knn_predict(*problem).double(), slow_knn(*problem, 20, 0.07), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5)])
def test_equals_scikit_learn(k, temperature):
    train_features, train_labels, features, num_labels = random_problem(num_train=300, num_images=80, seed=1)
    classifier = KNeighborsClassifier(
        n_neighbors=k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(train_features.numpy(), train_labels.numpy())
    scores = knn_predict(train_features, train_labels, features, num_labels, k, temperature, chunk_size=64)
    np.testing.assert_allclose(scores, classifier.predict_proba(features.numpy()), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(scores.argmax(dim=1), classifier.predict(features.numpy()))


def test_length_of_features_does_not_matter():
    train_features, train_labels, features, num_labels = random_problem()
    stretch = torch.logspace(-3, 3, len(train_features))[:, None]
    torch.testing.assert_close(
        knn_predict(train_features * stretch, train_labels, features * 100, num_labels),
        knn_predict(train_features, train_labels, features, num_labels),
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_of_images_equally_near_the_earlier_are_the_neighbours(chunk_size):
    far, near = [0.0, 1.0], [1.0, 0.0]
    train_features = torch.tensor([far, near, near, far, near, near, near])
    train_labels = torch.arange(7)
    for k, expected in [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (5, [1, 2, 4, 5, 6]), (6, [0, 1, 2, 4, 5, 6])]:
        scores = knn_predict(train_features, train_labels, torch.tensor([near]), 7, k=k, chunk_size=chunk_size)
        assert scores[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("chunk_size", [2, 5, 100])
def test_ties_among_many_equal_similarities(chunk_size):
    # Features of zeros and ones on few axes: the similarities take few values, and are exact.
    generator = torch.Generator().manual_seed(0)
    train_features = torch.eye(3).repeat(12, 1)[torch.randperm(36, generator=generator)]
    train_labels = torch.arange(36)
    for k in range(1, 37):
        scores = knn_predict(train_features, train_labels, torch.eye(3), 36, k=k, chunk_size=chunk_size)
        expected = slow_knn(train_features, train_labels, torch.eye(3), 36, k, 0.07)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=0)


def test_of_labels_with_equal_scores_the_lower_is_predicted():
    scores = knn_predict(torch.ones(4, 2), torch.tensor([3, 1, 3, 1]), torch.ones(1, 2), 4, k=4)
    assert scores[0].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert scores.argmax(dim=1).item() == 1


def test_zero_features_are_similar_to_nothing():
    train_features = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    scores = knn_predict(train_features, torch.arange(3), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 3, k=2)
    # cos 45 degrees comes first, then the zero feature, before the one that points away
    ratio = math.exp(math.sqrt(0.5) / 0.07)
    torch.testing.assert_close(scores[0], torch.tensor([1 / (1 + ratio), 0.0, ratio / (1 + ratio)]))
    torch.testing.assert_close(scores[1], torch.tensor([0.5, 0.5, 0.0]))


def test_low_temperature_does_not_overflow():
    problem = random_problem()
    scores = knn_predict(*problem, temperature=1e-4)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(scores)))
    assert torch.equal(scores.argmax(dim=1), knn_predict(*problem, k=1).argmax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    train_features, train_labels, features, num_labels = random_problem(hidden_size=64)
    train_features, features = train_features.to(dtype), features.to(dtype)
    scores = knn_predict(train_features, train_labels, features, num_labels)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # rounded once, on the way in: nothing more may be lost
    expected = slow_knn(train_features, train_labels, features, num_labels, 20, 0.07)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance / 100)


def test_half_precision_features_too_long_for_it():
    train_features = torch.tensor([[60000.0, 60000.0], [-60000.0, 60000.0]], dtype=torch.float16)
    scores = knn_predict(train_features, torch.tensor([0, 1]), train_features, 2, k=1)
    assert torch.equal(scores, torch.eye(2))


def test_inputs_are_left_alone_and_no_images_are_no_scores():
    problem = random_problem()
    before = [tensor.clone() for tensor in problem[:3]]
    knn_predict(*problem)
    assert all(torch.equal(left, right) for left, right in zip(before, problem[:3], strict=True))
    assert knn_predict(problem[0], problem[1], torch.empty(0, 6), 5).shape == (0, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["train_features", "features"])
def test_features_that_are_not_finite_are_an_error(which, value):
    train_features, train_labels, features, num_labels = random_problem()
    {"train_features": train_features, "features": features}[which][13, 2] = value
    with pytest.raises(ValueError, match=rf"^{which}\[13\] is not finite"):
        knn_predict(train_features, train_labels, features, num_labels, chunk_size=5)


@pytest.mark.parametrize("k", [1, 20])
def test_labels_digits_exactly_as_scikit_learn_does(k):
    digits = load_digits()
    pixels, labels = digits.data, digits.target
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = classifier.fit(pixels[:900], labels[:900]).predict(pixels[900:])
    train, features = torch.from_numpy(pixels[:900]), torch.from_numpy(pixels[900:])
    predictions = knn_predict(train, torch.from_numpy(labels[:900]), features, 10, k=k).argmax(dim=1)
    assert (predictions.numpy() == expected).all()


@pytest.mark.parametrize("chunk_size", [5, 4096])
def test_of_several_labels_each_gets_the_votes_of_those_that_have_it(chunk_size):
    train_features, _, features, num_labels = random_problem()
    train_labels = (torch.rand(53, num_labels, generator=torch.Generator().manual_seed(5)) < 0.4).float()
    scores = knn_predict(train_features, train_labels, features, num_labels, k=7, chunk_size=chunk_size)
    for label in range(num_labels):
        # One label alone is a matter of two classes: those that have it, and those that do not.
        alone = slow_knn(train_features, train_labels[:, label], features, 2, 7, 0.07)[:, 1]
        torch.testing.assert_close(scores[:, label].double(), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 54}, "k = 54 neighbors cannot be drawn from 53 training images"),
        ({"k": 0}, "k = 0 neighbors"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"num_labels": 4}, r"outside \[0, 4\)"),
        ({"train_labels": torch.full((53,), -1)}, r"from -1 to -1"),
        ({"train_labels": torch.zeros(52, dtype=torch.long)}, "53 training features need as many labels"),
        ({"train_labels": torch.zeros(53, 4)}, "53 training features need as many labels"),
        ({"train_labels": torch.full((53, 5), -1.0)}, r"outside \[0, 2\)"),
        ({"features": torch.zeros(3, 7)}, r"\(53, 6\) and \(3, 7\)"),
        ({"features": torch.zeros(6)}, r"\(53, 6\) and \(6,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(change, message):
    names = ("train_features", "train_labels", "features", "num_labels")
    arguments = dict(zip(names, random_problem(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)
