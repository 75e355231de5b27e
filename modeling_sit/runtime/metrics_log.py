"""`metrics.jsonl` and `monitors.jsonl`, the logs of a run."""

import json
from pathlib import Path

from modeling_sit.runtime.atomic_files import flush, replace_file, write_errors


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
        with self._naming(), replace_file(path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, metrics: dict) -> None:
        with self._naming(), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def sync(self) -> None:
        """Have what was written on the disk."""
        with self._naming():
            flush(self.path)

    def _naming(self):
        remedy = "checkpoints are as they were; make room, and go on with --resume_from_checkpoint auto"
        return write_errors(self.path, remedy)


def read_metrics(path: Path) -> list[dict]:
    """The lines of a log; a last one that a crash cut short is left out."""
    lines = []
    # What a loss of power leaves at the end need not be text.
    for line in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
