"""`metrics.jsonl`, the log of a run."""

import json
from pathlib import Path


class MetricsLog:
    """
    `metrics.jsonl`: one JSON object a line, one line a logged step.

    Args:
        path (`Path`): The file; made with its folder.
        resume_step (`int`): Lines of steps beyond this one are dropped, because they are about to be written again.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if path.exists() else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, metrics: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; a last one that a crash cut short is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
