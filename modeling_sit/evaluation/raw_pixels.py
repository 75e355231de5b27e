"""Classifiers of the images' own pixels: kNN, logistic regression and a support vector machine. A model that loses to
them has learned nothing that its images do not show by themselves."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC

from modeling_sit.data.decoding import DraftScale, Image, UnreadableImage
from modeling_sit.data.image_datasets import read_row
from modeling_sit.data.labeled import labels_of
from modeling_sit.evaluation.metrics.mean_average_precision import average_precision
from modeling_sit.evaluation.predictions import Predictions
from modeling_sit.evaluation.subsets import draw_fraction
from modeling_sit.image_modes import PixelFormat, map_channels
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

CLASSIFIERS = {"knn": "kNN", "logistic": "logistic regression", "svm": "RBF SVM"}
# Larger images are shrunk: to one of these heights and widths, whichever is better on held-out training images.
SIZES = (16, 32)
NUM_NEIGHBORS = (1, 3, 5, 10, 20, 40)
LOGISTIC_STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
SVM_STRENGTHS = (1.0, 10.0, 100.0)
# Divided by the number of pixel values: their standard deviation is 1, so two images are about that far apart.
SVM_GAMMAS = (0.1, 0.3, 1.0, 3.0, 10.0)
# Images to choose these values on, in so many parts. Each part is held out once.
CHOICE_IMAGES, CHOICE_FOLDS = 3000, 5
MANY_FOR_CHOICE, FOLDS_OF_MANY = 1000, 3
# A support vector machine compares all pairs of its images, in 800 MB for so many. The time grows as fast.
SVM_IMAGES = 10_000
# Numbers in the pixels of the images that the other two are fitted to: 1 GB.
PIXEL_NUMBERS = 2**28
TEST_IMAGES_AT_A_TIME = 1024


@dataclass(frozen=True)
class RawPixels:
    """
    Images of a split as numbers, at one or more sizes, without those that cannot be read.

    Args:
        pixels (`dict[int, np.ndarray]`): By height and width, uint8 `(num_images, size * size * num_channels)`.
        labels (`torch.Tensor` of shape `(num_images,)`, or `(num_images, num_labels)` of 0 and 1): Their labels.
        rows (`torch.Tensor` of shape `(num_images,)`): The row of each image in its split, int64, ascending.
    """

    pixels: dict[int, np.ndarray]
    labels: torch.Tensor
    rows: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> "RawPixels":
        """The images of these rows of the split, as far as they could be read."""
        chosen = torch.isin(self.rows, rows)
        return RawPixels(
            {size: values[chosen.numpy()] for size, values in self.pixels.items()},
            self.labels[chosen],
            self.rows[chosen],
        )


@dataclass(frozen=True)
class PixelResult:
    """
    What a classifier of pixels reaches.

    Args:
        value (`float`): Accuracy, or mean average precision where an image has several labels, in [0, 1].
        settings (`dict`): What was chosen on `num_choice` images, and `num_fitted`, the number of images of the last
            fit.
        predictions ([`Predictions`], *optional*): For each test image. `None` where an image has several labels.
    """

    value: float
    settings: dict[str, Any]
    predictions: Predictions | None


def pixel_sizes(split: datasets.Dataset, pixel_format: PixelFormat | int, model_size: int) -> tuple[int, ...]:
    """
    Heights and widths to read images at: their own (the median of the shorter sides of the first hundred), if that is
    32 at most; else 16 and 32. Never more than the model's.

    Raises:
        [`SiTError`]: If none of the first hundred images can be read.
    """
    sides = []
    for row in range(min(100, len(split))):
        try:
            image, _ = read_row(split, row, pixel_format)
        except UnreadableImage:
            continue
        sides.append(min(np.asarray(image).shape[:2]))
    if not sides:
        raise SiTError(f"split {split.split}: none of the first images can be read", argument="dataset")
    own = int(median(sides))
    sizes = (own,) if own <= max(SIZES) else SIZES
    return tuple(sorted({min(size, model_size) for size in sizes}))


def read_pixels(
    split: datasets.Dataset, pixel_format: PixelFormat | int, sizes: Sequence[int], rows: torch.Tensor | None = None
) -> RawPixels:
    """
    Read images and shrink each to the means of the areas of its new pixels (a box filter).

    Args:
        split (`datasets.Dataset`): Columns `image` and `label`.
        pixel_format ([`PixelFormat`] or `int`): What to decode images to; a number is one of channels.
        sizes (sequence of `int`): Heights and widths.
        rows (`torch.Tensor`, *optional*): Rows to read, int64. Default: all.
    """
    wanted = torch.arange(len(split)) if rows is None else rows.unique()
    num_channels = PixelFormat.of(pixel_format).num_channels
    pixels = {size: np.empty((len(wanted), size * size * num_channels), dtype=np.uint8) for size in sizes}
    draft = DraftScale(((max(sizes), 1.0),), (1.0, 1.0))
    is_readable = torch.ones(len(wanted), dtype=torch.bool)
    for place, row in enumerate(wanted.tolist()):
        try:
            image, _ = read_row(split, row, pixel_format, draft)
        except UnreadableImage as problem:
            logger.warning("skipped %s", problem)
            is_readable[place] = False
            continue
        for size in sizes:
            pixels[size][place] = _shrunk(image, size).ravel()
    if not is_readable.all():
        pixels = {size: values[is_readable.numpy()] for size, values in pixels.items()}
        wanted = wanted[is_readable]
    return RawPixels(pixels, labels_of(split)[wanted], wanted)


def _shrunk(image: Image, size: int) -> np.ndarray:
    if isinstance(image, PIL.Image.Image):
        return np.asarray(image.resize((size, size), PIL.Image.Resampling.BOX))
    return map_channels(image, lambda channel: channel.resize((size, size), PIL.Image.Resampling.BOX))


def largest_number(sizes: Sequence[int], num_channels: int) -> int:
    """Images that a classifier is fitted to at most, so that their pixels take a gigabyte."""
    return PIXEL_NUMBERS // (max(sizes) ** 2 * num_channels)


def classify_pixels(
    classifier: str, train: RawPixels, test: RawPixels, label_names: list[str], seed: int = 0
) -> PixelResult:
    """
    Fit a classifier to the pixels of labeled images, and measure it on test images.

    Pixels are shifted and scaled by their one mean and standard deviation over the training images. (Each by its own, as
    is usual for features, gives those at the edges, which are nearly always black, too large a weight.) The number of
    neighbors, the strengths of the penalties, the width of the kernel and the size of the images are chosen by
    cross-validation on the training images, on 3,000 of them if there are more. Then it is fitted to all of them, a
    support vector machine to 10,000 of them at most. Test images choose nothing.

    Where an image has several labels, kNN gives the mean of the neighbors' labels, and the other two are one classifier
    for each label against the rest.

    Args:
        classifier (`str`): `"knn"`, `"logistic"` or `"svm"`.
        train (`RawPixels`): Images to fit, with two classes at least.
        test (`RawPixels`): Images to measure, at the same sizes.
        label_names (`list[str]`): Names of the classes, in the order of their indices.
        seed (`int`, *optional*, defaults to 0): Seed of the folds and of the draws from large sets.
    """
    with warnings.catch_warnings():
        # Of classes with fewer images than folds, of labels that a fold lacks, of fits that did not quite converge.
        warnings.simplefilter("ignore")
        choice, num_choice = _choose(classifier, _at_most(CHOICE_IMAGES, train, label_names, seed), seed)
        limit = SVM_IMAGES if classifier == "svm" else len(train.labels)
        fitted = _at_most(limit, train, label_names, seed)
        outputs = _fit_and_predict(classifier, choice, fitted, test)
    labels = test.labels.numpy()
    predictions = Predictions(test.rows.numpy(), labels, outputs) if labels.ndim == 1 else None
    settings = {**choice, "num_choice": num_choice, "num_fitted": len(fitted.labels)}
    return PixelResult(_measure(outputs, labels), settings, predictions)


def _at_most(limit: int, images: RawPixels, label_names: list[str], seed: int) -> RawPixels:
    """A random fraction of each class, of about `limit` images, if there are more."""
    if len(images.labels) <= limit:
        return images
    drawn = draw_fraction(images.labels, label_names, limit / len(images.labels), seed)
    return images.of_rows(images.rows[drawn])


def _choose(classifier: str, images: RawPixels, seed: int) -> tuple[dict[str, Any], int]:
    """The best values on held-out images, and the number of images that chose; 0 if there are too few to hold any out."""
    labels = images.labels.numpy()
    folds = _folds(labels, seed)
    best_score, best = -np.inf, None
    for size, gamma in _sizes_and_gammas(classifier, images):
        features = _standardized(images.pixels[size], *_mean_and_std(images.pixels[size]))
        gamma = gamma and gamma / features.shape[1]
        settings = {"size": size} | ({} if gamma is None else {"gamma": gamma})
        if folds is None:
            return settings | _default(classifier), 0
        name, values = _grid(classifier, min(len(train) for train, _ in folds))
        prefix = "estimator__" if labels.ndim == 2 and classifier != "knn" else ""
        inputs = features if gamma is None else rbf_kernel(features, gamma=gamma)
        search = GridSearchCV(
            _estimator(classifier, labels.ndim == 2), {prefix + name: values}, scoring=_score, cv=folds, refit=False
        ).fit(inputs, labels)
        scores = search.cv_results_["mean_test_score"]
        if best is None or np.nanmax(scores) > best_score:
            best_score, best = np.nanmax(scores), settings | {name: values[int(np.nanargmax(scores))]}
    return best, len(labels)


def _folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Pairs of rows to fit and rows to choose by; `None` if no class has two images.

    Where an image has several labels, the rows to choose by are of a label at least.
    """
    wanted = CHOICE_FOLDS if len(labels) <= MANY_FOR_CHOICE else FOLDS_OF_MANY
    # More parts than images of the most frequent class is too many.
    most = min(wanted, len(labels) if labels.ndim == 2 else np.bincount(labels).max())
    if most < 2:
        return None
    kind = KFold if labels.ndim == 2 else StratifiedKFold
    folds = kind(most, shuffle=True, random_state=seed).split(np.empty(len(labels)), labels)
    if labels.ndim == 2:
        return [(fit, held_out) for fit, held_out in folds if labels[held_out].any()] or None
    return [(fit, held_out) for fit, held_out in folds if len(np.unique(labels[fit])) > 1]


def _sizes_and_gammas(classifier: str, images: RawPixels) -> Iterator[tuple[int, float | None]]:
    for size in images.pixels:
        for gamma in SVM_GAMMAS if classifier == "svm" else (None,):
            yield size, gamma


def _grid(classifier: str, num_fitted: int) -> tuple[str, list[float]]:
    """Name and values of what is chosen, for fits to so many images."""
    if classifier == "knn":
        return "n_neighbors", [count for count in NUM_NEIGHBORS if count <= num_fitted]
    return "C", list(LOGISTIC_STRENGTHS if classifier == "logistic" else SVM_STRENGTHS)


def _default(classifier: str) -> dict[str, float]:
    return {"n_neighbors": 1} if classifier == "knn" else {"C": 1.0}


def _estimator(classifier: str, multi_label: bool, **settings) -> BaseEstimator:
    """scikit-learn's classifier. The support vector machine's takes the kernel in place of the features, because
    matrix products compute it several times as fast as libsvm does."""
    if classifier == "knn":
        kind = KNeighborsRegressor if multi_label else KNeighborsClassifier
        return kind(weights="distance", algorithm="brute", **settings)
    if classifier == "logistic":
        estimator = LogisticRegression(max_iter=1000, tol=1e-3, **settings)
    else:
        estimator = SVC(kernel="precomputed", **settings)
    return OneVsRestClassifier(estimator) if multi_label else estimator


def _fit_and_predict(classifier: str, choice: dict[str, Any], train: RawPixels, test: RawPixels) -> np.ndarray:
    multi_label, labels = train.labels.ndim == 2, train.labels.numpy()
    settings, size, gamma = dict(choice), choice["size"], choice.get("gamma")
    del settings["size"]
    settings.pop("gamma", None)
    mean, std = _mean_and_std(train.pixels[size])
    features = _standardized(train.pixels[size], mean, std)
    estimator = _estimator(classifier, multi_label, **settings)
    estimator.fit(features if gamma is None else rbf_kernel(features, gamma=gamma), labels)
    outputs = []
    for start in range(0, len(test.labels), TEST_IMAGES_AT_A_TIME):
        chunk = _standardized(test.pixels[size][start : start + TEST_IMAGES_AT_A_TIME], mean, std)
        inputs = chunk if gamma is None else rbf_kernel(chunk, features, gamma=gamma)
        outputs.append(_outputs(estimator, inputs, multi_label))
    return np.concatenate(outputs)


def _mean_and_std(pixels: np.ndarray) -> tuple[float, float]:
    """Of all pixels of all images, from their histogram, which takes no copy of them."""
    counts = sum(
        np.bincount(chunk.ravel(), minlength=256) for chunk in np.array_split(pixels, len(pixels) // 1024 + 1)
    )
    values = np.arange(256)
    mean = float(np.average(values, weights=counts))
    return mean, float(np.average((values - mean) ** 2, weights=counts)) ** 0.5 or 1.0


def _standardized(pixels: np.ndarray, mean: float, std: float) -> np.ndarray:
    features = pixels.astype(np.float32)
    features -= mean
    features /= std
    return features


def _score(estimator: BaseEstimator, inputs: np.ndarray, labels: np.ndarray) -> float:
    return _measure(_outputs(estimator, inputs, labels.ndim == 2), labels)


def _outputs(estimator: BaseEstimator, inputs: np.ndarray, multi_label: bool) -> np.ndarray:
    """The predicted labels; where an image has several, a score of each."""
    if not multi_label or isinstance(estimator, KNeighborsRegressor):
        return estimator.predict(inputs)
    score = estimator.decision_function if isinstance(estimator.estimator, SVC) else estimator.predict_proba
    found = score(inputs).reshape(len(inputs), -1)
    # Of a single label scikit-learn scores both "has it not" and "has it", or the second alone.
    return found if estimator.multilabel_ else found[:, -1:]


def _measure(outputs: np.ndarray, labels: np.ndarray) -> float:
    if labels.ndim == 1:
        return float((outputs == labels).mean())
    known = np.flatnonzero(labels.any(axis=0))
    return float(np.mean([average_precision(outputs[:, label], labels[:, label] > 0, "step") for label in known]))
