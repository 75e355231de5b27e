"""Arguments for what a file of weights does not say itself."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class WeightsFileArguments:
    """Which network of a file to take, and the one size that the shapes of its weights do not give."""

    network: Literal["teacher", "student"] | None = field(
        default=None,
        metadata={
            "help": "Network to load from a training checkpoint (a .pth file of the authors' code, or DINO's). "
            "Default: the teacher, which is the better encoder."
        },
    )
    num_attention_heads: int | None = field(
        default=None,
        metadata={
            "help": "Number of attention heads, for a file of weights, which does not contain it. Default: heads of "
            "size 64, as in all but the largest ViTs."
        },
    )
