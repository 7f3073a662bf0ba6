"""How sure a number is: intervals over test images, spread over seeds; no torch import."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.base.errors import UserError
from benchmarks.records.catalogue import measurement
from benchmarks.records.record import Measurement

RESAMPLES = 1000


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


class MeanStd(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator; None for one value)."""

    mean: float
    std: float | None


def bootstrap_interval(values: ArrayLike, seed: int, resamples: int = RESAMPLES, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of per-image `values` (N,), resampling images; unit of the values.

    Source: Efron & Tibshirani 1993, chapter 13.

    Raises:
        UserError: fewer than two values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise UserError(f"expected per-image values (N,) of at least 2 images, got shape {array.shape}")
    rng = np.random.Generator(np.random.PCG64(seed))
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def normal_interval(value: float, standard_error: float, level: float = 0.95) -> Interval:
    """`value` plus and minus its standard error times the normal quantile (1.96 for 95 %)."""
    reach = NormalDist().inv_cdf((1 + level) / 2) * standard_error
    return Interval(value - reach, value + reach)


def not_negative_interval(value: float, standard_error: float) -> Interval:
    """`normal_interval` of what is never below 0."""
    low, high = normal_interval(value, standard_error)
    return Interval(max(0.0, low), high)


def share_interval(share: float, standard_error: float, n: int, level: float = 0.95) -> Interval:
    """Interval of a share within 0-1 (Wilson 1927), for as many images as would give it that standard error.

    At most `n` images: where all or none of them are counted, the interval is not empty. How many they stand for is
    told from the share of one more image inside and one more outside (Laplace), which is never 0 or 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    likely = (share * n + 1) / (n + 2)
    count = min(n, likely * (1 - likely) / standard_error**2) if standard_error > 0 else n
    centre = share + z**2 / (2 * count)
    reach = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    low, high = ((centre + side) / (1 + z**2 / count) for side in (-reach, reach))
    return Interval(max(0.0, low), min(1.0, high))


def over_seeds(values: ArrayLike) -> MeanStd:
    """Mean and sample standard deviation of one value per seed.

    Raises:
        UserError: no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 1:
        raise UserError(f"expected one value per seed, got shape {array.shape}")
    return MeanStd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def per_image(metric: str, values: ArrayLike, seed: int, **fields: Any) -> Measurement:
    """Mean of per-image `values` (N,) with its bootstrap 95% interval; `fields` are those of `Measurement`.

    The details also hold the mean's standard error over images, std / sqrt(N).
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(array, seed)
    error = float(array.std(ddof=1)) / len(array) ** 0.5
    fields["details"] = fields.get("details", {}) | {"standard_error": error}
    mean = float(array.mean())
    return measurement(metric, mean, n=len(array), low=low, high=high, spread_kind="bootstrap 95%", **fields)
