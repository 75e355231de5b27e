"""What happens beside the training steps: signals, the history of the run, and pushing checkpoints to the Hub."""

import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from modeling_sit.finetuning.checkpoints import HISTORY, WEIGHTS, evaluations_waited, read_state
from modeling_sit.finetuning.sampling import EpochOrder
from modeling_sit.hub.pushing import HubPusher
from modeling_sit.hub.repository_files import BEST_CHECKPOINT
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.signals import StopSignal


@dataclass
class RunHistory(TrainerCallback):
    """
    The starts of a run and its duration over all of them, for the model card, and its settings. Each checkpoint keeps them.

    Args:
        started (`float`): When this start began, in seconds since the epoch.
        starts (`list` of `dict`, *optional*): The starts, as `hub.provenance.describe_start` gives them, oldest first.
        seconds_before (`float`, *optional*, defaults to 0): Duration of the earlier starts.
        settings (`dict`, *optional*): Of [`run_settings`].
    """

    started: float
    starts: list[dict[str, Any]] = field(default_factory=list)
    seconds_before: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, checkpoint: str | None, started: float) -> "RunHistory":
        """The history in a checkpoint that a run resumes from; an empty one where the checkpoint has none."""
        if checkpoint is None:
            return cls(started)
        try:
            saved = json.loads((Path(checkpoint) / HISTORY).read_text(encoding="utf-8"))
            return cls(started, saved["starts"], saved["seconds"], saved.get("settings", {}))
        except (OSError, ValueError, KeyError, TypeError):  # it may be damaged: no reason not to resume
            return cls(started)

    @property
    def seconds(self) -> float:
        """Duration of the run until now."""
        return self.seconds_before + time.time() - self.started

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            written = json.dumps({"starts": self.starts, "seconds": self.seconds, "settings": self.settings})
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / HISTORY).write_text(written, encoding="utf-8")


class FollowEpochs(TrainerCallback):
    """Sets the epoch of the order of the images: with several processes, `Trainer` does not when a run resumes amid an
    epoch."""

    def __init__(self, order: EpochOrder):
        self.order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.order.set_epoch(int(state.epoch or 0))


class FindBestCheckpoint(TrainerCallback):
    """
    Finds the best checkpoint so far of a run that resumes, where its folder was moved or came from the Hub.

    Args:
        resumed (`Path`): The checkpoint that the run resumes from.
    """

    def __init__(self, resumed: Path):
        self.resumed = resumed
        # `Trainer` forgets a best checkpoint that is not where it was, and would end with the last one instead.
        self.best = read_state(resumed).best_model_checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        best = self.best
        if best is None or not args.load_best_model_at_end:
            return
        # A name alone is from the Hub.
        if Path(best).name != best and (Path(best) / WEIGHTS).is_file():
            return
        beside = (self.resumed.with_name(BEST_CHECKPOINT), self.resumed.with_name(Path(best).name))
        is_this_one = Path(best).name == f"checkpoint-{state.global_step}"
        for found in (self.resumed,) if is_this_one else beside:
            if (found / WEIGHTS).is_file():
                state.best_model_checkpoint = str(found)
                return
        raise SiTError(
            f"the best checkpoint so far is not beside {self.resumed}",
            argument="resume_from_checkpoint",
            remedy=f"put {Path(best).name} there, or give `load_best_model_at_end=False`",
        )


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):
    """transformers' callback of this name, which a run that goes on begins with the evaluations that it has waited already. Patience
    and threshold are this start's."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_waited(state)


class ShowLogs(TrainerCallback):
    """Shows each log at once: transformers prints it, and a file or a pipe would get it only with many others."""

    def on_log(self, args, state, control, **kwargs):
        with suppress(BrokenPipeError):  # nobody reads it any more
            sys.stdout.flush()


class PushCheckpoints(TrainerCallback):
    """Pushes every checkpoint to the Hub while training goes on, where the arguments ask for it."""

    def __init__(self, pusher: HubPusher):
        self.pusher = pusher

    def on_save(self, args, state, control, **kwargs):
        self.pusher.push_checkpoint(state.global_step, with_model=False)


class StopAtSignal(TrainerCallback):
    """
    Ends training after the step in which a SIGTERM, SIGINT or SIGHUP came.

    Args:
        request ([`StopSignal`]): Notes the signals.
        saves (`bool`, *optional*, defaults to `True`): Whether with a checkpoint.
    """

    def __init__(self, request: StopSignal, saves: bool = True):
        self.request = request
        self.saves = saves
        self.received: signal.Signals | None = None

    def on_step_end(self, args, state, control, **kwargs):
        self.received = self.request.any_rank()
        if self.received is not None:
            control.should_save, control.should_training_stop = self.saves, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received is None:
            return
        # `Trainer` takes the last step for the end of an epoch; what it measured there would not be an epoch's result.
        is_whole = float(state.epoch).is_integer()
        control.should_save = self.saves and is_whole
        control.should_evaluate = control.should_evaluate and is_whole
