"""The protocols that measure frozen features: one function each, one line each in `PROTOCOLS`."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from modeling_sit.data.splits import NothingToHoldOut
from modeling_sit.evaluation.bootstrap import confidence_interval, mean_of
from modeling_sit.evaluation.features import Features
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.linear import LinearProbe, SgdSettings, fit_by_lbfgs, fit_by_sgd, standardization
from modeling_sit.evaluation.metric_results import MetricResult, ProtocolResult, label_metrics, primary_metric
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.retrieval import average_precision_by_chance, rank_gallery, recall_by_chance
from modeling_sit.evaluation.subsets import draw_fraction, draw_per_class, draw_validation, features_of_rows
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# Above these, stochastic gradients take the place of L-BFGS: numbers in the features and the scores of the training
# images, of which L-BFGS holds several copies of 800 MB; and products of a feature and a weight in an iteration, which
# takes some tenths of a second on one core, with hundreds of iterations for each strength.
LBFGS_MAX_NUMBERS = 10**8
LBFGS_MAX_PRODUCTS = 10**9
RECALL_RANKS = (1, 5, 10)


Protocol = Callable[[Features, Features, list[str], ProtocolArguments, torch.device], ProtocolResult]
"""From the labeled features of the training and the validation images, the names of the classes, the arguments and the
device to compute on, to the result. Labels of shape `(num_images, num_labels)` are those of images with several."""


def knn(
    train: Features, validation: Features, label_names: list[str], arguments: ProtocolArguments, device: torch.device
) -> ProtocolResult:
    """The weighted votes of the k nearest training images ([`knn_predict`]).

    Raises:
        [`SiTError`]: If there are fewer training images than `knn_k`.
    """
    k = arguments.neighbors(len(train.features))
    scores = knn_predict(
        train.features,
        train.labels,
        validation.features.to(device),
        len(label_names),
        k=k,
        temperature=arguments.knn_temperature,
    )
    metrics = label_metrics([scores], validation.labels, **arguments.metric_settings)
    return ProtocolResult(metrics, {"k": k, "temperature": arguments.knn_temperature})


def linear(
    train: Features, validation: Features, label_names: list[str], arguments: ProtocolArguments, device: torch.device
) -> ProtocolResult:
    """Logistic regression on the standardized features. The strength of its penalty is chosen on a part of the
    training images, without the validation images; the fit is to all training images.

    Raises:
        [`SiTError`]: If each class has one training image, and there are several strengths.
    """
    solver = _solver(len(train.labels), train, label_names, arguments)
    strengths = sorted(set(arguments.linear_c))
    choice = {}
    if len(strengths) > 1:
        held_back_values, choice = _values_held_back(train, label_names, strengths, solver, arguments, device)
        # If several are equally good, the strongest penalty.
        chosen = max(strengths, key=lambda strength: held_back_values[strength])
        if chosen in (strengths[0], strengths[-1]):
            logger.warning(
                "linear: the best C, %g, is the smallest or the largest that was tried, so one beyond it may be better",
                chosen,
            )
        strengths = [chosen]
    (probe,) = _fit(train, label_names, strengths, solver, arguments, device)
    if not probe.converged:
        logger.warning("linear: with `linear_c` %g the fit stopped before its optimum; try smaller ones", strengths[0])
    metrics = label_metrics([probe.predict(validation.features)], validation.labels, **arguments.metric_settings)
    return ProtocolResult(metrics, {"c": strengths[0], "solver": solver, "seed": arguments.seed, **choice})


def _values_held_back(
    train: Features,
    label_names: list[str],
    strengths: list[float],
    solver: str,
    arguments: ProtocolArguments,
    device: torch.device,
) -> tuple[dict[float, float], dict[str, Any]]:
    """The primary metric of each strength on the held-back part, and what `eval_results.json` says about the
    choice."""
    try:
        parts = draw_validation(train.labels, label_names, arguments.linear_held_back, arguments.seed)
    except NothingToHoldOut as error:
        raise SiTError(
            f"{error.problem} to choose from several values",
            argument="linear_c",
            remedy="give one value, such as 0.1, or add images",
        ) from error
    fraction = arguments.linear_choice_images / len(train.labels)
    if fraction < 1:
        parts = [rows[draw_fraction(train.labels[rows], label_names, fraction, arguments.seed)] for rows in parts]
    rest, held_back = (features_of_rows(train, rows) for rows in parts)
    probes = _fit(rest, label_names, strengths, solver, arguments, device)
    values = {
        strength: primary_metric(probe.predict(held_back.features), held_back.labels)
        for strength, probe in zip(strengths, probes, strict=True)
    }
    choice: dict[str, Any] = {"held_back": {f"{strength:g}": value for strength, value in values.items()}}
    if fraction < 1:
        choice["num_choice"] = len(rest.labels) + len(held_back.labels)
    cut_off = [f"{strength:g}" for strength, probe in zip(strengths, probes, strict=True) if not probe.converged]
    if cut_off:
        choice["held_back_before_optimum"] = cut_off
    return values, choice


def fewshot(
    train: Features, validation: Features, label_names: list[str], arguments: ProtocolArguments, device: torch.device
) -> ProtocolResult:
    """Logistic regression fitted to few of the training images, drawn several times. The features are standardized by
    all training images, which takes no labels.

    Raises:
        [`SiTError`]: If a class has fewer images than `fewshot_labels` asks for.
    """
    statistics = standardization(train.features)
    drawn = {
        budget: [_few_shots(train, label_names, budget, draw, arguments) for draw in range(arguments.fewshot_draws)]
        for budget in arguments.fewshot_labels
    }
    num_chosen = {budget: len(draws[-1]) for budget, draws in drawn.items()}
    solver = _solver(max(num_chosen.values()), train, label_names, arguments)

    def scores_of(rows: torch.Tensor) -> torch.Tensor:
        chosen = features_of_rows(train, rows)
        (probe,) = _fit(chosen, label_names, [arguments.fewshot_c], solver, arguments, device, statistics)
        return probe.predict(validation.features)

    metrics = []
    for budget, draws in drawn.items():
        suffix = budget.replace("%", "_percent") if budget.endswith("%") else f"{budget}_per_class"
        metrics += [
            replace(metric, name=f"{metric.name}_{suffix}")
            # One draw after the other: the scores of many labels take more memory than the features.
            for metric in label_metrics(map(scores_of, draws), validation.labels, **arguments.metric_settings)
        ]
    settings = {"c": arguments.fewshot_c, "solver": solver, "draws": arguments.fewshot_draws, "seed": arguments.seed}
    return ProtocolResult(metrics, {**settings, "num_chosen": num_chosen})


def retrieval(
    train: Features, validation: Features, label_names: list[str], arguments: ProtocolArguments, device: torch.device
) -> ProtocolResult:
    """Every validation image is a query for the training images with its label, or one of its labels, by cosine
    similarity ([`rank_gallery`]): mean average precision of the whole ranking, and recall@k, the fraction of queries
    with a hit among the k nearest. Queries whose labels no training image has are left out, and counted.

    Raises:
        [`SiTError`]: If all queries are left out.
    """
    ranking = rank_gallery(train.features, train.labels, validation.features.to(device), validation.labels)
    answerable = ranking.num_hits > 0
    if not answerable.any():
        raise SiTError("retrieval has nothing to find: no validation image has a label that a training image has")
    num_gallery, num_hits = len(train.features), ranking.num_hits[answerable]
    values = {"mean_average_precision": ranking.average_precision[answerable]}
    chances = {"mean_average_precision": average_precision_by_chance(num_hits, num_gallery)}
    for rank in RECALL_RANKS:
        if rank <= num_gallery:
            values[f"recall_at_{rank}"] = (ranking.first_hit[answerable] <= rank).double()
            chances[f"recall_at_{rank}"] = recall_by_chance(num_hits, num_gallery, rank)
    metrics = [
        MetricResult(
            name,
            value.mean().item(),
            confidence_interval(
                mean_of(value), len(value), num_resamples=arguments.bootstrap_resamples, seed=arguments.seed
            ),
            chance=chances[name].mean().item(),
        )
        for name, value in values.items()
    ]
    return ProtocolResult(metrics, {"num_queries": len(answerable), "unanswerable": int((~answerable).sum())})


def _solver(num_images: int, train: Features, label_names: list[str], arguments: ProtocolArguments) -> str:
    if arguments.linear_solver != "auto":
        return arguments.linear_solver
    size = train.features.shape[1]
    num_numbers, num_products = num_images * (size + len(label_names)), num_images * size * len(label_names)
    return "lbfgs" if num_numbers <= LBFGS_MAX_NUMBERS and num_products <= LBFGS_MAX_PRODUCTS else "sgd"


def _fit(
    train: Features,
    label_names: list[str],
    strengths: list[float],
    solver: str,
    arguments: ProtocolArguments,
    device: torch.device,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> list[LinearProbe]:
    fixed = (train.features, train.labels, len(label_names), strengths)
    if solver == "lbfgs":
        return fit_by_lbfgs(*fixed, statistics=statistics)
    return fit_by_sgd(
        *fixed,
        statistics=statistics,
        settings=SgdSettings(arguments.linear_epochs, arguments.linear_batch_size, seed=arguments.seed),
        device=device,
    )


def _few_shots(
    train: Features, label_names: list[str], budget: str, draw: int, arguments: ProtocolArguments
) -> torch.Tensor:
    seed = arguments.seed * arguments.fewshot_draws + draw
    if budget.endswith("%"):
        return draw_fraction(train.labels, label_names, float(budget[:-1]) / 100, seed)
    return _draw_per_class(train, label_names, int(budget), seed)


def _draw_per_class(train: Features, label_names: list[str], count: int, seed: int) -> torch.Tensor:
    counts = _images_of_each(train, label_names)
    short = [name for name, has in zip(label_names, counts, strict=True) if 0 < has < count]
    if short:
        raise SiTError(
            f"fewer than {count} training images of {_some(short)}",
            argument="fewshot_labels",
            remedy=f"ask for {min(has for has in counts if has)} at most",
        )
    return draw_per_class(train.labels, label_names, count, seed)


def _images_of_each(train: Features, label_names: list[str]) -> list[int]:
    if train.labels.ndim == 2:
        return train.labels.sum(dim=0).long().tolist()
    return torch.bincount(train.labels, minlength=len(label_names)).tolist()


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# By the names in `FEATURE_PROTOCOLS`.
PROTOCOLS: dict[str, Protocol] = {
    "knn": knn,
    "linear": linear,
    "fewshot": fewshot,
    "retrieval": retrieval,
}
