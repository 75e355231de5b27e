"""What a fine-tuning run remembers of its starts across checkpoints, for its model card."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

HISTORY = "run_history.json"


@dataclass
class RunHistory(TrainerCallback):
    """
    Counts the time of a run, all its starts together, and writes it with them into each checkpoint.

    Args:
        started (`float`): When this start began, in seconds since the epoch.
        starts (`list` of `dict`, *optional*): The starts, as `cards.provenance.describe_start` gives them, oldest first.
        seconds_before (`float`, *optional*, defaults to 0): How long the earlier ones took.
    """

    started: float
    starts: list[dict[str, Any]] = field(default_factory=list)
    seconds_before: float = 0.0

    @classmethod
    def read(cls, checkpoint: str | None, started: float) -> "RunHistory":
        """The history of a run that goes on from a checkpoint; of one that tells of none, an empty one."""
        if checkpoint is None:
            return cls(started)
        try:
            saved = json.loads((Path(checkpoint) / HISTORY).read_text())
            return cls(started, saved["starts"], saved["seconds"])
        except (OSError, ValueError, KeyError, TypeError):  # it is for the card only: no reason not to go on
            return cls(started)

    @property
    def seconds(self) -> float:
        """How long the run has taken until now."""
        return self.seconds_before + time.time() - self.started

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            written = json.dumps({"starts": self.starts, "seconds": self.seconds})
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / HISTORY).write_text(written)
