"""What a finished run has cost: epochs, tokens of the encoder, and seconds."""

from dataclasses import dataclass
from pathlib import Path

from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.methods import METHODS


@dataclass(frozen=True)
class PretrainingCost:
    """
    The cost of a pretraining run.

    Args:
        steps (`int`): Optimizer steps.
        epochs (`float`, *optional*): As the card counts them: passes over the images, each without those that fill no
            batch. `None` for a stream of unknown length.
        encoder_tokens (`int`): Tokens that the encoder has read, as [`Method.encoder_tokens`] counts them.
        seconds (`float`): How long it has taken, previews and monitors included.
        hardware (`str`): Of its last start.
    """

    steps: int
    epochs: float | None
    encoder_tokens: int
    seconds: float
    hardware: str


def pretraining_cost(output_dir: Path) -> PretrainingCost | None:
    """The cost of the run in a folder, from its `run_state.json`; `None` where there is none, or it is of an earlier form."""
    state = read_output_state(output_dir)
    if state is None:
        return None
    settings = state.determined_by
    try:
        batch_size = settings["per_device_train_batch_size"] * settings["num_processes"]
        batches = state.step * settings["gradient_accumulation_steps"]
        images, num_images = batches * batch_size, settings["num_images"]
        if num_images and not settings.get("streaming"):
            num_images -= num_images % batch_size
        return PretrainingCost(
            steps=state.step,
            epochs=images / num_images if num_images else None,
            encoder_tokens=images * METHODS[settings.get("method", "sit")].encoder_tokens(settings),
            seconds=state.seconds,
            hardware=state.starts[-1]["hardware"] if state.starts else "unknown hardware",
        )
    except KeyError:
        return None
