"""What would stop a trial after its training, found before it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.base.errors import UserError
from benchmarks.data import DataSet
from benchmarks.records.catalogue import FEWEST
from benchmarks.suites.config import TrialConfig


def check(trials: Iterable[TrialConfig], data: DataSet) -> list[str]:
    """What is missing for the evaluation of trials on `data`, a line each: their extractors.

    Raises:
        UserError: a trial that cannot be trained on `data`, or evaluated as it asks.
    """
    asked: set[tuple[str, str]] = set()
    for trial in trials:
        _require_a_batch(trial, data)
        name = trial.evaluation.extractor or data.extractor
        if name:
            _require_images(trial, data)
            asked.add((name, trial.evaluation.extractor_weights))
    return [line for name, weights in sorted(asked) if (line := _what_an_extractor_lacks(name, weights, data))]


def _what_an_extractor_lacks(name: str, weights: str, data: DataSet) -> str:
    """Why the extractor cannot be used on `data`; empty if it can."""
    from benchmarks.metrics.extractors import open_extractor  # imports torchvision: seconds

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


def _require_images(trial: TrialConfig, data: DataSet) -> None:
    """Feature metrics need some images on both sides."""
    images = len(data.test[: trial.evaluation.images or None])
    for name, count in (("images", images), ("samples", trial.evaluation.samples or images)):
        if count < FEWEST:
            raise UserError(
                f"{trial.suite}.evaluation.{name}: expected at least {FEWEST} for the metrics on features, got {count} "
                f"(test split of {data.name}: {len(data.test):,})"
            )
