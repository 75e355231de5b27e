"""Flags for what a file of weights does not say of itself."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class WeightsFileArguments:
    """Which of a file's networks, and its one size that shapes do not give."""

    network: Literal["teacher", "student"] | None = field(
        default=None,
        metadata={
            "help": "Which network of a training checkpoint (a .pth file of the authors' code, or DINO's) to take. Default: the "
            "teacher, the better encoder."
        },
    )
    num_attention_heads: int | None = field(
        default=None,
        metadata={
            "help": "Attention heads of a file of weights, which does not say how many it has. Default: heads of 64, as all but "
            "the largest ViTs have."
        },
    )
