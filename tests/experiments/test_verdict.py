"""The closing words, on made-up numbers: pretraining helps, does harm, or makes no difference."""

from math import sqrt

import numpy as np
import pytest

from modeling_sit.experiments.comparison_runs import Choice
from modeling_sit.experiments.verdict import (
    NOT_SEARCHED,
    ONE_LENGTH,
    STILL_RISES,
    Side,
    best_of,
    difference,
    length_remark,
    ranking,
    verdict,
)


def test_noise_is_the_standard_error_of_the_difference():
    found = difference(Side([0.9, 0.94]), Side([0.8]), 400)
    # Seeds: a variance of 0.0008, over two seeds. Test images: 0.92 * 0.08 and 0.8 * 0.2, over 400.
    assert found.noise == pytest.approx(sqrt(0.0008 / 2 + 0.0736 / 400 + 0.16 / 400))
    assert found.value == pytest.approx(0.12)
    assert found.is_clear and not found.is_noise


def test_seeds_are_paired():
    """Of two seeds, one drew labels that are worth 10 points less to both sides."""
    found = difference(Side([0.8, 0.92]), Side([0.76, 0.86]), 400)
    images = (0.86 * 0.14 + 0.81 * 0.19) / 400
    assert found.value == pytest.approx(0.05)
    assert found.noise == pytest.approx(sqrt(0.02**2 / 2 / 2 + images))  # gains of 0.04 and 0.06


def test_images_are_paired():
    """Two seeds each on four images: what counts is on which images the sides differ."""
    hits = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    others = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    found = difference(Side([0.75, 0.5], hits), Side([0.5, 0.25], others), 4)
    # The seeds differ alike. The images differ by 0, 1, 0, 0: a variance of 1/4, over four images.
    assert (found.value, found.noise) == (0.25, pytest.approx(0.25))
    same = difference(Side([0.75, 0.5], hits), Side([0.75, 0.5], hits), 4)
    assert (same.value, same.noise) == (0, 0)
    one_of_other_images = Side([0.5], others[:1, :3])
    assert difference(Side([0.75], hits[:1]), one_of_other_images, 4) == difference(Side([0.75]), Side([0.5]), 4)


@pytest.mark.parametrize("paired", [False, True])
def test_noise_by_simulation(paired):
    """The noise is the standard deviation of the difference over many experiments. Whether the images are as hard for one side as
    for the other is known where the hits are given; else the noise is that of two sides which err on images of their own."""
    generator = np.random.default_rng(0)
    num_images, std = 500, 0.02

    def measured(true: float, labels: np.ndarray, difficulty: np.ndarray) -> Side:
        """Three seeds, whose labels and models differ; each is right on some of the images, the same ones for all of
        them."""
        accuracies = np.clip(true + labels + std * generator.standard_normal(3), 0, 1)
        hits = difficulty < accuracies[:, None]
        return Side([float(each.mean()) for each in hits], hits if paired else None)

    differences, noises = [], []
    for _ in range(2000):
        labels = 0.03 * generator.standard_normal(3)
        one, other = generator.random((2, num_images))
        found = difference(measured(0.9, labels, one), measured(0.8, labels, one if paired else other), num_images)
        differences.append(found.value)
        noises.append(found.noise**2)
    assert sqrt(np.mean(noises)) == pytest.approx(np.std(differences), rel=0.1)
    assert (np.std(differences) < 0.021) == paired  # and much smaller where both sides err on the same images


def test_helps():
    text = verdict(
        0.1,
        Side([0.95, 0.951, 0.952]),
        Side([0.88, 0.882, 0.884]),
        {"kNN": Side([0.9]), "RBF SVM": Side([0.926])},
        10_000,
    )
    assert text.startswith(
        "With 10 % of the labels, pretraining helps: 95.1 % against 88.2 % from scratch (+6.9, more than twice"
    )
    assert "better than the best classifier of raw pixels, RBF SVM: 92.6 % (+2.5, more than twice" in text
    assert "one seed" not in text


def test_loses():
    text = verdict(1.0, Side([0.90, 0.91]), Side([0.95, 0.951]), {"RBF SVM": Side([0.99])}, 10_000)
    assert text.startswith("With all labels, pretraining does harm: 90.5 % against 95.0 %")
    assert (
        "(-4.5, more than twice" in text
        and "loses to the best classifier of raw pixels, RBF SVM: 99.0 % (-8.5" in text
    )


def test_within_the_noise():
    text = verdict(0.01, Side([0.80, 0.84]), Side([0.81, 0.82]), {"kNN": Side([0.82])}, 100)
    assert "With 1 % of the labels, pretraining makes no difference" in text and "+0.5, within the noise of" in text
    assert "about as good as the best classifier of raw pixels, kNN" in text


def test_more_than_the_noise_but_not_twice():
    text = verdict(0.5, Side([0.90, 0.90]), Side([0.85, 0.85]), {}, 100)
    assert "pretraining perhaps helps" in text and "but not twice it" in text and "raw pixels" not in text


def test_equals_are_best_together():
    """Else the order of the plan would decide."""
    rivals = {"worse": Side([0.1]), "one": Side([0.1 + 0.2]), "other": Side([0.3])}
    assert best_of(rivals, 10_000) == "one, other are best on these test images: 30.0 %."
    del rivals["other"]
    assert best_of(rivals, 10_000).startswith("one is best")
    assert best_of(rivals, 10).endswith("and worse is not clearly worse.")


def test_a_ranking_names_the_best_raw_pixels():
    pixels = {"kNN": Side([0.7]), "RBF SVM": Side([0.8])}
    text = ranking(0.1, {"sit": Side([0.5, 0.4]), "mae": Side([0.2, 0.2])}, Side([0.3, 0.3]), pixels, 10_000)
    assert "sit is best" in text and "From scratch: 30.0 %" in text
    assert "raw pixels, RBF SVM: 80.0 % (difference -35.0" in text
    assert "raw pixels" not in ranking(0.1, {"sit": Side([0.5])}, Side([0.3]), {}, 100)


def test_one_seed_says_so():
    assert "one seed" in verdict(1.0, Side([0.9]), Side([0.8]), {}, 1000)


@pytest.mark.parametrize(
    ("scratch", "remark"),
    [
        (None, NOT_SEARCHED),
        (Choice(1e-3, 500), NOT_SEARCHED),
        (Choice(1e-3, 500, "20 % of train", "accuracy", 0.8), ONE_LENGTH),  # the rate alone was searched
        (Choice(1e-3, 500, "20 % of train", "accuracy", 0.8, True, True), STILL_RISES),
        (Choice(1e-3, 500, "20 % of train", "accuracy", 0.8, True, False), ""),
    ],
)
def test_training_from_scratch_that_may_have_stopped_too_early(scratch, remark):
    assert length_remark(scratch) == remark
