"""What would stop a trial after its training, found before it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.base.errors import UserError
from benchmarks.data import DataSet
from benchmarks.metrics.extractors import open_extractor
from benchmarks.records.catalogue import FEWEST
from benchmarks.suites.config import TrialConfig

FEWEST_SCORED = 2
"""Test images from which an interval can be drawn."""


def check(trials: Iterable[TrialConfig], data: DataSet) -> list[str]:
    """What is missing for the evaluation of trials on `data`, a line each: their extractors.

    Raises:
        UserError: a trial that cannot be trained on `data`, or evaluated as it asks.
    """
    found = list(trials)
    for trial in found:
        _require_a_batch(trial, data)
    return missing_for_evaluation(found, data)


def missing_for_evaluation(trials: Iterable[TrialConfig], data: DataSet) -> list[str]:
    """As `check`, of trials that are trained."""
    asked: set[tuple[str, str]] = set()
    for trial in trials:
        name = trial.evaluation.extractor or data.extractor
        images = len(data.test[: trial.evaluation.images or None])
        _require_count(trial, data, "images", images, FEWEST if name else FEWEST_SCORED)
        if name:
            _require_count(trial, data, "samples", trial.evaluation.samples or images, FEWEST)
            asked.add((name, trial.evaluation.extractor_weights))
    return [line for name, weights in sorted(asked) if (line := _what_an_extractor_lacks(name, weights, data))]


def _what_an_extractor_lacks(name: str, weights: str, data: DataSet) -> str:
    """Why the extractor cannot be used on `data`; empty if it can."""
    shape = data.image.channels, data.image.height, data.image.width
    try:
        open_extractor(name, weights or None).require_shape(*shape)
    except UserError as error:
        return str(error)
    return ""


def _require_a_batch(trial: TrialConfig, data: DataSet) -> None:
    """A batch holds an image of the training split at most once."""
    batch, images = trial.training.batch_size, len(data.train)
    if batch > images:
        raise UserError(
            f"{trial.suite}.models.{trial.row}.training.batch_size: expected at most the {images:,} training images of "
            f"{data.name}, got {batch:,}"
        )


def _require_count(trial: TrialConfig, data: DataSet, name: str, count: int, fewest: int) -> None:
    """An interval needs two images, metrics on features some more on both sides."""
    if count < fewest:
        raise UserError(
            f"{trial.suite}.evaluation.{name}: expected at least {fewest} for what is measured, got {count} "
            f"(test split of {data.name}: {len(data.test):,})"
        )
