#!/usr/bin/env python
"""Compare the time of `import modeling_sit` with that of transformers' ViT: whole processes in turns, medians.

python scripts/benchmarks/import_time.py [--num_runs 11]
"""

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

# The same kinds of classes, and no more of transformers than `import modeling_sit` asks for.
PROGRAMS = {
    "modeling_sit": "import modeling_sit",
    "transformers' ViT": "from transformers import (AutoConfig, AutoImageProcessor, AutoModel, ViTConfig, ViTModel, "
    "ViTForImageClassification, ViTForMaskedImageModeling, ViTImageProcessor, ViTImageProcessorPil)",
    "python": "pass",
}


def seconds(program: str) -> dict[str, float]:
    """Wall time and CPU time of a process of this program, from its start to its end."""
    started, used = time.perf_counter(), cpu_seconds()
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)
    return {"clock": time.perf_counter() - started, "CPU": cpu_seconds() - used}


def cpu_seconds() -> float:
    """CPU time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num_runs", type=int, default=11, help="Processes of each program.")
    num_runs = parser.parse_args().num_runs
    for program in PROGRAMS.values():  # compile what is to be compiled, and have the files in memory
        seconds(program)
    runs = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(num_runs)]
    for kind in ("clock", "CPU"):
        for name in PROGRAMS:
            times = [run[name][kind] for run in runs]
            print(
                f"{kind:<5} {name:<18} median {median(times):.3f} s (lowest {min(times):.3f}, highest {max(times):.3f})"
            )
        ours, theirs = list(PROGRAMS)[:2]
        ratios = [run[ours][kind] / run[theirs][kind] for run in runs]
        print(f"{kind:<5} {ours} / {theirs}: median ratio {median(ratios):.3f}\n")


if __name__ == "__main__":
    main()
