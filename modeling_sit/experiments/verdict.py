"""The last lines of a comparison: whether pretraining helped, by how much, and whether that is more than noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from statistics import mean, variance

import numpy as np

from modeling_sit.experiments.comparison_runs import Choice

ONE_SEED = " There is one seed, so the noise is that of the test images alone, and too small."
NOT_SEARCHED = (
    " The number of steps from scratch was not searched, so more steps may give a better result from scratch."
)
ONE_LENGTH = " From scratch only one number of steps was tried, so more steps may give a better result from scratch."
STILL_RISES = (
    " From scratch the result on held-out images still rose at the largest number of steps that was allowed, so more "
    "steps may give a better result from scratch."
)

MAY_BE_SEEN = (
    "The images that are measured are a part of the training split, so pretraining may have read them, without their labels. "
    "A test split that it has not read is fairer to the others."
)


@dataclass(frozen=True)
class Side:
    """
    One of two that are compared.

    Args:
        values (sequence of `float`): A metric in [0, 1], one for each seed, or one in all.
        hits (`np.ndarray` of shape `(len(values), num_images)`, *optional*): Whether each model is right on each test image, if
            the metric is the accuracy and this is known.
    """

    values: Sequence[float]
    hits: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return mean(self.values)


@dataclass(frozen=True)
class Difference:
    """
    The difference of two means over seeds, and its noise.

    The noise is the standard error of the difference: the root of the sum of what the seeds and the test images add.

    - Seeds: each seed draws the same labels for both sides, so the difference is taken for each seed: its variance over the
      seeds / their number. If one side has a single value, such as a classifier that draws nothing, it is the same for
      all seeds.
    - Test images: both sides are measured on the same images, and mostly err on the same ones. So the difference is taken
      for each image, between the means over the seeds of 1 (right) and 0 (wrong): its variance over the images / their
      number. Where it is not known on which images a side is right, p (1 - p) / number of images is added for either side, p
      being its mean. That is too much, because it takes the two for independent; of a mean average precision it is a rough
      guess. Neither gets smaller with more seeds.

    A difference counts as clear if it is more than twice the noise.

    Args:
        mean, other_mean (`float`): In [0, 1].
        noise (`float`): Standard error of `mean - other_mean`.
    """

    mean: float
    other_mean: float
    noise: float

    @property
    def value(self) -> float:
        return self.mean - self.other_mean

    @property
    def is_clear(self) -> bool:
        return abs(self.value) > 2 * self.noise

    @property
    def is_noise(self) -> bool:
        return abs(self.value) <= self.noise

    def in_words(self) -> str:
        """Such as `+6.9, more than twice the noise of 1.3`."""
        noise = f"the noise of {100 * self.noise:.1f}"
        if self.is_noise:
            size = f"within {noise}"
        else:
            size = f"more than twice {noise}" if self.is_clear else f"more than {noise}, but not twice it"
        return f"{100 * self.value:+.1f}, {size}"


def difference(side: Side, other: Side, num_images: int) -> Difference:
    """Compare two sides.

    Args:
        side, other ([`Side`]): Their seeds are in the same order.
        num_images (`int`): Test images that they were measured on.
    """
    num_seeds = max(len(side.values), len(other.values))
    pairs = zip(
        *(each.values if len(each.values) == num_seeds else [*each.values] * num_seeds for each in (side, other)),
        strict=True,
    )
    differences = [value - other_value for value, other_value in pairs]
    of_seeds = variance(differences) / num_seeds if num_seeds > 1 else 0.0
    return Difference(side.mean, other.mean, sqrt(of_seeds + _variance_of_images(side, other, num_images)))


def _variance_of_images(side: Side, other: Side, num_images: int) -> float:
    """What the draw of the test images adds to the variance of a difference."""
    if side.hits is None or other.hits is None or side.hits.shape[1] != other.hits.shape[1]:
        return sum(each.mean * (1 - each.mean) for each in (side, other)) / num_images
    of_images = side.hits.mean(axis=0) - other.hits.mean(axis=0)
    return float(of_images.var(ddof=1)) / len(of_images) if len(of_images) > 1 else 0.0


def verdict(
    label_fraction: float,
    pretrained: Side,
    scratch: Side,
    raw_pixels: Mapping[str, Side],
    num_images: int,
) -> str:
    """
    Whether pretraining helped with a fraction of the labels, in a sentence or two.

    Args:
        label_fraction (`float`): In (0, 1].
        pretrained, scratch ([`Side`]): The fine-tuned models.
        raw_pixels (mapping from `str` to [`Side`]): The classifiers of raw pixels by their names; it may be empty. The best
            of them is compared, as the test images say, which favors it.
        num_images (`int`): Test images.
    """
    from_scratch = difference(pretrained, scratch, num_images)
    text = (
        f"{_labels(label_fraction)}, {_effect(from_scratch)}: {_percent(from_scratch.mean)} against {_percent(from_scratch.other_mean)} "
        f"from scratch ({from_scratch.in_words()})."
    )
    if raw_pixels:
        name, best = max(raw_pixels.items(), key=lambda item: item[1].mean)
        from_pixels = difference(pretrained, best, num_images)
        text += (
            f" {_place(from_pixels)} the best classifier of raw pixels, {name}: {_percent(from_pixels.other_mean)} "
            f"({from_pixels.in_words()})."
        )
    if len(pretrained.values) == 1:
        text += ONE_SEED
    return text


def length_remark(scratch: Choice | None) -> str:
    """A sentence that says why training from scratch may have stopped too early, or nothing if it has not.

    Args:
        scratch ([`Choice`], *optional*): Rate and length from scratch. `None` if they were not chosen.
    """
    if scratch is None or not scratch.is_length_searched:
        return NOT_SEARCHED if scratch is None or scratch.chosen_on is None else ONE_LENGTH
    return STILL_RISES if scratch.still_rises else ""


def ranking(
    label_fraction: float, methods: Mapping[str, Side], scratch: Side, raw_pixels: Mapping[str, Side], num_images: int
) -> str:
    """
    Which method is best with a fraction of the labels, which others are not clearly worse, and what training from scratch and raw
    pixels reach.

    Args:
        label_fraction (`float`): In (0, 1].
        methods (mapping from `str` to [`Side`]): The fine-tuned models by method.
        scratch ([`Side`]): The same from scratch.
        raw_pixels (mapping from `str` to [`Side`]): As for [`verdict`].
        num_images (`int`): Test images.
    """
    text = f"{_labels(label_fraction)}, {best_of(methods, num_images)} {against('From scratch', methods, scratch, num_images)}"
    if raw_pixels:
        name, best = max(raw_pixels.items(), key=lambda item: item[1].mean)
        text += f" {against(f'The best classifier of raw pixels, {name}', methods, best, num_images)}"
    return text + (ONE_SEED if len(scratch.values) == 1 else "")


def best_of(rivals: Mapping[str, Side], num_images: int) -> str:
    """
    Which of some rivals is best, and which others are not clearly worse.

    Args:
        rivals (mapping from `str` to [`Side`]): By their names.
        num_images (`int`): Test images.
    """
    highest = max(rivals.values(), key=lambda side: side.mean)
    best = [name for name, side in rivals.items() if isclose(side.mean, highest.mean)]
    others = {name: difference(highest, side, num_images) for name, side in rivals.items() if name not in best}
    alike = [name for name, found in others.items() if not found.is_clear]
    text = f"{', '.join(best)} {'is' if len(best) == 1 else 'are'} best on these test images: {_percent(highest.mean)}"
    if alike:
        text += f", and {', '.join(alike)} {'is' if len(alike) == 1 else 'are'} not clearly worse"
    return f"{text}."


def against(name: str, rivals: Mapping[str, Side], side: Side, num_images: int) -> str:
    """What the best of some rivals is compared with, such as `From scratch: 55.4 % (difference +9.5, ...)`."""
    found = difference(max(rivals.values(), key=lambda rival: rival.mean), side, num_images)
    return f"{name}: {_percent(found.other_mean)} (difference {found.in_words()})."


def _labels(fraction: float) -> str:
    return "With all labels" if fraction == 1 else f"With {100 * fraction:g} % of the labels"


def _effect(found: Difference) -> str:
    if found.is_noise:
        return "pretraining makes no difference that is larger than the noise"
    effect = "helps" if found.value > 0 else "does harm"
    return f"pretraining {effect}" if found.is_clear else f"pretraining perhaps {effect}"


def _place(found: Difference) -> str:
    if found.is_noise:
        return "The pretrained model is about as good as"
    place = "is better than" if found.value > 0 else "loses to"
    return f"The pretrained model {place}" if found.is_clear else f"The pretrained model perhaps {place}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
