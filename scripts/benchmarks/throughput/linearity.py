"""Where a cost stops growing in proportion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Growth between neighbouring sizes by up to this factor more or less than the size's own still counts as proportional:
# medians of a few runs on a shared machine are not closer than that.
TOLERANCE = 1.2


@dataclass(frozen=True)
class Departure:
    """Between the sizes `start` and `end`, `size_growth` times as large, the cost grows by the factor `cost_growth`."""

    start: float
    end: float
    size_growth: float
    cost_growth: float


def departures(sizes: Sequence[float], costs: Sequence[float]) -> list[Departure]:
    """The intervals in which the cost does not grow in proportion.

    Args:
        sizes, costs (sequences of `float`): Above 0; sizes rising.
    """
    found = []
    for (size, cost), (next_size, next_cost) in pairwise(zip(sizes, costs, strict=True)):
        growth = Departure(size, next_size, next_size / size, next_cost / cost)
        if not 1 / TOLERANCE <= growth.cost_growth / growth.size_growth <= TOLERANCE:
            found.append(growth)
    return found


def describe_growth(title: str, x_label: str, y_label: str, sizes: Sequence[float], costs: Sequence[float]) -> str:
    """One line: how far the cost is proportional, and each interval where it is not."""
    where = f"{title}: {y_label} against {x_label}, from {_number(sizes[0])} to {_number(sizes[-1])}"
    found = departures(sizes, costs)
    if not found:
        return f"{where}: linear throughout"
    told = ", ".join(
        f"{_number(gap.start)} to {_number(gap.end)} (x {gap.size_growth:.2f} gives x {gap.cost_growth:.2f})"
        for gap in found
    )
    return f"{where}: not linear in {told}"


def _number(value: float) -> str:
    return f"{value:.4g}"
