"""What a model card is told, because nothing measures it."""

import re
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class CardArguments:
    """
    Flags of the programs that write model cards.

    Raises:
        `ValueError`: If the license is no identifier.
    """

    license: str | None = field(
        default=None,
        metadata={
            "help": "License of the weights, for the model card: one of the Hub's identifiers, such as `mit` or `cc-by-nc-4.0`. "
            "Default: what the card says already, else `apache-2.0`. What the images' license allows is yours to know."
        },
    )

    def __post_init__(self):
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(
                f"--license {self.license}: not one of the Hub's identifiers, which are such as apache-2.0, mit or other"
            )
