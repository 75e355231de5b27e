"""SIGReg by its definition, slowly."""

import cmath
import itertools
import math

import torch

NUM_PLACES = 33  # on both sides of 0


def slow_sigreg(projections: torch.Tensor, directions: torch.Tensor) -> float:
    """Of projections `(views, batch, size)` along directions `(size, slices)`, one after the other: the trapezoidal rule for
    the squared distance of two characteristic functions, from -3 to 3."""
    places = [-3 + 6 * number / (NUM_PLACES - 1) for number in range(NUM_PLACES)]
    statistics = []
    for view in projections.double():
        for direction in directions.double().T:
            values = [float(projection @ direction) for projection in view]
            errors = []
            for place in places:
                empirical = sum(cmath.exp(1j * place * value) for value in values) / len(values)
                normal = math.exp(-(place**2) / 2)
                errors.append(abs(empirical - normal) ** 2 * normal)
            step = places[1] - places[0]
            areas = [(left + right) / 2 * step for left, right in itertools.pairwise(errors)]
            statistics.append(len(values) * sum(areas))
    return sum(statistics) / len(statistics)
