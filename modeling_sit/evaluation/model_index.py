"""Figures in a model card's `model-index`, where the Hub reads them."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from modeling_sit.cli.errors import UserError
from modeling_sit.evaluation.figures import Measurement
from modeling_sit.training.durable_files import naming_what_cannot_be_written, replace_file

CARD_FILE = "README.md"
# What is not a classification: in the Hub's names of tasks.
TASKS = {"retrieval": "image-feature-extraction"}
# Where the Hub has a name of its own for a metric.
METRIC_TYPES = {"macro_f1": "f1"}


def read_card(folder: Path) -> ModelCard:
    """The model card of a folder.

    Raises:
        [`UserError`]: If there is none, or its metadata cannot be read.
    """
    path = folder / CARD_FILE
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UserError(
            f"--update_model_card: there is no {path}, so no card to update; give a model folder that has one"
        ) from problem
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise UserError(f"--update_model_card: {path} cannot be read: {problem}; mend its metadata") from problem


def update_card(
    folder: Path,
    measurements: dict[str, Measurement],
    *,
    dataset: str,
    dataset_config: str | None = None,
    split: str,
    settings: dict[str, Any],
) -> Path:
    """
    Write figures into the `model-index` of a folder's model card, each in place of the earlier one of the same protocol and
    name on the same split of the same data set. The rest of the card stays.

    Args:
        folder (`Path`): The model's folder, with a `README.md`.
        measurements (`dict[str, Measurement]`): What was measured, by protocol.
        dataset (`str`): As given in `--dataset`; of a path, the card says the last part alone.
        dataset_config (`str`, *optional*): Configuration of a Hub data set.
        split (`str`): Split that was measured on.
        settings (`dict[str, Any]`): What else the figures depend on: pooling, layer.

    Returns:
        `Path`: The card.

    Raises:
        [`UserError`]: If there is no card, its metadata cannot be read, or it cannot be written.
    """
    card = read_card(folder)
    path = folder / CARD_FILE
    # Its name on the Hub, and not where it lies on this machine.
    dataset = Path(dataset).resolve().name if Path(dataset).exists() else dataset
    new = [
        EvalResult(
            task_type=TASKS.get(protocol, "image-classification"),
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=dataset_config,
            dataset_split=split,
            metric_type=METRIC_TYPES.get(figure.name, figure.name),
            metric_name=f"{protocol} {figure.name}",
            metric_value=round(figure.value, 6),
            metric_args={
                "interval": [round(end, 6) for end in figure.interval],
                **({} if figure.spread is None else {"spread": round(figure.spread, 6)}),
                **settings,
                **measurement.settings,
            },
        )
        for protocol, measurement in measurements.items()
        for figure in measurement.figures
    ]
    replaced = {_identity(result) for result in new}
    earlier = [result for result in card.data.eval_results or [] if _identity(result) not in replaced]
    card.data.eval_results = earlier + new
    card.data.model_name = card.data.model_name or folder.resolve().name
    remedy = "free some space there, or check who may write to it"
    with naming_what_cannot_be_written(path, remedy), replace_file(path) as unfinished:
        unfinished.write_text(str(card), encoding="utf-8")
    return path


def _identity(result: EvalResult) -> tuple:
    return (*result.unique_identifier, result.metric_type, result.metric_name)
