"""The protocols that say how good frozen features are: one function each, one line each in `PROTOCOLS`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from modeling_sit.cli.errors import UserError
from modeling_sit.evaluation.features import Features
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.metrics import load_metric


@dataclass
class ProtocolArguments:
    """How the features are measured.

    Raises:
        `ValueError`: If a protocol does not exist, or a value is out of range.
    """

    protocols: str = field(default="knn", metadata={"help": "Protocols to run, separated by commas."})
    knn_k: int = field(default=20, metadata={"help": "Neighbours that vote in `knn`."})
    knn_temperature: float = field(
        default=0.07, metadata={"help": "A neighbour's vote in `knn` weighs exp(similarity / temperature)."}
    )

    def __post_init__(self):
        for name in self.chosen:
            if name not in PROTOCOLS:
                raise ValueError(f"--protocols {self.protocols}: no protocol {name!r}, only {', '.join(PROTOCOLS)}")
        if self.knn_k < 1:
            raise ValueError(f"--knn_k {self.knn_k}: must be at least 1")
        if not self.knn_temperature > 0:
            raise ValueError(f"--knn_temperature {self.knn_temperature}: must be more than 0")

    @property
    def chosen(self) -> list[str]:
        """Names of the protocols to run, in the order given."""
        return [name.strip() for name in self.protocols.split(",")]


Protocol = Callable[[Features, Features, int, ProtocolArguments, torch.device], dict[str, Any]]
"""From the labelled features of the training and the validation pictures, the number of labels, the flags and the device to
compute on, to what was measured, and under which settings, by name."""


def knn(
    train: Features, validation: Features, num_labels: int, arguments: ProtocolArguments, device: torch.device
) -> dict[str, Any]:
    """Top-1 accuracy of the weighted k nearest neighbours ([`knn_predict`]).

    Raises:
        [`UserError`]: If there are fewer training pictures than `--knn_k`.
    """
    if len(train.features) < arguments.knn_k:
        raise UserError(f"--knn_k {arguments.knn_k}: more than the {len(train.features)} training pictures; lower it")
    scores = knn_predict(
        train.features,
        train.labels,
        validation.features.to(device),
        num_labels,
        k=arguments.knn_k,
        temperature=arguments.knn_temperature,
    )
    accuracy = load_metric("accuracy").compute(predictions=scores.argmax(dim=1).cpu(), references=validation.labels)
    return {**accuracy, "k": arguments.knn_k, "temperature": arguments.knn_temperature}


PROTOCOLS: dict[str, Protocol] = {
    "knn": knn,
}
