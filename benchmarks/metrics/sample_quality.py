"""Distances between sets of images, measured on an extractor's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base.errors import UserError
from benchmarks.data import keyed_generator, picked
from benchmarks.metrics import fidelity, influence
from benchmarks.metrics.features import MOST_COMPARED, Extractor, Features, Images, cached_features
from benchmarks.metrics.frechet import frechet_distance
from benchmarks.metrics.influence import Influence
from benchmarks.metrics.on_features import ON_FEATURES, RECONSTRUCTION, OnFeatures
from benchmarks.records.catalogue import (
    COMPARED,
    FEWEST,
    METRICS,
    NEIGHBOURS,
    PRIOR_STATISTICS_METRICS,
    RECONSTRUCTION_METRICS,
    dash,
    measurement,
)
from benchmarks.records.record import Measurement
from benchmarks.records.uncertainty import Interval, normal_interval, not_negative_interval, share_interval

SMALL_N = 2000
BIASED, DEPENDS = "biased upwards", "its mean depends on n"
"""What fewer images than that do to a value."""
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
    sets = TwoSets(features, reference_features, extractor, more={"reference_split": reference_split})
    return sets.frechet("fid_floor")


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
    sets = TwoSets(features, real, extractor, keep=keep, more={"reference_split": reference_split})
    return [*compared(COMPARED, sets), sets.inception_score(), *sets.added(ON_FEATURES)]


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
    more = {"pairing": "with their own originals"}
    sets = TwoSets(features, real, extractor, True, keep, more)
    return [*compared(RECONSTRUCTION_METRICS, sets), *sets.added(ON_FEATURES, RECONSTRUCTION)]


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
    return compared(PRIOR_STATISTICS_METRICS, TwoSets(features, real, extractor, keep=keep, more=how))


def _require_enough(images: Images, reference: Images, kind: str) -> None:
    if min(len(images), len(reference)) < FEWEST:
        raise UserError(f"expected at least {FEWEST} images, got {len(images)} {kind} and {len(reference)} references")


@dataclass(frozen=True)
class TwoSets:
    """Two sets of features, measured metric by metric, each value with its 95 % interval.

    Args:
        features: of what is judged (N, D).
        reference: of what it is judged by (M, D).
        extractor: whose features they are.
        paired: row i of one belongs to row i of the other.
        keep: is given what each image moves a metric by.
        more: goes to the details of every value.
    """

    features: Features
    reference: Features
    extractor: Extractor
    paired: bool = False
    keep: Keep = forget
    more: Mapping[str, Any] = field(default_factory=dict)

    def frechet(self, metric: str) -> Measurement:
        """The Frechet distance, with torch-fidelity's own value in the details."""
        value = frechet_distance(self.features.statistics, self.reference.statistics)
        found = influence.of_frechet(*self._sides, self.paired)
        details = {"torch_fidelity_fid": fidelity.fid(*self._sides)}
        return self._measured(metric, value, found, not_negative_interval, details, BIASED)

    def kernel(self, metric: str) -> Measurement:
        """The kernel distance; its error is that of its random subsets as well."""
        theirs = fidelity.kid(*self._sides)
        found = influence.of_kernel(*self._sides, self.paired)
        found = replace(found, besides=theirs.std**2 / fidelity.KID_SUBSETS)
        details = {"subset": theirs.subset, "subsets": fidelity.KID_SUBSETS, "subset_std": theirs.std}
        return self._measured(metric, theirs.mean, found, normal_interval, details)

    def neighbours(self, precision: str, recall: str) -> list[Measurement]:
        """Both shares of one side inside the manifold of the other."""
        shares = fidelity.precision_and_recall(*self._sides)
        ways = influence.of_precision, influence.of_recall
        rows = []
        for metric, share, way in zip((precision, recall), shares, ways, strict=True):
            found = way(*self._sides, self.paired)
            interval = partial(share_interval, n=min(len(side) for side in found.by_image))
            rows.append(self._measured(metric, share, found, interval, {"neighbours": NEIGHBOURS}, DEPENDS))
        return rows

    def inception_score(self) -> Measurement:
        """The inception score of the judged side's logits, a dash without classes."""
        if self.features.logits is None:
            return dash("inception_score", "the extractor has no classes")
        mean, std = fidelity.inception_score(self.features.logits)
        found = influence.of_inception_score(self.features.logits, mean)
        details = {"classes": self.features.logits.shape[1], "splits": fidelity.SCORE_SPLITS, "split_std": std}
        return self._measured("inception_score", mean, found, normal_interval, details, DEPENDS)

    def added(self, metrics: Mapping[str, OnFeatures], prefix: str = "") -> list[Measurement]:
        """The added metrics; under a name that begins otherwise, those of which the catalogue has that name."""
        named = {f"{prefix}{name}": metric for name, metric in metrics.items()}
        return [self._added(name, metric) for name, metric in named.items() if not prefix or name in METRICS]

    def _added(self, name: str, metric: OnFeatures) -> Measurement:
        found = None if metric.influence is None else metric.influence(*self._sides, self.paired)
        return self._measured(name, metric.value(*self._sides), found, normal_interval, {}, DEPENDS)

    @property
    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.features.values, self.reference.values

    def _measured(
        self,
        metric: str,
        value: float,
        found: Influence | None,
        interval: Callable[[float, float], Interval],
        details: Mapping[str, Any],
        small: str = "",
    ) -> Measurement:
        """The value, with its interval over other images of the same kind and number where influences are `found`.

        `small` is what few images do to it.
        """
        details = _details(self.features, self.reference, self.extractor) | dict(self.more) | dict(details)
        one = measurement(metric, value, n=self.features.n, note=self._note(small), details=details)
        if found is None:
            return one
        self.keep(metric, found)
        low, high = interval(value, found.standard_error)
        details |= {"standard_error": found.standard_error}
        return replace(one, low=low, high=high, spread_kind="jackknife 95%", details=details)

    def _note(self, small: str) -> str:
        """A warning where n is small and that matters: only equal n compare."""
        n = min(self.features.n, self.reference.n)
        notes = [f"n = {n:,} < {SMALL_N:,}: {small}, compare at equal n only"] if small and n < SMALL_N else []
        if small == BIASED and n <= self.extractor.dims:
            notes.append(f"n <= {self.extractor.dims} feature dimensions: covariance is singular")
        if max(self.features.n, self.reference.n) > MOST_COMPARED:
            notes.append(f"of more than {MOST_COMPARED:,} images, so many count, but all in a Frechet distance")
        return "; ".join(notes)


def compared(names: tuple[str, str, str, str], sets: TwoSets) -> list[Measurement]:
    """Frechet distance, kernel distance, precision and recall as the metrics `names`."""
    fid, kid, precision, recall = names
    return [sets.frechet(fid), sets.kernel(kid), *sets.neighbours(precision, recall)]


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
