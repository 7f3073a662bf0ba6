"""What repeated timings say: quartiles, ratios of paired rounds, and who is faster. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_WINNER = "no winner (spreads overlap)"
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Spread:
    """Lower quartile, median and upper quartile of `n` values."""

    low: float
    median: float
    high: float
    n: int

    def overlaps(self, other: Spread) -> bool:
        """Whether the two interquartile ranges share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Goal:
    """What a ratio should reach: at least `goal` where more is better, at most `goal` where less is."""

    goal: float
    stretch: float
    lower_is_better: bool = False


def spread(values: Sequence[float]) -> Spread:
    """Quartiles of at least one value, linear between neighbours."""
    low, median, high = np.quantile(values, QUARTILES).tolist()
    return Spread(low, median, high, len(values))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Quartiles of the ratios of values taken in the same round: what disturbs a round disturbs both."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def tied(a: Spread, b: Spread, ratio: Spread) -> bool:
    """Whether two values cannot be told apart: their ranges overlap, or that of their paired ratio holds 1."""
    return a.overlaps(b) or (ratio.low <= 1 <= ratio.high and ratio.n > 1)


def winner(a: Spread, b: Spread, ratio: Spread, names: tuple[str, str]) -> str:
    """Which of two rates is higher, or that their spreads overlap; `ratio` is a over b."""
    if tied(a, b, ratio):
        return NO_WINNER
    return f"{names[0] if a.median > b.median else names[1]} is faster"


def verdict(a: Spread, b: Spread, ratio: Spread, aim: Goal) -> str:
    """Where the ratio of a over b lands, unless nobody can tell a from b."""
    return NO_WINNER if tied(a, b, ratio) else reached(ratio, aim)


def reached(ratio: Spread, aim: Goal) -> str:
    """Where a ratio lands; a goal counts as met only if the whole interquartile range meets it."""
    sign = -1 if aim.lower_is_better else 1
    worst, best = sorted((sign * ratio.low, sign * ratio.high))
    if worst >= sign * aim.stretch:
        return "stretch met"
    if worst >= sign * aim.goal:
        return "goal met"
    return "goal within the spread" if best >= sign * aim.goal else "goal missed"
