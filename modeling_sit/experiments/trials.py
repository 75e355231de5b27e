"""A trial of the search for the settings of pretraining."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """
    A pretraining run of the search.

    Args:
        base_learning_rate (`float`, *optional*): Its rate; `None` for the preset's, where nothing was searched.
        export (`str`, *optional*): Whose weights were measured, `"teacher"` or `"student"`; `None` for the preset's.
        pooling (`str`): Of the features.
        scores (`dict`): Value in [0, 1] by protocol, on held-out images of train; empty if nothing was measured.
    """

    base_learning_rate: float | None
    export: str | None
    pooling: str
    scores: Mapping[str, float]

    @property
    def score(self) -> float:
        """What decides: the mean; below 0 where training diverged."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else -1.0
