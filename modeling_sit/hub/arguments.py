"""The flags of sharing a run's model on the Hub."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class HubArguments:
    """Whether and where the model is shared. The token is the Hub library's matter (`hf auth login`, or HF_TOKEN)."""

    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Whether to push the model to the Hub, as whom `hf auth login` or HF_TOKEN says."},
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Repository to push to, NAME or NAMESPACE/NAME. Default: the output folder's name."},
    )
    hub_private_repo: bool = field(
        default=False,
        metadata={
            "help": "Whether the repository is private. Else it is public, unless its organization says otherwise."
        },
    )
    hub_strategy: Literal["end", "checkpoint"] = field(
        default="end",
        metadata={
            "help": "When to push: the finished model, or at every checkpoint too, with that under last-checkpoint/, so that "
            "another machine can go on from it."
        },
    )

    def __post_init__(self):
        for name, default in (("hub_model_id", None), ("hub_private_repo", False), ("hub_strategy", "end")):
            if getattr(self, name) != default and not self.push_to_hub:
                raise ValueError(f"--{name} does nothing without --push_to_hub: give it too, or leave this one out")
