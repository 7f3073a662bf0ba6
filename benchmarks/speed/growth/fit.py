"""Growth as a power: exponents on log-log axes, and whether time grows as its arithmetic does. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.speed.spread import Spread

TOLERANCE = 0.15
"""By how much the exponent of time may exceed that of the arithmetic: over two decades, a factor of 2."""
STEP_TOLERANCE = 0.3
"""The same between two neighbouring values, whose quartiles nearest to each other are taken."""
SAME = "grows as its arithmetic"


@dataclass(frozen=True)
class Fit:
    """The power of a least-squares line through log values over log x.

    `residual` is exp of the root mean square of what is left, less 1: 0.1 is about 10 % off the line.
    """

    exponent: float
    residual: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The power by which positive values y grow with x, at two or more different x."""
    logs = np.log(x), np.log(y)
    line = np.polyfit(*logs, 1)
    left = logs[1] - np.polyval(line, logs[0])
    return Fit(float(line[0]), math.expm1(float(np.sqrt(np.mean(left**2)))))


def verdict(x: Sequence[float], seconds: Sequence[Spread], arithmetic: Sequence[float]) -> str:
    """How time grows beside the arithmetic, in words; both are of one image."""
    time, counted = fit(x, [one.median for one in seconds]).exponent, fit(x, arithmetic).exponent
    beside = f"exponent {number(time)} against {number(counted)}"
    if time - counted > TOLERANCE:
        return f"worse than its arithmetic: {beside}"
    steps = (_step(x, seconds, arithmetic, index) for index in range(len(x) - 1))
    excess, place = max((excess, index) for index, excess in enumerate(steps))
    if excess > STEP_TOLERANCE:
        ends = f"from {x[place]:,} to {x[place + 1]:,}"
        return f"worse than its arithmetic {ends}: exponent higher by {number(excess)}"
    return SAME if time - counted >= -TOLERANCE else f"grows less than its arithmetic: {beside}"


def _step(x: Sequence[float], seconds: Sequence[Spread], arithmetic: Sequence[float], index: int) -> float:
    """By how much the exponent of time exceeds that of the arithmetic to the next value at least, by the quartiles."""
    grown = seconds[index + 1].low / seconds[index].high
    more = arithmetic[index + 1] / arithmetic[index]
    return math.log(grown / more) / math.log(x[index + 1] / x[index])


def number(exponent: float) -> str:
    """An exponent with two decimals, never -0."""
    return f"{round(exponent, 2) + 0.0:.2f}"
