"""Arguments of model cards, and of sharing a run's model on the Hub."""

import re
from dataclasses import dataclass, field
from typing import Literal

from modeling_sit.runtime.errors import SiTError


@dataclass(kw_only=True)
class CardArguments:
    """
    What a model card says and nothing measures.

    Raises:
        [`SiTError`]: If the license is no identifier.
    """

    license: str | None = field(
        default=None,
        metadata={
            "help": "License of the weights, for the model card: an identifier of the Hub, such as `mit` or `cc-by-"
            "nc-4.0`. Default: the license in an earlier card, else `apache-2.0`. You must know what the "
            "license of the images allows."
        },
    )

    def __post_init__(self):
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise SiTError(
                f"{self.license!r} is none of the Hub's identifiers",
                argument="license",
                remedy="such as apache-2.0, mit, other",
            )


@dataclass(kw_only=True)
class RepositoryArguments:
    """The repository on the Hub, and what goes there."""

    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Repository to push to, NAME or NAMESPACE/NAME. Default: the name of the folder."},
    )
    hub_private_repo: bool = field(
        default=False,
        metadata={
            "help": "Whether the repository must be private. An existing public one is refused. If not given, a new one "
            "is as your account's default on the Hub says."
        },
    )
    hub_strategy: Literal["end", "checkpoint"] = field(
        default="end",
        metadata={
            "help": "What to push. end: the finished model. checkpoint: also the newest checkpoint, to last-checkpoint/, so that "
            "another machine can resume from it; a run pushes each one when it is written."
        },
    )


@dataclass(kw_only=True)
class HubArguments(RepositoryArguments):
    """
    Whether and where a run shares its model. The Hub's own client knows the token (`hf auth login`, or HF_TOKEN).

    Raises:
        [`SiTError`]: If there is an argument of the repository, but nothing is to be pushed.
    """

    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Whether to push the model to the Hub. Log in first with `hf auth login`, or set HF_TOKEN."},
    )

    def __post_init__(self):
        for name, default in (("hub_model_id", None), ("hub_private_repo", False), ("hub_strategy", "end")):
            if getattr(self, name) != default and not self.push_to_hub:
                raise SiTError(
                    "does nothing without `push_to_hub`",
                    argument=name,
                    remedy="set `push_to_hub` too, or leave this out",
                )


@dataclass
class PushArguments(RepositoryArguments):
    """Which folder is pushed, and where to."""

    folder: str = field(metadata={"help": "The output folder of a finished run."})
