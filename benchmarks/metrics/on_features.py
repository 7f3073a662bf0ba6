"""Metrics of two sets of features that are added by their names, and which metrics there are with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.metrics.influence import Influence
from benchmarks.records.catalogue import METRICS, RECONSTRUCTION_METRICS, SAMPLE_METRICS

RECONSTRUCTION = "reconstruction_"
"""Begins the name of what a metric says of reconstructions."""


@dataclass(frozen=True)
class OnFeatures:
    """A value of two sets of features, (N, D) of what is judged and (M, D) of real images, float64 on the CPU.

    Args:
        value: from both sets.
        influence: what each image moves the value by, from both sets and whether row i of one belongs to row i of the
            other; it gives the interval, and without it the value has none.
    """

    value: Callable[[Tensor, Tensor], float]
    influence: Callable[[Tensor, Tensor, bool], Influence] | None = None


ON_FEATURES: dict[str, OnFeatures] = {}
"""Beside the metrics that are always there: of samples and, where `METRICS` holds `reconstruction_NAME`, of those."""


def of_samples() -> tuple[str, ...]:
    """The metrics of samples on features."""
    return (*SAMPLE_METRICS, *ON_FEATURES)


def of_reconstructions() -> tuple[str, ...]:
    """The metrics of reconstructions on features."""
    added = (f"{RECONSTRUCTION}{name}" for name in ON_FEATURES)
    return (*RECONSTRUCTION_METRICS, *(name for name in added if name in METRICS))
