"""Accelerate's trackers: TensorBoard, Trackio, Weights & Biases and others, with numbers and images."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from modeling_sit.runtime.errors import SiTError

PROJECT = "sit"


def choose_trackers(names: list[str]) -> list[str]:
    """Accelerate's trackers of these names (of `tensorboard,wandb` too), known to be installed; `none` is no tracker.

    Raises:
        [`SiTError`]: If there is no such tracker, or it is not installed.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    chosen = [name for names_together in names for name in names_together.split(",") if name not in ("", "none")]
    for name in chosen:
        if name not in (*available, "all"):
            raise SiTError(
                f"--report_to {name}: no such tracker, or it is not installed; there are {', '.join(available) or 'none'}"
            )
    return chosen


def start_trackers(accelerator: Accelerator, output_dir: Path, settings: dict[str, Any], first_step: int) -> None:
    """Start the trackers with the run's settings; a run that goes on takes back what was told of later steps."""
    run_name = output_dir.resolve().name
    init_kwargs = {
        "tensorboard": {"purge_step": first_step + 1},
        "trackio": {"name": run_name, "resume": "allow", "embed": False},
        "wandb": {"name": run_name},
    }
    accelerator.init_trackers(PROJECT, {name: str(value) for name, value in settings.items()}, init_kwargs)


def log_image(accelerator: Accelerator, name: str, path: Path, step: int) -> None:
    """Give an image's file to the trackers that take images. Each of them has another form for it."""
    if not accelerator.trackers:
        return
    with PIL.Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(image)}, step=step)
        elif tracker.name in ("aim", "clearml"):
            tracker.log_images({name: image}, step=step)
        elif tracker.name == "tensorboard":
            tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: [image]}, step=step)
