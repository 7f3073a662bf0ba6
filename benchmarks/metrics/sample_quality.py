"""Distances between sets of images, measured on an extractor's features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.errors import UserError
from benchmarks.data import keyed_generator, picked
from benchmarks.metrics import fidelity, influence
from benchmarks.metrics.features import MOST_COMPARED, Extractor, Features, Images, cached_features
from benchmarks.metrics.frechet import frechet_distance
from benchmarks.metrics.influence import Influence
from benchmarks.records.catalogue import (
    COMPARED,
    FEWEST,
    NEIGHBOURS,
    PRIOR_STATISTICS_METRICS,
    RECONSTRUCTION_METRICS,
    dash,
    measurement,
)
from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import normal_interval, share_interval

SMALL_N = 2000
MOST_TRAINING_IMAGES = 50_000
"""Training images that samples are compared with at most: the number of published distances."""
Keep = Callable[[str, Influence], None]
"""Takes the influences of the images on a metric."""


def forget(metric: str, found: Influence) -> None:
    """Keep no influences."""


def training_images(train: Images, validation: Images) -> Images:
    """What samples are compared with in place of the test split: all other images, or 50,000 by a fixed stream."""
    count = len(train) + len(validation)
    if count <= MOST_TRAINING_IMAGES:
        return torch.cat([train, validation])
    order = torch.randperm(count, generator=keyed_generator(0, "training images"))[:MOST_TRAINING_IMAGES]
    held_out = order >= len(train)
    return torch.cat([train[order[~held_out]], validation[order[held_out] - len(train)]])


def fid_floor(
    others: Images,
    reference: Images,
    extractor: Extractor,
    cache: Path | None = None,
    reference_split: str = "test",
    shown: Callable[[Images], Images] = lambda images: images,
) -> Measurement:
    """Frechet distance of as many other real images, drawn by a fixed stream, to `reference`.

    `reference_split`, here and below, is where `reference` is from, for the details. Those drawn are compared as they
    are `shown`.
    """
    order = torch.randperm(len(others), generator=keyed_generator(0, "fid floor"))
    chosen = shown(picked(others, order[: min(len(reference), MOST_COMPARED)]))
    reference_features = cached_features(reference, extractor, cache)
    features = cached_features(chosen, extractor, cache)
    found = _distance("fid_floor", features, reference_features, extractor, reference_split=reference_split)
    return _with_interval(found, influence.of_frechet(features.values, reference_features.values))


def sample_metrics(
    samples: Images,
    reference: Images,
    extractor: Extractor,
    cache: Path | None = None,
    reference_split: str = "test",
    keep: Keep = forget,
) -> list[Measurement]:
    """`sample_fid`, `kid`, `precision`, `recall` and `inception_score` from one pass over the samples.

    `keep`, here and below, is given what each image moves a metric by.

    Raises:
        UserError: fewer than 10 images on either side.
    """
    _require_enough(samples, reference, "samples")
    features, real = extractor.features(samples), cached_features(reference, extractor, cache)
    return [
        *compared(COMPARED, features, real, extractor, keep, reference_split=reference_split),
        inception_score(features, real, extractor, reference_split),
    ]


def reconstruction_quality(
    reconstructions: Images,
    originals: Images,
    extractor: Extractor,
    cache: Path | None = None,
    keep: Keep = forget,
) -> list[Measurement]:
    """What `sample_metrics` says of samples, of reconstructions against their originals, under names of its own.

    Raises:
        UserError: fewer than 10 images.
    """
    _require_enough(reconstructions, originals, "reconstructions")
    features, real = extractor.features(reconstructions), cached_features(originals, extractor, cache)
    pairing = "with their own originals"
    return compared(RECONSTRUCTION_METRICS, features, real, extractor, keep, paired=True, pairing=pairing)


def prior_statistics_quality(
    samples: Images,
    reference: Images,
    extractor: Extractor,
    cache: Path | None = None,
    keep: Keep = forget,
    **how: Any,
) -> list[Measurement]:
    """What `sample_metrics` says, under names of their own, of samples drawn under statistics of the prior.

    `how` they were measured goes to the details.

    Raises:
        UserError: fewer than 10 images on either side.
    """
    _require_enough(samples, reference, "samples")
    features, real = extractor.features(samples), cached_features(reference, extractor, cache)
    return compared(PRIOR_STATISTICS_METRICS, features, real, extractor, keep, **how)


def _require_enough(images: Images, reference: Images, kind: str) -> None:
    if min(len(images), len(reference)) < FEWEST:
        raise UserError(f"expected at least {FEWEST} images, got {len(images)} {kind} and {len(reference)} references")


def compared(
    names: tuple[str, str, str, str],
    features: Features,
    reference: Features,
    extractor: Extractor,
    keep: Keep,
    paired: bool = False,
    **more: Any,
) -> list[Measurement]:
    """Frechet distance, kernel distance, precision and recall as the metrics `names`; `more` goes to the details."""
    theirs = fidelity.scores(features.values, reference.values)
    fid, kid, precision, recall = names
    details = _details(features, reference, extractor) | more
    neighbours = details | {"neighbours": NEIGHBOURS}
    common = {"n": features.n, "note": _note(features, reference)}
    values = [
        _distance(fid, features, reference, extractor, torch_fidelity_value=theirs.fid, **more),
        _kid(kid, theirs, common, details),
        measurement(precision, theirs.precision, details=neighbours, **common),
        measurement(recall, theirs.recall, details=neighbours, **common),
    ]
    ways = influence.of_frechet, influence.of_kernel, influence.of_precision, influence.of_recall
    influences = [way(features.values, reference.values, paired) for way in ways]
    for value, found in zip(values, influences, strict=True):
        keep(value.metric, found)
    return [_with_interval(value, found) for value, found in zip(values, influences, strict=True)]


def _with_interval(value: Measurement, found: Influence) -> Measurement:
    """`value` with its 95 % interval over other images of the same kind and number."""
    if value.value is None:
        return value
    drawing = value.details.get("subset_std", 0.0) / fidelity.KID_SUBSETS**0.5  # of KID's random subsets
    error = math.hypot(found.standard_error, drawing)
    if "precision" in value.metric or "recall" in value.metric:
        low, high = share_interval(value.value, error, min(len(side) for side in found.by_image))
    else:
        low, high = normal_interval(value.value, error)
    if "fid" in value.metric:
        low = max(0.0, low)
    details = value.details | {"standard_error": error}
    return replace(value, low=low, high=high, spread_kind="jackknife 95%", details=details)


def _distance(
    metric: str,
    features: Features,
    reference: Features,
    extractor: Extractor,
    torch_fidelity_value: float | None = None,
    **more: Any,
) -> Measurement:
    """Our distance, with torch-fidelity's own value beside it."""
    ours = frechet_distance(features.statistics, reference.statistics)
    if torch_fidelity_value is None:
        torch_fidelity_value = fidelity.fid(features.values, reference.values)
    details = _details(features, reference, extractor) | {"torch_fidelity_fid": torch_fidelity_value} | more
    return measurement(metric, ours, n=features.n, note=_note(features, reference), details=details)


def _kid(metric: str, theirs: fidelity.Scores, common: dict[str, Any], details: dict[str, Any]) -> Measurement:
    subsets = {"subset": theirs.kid_subset, "subsets": fidelity.KID_SUBSETS, "subset_std": theirs.kid_std}
    return measurement(metric, theirs.kid, details=details | subsets, **common)


def inception_score(features: Features, reference: Features, extractor: Extractor, split: str) -> Measurement:
    """The inception score of the samples' logits, a dash without classes; `reference`, `split` are for details."""
    if features.logits is None:
        return dash("inception_score", "the extractor has no classes")
    mean, std = fidelity.inception_score(features.logits)
    parts = {"classes": features.logits.shape[1], "splits": fidelity.SCORE_SPLITS, "split_std": std}
    details = _details(features, reference, extractor) | parts | {"reference_split": split}
    found = measurement("inception_score", mean, n=features.n, note=_note(features, reference), details=details)
    return _with_interval(found, influence.of_inception_score(features.logits, mean))


def _details(features: Features, reference: Features, extractor: Extractor) -> dict[str, Any]:
    """Everything that a value on features depends on."""
    return {
        "extractor": extractor.name,
        "extractor_version": extractor.version,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
        "rounding": "clamped to [0, 1], times 255, nearest 8-bit level",
        "n": features.n,
        "n_reference": reference.n,
        "reference_split": "test",
        "dims": extractor.dims,
    }


def _note(features: Features, reference: Features) -> str:
    """A warning where n is small: the distance is biased upwards, so that only equal n compare."""
    n = min(features.n, reference.n)
    notes = [f"n = {n} < {SMALL_N}: biased upwards, compare at equal n only"] if n < SMALL_N else []
    if n <= features.values.shape[1]:
        notes.append(f"n <= {features.values.shape[1]} feature dimensions: covariance is singular")
    if max(features.n, reference.n) > MOST_COMPARED:
        notes.append(f"of more than {MOST_COMPARED:,} images, so many count but in a Frechet distance, which has all")
    return "; ".join(notes)
