"""The protocols on features of which it is known what can be read from them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from modeling_sit.evaluation import protocols
from modeling_sit.evaluation.features import Features
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.protocols import PROTOCOLS
from modeling_sit.runtime.errors import SiTError

CPU = torch.device("cpu")
NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    """Pixels as features, in float64 so that nothing hangs on rounding: 500 images to train, 300 to validate."""
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.data), torch.from_numpy(digits.target)
    return Features(pixels[:500], labels[:500], []), Features(pixels[500:800], labels[500:800], [])


@pytest.fixture(scope="module")
def several(digits) -> tuple[Features, Features]:
    """The same, with three labels that overlap: small, even, and eight."""
    return tuple(
        Features(
            split.features,
            torch.stack([split.labels < 3, split.labels % 2 == 0, split.labels == 8], dim=1).float(),
            [],
        )
        for split in digits
    )


def measure(protocol, splits, names=NAMES, **flags):
    result = PROTOCOLS[protocol](*splits, names, ProtocolArguments(bootstrap_resamples=50, **flags), CPU)
    for metric in result.metrics:
        assert 0 <= metric.interval[0] <= metric.value <= metric.interval[1] <= 1
    return {metric.name: metric.value for metric in result.metrics}, result


def test_knn_is_scikit_learns(digits):
    values, result = measure("knn", digits, knn_k=7)
    train, validation = digits
    classifier = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    predictions = classifier.fit(train.features.numpy(), train.labels.numpy()).predict(validation.features.numpy())
    assert values["accuracy"] == accuracy_score(validation.labels, predictions)
    assert values["macro_f1"] == pytest.approx(f1_score(validation.labels, predictions, average="macro"), abs=1e-6)
    assert values["accuracy"] < values["top_5_accuracy"] <= 1
    assert result.settings == {"k": 7, "temperature": 0.07}


def test_linear_is_scikit_learns_at_the_strength_that_did_best_on_what_was_held_back(digits):
    values, result = measure("linear", digits, linear_c=[1.0, 1e-5, 0.1])
    held_back = result.settings["held_back"]
    assert list(held_back) == ["1e-05", "0.1", "1"]
    assert held_back[f"{result.settings['c']:g}"] == max(held_back.values()) > held_back["1e-05"]
    train, validation = digits
    scaler = StandardScaler().fit(train.features.numpy())
    model = LogisticRegression(C=result.settings["c"], max_iter=1000)
    model.fit(scaler.transform(train.features.numpy()), train.labels.numpy())
    expected = model.score(scaler.transform(validation.features.numpy()), validation.labels.numpy())
    assert values["accuracy"] == pytest.approx(expected, abs=0.005)
    assert result.settings["solver"] == "lbfgs"


def test_validation_images_have_no_part_in_the_choice(digits):
    train, validation = digits
    wrong = Features(validation.features, (validation.labels + 1) % 10, [])
    chosen = [measure("linear", (train, split), linear_c=[0.001, 0.1])[1].settings for split in (validation, wrong)]
    assert chosen[0] == chosen[1]


def test_of_many_images_the_strength_is_chosen_on_a_fraction(digits, monkeypatch):
    fitted = []

    def note_size(train, *rest):
        fitted.append(len(train.labels))
        return fit(train, *rest)

    fit = protocols._fit
    monkeypatch.setattr(protocols, "_fit", note_size)
    values, result = measure("linear", digits, linear_c=[1e-5, 0.1], linear_choice_images=200)
    assert result.settings["num_choice"] == pytest.approx(200, abs=5)
    assert fitted == [pytest.approx(160, abs=5), 500]  # a fifth held back, and the fit itself is to all
    assert result.settings["c"] == 0.1 and result.settings["held_back"]["0.1"] > 0.7
    assert values == measure("linear", digits, linear_c=[0.1])[0]
    assert "num_choice" not in measure("linear", digits, linear_c=[1e-5, 0.1], linear_choice_images=500)[1].settings


def test_the_only_image_of_a_class_is_fitted_and_chooses_nothing(digits):
    train, validation = digits
    rows = torch.cat([(train.labels != 9).nonzero()[:300, 0], (train.labels == 9).nonzero()[:1, 0]])
    rare = Features(train.features[rows], train.labels[rows], [])
    values, result = measure("linear", (rare, validation))
    assert max(result.settings["held_back"].values()) > 0.8
    assert values == measure("linear", (rare, validation), linear_c=[result.settings["c"]])[0]


def test_choices_before_the_optimum_are_logged(digits, monkeypatch):
    short = protocols.fit_by_lbfgs
    monkeypatch.setattr(protocols, "fit_by_lbfgs", lambda *rest, **named: short(*rest, **named, max_iterations=60))
    _, result = measure("linear", digits, linear_c=[1e-5, 1.0])
    assert result.settings["held_back_before_optimum"] == ["1"]


def test_few_shots_of_many_images_are_fitted_to_the_optimum(digits, monkeypatch):
    """The solver goes by what is fitted, not by what it is drawn from."""
    monkeypatch.setattr(protocols, "LBFGS_MAX_PRODUCTS", 100 * 64 * 10)
    assert measure("fewshot", digits, fewshot_labels=["10%"], fewshot_draws=1)[1].settings["solver"] == "lbfgs"
    monkeypatch.setattr("modeling_sit.evaluation.linear.MIN_STEPS", 10)
    assert measure("fewshot", digits, fewshot_labels=["50%"], fewshot_draws=1)[1].settings["solver"] == "sgd"


def test_one_strength_is_taken_as_it_is(digits):
    _, result = measure("linear", digits, linear_c=[0.3])
    assert result.settings == {"c": 0.3, "solver": "lbfgs", "seed": 0}


def test_solver_is_chosen_by_size_or_by_flag(digits, monkeypatch):
    monkeypatch.setattr("modeling_sit.evaluation.linear.MIN_STEPS", 100)
    for flag, limit, solver in (("auto", 0, "lbfgs"), ("sgd", 0, "sgd"), ("auto", 1, "sgd"), ("lbfgs", 1, "lbfgs")):
        monkeypatch.setattr("modeling_sit.evaluation.protocols.LBFGS_MAX_NUMBERS", 500 * 74 - limit)
        values, result = measure("linear", digits, linear_c=[0.1], linear_solver=flag)
        assert result.settings["solver"] == solver and values["accuracy"] > 0.8


def test_strength_at_the_end_of_the_sweep_is_logged(digits, caplog):
    measure("linear", digits, linear_c=[1e-4, 0.01])
    assert "the best C, 0.01, is the smallest or the largest that was tried" in caplog.text


def test_fit_that_did_not_end_is_logged(digits, caplog, monkeypatch):
    fit_by_lbfgs = protocols.fit_by_lbfgs
    measure("linear", digits, linear_c=[1.0])
    assert "optimum" not in caplog.text
    monkeypatch.setattr(
        protocols, "fit_by_lbfgs", lambda *rest, **named: fit_by_lbfgs(*rest, **named, max_iterations=3)
    )
    measure("linear", digits, linear_c=[1.0])
    assert "with `linear_c` 1 the fit stopped before its optimum" in caplog.text


def test_few_shots_are_drawn_anew_and_averaged(digits):
    values, result = measure("fewshot", digits, fewshot_labels=["1%", "10%", "5"], fewshot_draws=3)
    assert result.settings["num_chosen"]["1%"] == 10  # one of each class at least
    assert 45 <= result.settings["num_chosen"]["10%"] <= 55
    assert result.settings["num_chosen"]["5"] == 50
    assert values["accuracy_1_percent"] < values["accuracy_5_per_class"] < 1
    assert {"top_5_accuracy_10_percent", "macro_f1_5_per_class"} < set(values)
    alone = []
    for seed in range(3):
        one, other = measure("fewshot", digits, fewshot_labels=["5"], fewshot_draws=1, seed=seed)
        assert other.metrics[0].std is None
        alone.append(one["accuracy_5_per_class"])
    (metric,) = (metric for metric in result.metrics if metric.name == "accuracy_5_per_class")
    assert metric.value == pytest.approx(np.mean(alone))
    assert metric.std == pytest.approx(np.std(alone, ddof=1)) and metric.std > 0


def test_few_shots_are_standardized_by_all_training_images(digits):
    """Of one image a class, many pixels are the same in all ten, and not at all in the others."""
    train, validation = digits
    rows = protocols.draw_per_class(train.labels, NAMES, 1, 0)
    scaler = StandardScaler().fit(train.features.numpy())
    model = LogisticRegression(C=ProtocolArguments().fewshot_c, max_iter=10_000, tol=1e-8)
    model.fit(scaler.transform(train.features[rows].numpy()), train.labels[rows].numpy())
    expected = model.score(scaler.transform(validation.features.numpy()), validation.labels.numpy())
    values, _ = measure("fewshot", digits, fewshot_labels=["1"], fewshot_draws=1)
    assert values["accuracy_1_per_class"] == pytest.approx(expected)


def test_few_shots_of_other_seeds_share_no_draw(digits, monkeypatch):
    drawn, draw_per_class = [], protocols.draw_per_class
    monkeypatch.setattr(protocols, "draw_per_class", lambda *args: drawn.append(args[-1]) or draw_per_class(*args))
    for seed in (0, 1, 2):
        measure("fewshot", digits, fewshot_labels=["1"], fewshot_draws=3, seed=seed)
    assert len(set(drawn)) == len(drawn) == 9


def test_stochastic_gradients_follow_the_seed(digits, monkeypatch):
    seeds, fit_by_sgd = [], protocols.fit_by_sgd
    monkeypatch.setattr("modeling_sit.evaluation.linear.MIN_STEPS", 10)
    monkeypatch.setattr(
        protocols,
        "fit_by_sgd",
        lambda *args, **kwargs: seeds.append(kwargs["settings"].seed) or fit_by_sgd(*args, **kwargs),
    )
    measure("linear", digits, linear_c=[0.1], linear_solver="sgd", linear_epochs=1, seed=3)
    assert seeds == [3]


def test_retrieval(digits):
    values, result = measure("retrieval", digits)
    train, validation = (
        Features(split.features / split.features.norm(dim=1, keepdim=True), split.labels, []) for split in digits
    )
    similarities = (validation.features @ train.features.T).numpy()
    hits = (validation.labels[:, None] == train.labels).numpy()
    expected = np.mean([average_precision_score(*row) for row in zip(hits, similarities, strict=True)])
    assert values["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    for k in (1, 5, 10):
        nearest = np.argsort(-similarities, axis=1)[:, :k]
        assert values[f"recall_at_{k}"] == pytest.approx(np.take_along_axis(hits, nearest, axis=1).any(axis=1).mean())
    assert result.settings == {"num_queries": 300, "unanswerable": 0}
    chance = {metric.name: metric.chance for metric in result.metrics}
    assert chance["recall_at_1"] == pytest.approx(hits.mean())
    assert hits.mean() < chance["mean_average_precision"] < hits.mean() + 0.02
    assert chance["recall_at_1"] < chance["recall_at_5"] < chance["recall_at_10"] < 1


def test_queries_without_an_answer_are_left_out_and_counted(digits):
    train, validation = digits
    small = Features(train.features[train.labels < 9], train.labels[train.labels < 9], [])
    values, result = measure("retrieval", (small, validation))
    known = Features(validation.features[validation.labels < 9], validation.labels[validation.labels < 9], [])
    assert values == measure("retrieval", (small, known))[0]
    assert result.settings["unanswerable"] == int((validation.labels == 9).sum()) > 0


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_several_labels(several, protocol):
    values, _ = measure(
        protocol, several, ["small", "even", "eight"], linear_c=[0.01, 0.1], fewshot_labels=["10%", "20"]
    )
    names = {"fewshot": ["mean_average_precision_10_percent", "mean_average_precision_20_per_class"]}
    for name in names.get(protocol, ["mean_average_precision"]):
        # By chance: the fraction of the images that have a label, some 0.3 on average.
        assert values[name] > 0.5
    if protocol in ("knn", "linear"):
        assert list(values) == ["mean_average_precision", "macro_f1"]


def test_style_of_average_precision(several):
    values = [
        measure("knn", several, ["small", "even", "eight"], average_precision=style)[0]["mean_average_precision"]
        for style in ("step", "voc2007", "voc2010", "coco")
    ]
    assert len(set(values)) == 4


def test_mistakes(digits):
    train, validation = digits
    few = Features(train.features[:12], torch.tensor([*range(10), 0, 1]), [])

    def mistake(protocol: str, splits, **arguments) -> SiTError:
        with pytest.raises(SiTError) as error:
            measure(protocol, splits, **arguments)
        return error.value

    error = mistake("knn", (few, validation))
    assert error.argument == "knn_k" and "12 training images" in str(error)
    single = Features(train.features[:10], torch.arange(10), [])
    assert mistake("linear", (single, validation)).argument == "linear_c"
    measure("linear", (single, validation), linear_c=[0.1])
    error = mistake("fewshot", (few, validation), fewshot_labels=["2"])
    assert (
        error.argument == "fewshot_labels" and "2, 3, 4, 5, 6 and 3 more" in str(error) and "1 at most" in str(error)
    )
    of_zeros, of_ones = (Features(train.features[:2], torch.tensor([label] * 2), []) for label in (0, 1))
    assert "nothing to find" in str(mistake("retrieval", (of_zeros, of_ones)))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("protocols", ["knn,liner"], "'liner', only knn"),
        ("protocols", [","], "none of knn"),
        ("knn_k", 0, "at least 1, got 0"),
        ("fewshot_draws", 0, "at least 1"),
        ("bootstrap_resamples", 0, "at least 1"),
        ("linear_choice_images", 0, "at least 1"),
        ("linear_c", [1.0, 0.0], "more than 0, got 0.0"),
        ("linear_c", [float("nan")], "got nan"),
        ("knn_temperature", float("inf"), "got inf"),
        ("fewshot_c", -1.0, "got -1.0"),
        ("linear_held_back", 1.0, "between 0 and 1"),
        ("fewshot_labels", ["0%"], "0%"),
        ("fewshot_labels", ["5", "101%"], "101%"),
        ("fewshot_labels", ["0.1"], "0.1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_arguments_out_of_range(argument, value, message):
    with pytest.raises(SiTError) as error:
        ProtocolArguments(**{argument: value})
    assert error.value.argument == argument and message in str(error.value)


@pytest.mark.parametrize("given", [["knn", "linear"], ["knn,linear"], [" knn , linear"], ["knn,", "linear"]])
def test_protocols_are_separated_by_spaces_or_commas(given):
    assert ProtocolArguments(protocols=given).protocols == ["knn", "linear"]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_no_validation_image_has_any_of_the_labels(several, protocol):
    train, validation = several
    unlabeled = Features(validation.features, torch.zeros_like(validation.labels), [])
    with pytest.raises(SiTError, match="nothing to"):
        measure(protocol, (train, unlabeled), ["small", "even", "eight"], linear_c=[0.1], fewshot_labels=["10%"])
