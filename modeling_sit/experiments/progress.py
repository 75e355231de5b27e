"""What a long experiment is doing: a line before each run, with what is left and about how long that takes."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import mean

from modeling_sit.hub.provenance import describe_duration
from modeling_sit.runtime.words import counted


class Progress:
    """
    Says what runs, and what is left.

    Args:
        missing (mapping from `str` to `int`): Number of runs that are still to do, by kind.
    """

    def __init__(self, missing: Mapping[str, int]):
        self.missing = Counter(missing)
        self.num_done, self.num_runs = 0, sum(missing.values())
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, kind: str, description: str) -> Iterator[None]:
        """Print a line for a run that begins, and measure how long it takes.

        Args:
            kind (`str`): Runs of a kind take about as long.
            description (`str`): What runs.
        """
        self.num_runs = max(self.num_runs, self.num_done + 1)  # a run that was not foreseen
        print(f"\n[{self.num_done + 1} of {self.num_runs}] {description}{self.left()}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[kind].append(time.perf_counter() - started)
        self.missing[kind] -= 1
        self.num_done += 1

    def left(self) -> str:
        """How many runs of which kinds are left, this one included, and how long they take by those that have been: in
        words, after a semicolon. Empty before the first one."""
        left = {kind: number for kind, number in self.missing.items() if number > 0}
        measured = {kind: mean(seconds) for kind, seconds in self.seconds.items()}
        if not left or not measured:
            return ""
        total = sum(number * measured.get(kind, 0) for kind, number in left.items())
        unknown = [
            counted(number, f"run of {kind}", f"runs of {kind}")
            for kind, number in left.items()
            if kind not in measured
        ]
        duration = f"; about {describe_duration(total)} left" if total else ""
        return duration + (
            f"{' and' if duration else '; left:'} {', '.join(unknown)} of unknown length" if unknown else ""
        )
