"""How a signal ends a run before its last step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.checkpoints import RunState
from modeling_sit.pretraining.metric_logger import MetricLogger
from modeling_sit.runtime.errors import TrainingInterrupted
from modeling_sit.runtime.waiting import WaitStopped


def interruption(
    arguments: PretrainingArguments, stopped_by: signal.Signals, step: int, saved: int
) -> TrainingInterrupted:
    """The error that ends a run.

    Args:
        arguments ([`PretrainingArguments`]): The run's.
        stopped_by (`signal.Signals`): The signal.
        step (`int`): The last step that was done.
        saved (`int`): The step of the newest checkpoint.
    """
    if arguments.checkpointing_steps == "no":
        how = "no checkpoint was written, because `checkpointing_steps` is no"
    else:
        which = "its checkpoint is written" if saved == step else f"the newest checkpoint is of step {saved}"
        how = f'{which}, and `resume_from_checkpoint="auto"` goes on' if saved else "there is no checkpoint yet"
    return TrainingInterrupted(stopped_by, f"stopped by {stopped_by.name} after step {step}: {how}")


@contextmanager
def stopped_waits(
    arguments: PretrainingArguments, state: RunState, logger: MetricLogger, save: Callable[[], None] | None
) -> Iterator[None]:
    """A block that leaves with a checkpoint of the last step, where a signal asks to stop and the next batch does not
    come.

    Args:
        arguments ([`PretrainingArguments`]): The run's.
        state ([`RunState`]): Has the step of the newest checkpoint.
        logger ([`MetricLogger`]): Knows the last step that was done.
        save (callable, *optional*): Writes the checkpoint. `None` where this process may not write one alone, or may be
            amid a step.

    Raises:
        [`TrainingInterrupted`]: If so.
    """
    try:
        yield
    except WaitStopped as stopped:
        if save is not None and logger.step > state.step:
            save()
        raise interruption(arguments, signal.Signals(stopped.signal), logger.step, state.step) from stopped
