"""What the benchmarks share: whole numbers in flags, the processor's name, the JSON report."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch


def positive(text: str) -> int:
    """A flag's whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def processor_name() -> str:
    """The processor's name as the system has it, of its kind where it has none."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_report(path: Path | None, **report: Any) -> None:
    """A JSON file of what was measured, and of the machine that it is of, if a path is given."""
    if path is not None:
        machine = {
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine, **report}, indent=2) + "\n", encoding="utf-8")
