"""Which protocols measure a model, and how."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from modeling_sit.runtime.errors import SiTError

# Of frozen features, and of models with the head of a dense task.
FEATURE_PROTOCOLS = ("knn", "linear", "fewshot", "retrieval")
DENSE_PROTOCOLS = ("detection", "segmentation")


@dataclass
class ProtocolArguments:
    """How a model is measured.

    Raises:
        [`SiTError`]: If a protocol does not exist, or a value is out of range.
    """

    protocols: list[str] = field(
        default_factory=lambda: ["knn"],
        metadata={
            "help": "Protocols to run, separated by spaces or commas. Of the frozen features: `knn` (votes of the nearest "
            "training images), `linear` (logistic regression), `fewshot` (the same from few labels), `retrieval` (whether "
            "the nearest training images have the same label). Of a model with a head for such a task, alone: `detection` "
            "(COCO's average precision of boxes), `segmentation` (that of masks of objects, or mean IoU of a class for "
            "each pixel)."
        },
    )
    knn_k: int = field(default=20, metadata={"help": "Number of neighbors that vote in `knn`."})
    knn_temperature: float = field(
        default=0.07,
        metadata={"help": "In `knn` the vote of a neighbor has the weight exp(similarity / temperature)."},
    )
    linear_c: list[float] = field(
        default_factory=lambda: [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0],
        metadata={
            "help": "Inverse strengths C of the L2 penalty in `linear`. If there are several, the best one is chosen"
            " on a held-back part of the training images."
        },
    )
    linear_held_back: float = field(
        default=0.2,
        metadata={
            "help": "Fraction of the training images of each class that is held back to choose C. The final fit uses"
            " them too."
        },
    )
    linear_choice_images: int = field(
        default=50_000,
        metadata={
            "help": "Largest number of training images for the choice of C, with the held-back ones. If there are "
            "more, a random fraction of each class is used. The final fit uses all images."
        },
    )
    linear_solver: Literal["auto", "lbfgs", "sgd"] = field(
        default="auto",
        metadata={
            "help": "Solver of `linear` and `fewshot`. `lbfgs` finds the optimum; it keeps copies of features and "
            "scores in float64 in memory. `sgd` is stochastic gradients on `device`; it comes close to the "
            "optimum for C up to about 1. `auto` is lbfgs for up to 1e8 numbers, images x (size of the "
            "features + classes), and up to 1e9 images x size x classes; else sgd."
        },
    )
    linear_epochs: int = field(
        default=20,
        metadata={"help": "Epochs of `sgd`. Small datasets get more epochs, up to 2000 steps."},
    )
    linear_batch_size: int = field(default=256, metadata={"help": "Images per step of `sgd`."})
    fewshot_labels: list[str] = field(
        default_factory=lambda: ["1%", "10%"],
        metadata={
            "help": "Numbers of labels for `fewshot`: a percentage of each class such as 10%% (at least one image), "
            "or a number of images of each class such as 5."
        },
    )
    fewshot_draws: int = field(
        default=5,
        metadata={"help": "Random choices of these images. The results are their mean and standard deviation."},
    )
    fewshot_c: float = field(
        default=1.0,
        metadata={
            "help": "Inverse strength of the L2 penalty in `fewshot`, where no images are held back to choose it."
        },
    )
    average_precision: Literal["step", "voc2007", "voc2010", "coco"] = field(
        default="step",
        metadata={
            "help": "Definition of average precision for several labels per image: `step` (as in scikit-learn and "
            "multi-label papers), `voc2007` (11 points), `voc2010` (all points, interpolated), "
            "`coco` (101 points)."
        },
    )
    bootstrap_resamples: int = field(
        default=1000, metadata={"help": "Number of resamples of the validation images for the 95 %% intervals."}
    )
    seed: int = field(
        default=0,
        metadata={
            "help": "Seed of all random numbers: held-back images, few shots, order in `sgd`, resamples, weights of "
            "`from_scratch`."
        },
    )

    def __post_init__(self):
        self.protocols = [name.strip() for names in self.protocols for name in names.split(",") if name.strip()]
        known = (*FEATURE_PROTOCOLS, *DENSE_PROTOCOLS)
        if not self.protocols:
            raise SiTError(f"names none of {', '.join(known)}", argument="protocols")
        for name in self.protocols:
            if name not in known:
                raise SiTError(f"no protocol {name!r}, only {', '.join(known)}", argument="protocols")
        of_features, of_models = (
            [name for name in self.protocols if name in some] for some in (FEATURE_PROTOCOLS, DENSE_PROTOCOLS)
        )
        if of_features and of_models:
            raise SiTError(
                f"{of_features[0]} measures frozen features on images with labels, and {of_models[0]} a whole model on "
                "images with boxes or masks",
                argument="protocols",
                remedy="run them one after the other: the results come into one file",
            )
        for name in (
            *("knn_k", "linear_choice_images", "linear_epochs", "linear_batch_size"),
            *("fewshot_draws", "bootstrap_resamples"),
        ):
            if getattr(self, name) < 1:
                raise SiTError(f"must be at least 1, got {getattr(self, name)}", argument=name)
        for name in ("knn_temperature", "fewshot_c", "linear_c"):
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if not 0 < value < math.inf:
                    raise SiTError(f"must be more than 0, got {value}", argument=name)
        if not 0 < self.linear_held_back < 1:
            raise SiTError(f"must be between 0 and 1, got {self.linear_held_back}", argument="linear_held_back")
        for budget in self.fewshot_labels:
            percentage = re.fullmatch(r"(\d+(?:\.\d+)?)%", budget)
            if not (0 < float(percentage[1]) <= 100 if percentage else re.fullmatch(r"[1-9]\d*", budget)):
                raise SiTError(
                    f"{budget!r} is neither a percentage such as 1%, up to 100%, nor a number of images of each class such as "
                    "5",
                    argument="fewshot_labels",
                )
        if self.seed < 0:
            raise SiTError(f"must be at least 0, got {self.seed}", argument="seed")

    @property
    def measures_whole_models(self) -> bool:
        """Whether the protocols measure models with the head of a dense task, and not features."""
        return self.protocols[0] in DENSE_PROTOCOLS

    def neighbors(self, num_train: int) -> int:
        """How many of `num_train` training images vote in `knn`.

        Raises:
            [`SiTError`]: If there are fewer than `knn_k`.
        """
        if num_train < self.knn_k:
            raise SiTError(
                f"{self.knn_k} is more than the {num_train} training images", argument="knn_k", remedy="lower it"
            )
        return self.knn_k

    @property
    def metric_settings(self) -> dict:
        """The keyword arguments of [`label_metrics`]."""
        return {"style": self.average_precision, "num_resamples": self.bootstrap_resamples, "seed": self.seed}
