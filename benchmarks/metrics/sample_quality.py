"""Distances between sets of images, measured on an extractor's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.base.errors import UserError
from benchmarks.data import keyed_generator
from benchmarks.metrics import fidelity
from benchmarks.metrics.features import Extractor, Features, Images, cached_features
from benchmarks.metrics.frechet import FeatureStatistics, frechet_distance
from benchmarks.records.catalogue import (
    COMPARED,
    FEWEST,
    PRIOR_STATISTICS_METRICS,
    RECONSTRUCTION_METRICS,
    dash,
    measurement,
)
from benchmarks.records.record import Measurement

SMALL_N = 2000
MOST_TRAINING_IMAGES = 50_000
"""Training images that samples are compared with at most: the number of published distances."""


def training_images(train: Images, validation: Images) -> Images:
    """What samples are compared with in place of the test split: all other images, or 50,000 by a fixed stream."""
    count = len(train) + len(validation)
    if count <= MOST_TRAINING_IMAGES:
        return torch.cat([train, validation])
    order = torch.randperm(count, generator=keyed_generator(0, "training images"))[:MOST_TRAINING_IMAGES]
    held_out = order >= len(train)
    return torch.cat([train[order[~held_out]], validation[order[held_out] - len(train)]])


def fid_floor(
    others: Images, reference: Images, extractor: Extractor, cache: Path | None = None, reference_split: str = "test"
) -> Measurement:
    """Frechet distance of as many other real images, drawn by a fixed stream, to `reference`.

    `reference_split`, here and below, is where `reference` is from, for the details.
    """
    order = torch.randperm(len(others), generator=keyed_generator(0, "fid floor"))
    chosen = others[order[: len(reference)]]
    reference_features = cached_features(reference, extractor, cache)
    features = cached_features(chosen, extractor, cache)
    return _distance("fid_floor", features, reference_features, extractor, reference_split=reference_split)


def sample_metrics(
    samples: Images, reference: Images, extractor: Extractor, cache: Path | None = None, reference_split: str = "test"
) -> list[Measurement]:
    """`sample_fid`, `kid`, `precision`, `recall` and `inception_score` from one pass over the samples.

    Raises:
        UserError: fewer than 10 images on either side.
    """
    _require_enough(samples, reference, "samples")
    features, real = extractor.features(samples), cached_features(reference, extractor, cache)
    return [
        *_compared(COMPARED, features, real, extractor, reference_split=reference_split),
        _inception_score(features, real, extractor, reference_split),
    ]


def reconstruction_quality(
    reconstructions: Images, originals: Images, extractor: Extractor, cache: Path | None = None
) -> list[Measurement]:
    """What `sample_metrics` says of samples, of reconstructions against their originals, under names of its own.

    Raises:
        UserError: fewer than 10 images.
    """
    _require_enough(reconstructions, originals, "reconstructions")
    features, real = extractor.features(reconstructions), cached_features(originals, extractor, cache)
    return _compared(RECONSTRUCTION_METRICS, features, real, extractor, pairing="with their own originals")


def prior_statistics_quality(
    samples: Images, reference: Images, extractor: Extractor, cache: Path | None = None, **how: int | str
) -> list[Measurement]:
    """What `sample_metrics` says, under names of their own, of samples drawn under statistics of the prior.

    `how` they were measured goes to the details.

    Raises:
        UserError: fewer than 10 images on either side.
    """
    _require_enough(samples, reference, "samples")
    features, real = extractor.features(samples), cached_features(reference, extractor, cache)
    return _compared(PRIOR_STATISTICS_METRICS, features, real, extractor, **how)


def _require_enough(images: Images, reference: Images, kind: str) -> None:
    if min(len(images), len(reference)) < FEWEST:
        raise UserError(f"expected at least {FEWEST} images, got {len(images)} {kind} and {len(reference)} references")


def _compared(
    names: tuple[str, str, str, str], features: Features, reference: Features, extractor: Extractor, **more: Any
) -> list[Measurement]:
    """Frechet distance, kernel distance, precision and recall as the metrics `names`; `more` goes to the details."""
    theirs = fidelity.scores(features.values, reference.values)
    fid, kid, precision, recall = names
    details = _details(features, reference, extractor) | more
    neighbours = details | {"neighbours": fidelity.NEIGHBOURS}
    common = {"n": len(features.values), "note": _note(features, reference)}
    return [
        _distance(fid, features, reference, extractor, torch_fidelity_value=theirs.fid, **more),
        _kid(kid, theirs, common, details),
        measurement(precision, theirs.precision, details=neighbours, **common),
        measurement(recall, theirs.recall, details=neighbours, **common),
    ]


def _distance(
    metric: str,
    features: Features,
    reference: Features,
    extractor: Extractor,
    torch_fidelity_value: float | None = None,
    **more: Any,
) -> Measurement:
    """Our distance, with torch-fidelity's own value beside it."""
    ours = frechet_distance(FeatureStatistics.of(features.values), FeatureStatistics.of(reference.values))
    if torch_fidelity_value is None:
        torch_fidelity_value = fidelity.fid(features.values, reference.values)
    details = _details(features, reference, extractor) | {"torch_fidelity_fid": torch_fidelity_value} | more
    return measurement(metric, ours, n=len(features.values), note=_note(features, reference), details=details)


def _kid(metric: str, theirs: fidelity.Scores, common: dict[str, Any], details: dict[str, Any]) -> Measurement:
    subsets = {"subset": theirs.kid_subset, "subsets": fidelity.KID_SUBSETS}
    low, high = theirs.kid - theirs.kid_std, theirs.kid + theirs.kid_std
    spread = {"low": low, "high": high, "spread_kind": "std over subsets"}
    return measurement(metric, theirs.kid, details=details | subsets, **spread, **common)


def _inception_score(features: Features, reference: Features, extractor: Extractor, split: str) -> Measurement:
    if features.logits is None:
        return dash("inception_score", "the extractor has no classes")
    mean, std = fidelity.inception_score(features.logits)
    spread = {"low": mean - std, "high": mean + std, "spread_kind": "std over subsets"}
    parts = {"classes": features.logits.shape[1], "splits": fidelity.SCORE_SPLITS}
    details = _details(features, reference, extractor) | parts | {"reference_split": split}
    note = _note(features, reference)
    return measurement("inception_score", mean, n=len(features.values), note=note, details=details, **spread)


def _details(features: Features, reference: Features, extractor: Extractor) -> dict[str, Any]:
    """Everything that a value on features depends on."""
    return {
        "extractor": extractor.name,
        "extractor_version": extractor.version,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
        "rounding": "clamped to [0, 1], times 255, nearest 8-bit level",
        "n": len(features.values),
        "n_reference": len(reference.values),
        "reference_split": "test",
        "dims": extractor.dims,
    }


def _note(features: Features, reference: Features) -> str:
    """A warning where n is small: the distance is biased upwards, so that only equal n compare."""
    n = min(len(features.values), len(reference.values))
    notes = [f"n = {n} < {SMALL_N}: biased upwards, compare at equal n only"] if n < SMALL_N else []
    if n <= features.values.shape[1]:
        notes.append(f"n <= {features.values.shape[1]} feature dimensions: covariance is singular")
    return "; ".join(notes)
