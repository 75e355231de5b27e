"""Classifiers of raw pixels against plain scikit-learn, on real images; what they may see, and what they may not."""

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from modeling_sit.data.sources import load_images
from modeling_sit.evaluation import raw_pixels as module
from modeling_sit.evaluation.raw_pixels import (
    LOGISTIC_STRENGTHS,
    NUM_NEIGHBORS,
    SVM_GAMMAS,
    SVM_STRENGTHS,
    RawPixels,
    classify_pixels,
    pixel_sizes,
    read_pixels,
)
from modeling_sit.evaluation.subsets import draw_fraction
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError

NAMES = [str(digit) for digit in range(10)]
TWINS = {
    "knn": (KNeighborsClassifier(weights="distance"), {"n_neighbors": list(NUM_NEIGHBORS)}),
    "logistic": (LogisticRegression(max_iter=1000), {"C": list(LOGISTIC_STRENGTHS)}),
    "svm": (SVC(), {"C": list(SVM_STRENGTHS), "gamma": [gamma / 64 for gamma in SVM_GAMMAS]}),
}


@pytest.fixture(scope="module")
def digits() -> tuple[RawPixels, RawPixels]:
    """All digits, to train and to test."""
    images = load_images("digits", validation_split="test")
    return read_pixels(images.train, 1, [8]), read_pixels(images.validation, 1, [8])


@pytest.fixture(scope="module")
def few(digits) -> RawPixels:
    """A tenth of the digits to train."""
    return digits[0].of_rows(draw_fraction(digits[0].labels, NAMES, 0.1, seed=0))


def by_hand(train: RawPixels, test: RawPixels) -> list[np.ndarray]:
    """Both sides' pixels, in float64, standardized by the training images."""
    pixels = train.pixels[8] / 255.0
    return [(side.pixels[8] / 255.0 - pixels.mean()) / pixels.std() for side in (train, test)]


def several_labels(digits: RawPixels) -> RawPixels:
    """Digits that are even, above five, prime or none of these."""
    labels = digits.labels[:, None]
    kinds = torch.cat([labels % 2 == 0, labels > 5, torch.isin(labels, torch.tensor([2, 3, 5, 7]))], dim=1)
    return RawPixels(digits.pixels, kinds.float(), digits.rows)


@pytest.mark.parametrize("classifier", TWINS)
def test_is_what_scikit_learn_finds(classifier, digits, few):
    found = classify_pixels(classifier, few, digits[1], NAMES)
    train, test = by_hand(few, digits[1])
    labels = few.labels.numpy()
    estimator, grid = TWINS[classifier]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(estimator, grid, cv=folds).fit(train, labels)
    chosen = {name: found.settings[name] for name in grid}
    scores = {
        tuple(each.items()): score
        for each, score in zip(*map(search.cv_results_.get, ("params", "mean_test_score")), strict=True)
    }
    # Of values that are equally good, either may be chosen; float32 may move an image across a border.
    assert scores[tuple(chosen.items())] == pytest.approx(search.best_score_, abs=1.01 / len(labels))
    twin = estimator.set_params(**chosen).fit(train, labels)
    assert found.value == pytest.approx(twin.score(test, digits[1].labels.numpy()), abs=1.01 / 360)
    predictions = found.predictions
    assert (predictions.predicted != twin.predict(test)).sum() <= 1
    assert np.array_equal(predictions.labels, digits[1].labels) and np.array_equal(predictions.rows, digits[1].rows)
    assert found.value == (predictions.predicted == predictions.labels).mean()
    assert found.value > 0.85
    assert (found.settings["num_choice"], found.settings["num_fitted"], found.settings["size"]) == (
        len(labels),
        len(labels),
        8,
    )


@pytest.mark.parametrize("classifier", TWINS)
def test_several_labels(classifier, digits, few):
    train, test = several_labels(few), several_labels(digits[1])
    found = classify_pixels(classifier, train, test, ["even", "large", "prime"])
    settings = {name: found.settings[name] for name in TWINS[classifier][1]}
    features = by_hand(train, test)
    if classifier == "knn":
        one = KNeighborsClassifier(weights="distance", **settings).fit(features[0], train.labels.numpy())
        scores = np.stack([each[:, 1] for each in one.predict_proba(features[1])], axis=1)
    elif classifier == "logistic":
        one = OneVsRestClassifier(LogisticRegression(max_iter=1000, **settings)).fit(features[0], train.labels.numpy())
        scores = one.predict_proba(features[1])
    else:
        scores = (
            OneVsRestClassifier(SVC(**settings)).fit(features[0], train.labels.numpy()).decision_function(features[1])
        )
    assert found.value == pytest.approx(average_precision_score(test.labels.numpy(), scores), abs=5e-3)
    assert found.value > 0.85 and found.predictions is None


@pytest.mark.parametrize("classifier", TWINS)
def test_one_label_that_an_image_has_or_has_not(classifier, digits, few):
    """Whether a digit is even, as a label of its own and as one of two classes."""
    train, test = (
        RawPixels(each.pixels, (each.labels[:, None] % 2 == 0).float(), each.rows) for each in (few, digits[1])
    )
    found = classify_pixels(classifier, train, test, ["even"])
    settings = {name: found.settings[name] for name in TWINS[classifier][1]}
    features = by_hand(train, test)
    twin = clone(TWINS[classifier][0]).set_params(**settings).fit(features[0], train.labels[:, 0].numpy())
    scores = twin.decision_function(features[1]) if classifier == "svm" else twin.predict_proba(features[1])[:, 1]
    assert found.value == pytest.approx(average_precision_score(test.labels[:, 0].numpy(), scores), abs=5e-3)
    assert found.value > 0.85


@pytest.mark.parametrize("classifier", TWINS)
@pytest.mark.parametrize("num_labeled", [1, 2])
def test_hardly_an_image_has_a_label(classifier, num_labeled, digits, few):
    """So most folds have none to choose by."""
    train, test = several_labels(few), several_labels(digits[1])
    train.labels[num_labeled:] = 0
    train.labels[:num_labeled, 0] = 1
    assert 0 < classify_pixels(classifier, train, test, ["even", "large", "prime"]).value < 1


def test_test_labels_choose_nothing(digits, few):
    test = digits[1]
    other = RawPixels(test.pixels, (test.labels + 1) % 10, test.rows)
    first, second = (classify_pixels("svm", few, each, NAMES) for each in (test, other))
    assert first.settings == second.settings and second.value < 0.1 < first.value


def test_large_sets_are_limited(digits, monkeypatch):
    monkeypatch.setattr(module, "SVM_IMAGES", 300)
    monkeypatch.setattr(module, "CHOICE_IMAGES", 100)
    found = {name: classify_pixels(name, *digits, NAMES) for name in ("knn", "svm")}
    assert found["svm"].settings["num_fitted"] == pytest.approx(300, abs=10)
    assert found["knn"].settings["num_fitted"] == len(digits[0].labels)
    for each in found.values():
        assert each.settings["num_choice"] == pytest.approx(100, abs=10) and each.value > 0.9


@pytest.mark.parametrize("classifier", TWINS)
def test_one_image_of_each_class_chooses_nothing(classifier, digits):
    train, test = digits
    first = torch.tensor([int((train.labels == digit).nonzero()[0, 0]) for digit in range(10)])
    found = classify_pixels(classifier, train.of_rows(first), test, NAMES)
    assert (found.settings["num_choice"], found.settings["num_fitted"]) == (0, 10) and found.value > 0.3


def test_the_size_is_chosen_on_training_images(digits, few):
    """Of two sizes, one with nothing to see."""
    blank = {4: np.zeros((len(few.labels), 16), np.uint8)}
    train = RawPixels({**blank, **few.pixels}, few.labels, few.rows)
    test = RawPixels({4: np.zeros((360, 16), np.uint8), **digits[1].pixels}, digits[1].labels, digits[1].rows)
    assert classify_pixels("knn", train, test, NAMES).settings["size"] == 8


def test_reading(tmp_path, caplog):
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    for number, array in enumerate(arrays):
        folder = tmp_path / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(folder / f"{number}.png")
    images = load_images(tmp_path).train
    places = [int(image["path"][-5]) for image in images["image"]]
    broken = places.index(2)
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"no image")

    found = read_pixels(images, 3, [20, 40], torch.tensor([3, broken, 0]))
    assert found.rows.tolist() == sorted({0, 3} - {broken}) and "2.png" in caplog.text
    for place, row in enumerate(found.rows.tolist()):
        array = arrays[places[row]]
        assert (found.pixels[40][place] == array.ravel()).all()
        means = array.reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))
        assert (
            np.abs(found.pixels[20][place].reshape(20, 20, 3) - means).max() < 1.01
        )  # rounded twice, a side at a time
        assert found.labels[place] == images[row]["label"]
    kept = found.of_rows(torch.tensor([3]))
    assert kept.rows.tolist() == [3] and (kept.pixels[20] == found.pixels[20][-1:]).all()


@pytest.mark.parametrize(
    ("own", "model", "expected"), [(8, 16, (8,)), (28, 16, (16,)), (64, 64, (16, 32)), (64, 24, (16, 24))]
)
def test_sizes(own, model, expected, tmp_path):
    (tmp_path / "a").mkdir()
    PIL.Image.new("RGB", (own, own + 9)).save(tmp_path / "a" / "0.png")
    assert pixel_sizes(load_images(tmp_path).train, 3, model) == expected


def test_no_image_can_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(SiTError) as error:
        pixel_sizes(load_images(tmp_path).train, 3, 16)
    assert error.value.argument == "dataset"


def test_channels_without_color(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (2, 24, 16, 5), dtype=np.uint16)
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", values[number])
    split = load_images(str(tmp_path)).train
    pixel_format = PixelFormat(5, (0, 4095))
    assert pixel_sizes(split, pixel_format, 8) == (8,)
    found = read_pixels(split, pixel_format, (8,)).pixels[8].reshape(2, 8, 8, 5)
    means = np.rint(values * (255 / 4095)).reshape(2, 8, 3, 8, 2, 5).mean((2, 4))
    assert np.abs(found - means).max() < 1  # rounded across, then down


def test_images_are_standardized_by_those_to_train(digits, few):
    """The digits to test are as bright as those to train, so here they are darker."""
    dark = RawPixels({8: digits[1].pixels[8] // 3}, digits[1].labels, digits[1].rows)
    train, test = by_hand(few, dark)
    found = classify_pixels("knn", few, dark, NAMES)
    twin = KNeighborsClassifier(found.settings["n_neighbors"], weights="distance").fit(train, few.labels.numpy())
    assert (found.predictions.predicted != twin.predict(test)).sum() <= 1
