"""Where a run logs: `metrics.jsonl` and `monitors.jsonl`, and Accelerate's trackers such as TensorBoard and
Trackio."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from modeling_sit.runtime.atomic_files import fsync, replace_file, write_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import plain_no

PROJECT = "sit"
# Words for no tracker.
NONE = ("none", "no")


def choose_trackers(names: list[str]) -> list[str]:
    """Accelerate's trackers of these names (of `tensorboard,wandb` too), known to be installed; `none` and `no` are no tracker.

    Raises:
        [`SiTError`]: If there is no such tracker, or it is not installed.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    chosen = [
        name for names_together in names for name in names_together.split(",") if plain_no(name) not in ("", *NONE)
    ]
    for name in chosen:
        if name not in (*available, "all"):
            raise SiTError(
                f"no tracker {name!r}, or it is not installed",
                argument="report_to",
                remedy=f"installed are {', '.join(available) or 'none'}",
            )
    return chosen


def start_trackers(accelerator: Accelerator, output_dir: Path, settings: dict[str, Any], first_step: int) -> None:
    """Start the trackers with the run's settings; a run that resumes drops what was logged of later
    steps."""
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


class MetricsLog:
    """
    A log such as `metrics.jsonl`: one JSON object a line, one line a logged step.

    Args:
        path (`Path`): The file; made with its folder.
        resume_step (`int`): Lines of steps beyond this one are dropped, because they are about to be written again.

    Raises:
        [`SiTError`]: If it cannot be written.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if path.exists() else []
        with self._write_errors(), replace_file(path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, metrics: dict) -> None:
        with self._write_errors(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def sync(self) -> None:
        """Make sure that what was written is on the disk."""
        with self._write_errors():
            fsync(self.path)

    def _write_errors(self):
        return write_errors(
            self.path, 'make room, and resume from the last checkpoint: `resume_from_checkpoint="auto"`'
        )


def read_metrics(path: Path) -> list[dict]:
    """The lines of a log; a last one that a crash cut short is left out."""
    lines = []
    # What a loss of power leaves at the end need not be text.
    for line in path.read_text(errors="replace", encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
